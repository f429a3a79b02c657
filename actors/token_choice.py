"""The random choice of a token, as a pure function of stream and position.

A token is sampled by an exponential race (the Gumbel-max trick, without its second logarithm): each
token i gets a standard exponential time E_i, and the one with the largest p_i / E_i wins, which happens
with probability p_i. E_i is a hash of (stream, position, token) and nothing else. So two samplers that
agree on the logits agree on the tokens, a lost sample can be generated again on another machine, and no
sample depends on its batch-mates or on how many samples were generated before it.

B rows, V tokens of the vocabulary."""

import hashlib
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

try:
    from actors import token_choice_kernel
except ImportError:  # Triton comes with torch's CUDA builds alone
    token_choice_kernel = None  # type: ignore[assignment]  # a module or None

_MASK = 0xFFFFFFFF
_WORK_SET = 2**17
"""Elements that a CPU core handles at a time, so that they stay in its cache."""
_STRIPE = 256


class Choice(NamedTuple):
    """The tokens that were chosen, and their log-probabilities at the sampling temperature."""

    tokens: Tensor  # int64 [B]
    logps: Tensor  # float32 [B], of the conditional distribution
    guided_logps: Tensor  # float32 [B], of the guided one, which was sampled from


def stream_key(run_seed: int, prompt_id: str, index: int, phase: str) -> int:
    """The 32-bit name of one token stream: one phase ("cot" or "image") of one sample."""
    name = f"{run_seed}\0{prompt_id}\0{index}\0{phase}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "big")


def choose_tokens(
    conditional: Tensor,
    keys: Tensor,
    positions: Tensor,
    temperature: float,
    *,
    unconditional: Tensor | None = None,
    guidance: float = 1.0,
) -> Choice:
    """Draw one token a row from uncond + guidance * (cond - uncond), or from cond alone.

    Args:
        conditional, unconditional: logits, float32 [B, V]. keys, positions: int64 [B], the stream of
        each row and the position in it. temperature: divides the logits; 0 takes the likeliest token,
        with log-probabilities at 1.
    """
    if conditional.is_cuda and token_choice_kernel is not None:
        return Choice(
            *token_choice_kernel.choose(
                conditional, unconditional, guidance, keys, positions, temperature
            )
        )
    if conditional.is_cuda:
        return _choose(conditional, unconditional, guidance, keys, positions, temperature)
    rows = max(1, _WORK_SET // conditional.shape[1])
    parts = []
    for first in range(0, len(conditional), rows):
        here = slice(first, first + rows)
        other = None if unconditional is None else unconditional[here]
        parts.append(
            _choose(conditional[here], other, guidance, keys[here], positions[here], temperature)
        )
    return parts[0] if len(parts) == 1 else Choice(*map(torch.cat, zip(*parts, strict=True)))


def _choose(conditional, unconditional, guidance, keys, positions, temperature) -> Choice:
    target = conditional
    if unconditional is not None:
        target = (conditional - unconditional).mul_(guidance).add_(unconditional)
    scale = temperature or 1.0
    top = target.amax(1, keepdim=True)
    unnormalized = target - top
    if scale != 1:
        unnormalized /= scale
    unnormalized.exp_()  # up to a factor
    total = unnormalized.sum(1)
    if temperature == 0:
        tokens = _argmax(target)
    else:
        tokens = _argmax(unnormalized.div_(exponential_noise(keys, positions, target.shape[1])))
    guided = (_at(target, tokens) - top[:, 0]) / scale - total.log()
    if unconditional is None:
        return Choice(tokens, guided, guided)
    return Choice(tokens, token_logps(conditional, tokens, temperature), guided)


def token_logps(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of one token a row: logits float32 [B, V], tokens int64 [B] -> float32 [B].
    Those of a greedy choice (temperature 0) are at temperature 1."""
    scale = temperature or 1.0
    top = logits.amax(1, keepdim=True)
    shifted = logits - top
    if scale != 1:
        shifted /= scale
    return (_at(logits, tokens) - top[:, 0]) / scale - shifted.exp_().sum(1).log()


def exponential_noise(keys: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """Standard exponential noise for B streams at one position each.

    keys, positions: int64 [B]. Returns float32 [B, vocabulary], the same on every device up to the
    rounding of one logarithm.
    """
    # Of a uniform 32-bit word only 31 bits are used: they convert to float32 without a sign, and small
    # ones, which win the race, exactly.
    factors, masks = (word[:, None] for word in _row_words(keys, positions))
    bits = torch.bitwise_xor(_token_words(vocabulary, keys.device), masks)
    bits *= factors
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= 0x735A2D97
    bits &= 0x7FFFFFFF
    return bits.float().add_(0.5).mul_(-(2.0**-31)).log1p_().neg_()


def _row_words(keys: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Two hashes of a row's stream and position, int32 [B]: one odd, one of any value. With a token's
    own word t they make its noise: a hash of (t ^ any) * odd."""
    row = _mix(keys ^ _mix(positions + 0x9E3779B9))
    return _int32(_mix(row + 0x85EBCA6B) | 1), _int32(row)


@lru_cache(8)
def _token_words(vocabulary: int, device: torch.device) -> Tensor:
    """A hash of each token, int32 [V]."""
    return _int32(_mix(torch.arange(vocabulary, device=device) + 0x85EBCA6B))


def _mix(x: Tensor) -> Tensor:
    """A 32-bit finaliser (two multiply-xorshift rounds; constants: github.com/skeeto/hash-prospector,
    public domain), on int64 tensors that hold 32-bit values."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _MASK
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _MASK
    return x ^ (x >> 15)


def _int32(x: Tensor) -> Tensor:
    """The low 32 bits of an int64 tensor as int32."""
    return (x - ((x & 0x80000000) << 1)).int()


def _at(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(1, tokens[:, None]).squeeze(1)


def _argmax(x: Tensor) -> Tensor:
    """`x.argmax(1)`. On CPUs that is slow where a maximum is fast, so the stripe that holds it is found
    first."""
    width = x.shape[1] // _STRIPE * _STRIPE
    if x.is_cuda or width < 8 * _STRIPE:
        return x.argmax(1)
    stripes = x[:, :width].unflatten(1, (-1, _STRIPE))
    tops = stripes.amax(2)
    stripe = tops.argmax(1)
    rows = torch.arange(len(x))
    best = stripe * _STRIPE + stripes[rows, stripe].argmax(1)
    if width < x.shape[1]:
        tail = x[:, width:].argmax(1)
        best = torch.where(x[rows, width + tail] > tops[rows, stripe], width + tail, best)
    return best
