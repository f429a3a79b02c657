"""Weights on the wire: flat byte buckets, a manifest that says what is in them, and a version.

A bucket is a uint8 array, so any dtype travels (numpy has no bfloat16) and Ray's object store can
map it into every reader's memory without a copy.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorSpec:
    name: str
    shape: tuple[int, ...]
    dtype: str  # torch's name: "float32", "bfloat16"

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "TensorSpec":
        return cls(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True)
class PublishedWeights:
    """One version of the trained parameters. `parts` is a reference to a list of references: to a
    Manifest, and to a bucket each. Small, so it travels with every order for samples; whoever lacks the
    version pulls. Without parts: the version was broadcast, and cannot be pulled."""

    version: int
    parts: object | None = None
    timeline: int = 0
    """A run that goes back to a checkpoint counts versions again, on a new timeline."""


Manifest = tuple[tuple[TensorSpec, ...], ...]
"""For each bucket, the tensors in it, in order."""


def plan_buckets(specs: Iterable[TensorSpec], bucket_bytes: int) -> Manifest:
    """Fill buckets in order, each up to `bucket_bytes`; a larger tensor gets a bucket of its own."""
    buckets: list[list[TensorSpec]] = []
    room = 0
    for spec in specs:
        if not buckets or spec.nbytes > room:
            buckets.append([])
            room = bucket_bytes
        buckets[-1].append(spec)
        room -= spec.nbytes
    return tuple(tuple(bucket) for bucket in buckets)


def pack(tensors: Sequence[Tensor]) -> np.ndarray:
    """Tensors as one flat uint8 array."""
    flat = [t.detach().cpu().contiguous().view(-1).view(torch.uint8) for t in tensors]
    return torch.cat(flat).numpy()


def unpack(manifest: Manifest, buckets: Sequence[np.ndarray]) -> Iterator[tuple[str, Tensor]]:
    """Named tensors, one copied out of its bucket at a time.

    Raises ValueError, before the first tensor, unless every bucket is there and of the right size.
    """
    wanted = [sum(spec.nbytes for spec in bucket) for bucket in manifest]
    got = [bucket.nbytes for bucket in buckets]
    if wanted != got:
        raise ValueError(f"weights are incomplete: buckets of {got} bytes, where {wanted} belong")
    return _views(manifest, buckets)


def _views(manifest: Manifest, buckets: Sequence[np.ndarray]) -> Iterator[tuple[str, Tensor]]:
    for specs, bucket in zip(manifest, buckets, strict=True):
        offset = 0
        for spec in specs:
            tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
            if spec.nbytes:
                raw = tensor.view(-1).view(torch.uint8).numpy()  # the tensor's own memory
                raw[:] = bucket[offset : offset + spec.nbytes]
            yield spec.name, tensor
            offset += spec.nbytes
