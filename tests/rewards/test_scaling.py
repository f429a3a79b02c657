"""Experts that scale, die and bring packages of their own, while a real RewardWorker asks them."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import ray

from policy.errors import UserError
from policy.records import Group
from rewards.client import RewardWorker
from rewards.config import RewardsConfig
from rewards.rewards import compute_rewards
from rewards.serving import deploy_experts
from rewards.status import ExpertStatus, expert_statuses, scale_expert
from tests.conftest import ROOT
from tests.rewards.samples import PLAIN, sample

pytestmark = [pytest.mark.serve, pytest.mark.slow]

HERE = "tests.rewards.experts_for_tests"
GREY = [np.full((8, 8, 3), level, np.uint8) for level in range(0, 240, 10)]
TRUTH = [float(image.mean() / 255) for image in GREY]


def wheel(folder: Path) -> str:
    """A package of one expert, built as an installer would find it."""
    path = folder / "bicot_tiny_expert-1.0-py3-none-any.whl"
    info = "bicot_tiny_expert-1.0.dist-info"
    files = {
        "bicot_tiny_expert.py": (
            "import numpy as np\n"
            "from rewards.expert import Expert, ExpertScores\n"
            "class Half(Expert):\n"
            "    def score(self, images, prompts):\n"
            "        return ExpertScores(np.full(len(images), 0.5))\n"
        ),
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: bicot-tiny-expert\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(name, text)
    return str(path)


@pytest.fixture(scope="module")
def config(serving, tmp_path_factory) -> RewardsConfig:
    folder = tmp_path_factory.mktemp("experts")
    slow = {"use": f"{HERE}:TakesItsTime", "batch_size": 1, "max_ongoing_requests": 2}
    bounds = {"min": 1, "max": 3, "target_queue": 1, "up_after_s": 0.5, "down_after_s": 1}
    config = RewardsConfig.model_validate(
        {
            "experts": {
                "elastic": slow | {"options": {"seconds": 0.2}, "autoscale": bounds},
                "mortal": slow
                | {"options": {"seconds": 0.3, "calls": str(folder / "calls")}, "replicas": 2},
                "packed": {
                    "use": "bicot_tiny_expert:Half",
                    "runtime_env": {"py_modules": [f"file://{wheel(folder)}"]},
                },
                "reader": {
                    "use": f"{HERE}:ReadsItsEnvironment",
                    "runtime_env": {"env_vars": {"BICOT_TEST_WORD": "bright"}},
                },
                "plain": {"use": f"{HERE}:Brightness"},
            },
            "retries": 3,
        }
    )
    deploy_experts(config)
    return config


def judge_of(config: RewardsConfig, *names: str):
    """A RewardWorker of some of the experts, and the configuration that it has."""
    some = config.model_copy(update={"experts": {name: config.experts[name] for name in names}})
    return ray.remote(num_cpus=0)(RewardWorker).remote(some), some


def asked(judge) -> list[ray.ObjectRef]:
    """One group for each grey."""
    return [
        judge.score_group.remote([ray.put([sample(PLAIN, image, n)])], Group(PLAIN, 1, first=n))
        for n, image in enumerate(GREY)
    ]


def rewards(results, config: RewardsConfig) -> list[float]:
    scores = compute_rewards(results, config, {}).scores
    assert not any(isinstance(s, str) for s in scores), scores
    return [float(s.rewards[0]) for s in scores]


def status(name: str) -> ExpertStatus:
    return next(s for s in expert_statuses() if s.name == name)


def wait_for(name: str, replicas: int, within_s: float = 60) -> None:
    """Until so many replicas run and no others start or stop."""
    end = time.monotonic() + within_s
    while status(name).replicas != {"RUNNING": replicas}:
        assert time.monotonic() < end, f"{name}: {status(name).replicas}, not {replicas} running"
        time.sleep(0.1)


def test_a_burst_raises_the_replicas_to_the_bound_and_idleness_lowers_them(config):
    judge, some = judge_of(config, "elastic")
    assert status("elastic").running == 1
    burst, most = [], 0
    end = time.monotonic() + 60
    while most < 3:
        assert time.monotonic() < end, f"only {most} replicas"
        if not burst or len(ray.wait(burst, num_returns=len(burst), timeout=0)[1]) < 8:
            burst += asked(judge)
        most = max(most, status("elastic").running)
        time.sleep(0.1)
    got = rewards(ray.get(burst), some)
    np.testing.assert_allclose(got, TRUTH * (len(burst) // len(GREY)), rtol=1e-6)

    end = time.monotonic() + 60
    while status("elastic").running > 1:  # a judge that goes on asking never notices
        assert time.monotonic() < end, "no replica was taken away"
        results = ray.get(
            judge.score_group.remote([ray.put([sample(PLAIN, GREY[3])])], Group(PLAIN, 1))
        )
        assert rewards([results], some) == [pytest.approx(TRUTH[3])]
        assert results.by_expert["elastic"].retries == 0
        time.sleep(0.2)


def test_a_replica_killed_in_mid_batch_loses_no_score_and_makes_none_up(config):
    judge, some = judge_of(config, "mortal", "plain")
    pending = asked(judge)
    calls = Path(config.experts["mortal"].options["calls"])
    while not (calls.exists() and calls.read_text().count("\n") >= 3):
        time.sleep(0.02)
    victim = int(calls.read_text().splitlines()[-1].split()[0])
    os.kill(victim, signal.SIGKILL)
    results = ray.get(pending)
    np.testing.assert_allclose(rewards(results, some), TRUTH, rtol=1e-6)
    assert any(o.by_expert["mortal"].retries for o in results)
    wait_for("mortal", 2)
    pids = {int(line.split()[0]) for line in calls.read_text().splitlines()}
    assert victim in pids


def bicot(*arguments: str) -> subprocess.CompletedProcess[str]:
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "cluster", *arguments, "--address", address]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_replicas_are_changed_and_shown_from_another_process(config):
    judge, some = judge_of(config, "plain")
    before = ray.get(asked(judge))
    started = {s.replica for s in status("plain").stats}
    done = bicot("scale", "plain", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for("plain", 3)
    assert started < {s.replica for s in status("plain").stats}  # who was there stays
    assert rewards(ray.get(asked(judge)), some) == rewards(before, some)

    table = bicot("experts").stdout
    (row,) = [line for line in table.splitlines() if "plain" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[:3] == ["plain", "3", "0"]
    assert float(cells[3]) > 0
    assert int(cells[6]) >= 2 * len(GREY)
    assert int(cells[7]) == 0

    scale_expert("plain", 1)
    while status("plain").running > 1:
        assert rewards(ray.get(asked(judge)), some) == rewards(before, some)


def test_what_cannot_be_scaled_is_explained(config):
    with pytest.raises(
        UserError, match="no expert 'plan' runs: there are elastic, mortal, packed, plain"
    ):
        scale_expert("plan", 2)
    with pytest.raises(UserError, match="expert elastic has `autoscale` set"):
        scale_expert("elastic", 2)


def test_an_expert_brings_its_own_package_and_its_own_environment(config):
    judge, _ = judge_of(config, "packed", "reader", "plain")
    results = ray.get(judge.score_group.remote([ray.put([sample(PLAIN, GREY[0])])], Group(PLAIN, 1)))
    assert [float(o.outcome.values[0]) for o in results.by_expert.values()] == [0.5, 0, 0]
    with pytest.raises(ModuleNotFoundError):
        import bicot_tiny_expert  # noqa: F401
    assert "BICOT_TEST_WORD" not in os.environ
