"""Shared fixtures: a tiny random Janus in the published layout, and one local Ray for all tests."""

import os
from pathlib import Path

# Before anything imports torch or ray: one thread a process, and no token for this private cluster.
os.environ.update(OMP_NUM_THREADS="1", RAY_AUTH_MODE="disabled", HF_HUB_OFFLINE="1")
os.environ.pop("RAY_ADDRESS", None)

import pytest
import ray
import torch
from hypothesis import HealthCheck, settings

from actors.sampler import SamplingConfig
from actors.torch_sampler import TorchSampler
from cluster.ray_session import WORKER_ENV
from examples.shapes.tiny_janus import build_janus, build_tokenizer
from policy.model import Janus, PolicyConfig, load_janus
from policy.prompts import read_prompts
from policy.records import Prompt, Sample, SampleRequest

pytest_plugins = ["tests.roomy"]

ROOT = Path(__file__).parents[1]
SHAPES = ROOT / "examples" / "shapes"

torch.set_num_threads(1)
# How long an example takes says nothing on a busy machine.
settings.register_profile(
    "busy", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy")


LONGEST_FIRST = (
    "test_faults",
    "test_train",
    "test_slurm",
    "test_gpu_benchmark",
    "test_job",
    "test_cli",
    "test_group",
    "test_checkpoint",
    "test_benchmarks",
    "test_bench_command",
    "test_geneval_end_to_end",
    "test_serving",
    "test_rollouts",
    "test_prepared",
    "test_full_disk",
    "test_vllm_rollout",
    "test_weight_sync",
    "test_scaling",
)
"""Files of tests that take a minute and more, the longest first."""
KINDS = {"ray", "serve", "deepspeed", "vllm", "e2e", "slurm"}


def pytest_collection_modifyitems(items) -> None:
    """Every test without a kind is a unit test. Files that take long come first: the short ones fill
    the gaps that they leave at the end."""
    for item in items:
        if not KINDS & {mark.name for mark in item.iter_markers()}:
            item.add_marker("unit")
    place = {name: n for n, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def policy_config(tmp_path_factory) -> PolicyConfig:
    """A Janus of the shapes world's size with random weights, on disk."""
    folder = tmp_path_factory.mktemp("tiny_janus")
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    build_janus(tokenizer, hidden=64, layers=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return PolicyConfig(path=str(folder), templates=str(SHAPES / "templates"))


@pytest.fixture
def janus(policy_config) -> Janus:
    return load_janus(policy_config)


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    """Held-out prompts of the shapes world, of every kind and length."""
    return read_prompts(SHAPES / "prompts" / "heldout.jsonl")[::9]


@pytest.fixture(scope="session")
def sampling() -> SamplingConfig:
    return SamplingConfig(guidance=2.0, max_cot_tokens=12)


@pytest.fixture(scope="session")
def samples(policy_config, prompts, sampling) -> list[Sample]:
    """Two samples each of four prompts, drawn once for all tests that only read them."""
    sampler = TorchSampler(load_janus(policy_config), sampling, run_seed=0)
    return sampler.generate([SampleRequest(p, i) for p in prompts[:4] for i in range(2)])


@pytest.fixture(scope="session")
def local_ray():
    ray.init(
        address="local",
        num_cpus=8,  # as a number: the roles of these tests share the machine's cores
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 * 2**20,
        _system_config={"metrics_report_interval_ms": 500},
        runtime_env={"env_vars": WORKER_ENV},
    )
    yield
    ray.shutdown()


@pytest.fixture
def no_ray(monkeypatch):
    """Nothing may start a Ray or connect to one. (Another test's may be there.)"""

    def refuse(*args, **kwargs):
        raise AssertionError("this started Ray")

    monkeypatch.setattr(ray, "init", refuse)


def shared_file(name: str) -> Path:
    """A file of the published implementation's data set, which lies beside the repository or not."""
    path = Path(os.environ.get("BICOT_SHARED", ROOT.parent / "shared")) / name
    if not path.exists():
        pytest.skip(f"{path} is not there: set BICOT_SHARED to the folder that holds {name}")
    return path
