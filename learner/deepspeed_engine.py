"""Starts DeepSpeed in a learner worker, and loads the reference model of the KL term.

The reference has the weights that training began with, or another model's (`reference_path`):

| `learner.reference` | where its parameters are | costs |
|---|---|---|
| `copy` | whole on every rank's device | memory |
| `sharded` | a share on each rank (ZeRO-3), gathered module by module | communication |
| `offload` | in host memory, moved module by module to the device | transfers |

With `learner.lora` none of these is loaded: the reference is the model with its adapters switched off.
All use the reference's own embeddings (the published code fed it the policy's).
"""

import ctypes
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from learner.async_checkpoint import ENGINE_FOLDER, UNIVERSAL_FOLDER, Writer
from learner.batch import Batch
from learner.config import LearnerConfig, deepspeed_settings, frozen_module
from learner.logprobs import JanusLogps, Logps, TokenLogps
from policy.errors import UserError
from policy.model import PolicyConfig, load_janus, trunk_of
from policy.rendezvous import Rendezvous


def join(rank: int, world: int, where: Rendezvous, *, on_gpu: bool, timeout_s: float) -> None:
    """Meet the other ranks."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK="0",  # Ray shows each rank its own GPU alone
    )
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # Else the first collective compiles an extension for shared-memory CPUs: 40 s and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if on_gpu else "gloo"
    timeout = timedelta(seconds=timeout_s)
    store = where.meet(rank, world, timeout_s)
    dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world)
    deepspeed.init_distributed(backend, timeout=timeout, verbose=False)  # takes that group


def keep_freed_memory() -> None:
    """Have the allocator keep the memory that a step frees for the next one. By default it returns
    tensors as wide as a vocabulary to the system, which must then map every page of the next one again:
    a quarter of a step's time on a CPU, three quarters of the optimizer's. Costs about a fifth more
    memory at the peak. Does nothing where there is no glibc."""
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None)
    for parameter in (m_trim_threshold, m_mmap_threshold) if mallopt else ():
        mallopt(parameter, 2**31 - 1)


def freeze(model: nn.Module, names: list[str]) -> None:
    """Call it before the optimizer is built: ZeRO weight-decays parameters that never get a
    gradient."""
    for name in names:
        frozen_module(model, name).requires_grad_(False)


@dataclass(frozen=True)
class Resume:
    """A checkpoint to go on from; `universal`: another number of ranks wrote it, and it has been
    converted."""

    folder: str
    universal: bool = False


def training_engine(
    module: JanusLogps,
    config: LearnerConfig,
    dtype: str,
    writer: Writer,
    resume: Resume | None = None,
):
    """An engine that trains whatever requires a gradient, with AdamW unless DeepSpeed's settings name
    an optimizer."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise UserError("learner.freeze: nothing is left to train")
    settings = deepspeed_settings(config, dtype)
    optimizer = None
    if "optimizer" not in settings:
        # Fused: a ninth of the time on a CPU, and on a GPU no temporaries as large as the model.
        optimizer = torch.optim.AdamW(
            trained, config.lr, betas=config.adam_betas, weight_decay=config.weight_decay, fused=True
        )
    if resume and resume.universal:
        settings["checkpoint"] = {**settings.get("checkpoint", {}), "load_universal": True}
    engine = _initialize(module, settings, optimizer=optimizer, model_parameters=trained)

    from learner.snapshot_engine import SnapshotEngine, plain_values_only

    engine.checkpoint_engine = SnapshotEngine(writer)
    # No recovery script: it unpickles, and a rank that cannot copy it to a full disk fails alone, and
    # loses the others.
    engine._copy_recovery_script = lambda save_path: None
    if resume:
        tag = UNIVERSAL_FOLDER if resume.universal else ENGINE_FOLDER
        with plain_values_only():
            engine.load_checkpoint(resume.folder, tag=tag)
    return engine


def apply_gradients(engine) -> bool:
    """One optimizer step; False if a gradient is not finite, in which case nothing changes."""
    if engine.zero_optimization():  # checks for itself
        engine.step()
        return engine.was_step_applied()
    norms = [p.grad.norm() for p in engine.module.parameters() if p.grad is not None]
    if norms and not torch.isfinite(torch.stack(norms).sum()):
        engine.module.zero_grad()
        return False
    engine.step()
    return True


def sharded_engine(module: JanusLogps, config: LearnerConfig, dtype: str):
    """An engine for forward passes only: each rank keeps its share of the parameters (ZeRO-3). The
    user's DeepSpeed settings of gathering hold here too."""
    mine = deepspeed_settings(config, dtype)["zero_optimization"]
    gathering = {key: value for key, value in mine.items() if key.startswith("stage3_")}
    plain = config.model_copy(update={"deepspeed": {"zero_optimization": gathering}, "zero_stage": 3})
    return _initialize(module, deepspeed_settings(plain, dtype))


def _initialize(module: JanusLogps, settings: dict, **options):
    import deepspeed

    for leaf in module.zero3_leaves():
        deepspeed.utils.set_z3_leaf_module(leaf, True)
    engine, *_ = deepspeed.initialize(model=module, config=settings, **options)
    return engine


Reference = Callable[[Batch], Logps]


def load_reference(
    policy: PolicyConfig, config: LearnerConfig, device: str, options: dict
) -> Reference | None:
    """The reference model of `config.reference_kind`, a second model; None where there is none. All
    ranks call it together. `options` are JanusLogps'."""
    kind = config.reference_kind
    if kind in ("none", "lora-off"):
        return None
    if config.reference_path is not None:
        policy = policy.model_copy(update={"path": config.reference_path})
    # A sharded model is split on the device; an offloaded one must never be there as a whole.
    janus = load_janus(policy, "cpu" if kind == "offload" else device)
    janus.model.requires_grad_(False)
    module = JanusLogps(janus, **options)
    if kind == "sharded":
        module = sharded_engine(module, config, policy.dtype)
        module.eval()
    elif kind == "offload":
        offload(module, device)
    return module


def offload(module: JanusLogps, device: str) -> None:
    """Keep parameters on the host and move them to `device` for each unit's forward. They are never
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


def _units(module: JanusLogps) -> Iterator[nn.Module]:
    """The units that are moved at a time: a head for all its chunks, a layer of the trunk, else one
    module."""
    heads = [m for m in module.modules() if isinstance(m, TokenLogps)]
    layers = list(trunk_of(module.model).layers)
    yield from (*heads, *layers)
    covered = {id(m) for unit in (*heads, *layers) for m in unit.modules()}
    for other in module.modules():
        if id(other) not in covered and any(True for _ in other.parameters(recurse=False)):
            yield other
