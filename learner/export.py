"""The learner's weights as everybody else knows them: whole tensors under transformers' names."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from learner.lora import lora_layers, merge, parts
from policy.weights import TensorSpec


@dataclass(frozen=True)
class Export:
    """A tensor to be, and what must be gathered (`gathered`) before `whole()` may be called."""

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
    """ZeRO-3 keeps a part of each parameter on each rank: all ranks gather them together. Elsewhere
    there is nothing to gather."""
    tensors = [part for export in wanted for part in export.parts]
    if not hasattr(tensors[0], "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(tensors)
