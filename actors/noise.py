"""The random choice of a token, as a pure function of where it is drawn.

A token is drawn by the Gumbel-max trick: argmax(logits / temperature + noise), where the noise of each
(stream, position, token) is a hash and nothing else. So two samplers that agree on the logits agree on
the tokens, a lost sample can be drawn again on another machine, and no sample depends on its
batch-mates or on how many samples were drawn before it.
"""

import hashlib

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def stream_key(run_seed: int, prompt_id: str, index: int, phase: str) -> int:
    """The 32-bit name of one token stream: one phase ("cot" or "image") of one sample."""
    name = f"{run_seed}\0{prompt_id}\0{index}\0{phase}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "big")


def _mix(x: Tensor) -> Tensor:
    """A 32-bit finaliser (two multiply-xorshift rounds; constants: github.com/skeeto/hash-prospector,
    public domain), on int64 tensors that hold 32-bit values."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _MASK
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _MASK
    return x ^ (x >> 15)


def gumbel_noise(keys: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise for B streams at one position each.

    keys, positions: int64 [B]. Returns float32 [B, vocabulary], the same on every device.
    """
    rows = _mix(keys ^ _mix(positions + 0x9E3779B9))[:, None]
    tokens = torch.arange(vocabulary, device=keys.device)[None]
    bits = _mix(rows ^ _mix(tokens + 0x85EBCA6B))
    # -log(-log(1 - v)): the largest noise comes from the smallest v, where float32 is finest.
    uniform = ((bits.float() + 0.5) / 2**32).clamp_(max=1 - 2**-24)
    return -torch.log(-torch.log1p(-uniform))


def draw_tokens(logits: Tensor, keys: Tensor, positions: Tensor, temperature: float) -> Tensor:
    """One token a row. logits float32 [B, V]; temperature 0 takes the likeliest. Returns int64 [B]."""
    if temperature == 0:
        return logits.argmax(-1)
    return (logits / temperature + gumbel_noise(keys, positions, logits.shape[-1])).argmax(-1)


def token_logps(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of one token a row: logits float32 [B, V], tokens int64 [B] -> float32 [B].
    Those of a greedy draw (temperature 0) are at temperature 1."""
    scaled = logits / (temperature or 1.0)
    return scaled.gather(1, tokens[:, None]).squeeze(1) - scaled.logsumexp(-1)
