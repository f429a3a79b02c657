"""Estimates the memory of one learner rank from the model's shapes and the configuration.

Bytes per parameter: parameters and gradients in the training dtype; the optimizer holds a float32 copy
and two moments of what is trained. ZeRO divides the optimizer (stage 1), gradients (2) and parameters
(3) by the number of ranks. For its step it makes a flat copy of its share of the gradients, and one in
float32; by then what backward needed is free again.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import JanusForConditionalGeneration

from learner.config import LearnerConfig, check_targets, deepspeed_settings, frozen_module
from policy.model import image_head_of, text_head_of, trunk_of

MASTER_AND_MOMENTS = 12
"""Bytes a trained parameter: float32 copy, first and second moment."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters of a model."""

    total: int
    trained: int
    largest: int
    """Parameters of the largest module that is moved or gathered as one."""
    largest_tensor: int
    """Parameters of the largest tensor that is trained."""


def sizes(model: JanusForConditionalGeneration, config: LearnerConfig) -> Sizes:
    """`model` may be on the meta device. With LoRA the adapters come on top of the model's own.

    Raises UserError for a name that the model does not have.
    """
    total = sum(p.numel() for p in model.parameters())
    units = [*trunk_of(model).layers, text_head_of(model), image_head_of(model)]
    largest = max(sum(p.numel() for p in unit.parameters()) for unit in units)
    if config.lora:
        trunk = trunk_of(model)
        check_targets(trunk, config.lora.target_modules)
        ends = tuple(f".{target}" for target in config.lora.target_modules)
        adapters = sum(
            config.lora.rank * (m.in_features + m.out_features)
            for name, m in trunk.named_modules()
            if isinstance(m, nn.Linear) and f".{name}".endswith(ends)
        )
        return Sizes(total + adapters, adapters, largest, adapters)  # a bound: they are small
    frozen = {
        id(p): p.numel() for name in config.freeze for p in frozen_module(model, name).parameters()
    }
    trained = [p.numel() for p in model.parameters() if id(p) not in frozen]
    return Sizes(total, sum(trained), largest, max(trained, default=0))


def rank_bytes(
    model: JanusForConditionalGeneration, config: LearnerConfig, dtype: str, sample_tokens: int
) -> dict[str, float]:
    """What one rank holds at the peak of a step, in bytes by name. `sample_tokens`: of the longest
    sample's text and image sequences together; a micro-batch holds at least one."""
    settings = deepspeed_settings(config, dtype)
    zero = settings["zero_optimization"]
    stage, width = zero["stage"], getattr(torch, dtype).itemsize
    size, ranks = sizes(model, config), config.ranks

    def share(from_stage: int) -> int:
        return ranks if stage >= from_stage else 1

    def on_device(key: str) -> bool:
        return zero.get(key, {}).get("device", "none") == "none"

    held = {
        "parameters": size.total * width / share(3) * on_device("offload_param"),
        "gradients": size.trained * width / share(2) * on_device("offload_optimizer"),
        "optimizer": _optimizer_bytes(size, stage, width) / share(1) * on_device("offload_optimizer"),
        "reference": _reference_bytes(size, config) * width,
    }
    buffers = min(zero.get("reduce_bucket_size", 5e8), size.trained) * width if stage else 0
    if stage == 3:
        buffers += 2 * size.largest * width  # a module in use, and the one fetched ahead
    activations = activation_bytes(model.config.text_config, width, config.gradient_checkpointing)
    tokens = max(config.micro_batch_tokens, sample_tokens)
    if config.train_distribution == "guided":
        tokens *= 2  # at most: the unconditional rows of the images on top
    backward = {
        "activations": activations(tokens),
        "logits chunk": chunk_bytes(model, config, width),
    }
    step = step_bytes(size, zero, ranks, width) if on_device("offload_optimizer") else 0
    beyond = max(0.0, step - sum(backward.values()))
    return {**held, "ZeRO buffers": buffers, **backward, "step beyond those two": beyond}


def _optimizer_bytes(size: Sizes, stage: int, width: int) -> float:
    """Bytes of the optimizer's state. Without ZeRO a float32 model is its own float32 copy."""
    per_parameter = MASTER_AND_MOMENTS if stage or width < 4 else MASTER_AND_MOMENTS - 4
    return size.trained * per_parameter


def step_bytes(size: Sizes, zero: dict, ranks: int, width: int) -> float:
    """What the optimizer's step holds temporarily. The fused AdamW allocates nothing, but ZeRO flattens
    the gradients of this rank's share and turns them into float32 (stage 3 by `sub_group_size`), and
    before that turns each gradient in turn into float64 for its norm."""
    stage = zero["stage"]
    in_float32 = 4 if width < 4 else 0
    if stage == 0:
        return size.trained * in_float32
    share = size.trained / ranks
    at_once = min(share, zero.get("sub_group_size", 1e9)) if stage == 3 else share
    norm = 8 * size.largest_tensor / (ranks if stage == 3 else 1)
    return max(at_once * (width + in_float32), norm)


def _reference_bytes(size: Sizes, config: LearnerConfig) -> float:
    """Parameters of the reference model on the device."""
    return {
        "copy": size.total,
        "sharded": size.total / config.ranks + size.largest,
        "offload": size.largest,
        "lora-off": 0,
        "none": 0,
    }[config.reference_kind]


def activation_bytes(llama, width: int, checkpointed: bool):
    """Returns a function of the number of tokens: the bytes that the trunk keeps for backward.

    A layer keeps, per token: two norms (their input in float32, the normed values before and after the
    weight), queries, keys, values and what was attended, and four vectors of the feed-forward part. A
    checkpointed layer keeps its input, and at the peak one layer is being computed again.
    """
    hidden, inner = llama.hidden_size, llama.intermediate_size
    keys = 2 * hidden * llama.num_key_value_heads // llama.num_attention_heads
    norm = hidden * (4 + 2 * width)
    layer = 2 * norm + width * (2 * hidden + keys) + width * 4 * inner
    if checkpointed:
        return lambda tokens: tokens * (llama.num_hidden_layers * width * hidden + layer + norm)
    return lambda tokens: tokens * (llama.num_hidden_layers * layer + norm)


def chunk_bytes(model: JanusForConditionalGeneration, config: LearnerConfig, width: int) -> float:
    """Bytes of one chunk of the text head: logits in the training dtype and in float32, their
    log-softmax and their gradient; and the gradient of its weights, summed chunk by chunk in two
    buffers."""
    vocabulary = model.config.text_config.vocab_size
    wide = 12 + (width if width < 4 else 0)
    trained = not config.lora and "lm_head" not in config.freeze
    weights = 2 * text_head_of(model).weight.numel() * width if trained else 0
    return config.logprob_chunk_tokens * vocabulary * wide + weights
