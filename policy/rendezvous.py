"""The rendezvous of a process group, before its members exchange tensors.

torch's store listens on all interfaces without authentication. Here it listens on one address, that of
its node in the cluster or loopback, and its keys start with a secret that only the members know.
"""

import secrets
import socket
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist


@dataclass(frozen=True)
class Rendezvous:
    """An address on the machine of rank 0, and the secret."""

    host: str
    port: int
    secret: str = field(default_factory=secrets.token_hex, repr=False)

    @classmethod
    def at(cls, host: str) -> "Rendezvous":
        """A rendezvous on a port of this machine that is free now."""
        with _listen(host, 0) as free:
            return cls(host, free.getsockname()[1])

    def meet(self, rank: int, world: int, timeout_s: float) -> dist.Store:
        """The store that all `world` members share; waits until they are there."""
        timeout = timedelta(seconds=timeout_s)
        # torch takes the socket over.
        listener = _listen(self.host, self.port).detach() if rank == 0 else None
        store = dist.TCPStore(
            self.host,
            self.port,
            world,
            is_master=rank == 0,
            timeout=timeout,
            master_listen_fd=listener,
        )
        return dist.PrefixStore(self.secret, store)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)
