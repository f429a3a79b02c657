"""Faster kernels for a trunk, if configured (`learner.kernels`)."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from policy.errors import UserError

if TYPE_CHECKING:
    from torch import nn


def check_kernels(kind: str) -> None:
    """Raises UserError where they are not installed."""
    if kind == "liger" and find_spec("liger_kernel") is None:
        raise UserError('learner.kernels: liger is not installed: pip install "bicot[liger]"')


def use_kernels(trunk: "nn.Module", kind: str) -> None:
    """Put the kernels into a Llama trunk, in place; names of parameters stay.

    `liger`: RMSNorm, SwiGLU and rotary positions as Triton kernels. `compile`: each layer by
    torch.compile, for any length of sequence. The heads stay as they are (`TokenLogps`).
    """
    if kind == "liger":
        check_kernels(kind)
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(
            rope=True,
            rms_norm=True,
            swiglu=True,
            cross_entropy=False,
            fused_linear_cross_entropy=False,
            model=trunk,
        )
    elif kind == "compile":
        layers: Any = trunk.layers
        for layer in layers:
            layer.compile(dynamic=True)
