"""The learner's weights as all other processes see them, with or without LoRA.

Others see whole tensors under transformers' names. With LoRA, low-rank adapters are trained beside the
trunk's matrices instead of the matrices. An adapter starts as zero, so the model with adapters switched
off is the reference, and no second model is needed. Samplers know nothing of adapters: what is
published is the merged matrix W + s B A.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from learner.config import LoraSettings, check_targets
from policy.model import PolicyModel
from policy.weights import TensorSpec

if TYPE_CHECKING:  # slow to import, and needed for adapters alone
    from peft.tuners.lora import LoraLayer

ADAPTER = "default"


def add_adapters(janus: PolicyModel, settings: LoraSettings) -> None:
    """Freeze the model and put trainable adapters into its trunk.

    Raises UserError if a target is not there or is not a linear module.
    """
    from peft import LoraConfig, inject_adapter_in_model

    trunk = janus.trunk
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


def lora_layers(model: nn.Module) -> dict[str, "LoraLayer"]:
    """The adapted modules by the names that they have without adapters."""
    if "peft" not in sys.modules:  # then there are no adapters
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before training.

    Sets their scale to 0 instead of using peft's switch: the same modules run in the same order, as
    ZeRO-3's prefetching expects, and no `requires_grad` changes under the optimizer's hooks.
    """
    layers = lora_layers(model).values()
    for layer in layers:
        layer.set_scale(ADAPTER, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_scale(ADAPTER, 1.0)


def parts(layer: "LoraLayer") -> list[Tensor]:
    """W, A, B, which must be gathered for `merge`."""
    return [layer.base_layer.weight, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]


@torch.no_grad()
def merge(layer: "LoraLayer") -> Tensor:
    """W + s B A, computed in float32 and rounded once."""
    weight, a, b = parts(layer)
    return (weight.float() + layer.scaling[ADAPTER] * (b.float() @ a.float())).to(weight.dtype)


@dataclass(frozen=True)
class Export:
    """A tensor to export, and the parameters to gather (`gathered`) before `whole()` may be called."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    trained: bool
    parts: Sequence[Tensor]
    whole: Callable[[], Tensor]

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.shape, self.dtype)


def exports(model: nn.Module) -> Iterator[Export]:
    """Every parameter of the model; an adapted matrix is one tensor, with its adapter merged in."""
    adapted = lora_layers(model)
    for name, parameter in model.named_parameters():
        module, _, rest = name.partition(".lora_")
        if rest:
            continue
        module, base, leaf = name.partition(".base_layer.")
        if base and leaf == "weight":
            layer = adapted[module]
            yield _export(f"{module}.weight", parameter, parts(layer), lambda it=layer: merge(it), True)
        else:
            plain = f"{module}.{leaf}" if base else name
            yield _export(plain, parameter, [parameter], lambda p=parameter: p, parameter.requires_grad)


def _export(name: str, like: Tensor, parts: Sequence[Tensor], whole, trained: bool) -> Export:
    shape = tuple(getattr(like, "ds_shape", like.shape))  # ZeRO-3 leaves a parameter empty
    return Export(name, shape, str(like.dtype).removeprefix("torch."), trained, parts, whole)


def gathered(wanted: Sequence[Export]) -> AbstractContextManager:
    """ZeRO-3 keeps a part of each parameter on each rank: all ranks gather them together. Does nothing
    in other stages."""
    tensors = [part for export in wanted for part in export.parts]
    if not hasattr(tensors[0], "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(tensors)
