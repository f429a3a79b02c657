"""Reference log-probabilities, computed ahead of a step while experts still score the samples.

They depend on the samples alone, because the reference never changes. A step finds them by the object
reference of a group's samples. A group that was lost and generated again is another object: the step
finds nothing, and computes them itself, in the same batches.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import ray
import torch
from ray import ObjectRef
from ray.exceptions import RayError

from learner.batch import Batch
from learner.logprobs import Logps
from policy.records import Sample

PreparedLogps = dict[str, list[Any]]
"""A group's object reference -> the Logps of each sample: `cot` [Lc], `image` [Ti], `guided` [Ti] or
None."""


def arrivals(
    samples: ObjectRef, share: slice, *, all_at_once: bool, timeout_s: float
) -> Iterator[dict[str, list[Sample]]]:
    """Yields this rank's share of the groups as they are generated, or all at once at the end.
    `samples` refers to a list of references, one a group. A group that is lost, or takes longer than
    `timeout_s`, is left out: it is generated again, or its log-probabilities are computed later."""
    try:
        waiting = ray.get(samples, timeout=timeout_s)[share]
    except RayError:
        waiting = []
    while waiting or all_at_once:
        count = len(waiting) if all_at_once else 1
        ready = []
        if waiting:
            ready, waiting = ray.wait(waiting, num_returns=count, timeout=timeout_s)
        yield {ref.hex(): group for ref in ready if (group := _get_samples(ref, timeout_s)) is not None}
        if all_at_once or not ready:
            return


def _get_samples(ref: ObjectRef, timeout_s: float) -> list[Sample] | None:
    try:
        return ray.get(ref, timeout=timeout_s)
    except RayError:
        return None


def split_by_sample(batch: Batch, logps: Logps) -> list[Logps]:
    """A batch's rows, without padding, in host memory."""
    lengths = batch.cot_mask.sum(1).tolist()
    cot, image = logps.cot.cpu(), logps.image.cpu()
    guided = [None] * len(lengths) if logps.guided is None else logps.guided.cpu()
    return [
        Logps(c[:length].clone(), i, g)
        for c, i, g, length in zip(cot, image, guided, lengths, strict=True)
    ]


def padded_logps(batch: Batch, rows: Sequence[Logps]) -> Logps:
    """The reference's Logps of a batch, from those of its samples; for a batch of weight 0 without
    samples, any values."""
    width = batch.cot.shape[1]
    if not rows:
        return Logps(batch.sampled_logps[:, :width], batch.sampled_logps[:, width:], batch.guided_logps)
    cot = torch.zeros(len(rows), width)
    for n, row in enumerate(rows):
        cot[n, : len(row.cot)] = row.cot
    all_guided: Any = [row.guided for row in rows]
    guided = None if rows[0].guided is None else torch.stack(all_guided)
    return Logps(cot, torch.stack([row.image for row in rows]), guided)
