"""A head and the log-probabilities of tokens under it, a chunk of positions at a time.

Logits are by far the widest tensors of a step: 102,400 floats for one text position of Janus-Pro. So
they live for one chunk only: backward computes a chunk's logits again instead of keeping them. With a
frozen head, not even that: what backward needs is one vector a position, and forward computes it.
Shapes: M positions, D hidden.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from policy.heads import head_logits


class TokenLogps(nn.Module):
    """Under ZeRO-3 this module is a leaf (`zero3_leaves`): the head's weights are gathered once for all
    chunks, forward and backward. Ranks may therefore have different numbers of chunks, which gathers
    chunk by chunk do not survive; and so the head's own hooks must not run."""

    def __init__(self, head: nn.Module, *, temperature: float, guidance: float | None, chunk: int):
        """`guidance`: weight of the guided distribution, where it is asked for."""
        super().__init__()
        self.head = head
        self._temperature = temperature
        self._guidance = guidance
        self._chunk = chunk

    def forward(self, hidden: Tensor, ids: Tensor, unconditional: Tensor | None = None) -> Tensor:
        """[M, D], int64 [M] -> float32 [1, M]; with the unconditional row's hidden states, [M, D], also
        the guided distribution's: [2, M]."""
        inputs = [x for x in (hidden, ids, unconditional) if x is not None]
        # No position still is one (empty) chunk, so that backward reaches the head on every rank.
        chunks = zip(*(x.split(self._chunk) for x in inputs), strict=True)
        if unconditional is None and not any(p.requires_grad for p in self.head.parameters()):
            return torch.cat([_OfFrozenHead.apply(*chunk, self._of_chunk) for chunk in chunks], 1)
        logps = [
            checkpoint(self._of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in chunks
        ]
        return torch.cat(logps, 1)

    def _of_chunk(self, hidden: Tensor, ids: Tensor, unconditional: Tensor | None = None) -> Tensor:
        conditional = head_logits(self.head, hidden)
        logps = [self._gather(conditional, ids)]
        if unconditional is not None:
            away = head_logits(self.head, unconditional)
            logps.append(self._gather(away + self._guidance * (conditional - away), ids))
        return torch.stack(logps)

    def _gather(self, logits: Tensor, ids: Tensor) -> Tensor:
        if self._temperature != 1:
            logits = logits / self._temperature
        # Fused: of everything as wide as the vocabulary, its backward makes the gradient alone.
        return -F.cross_entropy(logits, ids, reduction="none")


class _OfFrozenHead(torch.autograd.Function):
    """A chunk's log-probabilities [1, M], and their gradients by the hidden states while the logits are
    there: a position's log-probability depends on its own hidden state alone."""

    @staticmethod
    def forward(ctx, hidden: Tensor, ids: Tensor, of_chunk) -> Tensor:
        if not ctx.needs_input_grad[0]:
            return of_chunk(hidden, ids)
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            logps = of_chunk(hidden, ids)
            (slopes,) = torch.autograd.grad(logps.sum(), hidden)
        ctx.save_for_backward(slopes)
        return logps.detach()

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return (upstream[0, :, None] * slopes).to(slopes.dtype), None, None
