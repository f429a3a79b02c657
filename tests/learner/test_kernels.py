"""Faster kernels give the same numbers, or a line that says what is missing."""

import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from learner.batch import make_batch
from learner.config import LearnerConfig, check_learner
from learner.logprobs import JanusLogps
from policy.errors import UserError
from policy.model import load_janus


def test_kernels_that_are_not_installed_are_refused(policy_config, monkeypatch):
    monkeypatch.setattr("learner.kernels.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'liger is not installed: pip install "bicot\['):
        check_learner(LearnerConfig(kernels="liger"), policy_config)


@pytest.mark.parametrize("how", [{"zero_stage": 3}, {"reference": "offload"}])
def test_what_cannot_be_compiled_is_refused(policy_config, how):
    with pytest.raises(UserError, match=r"learner\.kernels: compile wants"):
        check_learner(LearnerConfig(kernels="compile", **how), policy_config)


def test_liger_patches_the_trunk_and_leaves_the_heads(janus, monkeypatch):
    """Its kernels need a GPU: a stand-in notes what it is asked for, by the names of version 0.8.5."""
    asked = {}

    def apply_liger_kernel_to_llama(
        rope=True,
        cross_entropy=False,
        fused_linear_cross_entropy=True,
        rms_norm=True,
        swiglu=True,
        model=None,
    ):
        asked.update(rope=rope, rms_norm=rms_norm, swiglu=swiglu, model=model)
        asked.update(cross_entropy=cross_entropy, fused_linear_cross_entropy=fused_linear_cross_entropy)

    package = ModuleType("liger_kernel")
    package.transformers = SimpleNamespace(apply_liger_kernel_to_llama=apply_liger_kernel_to_llama)
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package.transformers)
    monkeypatch.setattr("learner.kernels.find_spec", lambda name: object())
    JanusLogps(janus, kernels="liger")
    assert asked.pop("model") is janus.model.model.language_model
    heads = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert asked == {"rope": True, "rms_norm": True, "swiglu": True, **heads}


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_layers_agree(policy_config, samples, checkpointed):
    def run(kernels):
        module = JanusLogps(load_janus(policy_config), kernels=kernels)
        if checkpointed:
            module.checkpoint_layers()
        batch = make_batch(samples, [1.0] * len(samples), pad_id=0)
        logps = module(batch)
        (logps.cot.sum() + logps.image.sum()).backward()
        gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        return torch.cat([logps.cot, logps.image], 1).detach(), gradients

    values, gradients = run("none")
    compiled, theirs = run("compile")
    torch.testing.assert_close(compiled, values, atol=1e-5, rtol=0)
    assert theirs.keys() == gradients.keys()
    for name, gradient in theirs.items():
        scale = max(1.0, gradients[name].abs().max().item())
        torch.testing.assert_close(gradient, gradients[name], atol=1e-5 * scale, rtol=0)
