"""The learner worker: one DeepSpeed rank, as a Ray actor.

The loss of a step is one mean over the tokens of the whole step. A worker sums the losses of its
micro-batches, divided by the count of all workers' tokens; so the gradient is the same however the step
is cut into workers and micro-batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from ray import ObjectRef
from ray.exceptions import RayError

from learner.ahead import Ahead, arrivals, of_each_sample, prepared_logps
from learner.async_checkpoint import ENGINE_FOLDER, Writer
from learner.batch import Batch, by_tokens, empty_like, in_parts, make_batch
from learner.config import LearnerConfig
from learner.deepspeed_engine import (
    Resume,
    apply_gradients,
    freeze,
    join,
    keep_freed_memory,
    load_reference,
    training_engine,
)
from learner.logprobs import JanusLogps, Logps
from learner.lora import adapters_off, add_adapters, exports, gathered
from learner.losses import LossInputs, load_loss
from learner.step_metrics import StepMetrics
from policy.convert import keep_side_files
from policy.janus_checkpoint import save_tokenizer
from policy.model import PolicyConfig, load_janus
from policy.records import Sample
from policy.rendezvous import Rendezvous
from policy.weights import Broadcast, BroadcastRendezvous, Manifest, pack, plan_buckets


class LearnerWorker:
    """`setup` joins the group and builds the engine; then `step` and `publish`, on all ranks alike."""

    def __init__(self, rank: int, world: int):
        self.rank = rank
        self.world = world
        torch.set_num_threads(1)
        self._fetched: dict[str, list[Sample]] = {}

    def rendezvous(self, loopback: bool) -> Rendezvous:
        """Where the group can meet; asked of rank 0. `loopback`: all members are on one machine."""
        return Rendezvous.at("127.0.0.1" if loopback else ray.util.get_node_ip_address())

    def setup(
        self,
        policy: PolicyConfig,
        config: LearnerConfig,
        temperature: float,
        guidance: float,
        where: Rendezvous,
        resume: Resume | None = None,
    ) -> int:
        """Returns the number of trained parameters. `resume`: go on from a checkpoint."""
        self.config = config
        on_gpu = config.num_gpus > 0  # what was asked for: Ray hides no GPU from who asked for none
        self.device = "cuda:0" if on_gpu else "cpu"
        if not on_gpu:
            keep_freed_memory()
        join(self.rank, self.world, where, on_gpu=on_gpu, timeout_s=config.timeout_s)
        options: dict[str, Any] = {
            "temperature": temperature,
            "guidance": guidance if config.train_distribution == "guided" else None,
            "chunk_tokens": config.logprob_chunk_tokens,
            "kernels": config.kernels,
        }
        self.reference = load_reference(policy, config, self.device, options)
        self.janus = load_janus(policy, self.device)
        if config.lora:
            add_adapters(self.janus, config.lora)
        else:
            freeze(self.janus.model, config.freeze)
        module = JanusLogps(self.janus, **options)
        if config.gradient_checkpointing:
            module.checkpoint_layers()
        count = sum(p.numel() for p in module.parameters() if p.requires_grad)
        self.loss = load_loss(config.loss)
        self.writer = Writer()
        self.engine = training_engine(module, config, policy.dtype, self.writer, resume)
        return count

    # --- a step ---

    def prepare(self, samples: list[ObjectRef]) -> Ahead:
        """The reference's log-probabilities of this rank's share of groups that are being generated and
        scored. `samples` holds one reference, to a list of references, one a group. All ranks call it
        together. Groups that are lost or late are left out (`arrivals`); `step` computes them then."""
        share = slice(self.rank, None, self.world)
        limits: dict[str, Any] = {
            "all_at_once": self._reference_is_collective,
            "timeout_s": self.config.timeout_s,
        }
        found: Ahead = {}
        for groups in arrivals(samples[0], share, **limits):
            found |= self._reference_of(groups)
        return found

    def _reference_of(self, groups: Mapping[str, Sequence[Sample]]) -> Ahead:
        """Each group in batches of its own: a log-probability's last bits depend on its batch, and a
        run that loses samples ends as one that loses none. Ranks call it together where the reference
        is collective."""
        found: Ahead = {key: [None] * len(group) for key, group in groups.items()}
        parts = [
            (key, part)
            for key, group in groups.items()
            for part in by_tokens([(s, n) for n, s in enumerate(group)], self.config.micro_batch_tokens)
        ]
        batches = [self._batch([sample for sample, _ in part]) for _, part in parts]
        walk = self._same_rounds(batches) if self._reference_is_collective else batches
        for index, batch in enumerate(walk):
            logps = self._reference_logps(batch.to(self.device))
            if index < len(parts):
                assert logps is not None  # or nobody asks ahead of the step
                key, part = parts[index]
                for (_, n), one in zip(part, of_each_sample(batch, logps), strict=True):
                    found[key][n] = one
        return found

    @property
    def _reference_is_collective(self) -> bool:
        """Whether ranks compute it together: all must then make the same number of passes."""
        kind = self.config.reference_kind
        zero3 = self.engine.zero_optimization_stage() == 3
        return kind == "sharded" or (kind == "lora-off" and zero3)

    def fetch(self, samples: Sequence[ObjectRef], places: Sequence[int]) -> list[int]:
        """Bring the groups at these places here, for the step that follows; `samples` as in `step`.
        Returns the places of those that are lost."""
        self._fetched = {}
        lost = []
        for place in places:
            try:
                self._fetched[samples[place].hex()] = ray.get(
                    samples[place], timeout=self.config.timeout_s
                )
            except RayError:
                lost.append(place)
        return lost

    def step(
        self,
        samples: Sequence[ObjectRef],
        places: Sequence[int],
        advantages: np.ndarray,
        micro_batches: int | None = None,
        ahead: Sequence[ObjectRef] = (),
    ) -> dict[str, float]:
        """One update on this rank's share of the groups: their places among `samples`, references to
        one list[Sample] a group, and each sample's advantage, float32 [len(places), G]. All ranks call
        it together; any may have none. `micro_batches` overrides the token budget (tests). `ahead`
        refers to what all ranks have prepared. Returns the metrics of all ranks.

        A gradient that is not finite changes nothing: `step/skipped` is 1 then, else 0.
        """
        refs = [samples[n] for n in places]
        parts = self._micro_batches(refs, advantages.tolist(), micro_batches, ahead)
        batches = [self._batch([s for s, _, _ in part], [a for _, a, _ in part]) for part in parts]
        total_weight = sum((b.token_weights.sum() for b in batches), torch.zeros(())).to(self.device)
        dist.all_reduce(total_weight)
        metrics_sum = StepMetrics(self.device)
        for index, batch in enumerate(self._same_rounds(batches)):
            reference = None
            if ahead:
                rows: list[Any] = [row for _, _, row in parts[index]] if index < len(parts) else []
                reference = prepared_logps(batch, rows)
            self._backward(batch, reference, total_weight, metrics_sum)
        metrics = metrics_sum.reduce()
        metrics["step/skipped"] = float(not apply_gradients(self.engine))
        metrics["grad_norm"] = float(self.engine.get_global_grad_norm() or 0.0)
        metrics["lr"] = float(self.engine.optimizer.param_groups[0]["lr"])
        return metrics

    @torch.no_grad()
    def measure(self, samples: Sequence[ObjectRef]) -> dict[str, float]:
        """The loss of this rank's groups as `step` would have it, and nothing learned: the metrics of
        all ranks, which call it together; any may have no group."""
        groups = ray.get(list(samples), timeout=self.config.timeout_s)
        budget = self.config.micro_batch_tokens
        parts = [part for group in groups for part in by_tokens([(s,) for s in group], budget)]
        metrics_sum = StepMetrics(self.device)
        for batch in self._same_rounds([self._batch([s for (s,) in part]) for part in parts]):
            batch = batch.to(self.device)
            result = self.loss(self._loss_inputs(batch, self._reference_logps(batch)), self.config)
            metrics_sum.add(result, batch.token_weights.sum())
        return metrics_sum.reduce()

    def _backward(
        self,
        batch: Batch,
        reference: Logps | None,
        total_weight: torch.Tensor,
        metrics_sum: StepMetrics,
    ) -> None:
        batch = batch.to(self.device)
        if reference is None:
            # First: what it needs is free again before the policy keeps its activations.
            reference = self._reference_logps(batch)
        else:
            moved: Any = (x if x is None else x.to(self.device) for x in reference)
            reference = Logps(*moved)
        inputs = self._loss_inputs(batch, reference)
        result = self.loss(inputs, self.config)
        metrics_sum.add(result, batch.token_weights.sum())
        metrics_sum.add_gaps(inputs, batch, self.config)
        # DeepSpeed averages gradients over ranks; we want their sum.
        loss = result.sum / total_weight * self.world
        self.engine.backward(loss, scale_wrt_gas=False)

    def _loss_inputs(self, batch: Batch, reference: Logps | None) -> LossInputs:
        """`train_distribution: guided` compares the guided distribution with the guided one that the
        sampler drew from: never a ratio of two different things."""
        guided = self.config.train_distribution == "guided"

        def columns(logps: Logps) -> torch.Tensor:
            image: Any = logps.guided if guided else logps.image
            return torch.cat([logps.cot, image], 1)

        sampled, split = batch.sampled_logps, batch.cot.shape[1]
        if guided:
            sampled = torch.cat([sampled[:, :split], batch.guided_logps], 1)
        return LossInputs(
            logps=columns(self.engine(batch)),
            sampled_logps=sampled,
            reference_logps=None if reference is None else columns(reference),
            advantages=batch.advantages,
            token_weights=batch.token_weights,
            cot_tokens=split,
        )

    @torch.no_grad()
    def _reference_logps(self, batch: Batch) -> Logps | None:
        if self.config.reference_kind == "lora-off":
            with adapters_off(self.janus.model):
                return self.engine.module(batch)
        return self.reference(batch) if self.reference else None

    def _micro_batches(
        self,
        refs: list[ObjectRef],
        advantages: Sequence[Sequence[float]],
        count: int | None,
        ahead: Sequence[ObjectRef],
    ) -> list[list[tuple[Sample, float, Logps | None]]]:
        """Samples with their advantage and, if ranks have prepared, the reference's; the
        log-probabilities that are missing are computed now. Cut as `_reference_of` does, so that policy
        and reference differ by their weights alone, to the last bit."""
        fetched, self._fetched = self._fetched, {}
        missing = [ref for ref in refs if ref.hex() not in fetched]
        had = ray.get(missing, timeout=self.config.timeout_s)
        fetched |= {ref.hex(): group for ref, group in zip(missing, had, strict=True)}
        groups = [(ref.hex(), fetched[ref.hex()]) for ref in refs]
        had = ray.get(list(ahead), timeout=self.config.timeout_s)
        prepared: dict = {key: rows for each in had for key, rows in each.items()}
        if ahead:
            prepared |= self._reference_of({key: g for key, g in groups if key not in prepared})
        by_group = [
            list(zip(group, theirs, prepared.get(key, [None] * len(group)), strict=True))
            for (key, group), theirs in zip(groups, advantages, strict=True)
        ]
        if count is not None:
            return in_parts([row for rows in by_group for row in rows], count)
        budget = self.config.micro_batch_tokens
        return [part for rows in by_group for part in by_tokens(rows, budget)]

    def _batch(self, samples: Sequence[Sample], advantages: Sequence[float] | None = None) -> Batch:
        return make_batch(
            samples,
            advantages or [0.0] * len(samples),
            pad_id=self.janus.pad_id,
            cot_weight=self.config.cot_weight,
            image_weight=self.config.image_weight,
        )

    def _same_rounds(self, batches: list[Batch]) -> Iterator[Batch]:
        """These, then batches of weight 0, so that all ranks make the same number of passes."""
        rounds = torch.tensor(float(len(batches)), device=self.device)
        dist.all_reduce(rounds, op=dist.ReduceOp.MAX)
        if rounds > 0:
            example = self._example_batch(batches)
            yield from batches
            yield from [example] * (int(rounds) - len(batches))

    def _example_batch(self, batches: list[Batch]) -> Batch:
        """A weightless batch, from any rank that has one: every rank must walk every round."""
        mine = empty_like(batches[0]) if batches else None
        everyones: list[Batch | None] = [None] * self.world
        dist.all_gather_object(everyones, mine)
        return next(batch for batch in everyones if batch is not None)

    # --- weights ---

    def publish(self) -> Iterator[Manifest | np.ndarray]:
        """The trained tensors in transformers' names: first the manifest, then bucket after bucket.

        Every rank walks every gather; rank 0 alone yields.
        """
        if self.rank == 0:
            yield self.manifest()
        for tensors in self._iter_buckets():
            if self.rank == 0:
                yield pack(tensors)

    def join_broadcast(self, rendezvous: BroadcastRendezvous) -> None:
        """Rank 0 becomes the sender to all rollout workers; waits for them."""
        self._broadcast = Broadcast(rendezvous, 0, self.device)

    def broadcast(self) -> None:
        """Send the trained tensors to the rollout workers. Every rank walks every gather, and walks on
        if a receiver is lost: a walk that stopped half-way would leave the other ranks waiting."""
        failure = None
        for tensors in self._iter_buckets():
            if self.rank == 0 and failure is None:
                try:
                    self._broadcast.send(tensors)
                except RuntimeError as error:
                    failure = error
        if failure is not None:
            raise failure

    def manifest(self) -> Manifest:
        """What a version consists of; the same for all versions."""
        specs = [e.spec for e in exports(self.janus.model) if e.trained]
        return plan_buckets(specs, int(self.config.bucket_mb * 2**20))

    def _iter_buckets(self) -> Iterator[list[torch.Tensor]]:
        """The tensors of bucket after bucket, gathered from all ranks (ZeRO-3 is collective); good
        until the next is asked for. Whole on rank 0 alone, the others get none."""
        trained = {e.name: e for e in exports(self.janus.model) if e.trained}
        for bucket in self.manifest():
            wanted = [trained[spec.name] for spec in bucket]
            with gathered(wanted):
                yield [e.whole() for e in wanted] if self.rank == 0 else []

    # --- checkpoints ---

    def begin_save(self, folder: str) -> None:
        """Copy to memory what a checkpoint holds, and begin to write it: the model in transformers
        layout by rank 0, DeepSpeed's state by all. Training may go on; `saved` tells the end."""
        self.writer.give_up()  # of a checkpoint that another rank could not begin
        self._written_before_s = self.writer.busy_s
        state = {}
        for export in exports(self.janus.model):
            with gathered([export]):
                if self.rank == 0:
                    state[export.name] = self.writer.copies.of(export.whole(), f"model/{export.name}")
        if self.rank == 0:
            self.writer.add(partial(self.janus.model.save_pretrained, folder, state_dict=state))
            self.writer.add(partial(save_tokenizer, self.janus.tokenizer, Path(folder)))
            if self.janus.source:
                self.writer.add(partial(keep_side_files, self.janus.source, Path(folder)))
            self.writer.add(partial(self.writer.digest_model, Path(folder)))
        self.engine.save_checkpoint(folder, tag=ENGINE_FOLDER, save_latest=False)
        self.writer.add(partial(self.writer.tell_digests, Path(folder), self.rank))

    def saved(self) -> float | None:
        """When everything is written, how many seconds that took; else None. Raises what went wrong (a
        full disk, ...)."""
        return self.writer.busy_s - self._written_before_s if self.writer.finished() else None
