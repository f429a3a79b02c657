"""Does a run fit its GPUs? Memory of each process, estimated before anything is loaded or started.

Only shapes are needed: a model directory's config.json, or, for Janus-Pro by its hub id, the geometry
that examples/janus_pro/ ships. Two things are assumed: the length of prompts, and the memory of CUDA,
NCCL and the allocator. The memory of experts is not known here."""

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import nn
from transformers import JanusConfig, JanusForConditionalGeneration

from cluster.benchmarks import served_gpus
from cluster.config import RunConfig
from learner.config import LearnerConfig, check_targets
from learner.memory import rank_bytes, sizes
from policy.errors import UserError
from policy.model import PolicyConfig, meta_model, trunk_of

GIB = 2**30
PROMPT_TOKENS = 128
"""Assumed length of a prompt with its instruction."""
RUNTIME_GB = 3.0
"""Assumed: CUDA context, NCCL, and what the allocator cannot use."""
DECODED_TOGETHER = 8
"""Images that `Janus.decode_images` decodes at a time."""
DECODER_COPIES = 4
"""Assumed: how many full-size tensors of the image decoder exist at one time."""
GEOMETRIES = Path(__file__).parents[2] / "examples" / "janus_pro"


@dataclass(frozen=True)
class Need:
    """What one process of a role holds on its GPU, in bytes by name. `share`: its share of one GPU; 0:
    it has none, and need not fit one."""

    role: str
    count: int
    share: float
    parts: dict[str, float]

    @property
    def gb(self) -> float:
        return sum(self.parts.values()) / GIB

    def fits(self, gpu_gb: float) -> bool:
        return not self.share or self.gb <= gpu_gb * self.share


def model_shapes(policy: PolicyConfig) -> JanusForConditionalGeneration:
    """The model on the meta device. Raises UserError if its geometry is not known."""
    model = meta_model(policy)
    if model is not None:
        return model
    file = GEOMETRIES / f"{policy.path.rpartition('/')[2]}.json"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in GEOMETRIES.glob("*.json")))
        raise UserError(
            f"policy.path: {policy.path} is not on this machine, and its geometry is not known"
            f" (known: {known})"
        )
    with torch.device("meta"):
        return JanusForConditionalGeneration(JanusConfig.from_json_file(file))


def image_side(model: JanusForConditionalGeneration) -> int:
    """Pixels of an image's side: the decoder doubles it at each level but the first."""
    vq = model.config.vq_config
    return vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1)


def published_bytes(model: JanusForConditionalGeneration, config: RunConfig) -> int:
    """Bytes of one published version of the weights: what is trained; with LoRA the merged matrices."""
    return published_parameters(model, config.learner) * getattr(torch, config.policy.dtype).itemsize


def published_parameters(model: JanusForConditionalGeneration, config: LearnerConfig) -> int:
    if not config.lora:
        return sizes(model, config).trained
    trunk = trunk_of(model)
    check_targets(trunk, config.lora.target_modules)
    ends = tuple(f".{target}" for target in config.lora.target_modules)
    linear = [(f".{name}", m) for name, m in trunk.named_modules() if isinstance(m, nn.Linear)]
    return sum(m.weight.numel() for name, m in linear if name.endswith(ends))


def cache_bytes(llama: JanusConfig, rows: int, slots: int, width: int) -> int:
    """Bytes of keys and values of `rows` sequences of `slots` tokens."""
    size = getattr(llama, "head_dim", None) or llama.hidden_size // llama.num_attention_heads
    return 2 * llama.num_hidden_layers * rows * llama.num_key_value_heads * slots * size * width


def rollout_bytes(model: JanusForConditionalGeneration, config: RunConfig) -> dict[str, float]:
    """Bytes by name of one rollout worker while a whole batch generates its images' last tokens."""
    actors, llama = config.actors, model.config.text_config
    width = getattr(torch, config.policy.dtype).itemsize
    total = sum(p.numel() for p in model.parameters())
    rows = actors.batch_size * (2 if actors.sampling.guidance != 1 else 1)
    image_slots = PROMPT_TOKENS + actors.sampling.max_cot_tokens + model.config.vq_config.num_patches**2
    cot_slots = PROMPT_TOKENS + actors.sampling.max_cot_tokens
    parts = {
        "parameters": total * width,
        "KV cache": max(
            cache_bytes(llama, rows, image_slots, width),
            cache_bytes(llama, actors.batch_size, cot_slots, width),
        ),
        "logits": 4 * 4 * actors.batch_size * llama.vocab_size,
    }
    vq, at_once = model.config.vq_config, min(actors.batch_size, DECODED_TOGETHER)
    largest = vq.base_channels * image_side(model) ** 2 * width
    parts["image decoder"] = at_once * DECODER_COPIES * largest
    return parts


def needs(config: RunConfig, model: JanusForConditionalGeneration) -> list[Need]:
    """The needs of every role whose memory can be estimated. One process uses one GPU, however many it
    reserves."""
    actors, learner = config.actors, config.learner
    # The CoT is in the text sequence and again in the image's prompt.
    sample_tokens = 2 * (PROMPT_TOKENS + actors.sampling.max_cot_tokens)
    sample_tokens += model.config.vq_config.num_patches**2
    runtime = {"CUDA, NCCL (assumed)": RUNTIME_GB * GIB}

    def need(role: str, count: int, gpus: float, parts: dict[str, float]) -> Need:
        return Need(role, count, min(gpus, 1.0), parts | (runtime if gpus else {}))

    ranks = rank_bytes(model, learner, config.policy.dtype, sample_tokens)
    return [
        need("learner", learner.ranks, learner.num_gpus, ranks),
        need("rollout", actors.count, actors.num_gpus, rollout_bytes(model, config)),
    ]


def memory_table(config: RunConfig, needed: list[Need], gpu_gb: float) -> Table:
    """GiB a process: each part, the sum, and whether it fits its share of a GPU."""
    table = Table(title=f"memory of each process, GiB (GPUs of {gpu_gb:g})")
    table.add_column("")
    for need in needed:
        table.add_column(f"{need.count} x {need.role}", justify="right")
    for name in dict.fromkeys(name for need in needed for name in need.parts):
        cells = [f"{n.parts[name] / GIB:.2f}" if name in n.parts else "" for n in needed]
        table.add_row(name, *cells)
    table.add_section()
    table.add_row("sum", *(f"{n.gb:.2f}" for n in needed))
    table.add_row("has", *(f"{gpu_gb * n.share:.2f}" if n.share else "no GPU" for n in needed))
    verdicts = [
        "on the CPU" if not n.share else "fits" if n.fits(gpu_gb) else "[red]does not fit[/red]"
        for n in needed
    ]
    table.add_row("", *verdicts)
    gpus = sum(n.count * n.share for n in needed) + served_gpus(config)
    table.caption = (
        f"GPUs reserved in all, with experts and judges: {gpus:g}; the memory of these is not known"
    )
    return table
