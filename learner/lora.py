"""LoRA: train low-rank adapters beside the trunk's matrices instead of the matrices.

An adapter starts as zero, so the model with adapters switched off is the reference, and no second model
is needed. Samplers know nothing of adapters: what is published is the merged matrix W + s B A under the
name it has in transformers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from learner.config import LoraSettings, check_targets
from policy.janus import Janus

ADAPTER = "default"


def add_adapters(janus: Janus, settings: LoraSettings) -> None:
    """Freeze the model and put trainable adapters into its trunk.

    Raises UserError if a target is not there or is not a linear module.
    """
    trunk = janus.model.model.language_model
    check_targets(trunk, settings.target_modules)
    janus.model.requires_grad_(False)
    options = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=settings.target_modules,
        lora_dropout=0.0,  # it would make the ratio of an on-policy step differ from 1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # every rank begins with the same adapters
        inject_adapter_in_model(options, trunk, ADAPTER)
    for layer in lora_layers(trunk).values():
        layer.to(layer.weight.device, layer.weight.dtype)


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapted modules by the names that they have without adapters."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before training.

    By a scale of 0 and not by peft's switch: the same modules run in the same order, which is what
    ZeRO-3 prefetches by, and no `requires_grad` changes under the optimizer's hooks.
    """
    layers = lora_layers(model).values()
    for layer in layers:
        layer.set_scale(ADAPTER, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_scale(ADAPTER, 1.0)


def parts(layer: LoraLayer) -> list[Tensor]:
    """W, A, B: what `merge` needs gathered."""
    return [layer.base_layer.weight, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]


@torch.no_grad()
def merge(layer: LoraLayer) -> Tensor:
    """W + s B A, computed in float32 and rounded once."""
    weight, a, b = parts(layer)
    return (weight.float() + layer.scaling[ADAPTER] * (b.float() @ a.float())).to(weight.dtype)
