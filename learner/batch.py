"""Samples as padded tensors, cut into micro-batches that one forward and backward pass can hold.

N samples; P1, P2 the longest semantic-CoT and image prompt, Lc the longest CoT, Ti image tokens.
Prompts are padded on the left and CoTs on the right, so that what was generated starts at one column.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from learner.loss_defaults import Aggregation
from policy.records import Sample


@dataclass(frozen=True)
class Batch:
    cot_prompt: Tensor  # int64 [N, P1], left-padded
    cot_prompt_mask: Tensor  # bool [N, P1]
    cot: Tensor  # int64 [N, Lc], right-padded
    cot_mask: Tensor  # bool [N, Lc]
    image_prompt: Tensor  # int64 [N, P2], left-padded
    image_prompt_mask: Tensor  # bool [N, P2]
    image: Tensor  # int64 [N, Ti]; of a sample without an image zeros, of weight 0
    sampled_logps: Tensor  # float32 [N, Lc + Ti], as the sampler returned them
    guided_logps: Tensor  # float32 [N, Ti], of the guided distribution that was sampled from
    advantages: Tensor  # float32 [N, 2], of the semantic CoT and of the image
    token_weights: Tensor  # float32 [N, Lc + Ti], each token's weight in the step's loss; 0 is padding
    counts: Tensor  # float32 [N], each sample's share in what the step's loss is divided by

    def to(self, device) -> "Batch":
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def __len__(self) -> int:
        return len(self.cot)

    @property
    def token_advantages(self) -> Tensor:
        """float32 [N, Lc + Ti]: each token's advantage is its CoT's."""
        widths = self.cot.shape[1], self.image.shape[1]
        columns = self.advantages.split(1, 1)
        return torch.cat([c.expand(-1, width) for c, width in zip(columns, widths, strict=True)], 1)


def make_batch(
    samples: Sequence[Sample],
    advantages: Sequence[float] | Sequence[Sequence[float]],
    *,
    pad_id: int,
    cot_weight: float = 1.0,
    image_weight: float = 1.0,
    aggregation: Aggregation = "token_mean",
    loss_length: float = 1.0,
) -> Batch:
    """Collate samples. `advantages`: one a sample, or a pair, one for each of its CoTs. `cot_weight`
    and `image_weight` weigh each token of the two CoTs; both 1, in a token mean, is the paper's
    loss."""
    cot_prompt, cot_prompt_mask = _pad([s.cot_prompt_ids for s in samples], pad_id, left=True)
    cot, cot_mask = _pad([s.cot_ids for s in samples], pad_id)
    image_prompt, image_prompt_mask = _pad([s.image_prompt_ids for s in samples], pad_id, left=True)
    image, image_mask = _pad([s.image_ids for s in samples], 0)
    cot_logps, _ = _pad([s.cot_logps for s in samples], 0.0)
    image_logps, _ = _pad([s.image_logps for s in samples], 0.0)
    guided_logps, _ = _pad([s.image_guided_logps for s in samples], 0.0)
    by_cot = cot_weight * cot_mask.float(), image_weight * image_mask.float()
    token_weights, counts = aggregate(*by_cot, aggregation, loss_length)
    advantage = torch.tensor(advantages, dtype=torch.float32).view(len(samples), -1)
    return Batch(
        cot_prompt=cot_prompt,
        cot_prompt_mask=cot_prompt_mask,
        cot=cot,
        cot_mask=cot_mask,
        image_prompt=image_prompt,
        image_prompt_mask=image_prompt_mask,
        image=image,
        sampled_logps=torch.cat([cot_logps, image_logps], 1),
        guided_logps=guided_logps,
        advantages=advantage.expand(-1, 2),
        token_weights=token_weights,
        counts=counts,
    )


def aggregate(
    cot: Tensor, image: Tensor, how: Aggregation, length: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Each token's weight in the loss, [N, Lc + Ti], and each sample's share in the divisor, [N]; the
    loss of a step is the sum of weights * losses over the sum of shares, however a step is cut.

    From each token's weight in its CoT, [N, Lc] and [N, Ti], 0 on padding:
    `token_mean`: a mean over all tokens of the step (BiCoT-GRPO; DAPO, arXiv 2503.14476).
    `sample_mean`: over each sample's tokens, then over samples (GRPO, arXiv 2402.03300).
    `cot_mean`: over each CoT's tokens, then over CoTs, which weigh as one token of theirs does.
    `constant`: a sample's sum over `length`, then over samples (Dr. GRPO, arXiv 2503.20783).
    """
    both = torch.cat([cot, image], 1)
    if how == "token_mean":
        return both, both.sum(1)
    if how == "cot_mean":
        spans = [(w, (w > 0).sum(1, keepdim=True).clamp(min=1)) for w in (cot, image)]
        return torch.cat([w / n for w, n in spans], 1), cot.amax(1) + image.amax(1)
    counted = (both > 0).any(1).to(both.dtype)
    whole = both.sum(1, keepdim=True) if how == "sample_mean" else torch.full((1, 1), length)
    return torch.where(both > 0, both / whole, 0.0), counted


def empty_like(batch: Batch) -> Batch:
    """A batch of one sample of weight 0, so that ranks with less work make as many passes."""
    first = Batch(**{f.name: getattr(batch, f.name)[:1] for f in fields(batch)})
    nothing = {name: torch.zeros_like(getattr(first, name)) for name in ("token_weights", "counts")}
    return Batch(**{**vars(first), **nothing})


def _pad(rows, value, left: bool = False) -> tuple[Tensor, Tensor]:
    """Padded [N, longest], at least one column; and the mask of real entries, bool."""
    width = max(1, *(len(row) for row in rows))
    tensors = [torch.tensor(row) for row in rows]  # copies: Ray's arrays are read-only
    padded = tensors[0].new_full((len(rows), width), value)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for n, row in enumerate(tensors):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        padded[n, span] = row
        mask[n, span] = True
    return padded, mask


AnyRow = tuple[Any, ...]
"""A sample, then what belongs to it."""


def by_tokens(rows: Sequence[AnyRow], budget: int) -> list[list[AnyRow]]:
    """Cut into micro-batches of at most `budget` padded tokens each, text and image sequences together.

    Sorted by length first, so that little is padding.
    """
    parts: list[list[AnyRow]] = []
    widest: tuple[int, ...] = (0, 0)
    for row in sorted(rows, key=lambda row: sum(_lengths(row[0]))):
        wider = tuple(map(max, widest, _lengths(row[0])))
        if parts and sum(wider) * (len(parts[-1]) + 1) <= budget:
            parts[-1].append(row)
            widest = wider
        else:
            parts.append([row])
            widest = _lengths(row[0])
    return parts


def in_parts(rows: Sequence[AnyRow], count: int) -> list[list[AnyRow]]:
    """Rows dealt round into `count` micro-batches, or into one a row if there are fewer."""
    return [list(rows[i::count]) for i in range(min(count, len(rows)))]


def balance(sizes: Sequence[int], bins: int) -> list[list[int]]:
    """Item numbers for each bin, so that all bins hold about the same: the largest item first, each
    into the bin that holds least (Graham's LPT rule: at most a third above the optimum)."""
    numbers: list[list[int]] = [[] for _ in range(bins)]
    held = [0] * bins
    for n in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        least = held.index(min(held))
        numbers[least].append(n)
        held[least] += sizes[n]
    return numbers


def _lengths(sample: Sample) -> tuple[int, int]:
    """Tokens of its text sequence and of its image sequence."""
    return (
        len(sample.cot_prompt_ids) + len(sample.cot_ids),
        len(sample.image_prompt_ids) + len(sample.image_ids),
    )
