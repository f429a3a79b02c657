"""The loss in docs/algorithms.md is found by its name and trains."""

import re
import sys

import torch

from learner.config import LearnerConfig
from learner.losses import load_loss
from tests.conftest import ROOT
from tests.learner.test_loss_family import inputs


def test_the_documented_loss_of_ones_own_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "algorithms.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "my_losses.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (name,) = re.findall(r"`learner.loss: (my_losses:\w+)`", page)
    config = LearnerConfig(loss=name)
    x = inputs(0)
    result = load_loss(config.loss)(x, config)
    (gradient,) = torch.autograd.grad(result.sum, x.logps)
    wanted = x.token_weights * (x.log_ratio.detach() - x.advantages)
    assert torch.allclose(gradient, wanted)
    total = sum(part for part, _ in result.metrics.values())
    assert torch.allclose(total, result.sum.detach())
    sys.modules.pop("my_losses", None)
