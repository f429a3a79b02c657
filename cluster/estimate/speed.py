"""Estimates how long a step takes: seconds of each role, from shapes, lengths, GPUs and
cluster/estimate/hardware.py.

The formulas, and measurements compared with them, are in docs/performance.md. No GPU has confirmed them
yet."""

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import JanusForConditionalGeneration

from cluster.config import RunConfig
from cluster.estimate.gpu_memory import cache_bytes, published_bytes
from cluster.estimate.hardware import CPU_CORE, Efficiency, Gpu
from cluster.estimate.step_times import Times
from cluster.estimate.workload import Lengths, gflop_an_image
from cluster.rollout_workers import cut_in_batches
from cluster.weight_sync import wants_broadcast
from learner.memory import sizes
from policy.model import image_head_of, text_head_of, trunk_of
from policy.records import Group, Prompt

ADAM_BYTES = 28
"""Bytes read and written for each trained parameter: float32 copy, gradient, two moments, new
weight."""


@dataclass(frozen=True)
class SpeedModel:
    """Seconds that each role takes for one step."""

    config: RunConfig
    model: JanusForConditionalGeneration
    gpu: Gpu
    efficiency: Efficiency = field(default_factory=Efficiency)
    lengths: Lengths = field(default_factory=Lengths)
    sampler: str = ""
    """vllm, torch or plain (transformers' loop); "": as configured, `auto` on GPUs being vllm."""
    cache_width: float | None = None
    """Bytes of a cached number; None: as the model's."""
    weight_width: float | None = None
    """Bytes of a weight that is read in decoding; None: as the model's."""

    # --- shapes ---

    @cached_property
    def width(self) -> int:
        return getattr(torch, self.config.policy.dtype).itemsize

    @cached_property
    def trunk(self) -> int:
        """Parameters that every token passes, without the embeddings, which are looked up."""
        return _count(trunk_of(self.model).layers)

    @cached_property
    def text_head(self) -> int:
        return _count(text_head_of(self.model))

    @cached_property
    def image_head(self) -> int:
        return _count(image_head_of(self.model))

    @cached_property
    def cache_token(self) -> float:
        """Bytes of one token's keys and values."""
        return cache_bytes(self.model.config.text_config, 1, 1, 1) * (self.cache_width or self.width)

    @cached_property
    def image_tokens(self) -> int:
        return self.model.config.vq_config.num_patches**2

    @property
    def samples(self) -> int:
        return self.config.train.group_size * self.config.train.groups_per_step

    def device(self, num_gpus: float) -> Gpu:
        return self.gpu if num_gpus else CPU_CORE

    # --- generate ---

    @cached_property
    def kind(self) -> str:
        actors = self.config.actors
        by_default = "vllm" if actors.num_gpus else "torch"
        return self.sampler or (by_default if actors.sampler == "auto" else actors.sampler)

    def decode_step_s(self, rows: float, cached: float, head: int) -> float:
        """Seconds of one token of `rows` sequences that hold `cached` tokens each, through trunk and a
        head."""
        actors, factor = self.config.actors, self.efficiency
        device, parts = self.device(actors.num_gpus), actors.vllm.tensor_parallel_size
        weights = (self.trunk + head) * (self.weight_width or self.width)
        reads = weights + rows * cached * self.cache_token
        on_gpu = max(
            reads / (device.memory_bytes_s * factor["decode_bandwidth"]),
            2 * rows * (self.trunk + head) / (device.flops * factor["prefill_flops"]),
        )
        on_gpu = on_gpu / parts + factor["decode_step_s"]
        layers = self.model.config.text_config.num_hidden_layers
        launches = layers * factor[f"launch_s_a_layer.{self.kind}"]
        return max(on_gpu, launches) + factor[f"synchronize_s.{self.kind}"]

    def batch_s(self, samples: int, prompts: int) -> dict[str, float]:
        """Seconds of one worker's batch by part: semantic CoTs, the prompts' own passes, image tokens,
        image decoder."""
        actors, lengths, factor = self.config.actors, self.lengths, self.efficiency
        flops = self.device(actors.num_gpus).flops
        a_sample = 2 if actors.sampling.guidance != 1 else 1
        turns = 1
        if self.kind == "vllm":
            turns = math.ceil(samples / max(1, actors.vllm.max_num_seqs // a_sample))
        at_once = samples / turns
        cot_steps = min(lengths.cot * factor["longest_cot"], actors.sampling.max_cot_tokens)
        writing = at_once * min(1, lengths.cot / cot_steps)
        read = prompts * lengths.cot_prompt + a_sample * samples * lengths.image_prompt
        cached = lengths.cot_prompt + cot_steps / 2, lengths.image_prompt + self.image_tokens / 2
        return {
            "CoT": turns * cot_steps * self.decode_step_s(writing, cached[0], self.text_head),
            "prompts": 2 * self.trunk * read / (flops * factor["prefill_flops"]),
            "image": turns
            * self.image_tokens
            * self.decode_step_s(a_sample * at_once, cached[1], self.image_head),
            "decoder": samples * decoder_flops(self.model) / (flops * factor["image_decoder_flops"]),
        }

    def batches(self) -> list[int]:
        """The number of groups in each batch of a step."""
        size = self.config.train.group_size
        groups = [Group(Prompt("", "", ""), size)] * self.config.train.groups_per_step
        actors = self.config.actors
        return [len(batch) for batch in cut_in_batches(groups, actors.count, actors.batch_size)]

    def generate_s(self, batches: list[int] | None = None) -> dict[str, float]:
        """Seconds of the busiest worker by part; the workers take batches (numbers of groups) in
        turns."""
        batches, actors = batches or self.batches(), self.config.actors.count
        size = self.config.train.group_size
        each = [[self.batch_s(n * size, n) for n in batches[i::actors]] for i in range(actors)]
        sums = [{name: sum(b[name] for b in mine) for name in mine[0]} for mine in each if mine]
        return max(sums, key=lambda parts: sum(parts.values()))

    # --- score ---

    def score_s(self) -> dict[str, float | None]:
        """Seconds of each expert for one step: replicas with a fraction of a GPU take turns on the GPUs
        that they fill together, others work in parallel. None: its cost is not known."""
        experts = self.config.rewards.experts
        fractions = sum(
            e.most_replicas * e.num_gpus for e in experts.values() if _is_shared(e.num_gpus)
        )
        busy: dict[str, float | None] = {}
        for name, expert in experts.items():
            work = self._expert_s(name)
            on = math.ceil(fractions - 1e-9) if _is_shared(expert.num_gpus) else expert.most_replicas
            busy[name] = None if work is None else self.samples * work / on
        return busy

    def _expert_s(self, name: str) -> float | None:
        """Seconds an image."""
        expert = self.config.rewards.experts[name]
        gflop = gflop_an_image(expert.use)
        if gflop is None or name in self.efficiency.experts:
            return self.efficiency.experts.get(name)
        return 1e9 * gflop / (self.device(expert.num_gpus).flops * self.efficiency["expert_flops"])

    def all_scored_s(self) -> float:
        """Seconds until the last expert is done."""
        experts, busy = self.config.rewards.experts, self.score_s()
        in_turns = [s or 0.0 for name, s in busy.items() if _is_shared(experts[name].num_gpus)]
        beside = [s or 0.0 for name, s in busy.items() if not _is_shared(experts[name].num_gpus)]
        return max(sum(in_turns), *beside, 0.0)

    # --- learn ---

    @property
    def passes(self) -> int:
        """Compute in units of a forward pass: forward, backward (twice a forward; with LoRA once) and
        recomputed forward for each round of updates; the reference and the learner's own old
        log-probabilities once."""
        learner = self.config.learner
        rounds = learner.updates_per_batch
        several = rounds * learner.minibatches > 1
        before = (learner.kl_coef > 0) + (several and learner.old_logps == "learner")
        return rounds * (1 + (1 if learner.lora else 2) + learner.gradient_checkpointing) + before

    @property
    def updates(self) -> int:
        """How many optimizer steps one step has."""
        return self.config.learner.updates_per_batch * self.config.learner.minibatches

    @property
    def sample_tokens(self) -> float:
        text = self.lengths.cot_prompt + self.lengths.cot
        images = 2 if self.config.learner.train_distribution == "guided" else 1
        return text + images * (self.lengths.image_prompt + self.image_tokens)

    def learn_s(self) -> dict[str, float]:
        """Seconds by part of the rank with the most groups: passes, ZeRO's communication, and the
        optimizer."""
        learner, factor, train = self.config.learner, self.efficiency, self.config.train
        device, ranks = self.device(learner.num_gpus), learner.ranks
        size = sizes(self.model, learner)
        samples = math.ceil(train.groups_per_step / ranks) * train.group_size
        heads = self.lengths.cot * self.text_head + self.image_tokens * self.image_head
        flops = 2 * samples * self.passes * (self.trunk * self.sample_tokens + heads)
        micro_batches = math.ceil(samples * self.sample_tokens / learner.micro_batch_tokens)
        stage, whole = learner.zero_stage, size.total * self.width
        rounds, updates = learner.updates_per_batch, self.updates
        gathers = rounds * micro_batches if stage >= 2 else updates
        sent: float = size.trained * self.width * (updates + gathers)
        if stage == 3:
            sent += rounds * micro_batches * whole * (2 + learner.gradient_checkpointing)
        if learner.reference_kind == "sharded":
            sent += micro_batches * whole
        sent *= (ranks - 1) / ranks
        lent = micro_batches * whole if learner.reference_kind == "offload" else 0
        return {
            "compute": flops / (device.flops * factor["learner_flops"]),
            "ZeRO": sent / (device.link_bytes_s * factor["collective_link"]),
            "reference from host": lent / factor["host_link_bytes_s"] if learner.num_gpus else 0.0,
            "optimizer": updates
            * size.trained
            * ADAM_BYTES
            / (ranks if stage else 1)
            / (device.memory_bytes_s * factor["decode_bandwidth"]),
        }

    # --- publish, and all together ---

    def times(self, batches: list[int] | None = None) -> Times:
        config, nbytes = self.config, published_bytes(self.model, self.config)
        broadcast = wants_broadcast(config)
        device = self.device(config.learner.num_gpus)
        speed = device.link_bytes_s * self.efficiency["link"]
        publish = nbytes / (speed if broadcast else self.efficiency["store_bytes_s"])
        shared = any(_is_shared(role.num_gpus) for role in (config.actors, config.learner))
        return Times(
            generate=self.generate_s(batches),
            score=self.score_s(),
            score_s=self.all_scored_s(),
            learn=self.learn_s(),
            publish=publish,
            pull=0.0 if broadcast else nbytes / self.efficiency["store_bytes_s"],
            driver=self.efficiency["driver_s"],
            staleness=config.train.max_staleness,
            take_turns=shared or not config.actors.num_gpus,
        )


@lru_cache
def decoder_flops(model: JanusForConditionalGeneration) -> int:
    """FLOP of decoding one image, counted by torch over the image decoder's operations; `model` is on
    the meta device."""
    ids = torch.zeros(1, model.config.vq_config.num_patches**2, dtype=torch.long, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.decode_image_tokens(ids)
    return counter.get_total_flops()


def _is_shared(num_gpus: float) -> bool:
    return 0 < num_gpus < 1


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
