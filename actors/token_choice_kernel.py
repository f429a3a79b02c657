"""`actors.token_choice.choose_tokens` as one Triton kernel: the logits are read once, and nothing as
wide as the vocabulary is written. Guidance, noise, choice and both log-probabilities of a row are one
program.

It draws the tokens that the torch version draws, up to rounding where two tokens tie; a test runs it in
Triton's interpreter."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048
_LOWEST = tl.constexpr(-1.0e30)


def choose(
    conditional: Tensor,
    unconditional: Tensor | None,
    guidance: float,
    keys: Tensor,
    positions: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `choose_tokens`. Rows of the logits may be strided."""
    rows, vocabulary = conditional.shape
    guided = unconditional is not None
    away = conditional if unconditional is None else unconditional
    tokens = torch.empty(rows, dtype=torch.int64, device=conditional.device)
    logps, guided_logps = (torch.empty_like(tokens, dtype=torch.float32) for _ in range(2))
    if rows:
        _kernel[(rows,)](
            conditional,
            away,
            conditional.stride(0),
            away.stride(0),
            keys,
            positions,
            tokens,
            logps,
            guided_logps,
            vocabulary,
            guidance,
            temperature or 1.0,
            GUIDED=guided,
            GREEDY=temperature == 0,
            BLOCK=_BLOCK,
        )
    return tokens, logps, guided_logps


@triton.jit
def _mix(x):
    """`actors.token_choice._mix`, on uint32."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0x735A2D97
    return x ^ (x >> 15)


@triton.jit
def _time(token, mask, factor):
    """Each token's time in the exponential race."""
    bits = (_mix(token.to(tl.uint32) + 0x85EBCA6B) ^ mask) * factor
    bits = (bits ^ (bits >> 15)) * 0x735A2D97
    uniform = ((bits & 0x7FFFFFFF).to(tl.float32) + 0.5) * 4.656612873077393e-10  # 2**-31
    # log1p, which Triton's interpreter does not have: for small values its series.
    series = uniform * (1 + uniform * (0.5 + uniform / 3))
    return tl.where(uniform < 1e-3, series, -tl.log(1 - uniform))


@triton.jit
def _add(top, total, x, inside):
    """One more value a lane in a running log-sum-exp: its maximum and its sum over exp(maximum)."""
    higher = tl.maximum(top, x)
    total = total * tl.exp(top - higher) + tl.where(inside, tl.exp(x - higher), 0.0)
    return higher, total


@triton.jit
def _log_sum(top, total):
    """The lanes' running log-sum-exps as one."""
    highest = tl.max(top, 0)
    return highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))


@triton.jit
def _kernel(
    conditional,
    unconditional,
    conditional_stride,
    unconditional_stride,
    keys,
    positions,
    tokens,
    logps,
    guided_logps,
    vocabulary,
    guidance,
    temperature,
    GUIDED: tl.constexpr,
    GREEDY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + row).to(tl.uint32)
    mask = _mix(tl.load(keys + row).to(tl.uint32) ^ _mix(position + 0x9E3779B9))
    factor = _mix(mask + 0x85EBCA6B) | 1
    lanes = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), _LOWEST, tl.float32)
    winner = tl.zeros((BLOCK,), tl.int32)
    top, total = tl.full((BLOCK,), _LOWEST, tl.float32), tl.zeros((BLOCK,), tl.float32)
    other_top, other_total = top, total
    for first in range(0, vocabulary, BLOCK):
        token = first + lanes
        inside = token < vocabulary
        cond = tl.load(conditional + row * conditional_stride + token, mask=inside, other=_LOWEST)
        target = cond
        if GUIDED:
            away = tl.load(
                unconditional + row * unconditional_stride + token, mask=inside, other=_LOWEST
            )
            target = tl.where(inside, away + guidance * (cond - away), _LOWEST)
            other_top, other_total = _add(other_top, other_total, cond / temperature, inside)
        scaled = target / temperature
        top, total = _add(top, total, scaled, inside)
        score = scaled
        if not GREEDY:
            score = tl.where(inside, scaled - tl.log(_time(token, mask, factor)), _LOWEST)
        better = inside & (score > best)
        best = tl.where(better, score, best)
        winner = tl.where(better, token, winner)
    highest = tl.max(best, 0)
    chosen = tl.min(tl.where(best == highest, winner, vocabulary), 0)
    cond = tl.load(conditional + row * conditional_stride + chosen)
    target = cond
    if GUIDED:
        away = tl.load(unconditional + row * unconditional_stride + chosen)
        target = away + guidance * (cond - away)
    guided = target / temperature - _log_sum(top, total)
    tl.store(tokens + row, chosen.to(tl.int64))
    tl.store(guided_logps + row, guided)
    if GUIDED:
        guided = cond / temperature - _log_sum(other_top, other_total)
    tl.store(logps + row, guided)
