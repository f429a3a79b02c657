"""The metrics of a step: means and maxima over the tokens of all micro-batches and ranks."""

import torch
import torch.distributed as dist
from torch import Tensor

from learner.batch import Batch
from learner.config import LearnerConfig
from learner.losses import LossInputs, LossResult


class StepMetrics:
    """Weighted sums of a step's metrics."""

    def __init__(self, device: str):
        self.device = device
        self.sums: dict[str, Tensor] = {}  # [sum, count] each
        self.largest: dict[str, Tensor] = {}

    def add(self, loss: LossResult, count: Tensor) -> None:
        """`count`: the batch's share of the loss's divisor."""
        self._add("loss", loss.sum.detach(), count)
        for name, (total, weight) in loss.metrics.items():
            self._add(name, total, weight)

    def add_mean(self, name: str, values: Tensor, weights: Tensor) -> None:
        self._add(name, (values * weights).sum(), weights.sum())

    def add_max(self, name: str, values: Tensor) -> None:
        largest = values.max() if values.numel() else torch.zeros((), device=self.device)
        self.largest[name] = torch.maximum(self.largest.get(name, largest), largest)

    @torch.no_grad()
    def add_gaps(self, inputs: LossInputs, before: Tensor, batch: Batch, config: LearnerConfig) -> None:
        """How far the learner's log-probabilities `before` the first update, [N, T], are from the
        sampler's: on-policy this is rounding, of which bfloat16 has more. And how far guidance moves an
        image's log-probabilities."""
        phase_weights = {"cot": config.cot_weight, "image": config.image_weight}
        for phase, here in inputs.columns.items():
            if phase_weights[phase] == 0:
                continue
            weights = inputs.token_weights[:, here]
            moved = torch.where(weights > 0, (before - inputs.sampled_logps)[:, here], 0.0)
            ratio = moved.exp()
            beyond = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
            self.add_mean(f"sampler_gap/{phase}", moved.abs(), weights)
            self.add_mean(f"sampler_gap_beyond_clip/{phase}", beyond.float(), weights)
            self.add_max(f"sampler_gap_max/{phase}", moved.abs())
            if phase == "image":
                gap = (batch.guided_logps - batch.sampled_logps[:, here]).abs()
                self.add_mean("guidance_gap", gap, weights)

    def _add(self, name: str, total: Tensor, count: Tensor) -> None:
        pair = torch.stack([total.float(), count.float()])
        self.sums[name] = self.sums.get(name, torch.zeros(2, device=self.device)) + pair

    def reduce(self) -> dict[str, float]:
        """Means and maxima over all ranks; `loss` is the sum of its parts (`loss/...`), if the loss
        returns them, over the count of all samples."""
        names = sorted(self.sums)
        table = torch.stack([self.sums[name] for name in names])
        dist.all_reduce(table)
        sums = dict(zip(names, table.tolist(), strict=True))
        parts = [pair for name, pair in sums.items() if name.startswith("loss/")]
        if parts:
            sums["loss"] = [sum(total for total, _ in parts), sums["loss"][1]]
        means = {name: total / max(count, 1e-8) for name, (total, count) in sums.items()}
        return means | self._reduce_largest()

    def _reduce_largest(self) -> dict[str, float]:
        names = sorted(self.largest)
        if not names:
            return {}
        values = torch.stack([self.largest[name].float() for name in names])
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return dict(zip(names, values.tolist(), strict=True))
