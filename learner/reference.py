"""The reference model of the KL term: the weights that training began with.

| `learner.reference` | where its parameters are | costs |
|---|---|---|
| `copy` | whole on every rank's device | memory |
| `sharded` | a share on each rank (ZeRO-3), gathered module by module | communication |
| `offload` | in host memory, moved module by module to the device | transfers |

With `learner.lora` there is none of these: the reference is the model with its adapters switched off.
All use the reference's own embeddings (the published code fed it the policy's).
"""

from collections.abc import Callable, Iterator

from torch import nn

from learner.batch import Batch
from learner.config import LearnerConfig
from learner.engine import sharded_engine
from learner.logprobs import JanusLogps, Logps
from learner.token_logps import TokenLogps
from policy.janus import PolicyConfig, load_janus

Reference = Callable[[Batch], Logps]


def load_reference(
    policy: PolicyConfig, config: LearnerConfig, device: str, options: dict
) -> Reference | None:
    """A second model as `config.reference_kind` says; None where there is none. All ranks call it
    together. `options` are JanusLogps'."""
    kind = config.reference_kind
    if kind in ("none", "lora-off"):
        return None
    # A sharded model is cut up on the device; an offloaded one must never be there as a whole.
    janus = load_janus(policy, "cpu" if kind == "offload" else device)
    janus.model.requires_grad_(False)
    module = JanusLogps(janus, **options)
    if kind == "sharded":
        module = sharded_engine(module, config, policy.dtype)
        module.eval()
    elif kind == "offload":
        offload(module, device)
    return module


def offload(module: nn.Module, device: str) -> None:
    """Keep parameters on the host and lend them to `device` for each unit's forward. They are never
    written, so nothing is copied back."""
    for unit in _units(module):
        parameters = list(unit.parameters())
        home = [p.data.pin_memory() if device != "cpu" else p.data for p in parameters]

        def lend(_unit, _inputs, parameters=parameters, home=home):
            for parameter, tensor in zip(parameters, home, strict=True):
                parameter.data = tensor.to(device, non_blocking=True)

        def take_back(_unit, _inputs, _outputs, parameters=parameters, home=home):
            for parameter, tensor in zip(parameters, home, strict=True):
                parameter.data = tensor

        unit.register_forward_pre_hook(lend)
        unit.register_forward_hook(take_back)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """What is moved at a time: a head for all its chunks, a layer of the trunk, else one module."""
    heads = [m for m in module.modules() if isinstance(m, TokenLogps)]
    layers = list(module.model.model.language_model.layers)
    yield from (*heads, *layers)
    covered = {id(m) for unit in (*heads, *layers) for m in unit.modules()}
    for other in module.modules():
        if id(other) not in covered and any(True for _ in other.parameters(recurse=False)):
            yield other
