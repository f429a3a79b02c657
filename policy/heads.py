"""The two output heads in float32, whatever type their weights have.

In bfloat16 a logit of 16 is rounded by up to 0.06, and guidance 5 makes nine times that of it. So the
last matrix product adds up in float32 and stays there; sampler and learner call the same function.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAEHead


def head_logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """Logits of the text head (a linear layer) or of Janus's image head, float32.

    hidden: [..., D] -> [..., V].
    """
    if isinstance(head, JanusVQVAEHead):
        hidden = head.activation_fn(head.proj_out(hidden))
        head = head.vision_head
    if head.weight.dtype == torch.float32:
        few = hidden.dim() == 2 and len(hidden) < 16 and not hidden.is_cuda
        if few and head.bias is None and not torch.is_grad_enabled():
            # A CPU's product with few rows is up to twice as fast the other way round.
            return torch.mm(head.weight, hidden.t()).t().contiguous()
        return F.linear(hidden, head.weight, head.bias)
    logits = _Product.apply(hidden.reshape(-1, hidden.shape[-1]), head.weight)
    if head.bias is not None:
        logits = logits + head.bias
    return logits.view(*hidden.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """hidden [M, D] times weight [V, D], transposed, in float32; gradients in the weights' own type."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        if hidden.is_cuda:  # the only device that adds up in a type wider than its inputs'
            return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        return hidden.float() @ weight.t().float()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)
        of_hidden = gradient @ weight if ctx.needs_input_grad[0] else None
        of_weight = gradient.t() @ hidden if ctx.needs_input_grad[1] else None
        return of_hidden, of_weight
