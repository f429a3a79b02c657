"""Where an expert's model runs, in which numbers, and how many inputs at a time."""

from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

import torch

T = TypeVar("T")
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def pick_device(device: Device = "auto") -> torch.device:
    """ "auto": the GPU, if this process has one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def pick_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """ "auto": half precision on a GPU, where it is twice as fast; else float32."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, dtype)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` in order, at most `size` at a time."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
