"""Weights on the wire: flat byte buckets, a manifest that says what is in them, and a version.

A bucket is a uint8 array, so any dtype travels (numpy has no bfloat16) and Ray's object store can map
it into every reader's memory without a copy.

There are two transports (`WeightTransport`). `StoredBuckets` are kept where a late worker can pull
them. `Broadcast` sends them from one process to many at once: NCCL from GPU memory to GPU memory, gloo
between CPUs. Its process group has a store of its own, so that it works beside any other group of the
process (DeepSpeed's), and serves both samplers alike."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from policy.rendezvous import Rendezvous


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


class WeightTransport(Protocol):
    """Carries weights from the learner's rank 0 to the rollout workers. Each end has one."""

    def send(self, tensors: Sequence[Tensor]) -> None:
        """One bucket, in the manifest's order."""
        ...

    def receive(self, manifest: Manifest) -> Iterator[tuple[str, Tensor]]:
        """All tensors of the manifest. A tensor is good until the next one is asked for. Raises
        RuntimeError or ValueError if they do not all come."""
        ...


class StoredBuckets:
    """Packed buckets, carried by Ray's object store."""

    def __init__(self, buckets: Iterable[np.ndarray] = ()):
        self.buckets = list(buckets)

    def send(self, tensors: Sequence[Tensor]) -> None:
        self.buckets.append(pack(tensors))

    def receive(self, manifest: Manifest) -> Iterator[tuple[str, Tensor]]:
        return unpack(manifest, self.buckets)


@dataclass(frozen=True)
class BroadcastRendezvous:
    """Where the members of a broadcast meet, on the sender's machine. `world` counts the sender and
    all receivers. They have `timeout_s` to meet, and `bucket_timeout_s` for each bucket."""

    where: Rendezvous
    world: int
    timeout_s: float
    bucket_timeout_s: float


class Broadcast:
    """One member. The sender has rank 0. Building it waits until all are there; after an error the
    group cannot be used again."""

    def __init__(self, rendezvous: BroadcastRendezvous, rank: int, device: str):
        self._device = torch.device(device)
        self._limit_s = rendezvous.bucket_timeout_s
        self._group: Any  # NCCL's or gloo's: torch describes their methods differently
        timeout = timedelta(seconds=rendezvous.timeout_s)
        store = rendezvous.where.meet(rank, rendezvous.world, rendezvous.timeout_s)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timeout
            with _errors_spare_the_process():
                self._group = dist.ProcessGroupNCCL(store, rank, rendezvous.world, options)
        else:
            self._group = dist.ProcessGroupGloo(store, rank, rendezvous.world, timeout)
        hello = torch.zeros(1, dtype=torch.uint8, device=self._device)
        self._broadcast_flat(hello, rendezvous.timeout_s)  # connects, or raises

    def send(self, tensors: Sequence[Tensor]) -> None:
        """One bucket, in the manifest's order. Raises RuntimeError if a receiver is lost, or has not
        taken it within `bucket_timeout_s`."""
        flat = [t.detach().to(self._device).contiguous().view(-1).view(torch.uint8) for t in tensors]
        self._broadcast_flat(torch.cat(flat), self._limit_s)

    def receive(self, manifest: Manifest) -> Iterator[tuple[str, Tensor]]:
        """All tensors of the manifest, bucket after bucket as they arrive. A tensor is good until the
        next one is asked for. Raises RuntimeError if the sender is lost, or a bucket has not come
        within `bucket_timeout_s`."""
        for specs in manifest:
            flat = torch.empty(sum(s.nbytes for s in specs), dtype=torch.uint8, device=self._device)
            self._broadcast_flat(flat, self._limit_s)
            offset = 0
            for spec in specs:
                dtype, piece = getattr(torch, spec.dtype), flat[offset : offset + spec.nbytes]
                if offset % dtype.itemsize:
                    piece = piece.clone()  # a view would not be aligned
                yield spec.name, piece.view(dtype).view(spec.shape)
                offset += spec.nbytes

    def _broadcast_flat(self, flat: Tensor, limit_s: float) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        with _abort_after(limit_s, self._group.abort):
            work = self._group.broadcast([flat], options)
            if self._device.type == "cuda":
                work.wait()
                torch.cuda.synchronize(self._device)  # the bucket's memory may be used again
            else:
                work.wait(timedelta(seconds=limit_s))  # gloo's abort ends nothing that has begun


@contextmanager
def _abort_after(limit_s: float, abort: Callable[[], None]) -> Iterator[None]:
    """Raises RuntimeError if what is inside takes longer. A lost receiver leaves NCCL's sender in a
    kernel that never ends, and no error: only aborting the group from another thread ends it."""
    late = threading.Event()

    def on_timeout() -> None:
        late.set()
        abort()

    watchdog = threading.Timer(limit_s, on_timeout)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    except RuntimeError as error:
        if not late.is_set():
            raise
        raise RuntimeError(_too_late(limit_s)) from error
    finally:
        watchdog.cancel()
    if late.is_set():
        raise RuntimeError(_too_late(limit_s))


def _too_late(limit_s: float) -> str:
    return f"a bucket of weights was not with all members of the broadcast within {limit_s:g} s"


@contextmanager
def _errors_spare_the_process() -> Iterator[None]:
    """For a group made inside this context, NCCL's watchdog notes an error (an abort too) and leaves
    the process alone. It reads the variable when the group is made, and by default ends the process."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
