"""`ray job submit`, as the README says it, against a real head with a token."""

import json
import re
import subprocess
import sys
import urllib.request

import pytest

from cluster.watch.recorder import gauge_name
from tests.cluster.commands import ONE_EACH, TRAIN, a_few, wait_for
from tests.cluster.head import ray_head
from tests.conftest import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SUBMIT = ("job", "submit", "--runtime-env", "cluster/job.yaml", "--working-dir", ".")
COMMAND = ("--", "python", "-m", "cluster", "train", TRAIN)
DASHBOARD = ROOT / "cluster" / "kubernetes" / "monitoring" / "dashboard.json"
ONLY_ON_GPUS = {"ray_node_gpus_utilization"}


@pytest.fixture(scope="module")
def head():
    with ray_head(resources='{"rollout": 1, "learner": 1}') as head:
        yield head


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def small(runs):
    """Overrides of a run that is short, and kept where the test finds it."""
    return [
        f"runs_dir={runs}",
        f"evaluate.prompts={a_few('heldout.jsonl', runs / 'heldout.jsonl', every=60)}",
        "train.groups_per_step=2",
        *ONE_EACH,
        "actors.resources.rollout=0.001",
        "learner.resources.learner=0.001",
    ]


def test_a_submitted_job_trains(head, runs, small):
    names = ("--submission-id", "short", "--metadata-json", '{"run": "shapes"}')
    done = head.ray(*SUBMIT, *names, *COMMAND, *small, "train.steps=2", "name=short")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2" in done.stdout
    assert "'short' succeeded" in done.stdout
    assert "metadata={'run': 'shapes'}" in head.ray("job", "list").stdout
    lines = [json.loads(line) for line in (runs / "short" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]


def test_a_run_that_would_be_lost_with_the_job_fails_with_one_line(head):
    done = head.ray(*SUBMIT, "--submission-id", "lost", *COMMAND)
    assert done.returncode == 1
    assert "failed with exit code 2" in done.stdout
    logs = head.ray("job", "logs", "lost").stdout
    assert "error: runs_dir: runs would lie in Ray's copy of the working directory" in logs
    assert "Traceback" not in logs


def test_a_wrong_token_is_named(head, runs, small):
    """After half a minute, in which Ray tries again."""
    wrong = head.environment | {"RAY_AUTH_TOKEN": "b" * 32}
    command = [sys.executable, "-m", "cluster", "train", TRAIN, *small, f"ray.address={head.address}"]
    done = subprocess.run(
        [*command, "name=stranger"], cwd=ROOT, env=wrong, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 2
    assert f"error: no Ray cluster lets us in at {head.address}" in done.stdout
    assert "wants RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN" in done.stdout
    assert "Traceback" not in done.stderr
    assert not (runs / "stranger").exists()


def test_a_running_job_is_on_the_dashboard_and_stops_with_a_checkpoint(head, runs, small):
    """What Grafana would show is what Prometheus would read; then `ray job stop`, which waits."""
    command = (*COMMAND, *small, "train.steps=500", "train.save_every=3", "name=long")
    done = head.ray(*SUBMIT, "--no-wait", "--submission-id", "long", *command)
    assert done.returncode == 0, done.stdout + done.stderr

    def logs() -> str:
        return head.ray("job", "logs", "long").stdout

    def exported() -> set[str]:
        with urllib.request.urlopen(f"{head.metrics}/metrics", timeout=20) as reply:
            return set(re.findall(r"^# TYPE (\w+) ", reply.read().decode(), re.MULTILINE))

    shown = set(re.findall(r"\bray_(?!io_)\w*[a-z]\b", DASHBOARD.read_text()))
    assert f"ray_{gauge_name('loss')}" in shown
    assert len(shown) > 35
    wanted = shown - ONLY_ON_GPUS
    wait_for(lambda: wanted <= exported(), "all metrics on the dashboard", say=logs)

    assert head.ray("job", "stop", "long").returncode == 0
    assert "stopped after step" in logs()
    assert list((runs / "long" / "checkpoints").glob("step_*"))
    assert "'long' was stopped" in head.ray("job", "status", "long").stdout
