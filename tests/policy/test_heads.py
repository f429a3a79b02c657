"""Logits in float32 from heads of any type."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.models.janus.modeling_janus import JanusVQVAEHead

from policy.model import head_logits


def heads(hidden: int, vocabulary: int):
    config = SimpleNamespace(
        image_token_embed_dim=hidden,
        projection_dim=hidden,
        hidden_act="gelu",
        num_embeddings=vocabulary,
    )
    torch.manual_seed(0)
    return {"text": nn.Linear(hidden, vocabulary, bias=False), "image": JanusVQVAEHead(config)}


@pytest.mark.parametrize("kind", ["text", "image"])
def test_in_bfloat16_only_the_inputs_are_rounded(kind):
    """The last product adds up and stays in float32: an error of 1e-4 at logits of 16, where a rounded
    logit is off by up to 0.06."""
    head = heads(256, 500)[kind].bfloat16()
    last = head if kind == "text" else head.vision_head
    inputs = torch.randn(4, 7, 256).bfloat16()
    with torch.no_grad():
        before = inputs if kind == "text" else head.activation_fn(head.proj_out(inputs))
        last.weight *= 16 / (before @ last.weight.t()).abs().max()
        exact = before.double() @ last.weight.double().t()
        exact += 0.0 if last.bias is None else last.bias.double()
        logits, rounded = head_logits(head, inputs), head(inputs)
    assert logits.dtype == torch.float32
    assert logits.shape == (4, 7, 500)
    assert (logits - exact).abs().max() < 1e-4
    assert (rounded - exact).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_gradients_are_those_of_the_head_itself(kind, dtype):
    head = heads(32, 50)[kind].to(dtype)
    inputs = torch.randn(9, 32, dtype=dtype, requires_grad=True)
    upstream = torch.randn(9, 50).bfloat16().float()
    wanted = [inputs, *head.parameters()]
    ours = torch.autograd.grad((head_logits(head, inputs) * upstream).sum(), wanted)
    theirs = torch.autograd.grad((head(inputs).float() * upstream).sum(), wanted)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, other)
