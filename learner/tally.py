"""The metrics of a step: sums that add up over micro-batches and ranks, divided once at the end."""

import torch
import torch.distributed as dist
from torch import Tensor

from learner.grpo import BicotLoss


class Tally:
    """Weighted sums of a step's metrics."""

    def __init__(self, device: str):
        self.device = device
        self.sums: dict[str, Tensor] = {}  # [sum, count] each

    def add(self, phase: str, loss: BicotLoss) -> None:
        self._add(f"loss/{phase}", loss.sum.detach(), loss.count)
        for name, mean in loss.metrics.items():
            self._add(f"{name}/{phase}", mean * loss.count, loss.count)

    def add_mean(self, name: str, values: Tensor, weights: Tensor) -> None:
        self._add(name, (values * weights).sum(), weights.sum())

    def _add(self, name: str, total: Tensor, count: Tensor) -> None:
        pair = torch.stack([total.float(), count.float()])
        self.sums[name] = self.sums.get(name, torch.zeros(2, device=self.device)) + pair

    def reduce(self) -> dict[str, float]:
        """Means over all ranks, and `loss`: the mean over the tokens of both phases."""
        names = sorted(self.sums)
        table = torch.stack([self.sums[name] for name in names])
        dist.all_reduce(table)
        sums = dict(zip(names, table.tolist(), strict=True))
        both = [sum(column) for column in zip(sums["loss/cot"], sums["loss/image"], strict=True)]
        means = {name: total / max(count, 1e-8) for name, (total, count) in sums.items()}
        return {"loss": both[0] / max(both[1], 1e-8), **means}
