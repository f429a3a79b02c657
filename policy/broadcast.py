"""Weights from one sender to many receivers at once: a broadcast in a process group of its own.

NCCL from GPU memory to GPU memory, gloo between CPUs. The group has its own store, so it stands beside
any other group of a process (DeepSpeed's), and both samplers are fed alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from policy.weights import Manifest


@dataclass(frozen=True)
class Meeting:
    """Where the members of a broadcast meet: an address on the sender's machine. `world` counts the
    sender and all receivers."""

    host: str
    port: int
    world: int
    timeout_s: float


class Broadcast:
    """One member. The sender has rank 0. Building it waits until all are there; after an error the
    group is of no more use."""

    def __init__(self, meeting: Meeting, rank: int, device: str):
        self._device = torch.device(device)
        timeout = timedelta(seconds=meeting.timeout_s)
        store = dist.TCPStore(
            meeting.host, meeting.port, meeting.world, is_master=rank == 0, timeout=timeout
        )
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timeout
            self._group = dist.ProcessGroupNCCL(store, rank, meeting.world, options)
        else:
            self._group = dist.ProcessGroupGloo(store, rank, meeting.world, timeout)
        self._pass(torch.zeros(1, dtype=torch.uint8, device=self._device))  # connects, or raises

    def send(self, tensors: Sequence[Tensor]) -> None:
        """One bucket, in the manifest's order. Raises RuntimeError if a receiver is lost."""
        flat = [t.detach().to(self._device).contiguous().view(-1).view(torch.uint8) for t in tensors]
        self._pass(torch.cat(flat))

    def receive(self, manifest: Manifest) -> Iterator[tuple[str, Tensor]]:
        """All tensors of the manifest, bucket after bucket as they arrive. A tensor is good until the
        next one is asked for. Raises RuntimeError if the sender is lost."""
        for specs in manifest:
            flat = torch.empty(sum(s.nbytes for s in specs), dtype=torch.uint8, device=self._device)
            self._pass(flat)
            offset = 0
            for spec in specs:
                dtype, piece = getattr(torch, spec.dtype), flat[offset : offset + spec.nbytes]
                if offset % dtype.itemsize:
                    piece = piece.clone()  # a view would not be aligned
                yield spec.name, piece.view(dtype).view(spec.shape)
                offset += spec.nbytes

    def _pass(self, flat: Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self._group.broadcast([flat], options).wait()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the bucket's memory may be used again
