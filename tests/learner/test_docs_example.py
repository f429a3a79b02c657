"""The losses and the expert in the docs are found by their names, and do what they say."""

import re
import sys

import numpy as np
import pytest
import torch

from learner.config import LearnerConfig
from learner.losses import check_loss, load_loss
from policy.errors import UserError
from rewards.expert import load_expert_class
from tests.conftest import ROOT
from tests.learner.test_loss_family import inputs


def test_the_readmes_expert_and_loss_run(tmp_path, monkeypatch):
    page = (ROOT / "README.md").read_text()
    expert, loss = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "my_experts.py").write_text(expert)
    (tmp_path / "my_losses.py").write_text(loss)
    monkeypatch.syspath_prepend(tmp_path)
    (name,) = re.findall(r'use: "(my_experts:\w+)"', page)
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, :, 0] = 255
    scores = load_expert_class(name)().score([image], [])
    assert scores.values.tolist() == [0.25]
    (name,) = re.findall(r"`learner.loss: (my_losses:\w+)`", page)
    config = LearnerConfig(loss=name)
    check_loss(config)
    x = inputs(0)
    (gradient,) = torch.autograd.grad(load_loss(name)(x, config).sum, x.logps)
    assert torch.allclose(gradient, -x.token_weights * x.log_ratio.exp() * x.advantages)
    for module in ("my_experts", "my_losses"):
        sys.modules.pop(module, None)


FAULTS = {
    "x = undefined": r"my_losses cannot be imported: my_losses.py:1: NameError: name 'undefined'",
    "def (:": r"my_losses cannot be imported: my_losses.py:1: SyntaxError",
    "clip = 3": r"learner.loss: my_losses:clip is a int, not a function",
    "def clipp(x, config): ...": r"my_losses has no clip; did you mean clipp\?",
    "def clip(x): ...": r"clip fails on two small samples: losses.py:\d+: TypeError: clip\(\) takes 1",
    "def clip(x, config):\n    return x.logs": r"samples: my_losses.py:2: AttributeError",
    "def clip(x, config):\n    return x.logps": r"returns a Tensor, where a LossResult is needed",
    "from learner.losses import LossResult\n"
    "def clip(x, config):\n    return LossResult(x.old_logps.sum(), {})": r"depends on inputs.logps",
}


@pytest.mark.parametrize("code", FAULTS)
def test_a_faulty_loss_is_refused_before_anything_starts(tmp_path, monkeypatch, code):
    (tmp_path / "my_losses.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_losses", None)
    with pytest.raises(UserError, match=FAULTS[code]) as raised:
        check_loss(LearnerConfig(loss="my_losses:clip"))
    assert "\n" not in str(raised.value)
    sys.modules.pop("my_losses", None)


def test_a_name_between_two_losses_offers_both():
    with pytest.raises(UserError, match=r"did you mean (gspo or grpo|grpo or gspo)\?"):
        load_loss("gpro")


def test_the_documented_loss_of_ones_own_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "algorithms.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "my_losses.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (name,) = re.findall(r"`learner.loss: (my_losses:\w+)`", page)
    config = LearnerConfig(loss=name)
    x = inputs(0)
    check_loss(config)
    result = load_loss(config.loss)(x, config)
    (gradient,) = torch.autograd.grad(result.sum, x.logps)
    wanted = x.token_weights * (x.log_ratio.detach() - x.advantages)
    assert torch.allclose(gradient, wanted)
    total = sum(part for part, _ in result.metrics.values())
    assert torch.allclose(total, result.sum.detach())
    sys.modules.pop("my_losses", None)
