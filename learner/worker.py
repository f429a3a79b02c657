"""The learner worker: one DeepSpeed rank, as a Ray actor. The training itself is in
learner/trainer.py."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import ObjectRef
from ray.exceptions import RayError

from learner.async_checkpoint import ENGINE_FOLDER, Writer
from learner.config import LearnerConfig
from learner.deepspeed_engine import (
    Resume,
    freeze,
    join,
    keep_freed_memory,
    load_reference,
    training_engine,
)
from learner.logprobs import Entropy, JanusLogps
from learner.lora import add_adapters, exports, gathered
from learner.prepared import PreparedLogps, arrivals
from learner.schedules import StepSettings
from learner.trainer import Trainer
from policy.convert import keep_side_files
from policy.janus_checkpoint import save_tokenizer
from policy.model import PolicyConfig, load_janus
from policy.records import Sample
from policy.rendezvous import Rendezvous
from policy.weights import Broadcast, BroadcastRendezvous, Manifest, pack, plan_buckets


class LearnerWorker:
    """`setup` joins the group and builds the engine; then all ranks call `step` and `publish`
    together."""

    def __init__(self, rank: int, world: int):
        self.rank = rank
        self.world = world
        torch.set_num_threads(1)
        self._fetched: dict[str, list[Sample]] = {}

    def rendezvous(self, loopback: bool) -> Rendezvous:
        """Where the group can meet; called on rank 0. `loopback`: all members are on one machine."""
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
        on_gpu = (
            config.num_gpus > 0
        )  # what was asked for: Ray hides no GPU from an actor that asked for none
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
        reference = load_reference(policy, config, self.device, options)
        self.janus = load_janus(policy, self.device)
        if config.lora:
            add_adapters(self.janus, config.lora)
        else:
            freeze(self.janus.model, config.freeze)
        entropy: Entropy = "learn" if config.entropy_coef else "measure"
        module = JanusLogps(self.janus, **options, entropy=entropy)
        if config.gradient_checkpointing:
            module.checkpoint_layers()
        count = sum(p.numel() for p in module.parameters() if p.requires_grad)
        self.writer = Writer()
        self.engine = training_engine(module, config, policy.dtype, self.writer, resume)
        self.trainer = Trainer(
            self.engine, self.janus, reference, config, world=self.world, device=self.device
        )
        return count

    # --- a step ---

    def prepare(self, samples: list[ObjectRef]) -> PreparedLogps:
        """The reference's log-probabilities of this rank's share of groups that are being generated and
        scored. `samples` holds one reference, to a list of references, one a group. All ranks call it
        together. Groups that are lost or late are left out (`arrivals`); `step` computes them then."""
        share = slice(self.rank, None, self.world)
        limits: dict[str, Any] = {
            "all_at_once": self.trainer.reference_is_collective,
            "timeout_s": self.config.timeout_s,
        }
        found: PreparedLogps = {}
        for groups in arrivals(samples[0], share, **limits):
            found |= self.trainer.reference_of(groups)
        return found

    def fetch(self, samples: Sequence[ObjectRef], indices: Sequence[int]) -> list[int]:
        """Fetch the groups at these indices for the next step; `samples` as in `step`. Returns the
        indices of lost groups."""
        self._fetched = {}
        lost = []
        for n in indices:
            try:
                found = ray.get(samples[n], timeout=self.config.timeout_s)
                self._fetched[samples[n].hex()] = found
            except RayError:
                lost.append(n)
        return lost

    def step(
        self,
        samples: Sequence[ObjectRef],
        minibatches: Sequence[tuple[Sequence[int], np.ndarray]],
        settings: StepSettings,
        micro_batches: int | None = None,
        prepared: Sequence[ObjectRef] = (),
    ) -> dict[str, float]:
        """The updates of one step (`Trainer.step`) on this rank's share of the groups: for each
        mini-batch, their indices into `samples`, references to one list[Sample] a group, and each
        sample's advantage, float32 [groups, G], or one for each of its CoTs, [groups, G, 2].
        All ranks call it together; any may have none. `micro_batches` overrides the token budget
        (tests). `prepared` refers to what `prepare` returned on all ranks. Returns the metrics of all
        ranks."""
        groups = self._groups([samples[n] for indices, _ in minibatches for n in indices])
        found = ray.get(list(prepared), timeout=self.config.timeout_s)
        reference: PreparedLogps = {key: logps for each in found for key, logps in each.items()}
        if prepared:
            missing = {key: group for key, group in groups.items() if key not in reference}
            reference |= self.trainer.reference_of(missing)
        cut = []
        for indices, advantages in minibatches:
            keys = [samples[n].hex() for n in indices]
            rows = [
                list(zip(groups[key], theirs, reference.get(key, [None] * len(theirs)), strict=True))
                for key, theirs in zip(keys, advantages.tolist(), strict=True)
            ]
            cut.append(self.trainer.cut(rows, micro_batches))
        return self.trainer.step(cut, settings, prepared=bool(prepared))

    def measure(self, samples: Sequence[ObjectRef]) -> dict[str, float]:
        """The loss of this rank's groups as in `step`, without an update. Returns the metrics of all
        ranks, which call it together; any may have no group."""
        groups = ray.get(list(samples), timeout=self.config.timeout_s)
        rows = [[(sample, 0.0, None) for sample in group] for group in groups]
        return self.trainer.measure(self.trainer.cut(rows))

    def _groups(self, refs: Sequence[ObjectRef]) -> dict[str, list[Sample]]:
        """Reference -> samples of these groups; most were fetched already."""
        fetched, self._fetched = self._fetched, {}
        missing = [ref for ref in refs if ref.hex() not in fetched]
        had = ray.get(missing, timeout=self.config.timeout_s)
        fetched |= {ref.hex(): group for ref, group in zip(missing, had, strict=True)}
        return fetched

    # --- weights ---

    def publish(self) -> Iterator[Manifest | np.ndarray]:
        """The trained tensors in transformers' names: first the manifest, then bucket after bucket.

        Every rank takes part in every gather; rank 0 alone yields.
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
        """Send the trained tensors to the rollout workers. Every rank takes part in every gather, and
        goes on if a receiver is lost: stopping half-way would leave the other ranks waiting."""
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
        layout by rank 0, DeepSpeed's state by all. Training may go on; `saved` reports the end."""
        self.writer.give_up()  # drops a checkpoint that another rank could not begin
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
        self.writer.add(partial(self.writer.write_digests, Path(folder), self.rank))

    def saved(self) -> float | None:
        """When everything is written, how many seconds that took; else None. Raises what went wrong (a
        full disk, ...)."""
        return self.writer.busy_s - self._written_before_s if self.writer.finished() else None
