"""One DeepSpeed rank, as a Ray actor.

The loss of a step is one mean over the tokens of the whole step. A rank sums the losses of its
micro-batches, divided by the count of all ranks' tokens; so the gradient is the same however the
step is cut into ranks and micro-batches.
"""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import ray
import torch
import torch.distributed as dist
from torch import Tensor

from learner.batch import Batch, empty_like, make_batch
from learner.config import LearnerConfig, deepspeed_settings, frozen_module
from learner.grpo import BicotLoss, bicot_loss
from learner.logprobs import JanusLogps, Logps
from policy.janus import PolicyConfig, load_janus
from policy.records import Sample
from policy.weights import Manifest, TensorSpec, pack, plan_buckets


@dataclass(frozen=True)
class ScoredGroup:
    """A group that was drawn and judged. `samples` refers to a list[Sample] in the object store;
    `advantages` is float32 [G]."""

    samples: ray.ObjectRef
    advantages: np.ndarray


@dataclass(frozen=True)
class Rendezvous:
    host: str
    port: int


class LearnerRank:
    """`setup` joins the group and builds the engine; then `step` and `publish`, on all ranks alike."""

    def __init__(self, rank: int, world: int):
        self.rank = rank
        self.world = world
        self.on_gpu = torch.cuda.is_available()
        self.device = "cuda:0" if self.on_gpu else "cpu"
        torch.set_num_threads(1)

    def rendezvous(self) -> Rendezvous:
        """An address on this rank's node where the group can meet; asked of rank 0."""
        with socket.socket() as free:
            free.bind(("", 0))
            return Rendezvous(ray.util.get_node_ip_address(), free.getsockname()[1])

    def setup(
        self,
        policy: PolicyConfig,
        config: LearnerConfig,
        temperature: float,
        guidance: float,
        where: Rendezvous,
    ) -> int:
        """Returns the number of trained parameters."""
        self.config = config
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.world),
            LOCAL_RANK="0",  # Ray shows each rank its own GPU alone
            MASTER_ADDR=where.host,
            MASTER_PORT=str(where.port),
        )
        deepspeed = self._import_deepspeed()
        deepspeed.init_distributed(
            "nccl" if self.on_gpu else "gloo",
            timeout=timedelta(seconds=config.timeout_s),
            verbose=False,
        )
        self.janus = load_janus(policy, self.device)
        guided = guidance if config.guidance == "guided" else None
        options = {"temperature": temperature, "guidance": guided}
        self.reference = None
        if config.beta > 0:
            frozen = load_janus(policy, self.device)
            frozen.model.requires_grad_(False)
            self.reference = JanusLogps(frozen, **options)
        self._freeze(config.freeze)
        module = JanusLogps(self.janus, **options)
        trained = [p for p in module.parameters() if p.requires_grad]
        settings = deepspeed_settings(config, policy.dtype)
        optimizer = None
        if "optimizer" not in settings:
            optimizer = torch.optim.AdamW(
                trained, config.lr, betas=config.betas, weight_decay=config.weight_decay
            )
        count = sum(p.numel() for p in trained)
        self.engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, model_parameters=trained, config=settings
        )
        return count

    def _import_deepspeed(self):
        if not self.on_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed
        import deepspeed.ops

        deepspeed.utils.logger.setLevel(logging.WARNING)
        # Else the first collective compiles an extension for shared-memory CPUs: 40 s and a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        return deepspeed

    def _freeze(self, names: Sequence[str]) -> None:
        """Before the optimizer is built: ZeRO weight-decays parameters that never get a gradient."""
        for name in names:
            frozen_module(self.janus.model, name).requires_grad_(False)

    # --- a step ---

    def step(self, groups: Sequence[ScoredGroup], micro_batches: int | None = None) -> dict[str, float]:
        """One update on this rank's share of the groups. All ranks call it together; any may have
        none. `micro_batches` overrides the token budget (tests). Returns the metrics of all ranks.

        Raises FloatingPointError, before the weights change, if the loss is not finite.
        """
        batches = self._micro_batches(groups, micro_batches)
        weight = sum((b.weights.sum() for b in batches), torch.zeros(()))
        rounds = torch.tensor([float(len(batches)), 0.0], device=self.device)
        dist.all_reduce(rounds, op=dist.ReduceOp.MAX)
        total_weight = weight.to(self.device)
        dist.all_reduce(total_weight)
        example = self._example_batch(batches)
        tally = _Tally(self.device)
        for index in range(int(rounds[0])):
            batch = batches[index] if index < len(batches) else example
            batch = batch.to(self.device)
            cot, image = self._losses(batch, tally)
            # DeepSpeed averages gradients over ranks; we want their sum.
            loss = (cot.sum + image.sum) / total_weight * self.world
            self.engine.backward(loss, scale_wrt_gas=False)
        metrics = tally.reduce()
        if not np.isfinite(metrics["loss"]):
            raise FloatingPointError(f"the loss is {metrics['loss']}; the weights were not changed")
        self.engine.step()
        metrics["grad_norm"] = float(self.engine.get_global_grad_norm() or 0.0)
        metrics["lr"] = float(self.engine.optimizer.param_groups[0]["lr"])
        return metrics

    def _losses(self, batch: Batch, tally: "_Tally") -> tuple[BicotLoss, BicotLoss]:
        config = self.config
        logps = self.engine(batch)
        with torch.no_grad():
            reference = self.reference(batch) if self.reference else None
        split = batch.cot.shape[1]
        guided = config.guidance == "guided"
        old_image = batch.guided_logps if guided else batch.sampled_logps[:, split:]

        def loss(new: Tensor, old: Tensor, ref: Tensor | None, weights: Tensor) -> BicotLoss:
            return bicot_loss(
                new,
                old,
                ref,
                batch.advantages,
                weights,
                beta=config.beta,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
            )

        def image_of(out: Logps | None) -> Tensor | None:
            return out and (out.guided if guided else out.image)

        cot = loss(
            logps.cot,
            batch.sampled_logps[:, :split],
            reference and reference.cot,
            batch.weights[:, :split],
        )
        image = loss(image_of(logps), old_image, image_of(reference), batch.weights[:, split:])
        tally.add("cot", cot)
        tally.add("image", image)
        gap = (batch.guided_logps - batch.sampled_logps[:, split:]).abs()
        tally.add_mean("guidance_gap", gap, batch.weights[:, split:])
        return cot, image

    def _micro_batches(self, groups: Sequence[ScoredGroup], count: int | None) -> list[Batch]:
        drawn = ray.get([group.samples for group in groups])
        pairs = [
            (sample, float(advantage))
            for group, samples in zip(groups, drawn, strict=True)
            for sample, advantage in zip(samples, group.advantages, strict=True)
        ]
        if count is None:
            parts = _by_tokens(pairs, self.config.micro_batch_tokens)
        else:
            parts = [pairs[i::count] for i in range(count)] if pairs else []
        return [
            make_batch(
                [sample for sample, _ in part],
                [advantage for _, advantage in part],
                pad_id=self.janus.pad_id,
                cot_weight=self.config.cot_weight,
                image_weight=self.config.image_weight,
            )
            for part in parts
        ]

    def _example_batch(self, batches: list[Batch]) -> Batch:
        """A weightless batch, from any rank that has one: every rank must walk every round."""
        mine = empty_like(batches[0]) if batches else None
        everyones: list[Batch | None] = [None] * self.world
        dist.all_gather_object(everyones, mine)
        return next(batch for batch in everyones if batch is not None)

    # --- weights ---

    def publish(self) -> Iterator[Manifest | np.ndarray]:
        """The trained parameters in transformers' names: first the manifest, then bucket after bucket.

        Every rank walks every gather (ZeRO-3 is collective); rank 0 alone yields.
        """
        parameters = {
            name.removeprefix("model."): p
            for name, p in self.engine.module.named_parameters()
            if p.requires_grad
        }
        specs = [
            TensorSpec(
                name, tuple(getattr(p, "ds_shape", p.shape)), str(p.dtype).removeprefix("torch.")
            )
            for name, p in parameters.items()
        ]
        manifest = plan_buckets(specs, int(self.config.bucket_mb * 2**20))
        if self.rank == 0:
            yield manifest
        for bucket in manifest:
            wanted = [parameters[spec.name] for spec in bucket]
            with self._whole(wanted):
                packed = pack(wanted) if self.rank == 0 else None
            if self.rank == 0:
                yield packed

    def _whole(self, parameters: Sequence[Tensor]):
        """ZeRO-3 keeps a part of each parameter on each rank; elsewhere there is nothing to gather."""
        if not hasattr(parameters[0], "ds_id"):
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters)

    def save(self, folder: str) -> None:
        """Write the model in transformers layout, under another name until it is whole. Rank 0
        writes."""
        state = {}
        for name, parameter in self.engine.module.named_parameters():
            with self._whole([parameter]):
                if self.rank == 0:
                    state[name.removeprefix("model.")] = parameter.detach().cpu().clone()
        if self.rank == 0:
            part = Path(f"{folder}.part")
            self.janus.model.save_pretrained(part, state_dict=state)
            self.janus.tokenizer.save_pretrained(part)
            part.rename(folder)


class _Tally:
    """Weighted sums of a step's metrics, added up over micro-batches and ranks."""

    def __init__(self, device: str):
        self.device = device
        self.sums: dict[str, list[Tensor]] = {}

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
        names = sorted(self.sums)
        table = torch.stack([self.sums[name] for name in names])
        dist.all_reduce(table)
        sums = dict(zip(names, table.tolist(), strict=True))
        both = [sum(column) for column in zip(sums["loss/cot"], sums["loss/image"], strict=True)]
        means = {name: total / max(count, 1e-8) for name, (total, count) in sums.items()}
        return {"loss": both[0] / max(both[1], 1e-8), **means}


def _by_tokens(pairs: Sequence[tuple[Sample, float]], budget: int) -> list[list[tuple[Sample, float]]]:
    """Cut into micro-batches of at most `budget` padded tokens each, text and image sequences together.

    Sorted by length first, so that little is padding.
    """

    def lengths(sample: Sample) -> tuple[int, int]:
        return (
            len(sample.cot_prompt_ids) + len(sample.cot_ids),
            len(sample.image_prompt_ids) + len(sample.image_ids),
        )

    parts: list[list[tuple[Sample, float]]] = []
    widest = (0, 0)
    for pair in sorted(pairs, key=lambda p: sum(lengths(p[0]))):
        wider = tuple(map(max, widest, lengths(pair[0])))
        if parts and sum(wider) * (len(parts[-1]) + 1) <= budget:
            parts[-1].append(pair)
            widest = wider
        else:
            parts.append([pair])
            widest = lengths(pair[0])
    return parts
