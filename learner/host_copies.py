"""A learner's state in host memory, where later steps do not reach it."""

from typing import Any

import torch


class HostCopies:
    """Copies in host memory, which are written to again at the next checkpoint: to fill fresh memory
    takes longer. Nobody may read them any more by then."""

    def __init__(self):
        self._held: dict[str, torch.Tensor] = {}

    def of(self, value: Any, name: str) -> Any:
        """The same structure, with its tensors copied; later steps do not change it. `name` tells it
        from other structures."""
        if isinstance(value, torch.Tensor):
            held = self._held.get(name)
            if held is None or (held.shape, held.dtype) != (value.shape, value.dtype):
                held = self._held[name] = torch.empty(value.shape, dtype=value.dtype)
            return held.copy_(value.detach())
        if isinstance(value, dict):
            return type(value)((key, self.of(item, f"{name}/{key}")) for key, item in value.items())
        if isinstance(value, torch.Size) or hasattr(value, "_fields"):
            return value
        if isinstance(value, list | tuple):
            return type(value)(self.of(item, f"{name}/{n}") for n, item in enumerate(value))
        return value
