"""One rank's part in a training step: passes over micro-batches, and updates.

The loss of an update is one sum over all samples of its mini-batch, divided by their count
(`learner.batch.aggregate`). A rank sums the losses of its micro-batches, divided by the count of all
ranks; so the gradient is the same however a mini-batch is cut into ranks and micro-batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from learner.batch import Batch, by_tokens, empty_like, in_parts, make_batch
from learner.config import LearnerConfig
from learner.deepspeed_engine import Reference, apply_gradients
from learner.logprobs import Logps
from learner.lora import adapters_off
from learner.losses import LossInputs, load_loss
from learner.prepared import PreparedLogps, padded_logps, split_by_sample
from learner.schedules import Coefficients, StepSettings
from learner.step_metrics import StepMetrics
from policy.model import PolicyModel
from policy.records import Sample

Row = tuple[Sample, Any, Logps | None]
"""A sample, its advantage (or one for each CoT), and the reference's log-probabilities if they were
prepared."""


class Trainer:
    """Trains with a DeepSpeed engine. All ranks call each method together; any may have nothing to
    do."""

    def __init__(
        self,
        engine: Any,
        janus: PolicyModel,
        reference: Reference | None,
        config: LearnerConfig,
        *,
        world: int,
        device: str,
    ):
        self.engine, self.janus, self.reference, self.config = engine, janus, reference, config
        self.world, self.device = world, device
        self.loss = load_loss(config.loss)

    # --- before a step ---

    @property
    def reference_is_collective(self) -> bool:
        """Whether ranks compute it together: all must then make the same number of passes."""
        kind = self.config.reference_kind
        zero3 = self.engine.zero_optimization_stage() == 3
        return kind == "sharded" or (kind == "lora-off" and zero3)

    def reference_of(self, groups: Mapping[str, Sequence[Sample]]) -> PreparedLogps:
        """The reference's log-probabilities of groups, each group in batches of its own: their last
        bits depend on the batch, and a run that loses samples must end as one that loses none. Ranks
        call it together where the reference is collective."""
        found: PreparedLogps = {key: [None] * len(group) for key, group in groups.items()}
        parts = [
            (key, part)
            for key, group in groups.items()
            for part in by_tokens([(s, n) for n, s in enumerate(group)], self.config.micro_batch_tokens)
        ]
        batches = [self._batch([sample for sample, _ in part]) for _, part in parts]
        walk = self._same_rounds(batches) if self.reference_is_collective else batches
        for index, batch in enumerate(walk):
            logps = self.reference_logps(batch.to(self.device))
            if index < len(parts):
                assert logps is not None  # without a reference nobody calls this
                key, part = parts[index]
                for (_, n), one in zip(part, split_by_sample(batch, logps), strict=True):
                    found[key][n] = one
        return found

    @torch.no_grad()
    def reference_logps(self, batch: Batch) -> Logps | None:
        if self.config.reference_kind == "lora-off":
            with adapters_off(self.janus.model):
                return self.engine.module(batch)
        return self.reference(batch) if self.reference else None

    # --- a step ---

    def cut(self, groups: Sequence[Sequence[Row]], count: int | None = None) -> list[list[Row]]:
        """Cuts groups into micro-batches as `reference_of` does, so that policy and reference differ by
        their weights alone, to the last bit; or into `count` parts."""
        if count is not None:
            return in_parts([row for rows in groups for row in rows], count)
        budget = self.config.micro_batch_tokens
        return [part for rows in groups for part in by_tokens(rows, budget)]

    def step(
        self, minibatches: Sequence[Sequence[list[Row]]], settings: StepSettings, *, prepared: bool
    ) -> dict[str, float]:
        """`updates_per_batch` rounds of an optimizer step on each mini-batch, which is a list of
        micro-batches. `prepared`: rows hold the reference's log-probabilities. Returns the metrics of
        all ranks, over all updates.

        A gradient that is not finite changes nothing: `step/skipped` is 1 if that was so in all
        updates, else 0.
        """
        if settings.lr is not None:
            for group in self.engine.optimizer.param_groups:
                group["lr"] = settings.lr
        work = [self._micro_batches(parts, prepared=prepared) for parts in minibatches]
        counts = [self._count(micro_batches) for micro_batches in work]
        several = self.config.updates_per_batch * len(work) > 1
        if several and self.config.old_logps == "learner":
            for micro in (micro for micro_batches in work for micro in micro_batches):
                micro.old_logps = self._logps_before(micro.batch.to(self.device))
        sums, norms, applied = StepMetrics(self.device), [], 0
        for update in range(self.config.updates_per_batch):
            for number, micro_batches in enumerate(work):
                if not micro_batches:
                    continue  # fewer groups than mini-batches
                for micro in micro_batches:
                    self._backward(micro, settings, counts[number], sums, first=update + number == 0)
                applied += apply_gradients(self.engine)
                norms.append(float(self.engine.get_global_grad_norm() or 0.0))
        metrics = sums.reduce()
        metrics["step/skipped"] = float(not applied)
        metrics["step/updates"] = float(applied)
        metrics["grad_norm"] = sum(norms) / len(norms)
        metrics["lr"] = float(self.engine.optimizer.param_groups[0]["lr"])
        return metrics

    @torch.no_grad()
    def measure(self, parts: Sequence[list[Row]]) -> dict[str, float]:
        """The metrics of the loss on micro-batches, without an update."""
        settings, sums = StepSettings(Coefficients.at_start(self.config)), StepMetrics(self.device)
        for micro in self._micro_batches(parts, prepared=False):
            batch = micro.batch.to(self.device)
            micro.reference = self.reference_logps(batch)
            loss = self.loss(self._loss_inputs(micro, batch, settings), self.config)
            sums.add(loss, batch.counts.sum())
        return sums.reduce()

    def _micro_batches(self, parts: Sequence[list[Row]], *, prepared: bool) -> list["_MicroBatch"]:
        """The micro-batches of a mini-batch, then some of weight 0 so that all ranks have as many."""
        rows: list[Sequence[Row]] = [*parts]
        batches = [self._batch([s for s, _, _ in part], [a for _, a, _ in part]) for part in parts]
        walk = list(self._same_rounds(batches))
        rows += [()] * (len(walk) - len(rows))
        return [
            _MicroBatch(
                batch,
                padded_logps(batch, [r for _, _, r in part if r is not None]) if prepared else None,
            )
            for batch, part in zip(walk, rows, strict=True)
        ]

    def _count(self, micro_batches: Sequence["_MicroBatch"]) -> Tensor:
        """The divisor of a mini-batch's loss, over all ranks."""
        count = sum((micro.batch.counts.sum() for micro in micro_batches), torch.zeros(())).to(
            self.device
        )
        dist.all_reduce(count)
        return count

    def _backward(
        self,
        micro: "_MicroBatch",
        settings: StepSettings,
        count: Tensor,
        sums: StepMetrics,
        *,
        first: bool,
    ) -> None:
        batch = micro.batch.to(self.device)
        if micro.reference is None:
            # Comes first: its memory is free again before the policy keeps activations.
            micro.reference = self.reference_logps(batch)
        inputs = self._loss_inputs(micro, batch, settings)
        result = self.loss(inputs, self.config)
        sums.add(result, batch.counts.sum())
        if first or micro.old_logps is not None:
            before = inputs.logps if micro.old_logps is None else inputs.old_logps
            sums.add_gaps(inputs, before, batch, self.config)
        # DeepSpeed averages gradients over ranks; the loss needs their sum.
        self.engine.backward(result.sum / count * self.world, scale_wrt_gas=False)

    def _loss_inputs(self, micro: "_MicroBatch", batch: Batch, settings: StepSettings) -> LossInputs:
        found = self.engine(batch)
        logps, sampled = self._columns(found), self._sampled(batch)
        old = sampled
        if self.config.old_logps == "learner":
            # With one update a batch, the policy before the update is the policy itself.
            old = logps.detach() if micro.old_logps is None else micro.old_logps
        reference = None
        if micro.reference is not None:
            moved: Any = (x if x is None else x.to(self.device) for x in micro.reference)
            reference = self._columns(Logps(*moved))
        entropy = None
        if found.cot_entropy is not None and found.image_entropy is not None:
            entropy = torch.cat([found.cot_entropy, found.image_entropy], 1)
        return LossInputs(
            logps=logps,
            old_logps=old,
            sampled_logps=sampled,
            reference_logps=reference,
            entropy=entropy,
            advantages=batch.token_advantages,
            token_weights=batch.token_weights,
            cot_tokens=batch.cot.shape[1],
            kl_coef=settings.coefficients.kl,
            entropy_coefs=settings.coefficients.entropy,
        )

    def _columns(self, logps: Logps) -> Tensor:
        """The log-probabilities of the distribution that is trained, [N, T]. `train_distribution:
        guided` compares the guided distribution with the guided one that the sampler drew from: never a
        ratio of two different distributions."""
        guided = self.config.train_distribution == "guided"
        image: Any = logps.guided if guided else logps.image
        return torch.cat([logps.cot, image], 1)

    def _sampled(self, batch: Batch) -> Tensor:
        if self.config.train_distribution == "conditional":
            return batch.sampled_logps
        return torch.cat([batch.sampled_logps[:, : batch.cot.shape[1]], batch.guided_logps], 1)

    @torch.no_grad()
    def _logps_before(self, batch: Batch) -> Tensor:
        return self._columns(self.engine(batch))

    def _batch(self, samples: Sequence[Sample], advantages: Sequence[Any] | None = None) -> Batch:
        return make_batch(
            samples,
            advantages or [0.0] * len(samples),
            pad_id=self.janus.pad_id,
            cot_weight=self.config.cot_weight,
            image_weight=self.config.image_weight,
            aggregation=self.config.aggregation,
            loss_length=self.config.loss_length,
        )

    def _same_rounds(self, batches: list[Batch]) -> Iterator[Batch]:
        """These batches, then batches of weight 0, so that all ranks make the same number of passes."""
        rounds = torch.tensor(float(len(batches)), device=self.device)
        dist.all_reduce(rounds, op=dist.ReduceOp.MAX)
        if rounds > 0:
            example = self._example_batch(batches)
            yield from batches
            yield from [example] * (int(rounds) - len(batches))

    def _example_batch(self, batches: list[Batch]) -> Batch:
        """A batch of weight 0, made from any rank's batch: every rank must take part in every round."""
        mine = empty_like(batches[0]) if batches else None
        everyones: list[Batch | None] = [None] * self.world
        dist.all_gather_object(everyones, mine)
        return next(batch for batch in everyones if batch is not None)


@dataclass
class _MicroBatch:
    """What one forward and backward pass takes, once in each round of updates. `reference` is computed
    in the first, unless it was prepared; `old_logps` are those before the first update."""

    batch: Batch
    reference: Logps | None = None
    old_logps: Tensor | None = None
