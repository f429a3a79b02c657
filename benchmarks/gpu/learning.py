"""Parts `learn` and `publish`: one DeepSpeed rank of the learner, at a real run's lengths.

A model whose optimizer does not fit keeps its layers' shapes and has fewer of them.
"""

import math
from typing import Any

import torch
from transformers import JanusForConditionalGeneration

from actors.sampler import SamplingConfig
from actors.torch_sampler import TorchSampler
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.measure import add_memory, fresh_memory, parameters, seconds, this_gpu, traced
from benchmarks.gpu.plain_ray import Reference, plain_ray
from benchmarks.gpu.setting import DEVICE, ON_GPU, Setting
from learner.config import LearnerConfig
from learner.memory import rank_bytes
from learner.schedules import Coefficients, StepSettings
from policy.model import load_janus
from policy.weights import unpack

VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "recomputed": ({"gradient_checkpointing": True}, 5),
    "no reference": ({"gradient_checkpointing": True, "kl_coef": 0.0}, 4),
    "kept": ({"kl_coef": 0.0, "micro_batch_tokens": 4096}, 3),
}
"""Settings, and passes of the trunk over every token: forward, two of backward, the layers computed
again, the reference."""
ONE_RANK = {"zero_optimization": {"reduce_bucket_size": 50_000_000}}
"""A single rank reduces with no other."""
ROOM = 0.8
"""Share of the free memory for what is counted below; CUDA, the allocator and DeepSpeed's buffers take
the rest."""


def learn(setting: Setting, figures: Figures, case: str) -> None:
    """`case`: one of VARIANTS."""
    changes, passes = VARIANTS[case]
    rank = _rank(setting, figures, _config(**changes), case=case)
    trunk = parameters(rank.janus.trunk.layers)
    # Groups of eight. The published recipes have more groups a step; the cost of a token is the same.
    samples, advantages = setting.scored_samples(2 if setting.tiny else 4)
    tokens = sum(
        len(ids)
        for group in samples
        for s in group
        for ids in (s.cot_prompt_ids, s.cot_ids, s.image_prompt_ids, s.image_ids)
    )
    references = [Reference(group) for group in samples]
    metrics = {}
    at_start = StepSettings(Coefficients.at_start(rank.config))

    def step() -> None:
        metrics.update(rank.step(references, [(range(len(samples)), advantages)], at_start))

    step()
    fresh_memory()
    taken = seconds(step, 1 if setting.tiny else 3)
    figures.add("step_s", taken, "s", case=case, tokens=tokens)
    figures.add("tokens_s", tokens / taken, "tokens/s", case=case)
    figures.add("tflops", 2 * trunk * tokens * passes / taken / 1e12, "TFLOP/s", case=case)
    if case == "recomputed" and (gpu := this_gpu()):
        figures.add_factor("learner_flops", 2 * trunk * tokens * passes / taken / gpu.flops)
    add_memory(figures, "peak_gb", case=case)
    figures.add("grad_norm_is_finite", math.isfinite(metrics["grad_norm"]), case=case)
    if setting.trace:
        traced(step, setting.trace / f"learn-{case.replace(' ', '-')}.txt")


def publish(setting: Setting, figures: Figures, case: str) -> None:
    """Pack the trained weights into buckets on the host, and load these into a sampler."""
    config = _config(kl_coef=0.0)
    rank = _rank(setting, figures, config)
    policy = setting.on_disk(_layers(setting, config))
    parts: list = []

    def pack() -> None:
        parts[:] = rank.publish()

    pack()
    taken = seconds(pack, 2)
    manifest, *buckets = parts
    gb = sum(bucket.nbytes for bucket in buckets) / 1e9
    figures.add("trained_gb", gb, "GB")
    figures.add("buckets", len(buckets))
    figures.add("pack_s", taken, "s")
    figures.add("pack_gb_s", gb / taken, "GB/s")
    figures.add_factor("store_bytes_s", 1e9 * gb / taken)
    rank = None  # frees its memory for the sampler
    fresh_memory()
    sampler = TorchSampler(load_janus(policy, DEVICE), SamplingConfig(), 0)
    specs = [spec for bucket in manifest for spec in bucket]
    taken = seconds(lambda: sampler.load_weights(1, unpack(manifest, buckets), specs), 3)
    figures.add("load_s", taken, "s", sampler="torch")
    figures.add("load_gb_s", gb / taken, "GB/s", sampler="torch")


def _config(**changes) -> LearnerConfig:
    return LearnerConfig(num_gpus=float(ON_GPU), deepspeed=ONE_RANK, **changes)


def _rank(setting: Setting, figures: Figures, config: LearnerConfig, **where):
    """A rank with its engine, the only one of its group."""
    plain_ray()
    from learner.worker import LearnerWorker

    layers = _layers(setting, config)
    policy = setting.on_disk(layers)
    fresh_memory()
    rank = LearnerWorker(0, 1)

    def setup() -> None:
        rank.setup(policy, config, 1.0, setting.guidance, rank.rendezvous(loopback=True))

    taken = seconds(setup)
    figures.add("layers", layers, **where)
    figures.add("setup_s", taken, "s", **where)
    add_memory(figures, "held_gb", **where)
    return rank


def _layers(setting: Setting, config: LearnerConfig) -> int:
    """The number of layers asked for; else as many as fit, by the estimate of `bicot estimate`."""
    whole = setting.config().text_config.num_hidden_layers
    if setting.layers or not ON_GPU:
        return whole
    sample = sum(vars(setting.lengths).values()) + 576
    room = ROOM * torch.cuda.mem_get_info()[1]

    def fits(layers: int) -> bool:
        with torch.device("meta"):
            model = JanusForConditionalGeneration(setting.config(layers))
        return sum(rank_bytes(model, config, setting.dtype, sample).values()) <= room

    return next((n for n in range(whole, 1, -1) if fits(n)), 1)
