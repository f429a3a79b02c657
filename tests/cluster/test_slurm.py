"""The batch script, by a real Slurm with two nodes on this machine."""

import json
import os
import subprocess
import sys

import pytest

from tests.cluster.commands import ONE_EACH, TRAIN, a_few, wait_for
from tests.cluster.head import SCRIPTS, free_ports
from tests.cluster.slurm_host import Slurm, missing, two_nodes
from tests.conftest import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = ROOT / "cluster" / "slurm" / "train.sbatch"
STEPS = 30


@pytest.fixture(scope="module")
def slurm():
    if reason := missing():
        pytest.skip(reason)
    with two_nodes() as slurm:
        yield slurm


@pytest.fixture(scope="module")
def small(slurm):
    """Overrides of a short run that is kept in Slurm's folder, every role on nodes of its own."""
    return [
        f"runs_dir={slurm.folder}/runs",
        f"evaluate.prompts={a_few('heldout.jsonl', slurm.folder / 'heldout.jsonl', every=40)}",
        "evaluate.samples_per_prompt=1",
        "train.groups_per_step=2",
        *ONE_EACH,
        "actors.resources.rollout=0.001",
        "learner.resources.learner=0.001",
    ]


def submit(slurm: Slurm, *arguments: str) -> str:
    """Returns the job's number."""
    ours = {
        "BICOT_ROLES": "learner rollout",
        "BICOT_VENV": str(SCRIPTS.parent),
        "BICOT_LOGS": str(slurm.folder / "ray"),
        "BICOT_RAY": "--object-store-memory=100000000",
    }
    output = f"{slurm.folder}/%j.out"
    command = ["sbatch", "--parsable", "--nodes=2", "--cpus-per-task=4", f"--output={output}", SCRIPT]
    return slurm(*command, *arguments, cwd=ROOT, env=ours).strip()


def test_a_job_that_must_make_way_is_queued_again_and_trains_to_the_end(slurm, small):
    """On two nodes, both times."""
    job = submit(slurm, TRAIN, *small, f"train.steps={STEPS}", "name=long")
    output = slurm.folder / f"{job}.out"
    wait_for(lambda: output.exists() and "step 1/" in output.read_text(), "a step", output.read_text)
    slurm("scancel", "--batch", "--signal=USR1", job)
    all_known = lambda: f"{slurm.job(job)}\n{slurm('sinfo', '-R')}\n{output.read_text()}"  # noqa: E731
    queued = lambda: slurm.job(job)["Reason"] == "BeginTime" and slurm.is_idle()  # noqa: E731
    wait_for(queued, "the requeue", say=all_known)
    # It would wait two minutes. Some seconds it must: what is left of the first start would end it.
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now+15")
    wait_for(lambda: f"start 2 of job {job}" in output.read_text(), "a second start", say=all_known)
    done = ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "CANCELLED")
    wait_for(lambda: slurm.job(job)["JobState"] in done, "the end", say=output.read_text)
    log = output.read_text()
    assert slurm.job(job)["JobState"] == "COMPLETED", log
    assert f"job {job} makes way, and is queued again" in log
    assert "goes on from step" in log
    assert f"step {STEPS}/{STEPS}" in log
    lines = (slurm.folder / "runs" / "long" / "metrics.jsonl").read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, lines) if "loss" in row]
    assert steps == list(range(1, STEPS + 1))
    assert not (slurm.folder / f"bicot-{job}").exists()


def test_a_job_without_a_configuration_fails(slurm):
    job = submit(slurm)
    output = slurm.folder / f"{job}.out"
    wait_for(lambda: slurm.job(job)["JobState"] == "FAILED", "the end", say=lambda: str(slurm.job(job)))
    assert slurm.job(job)["ExitCode"] == "2:0"
    assert output.read_text().startswith("error: name a configuration")


def test_a_head_that_does_not_answer_is_not_waited_for_longer_than_asked():
    program = [sys.executable, "-m", "cluster.slurm.wait_for_nodes", "2", "1"]
    nobody = os.environ | {"RAY_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}"}
    ended = subprocess.run(program, cwd=ROOT, env=nobody, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr == "error: of 2 Ray nodes 0 are there: -\n"


def test_shellcheck_finds_nothing():
    scripts = [SCRIPT, *ROOT.glob("tests/cluster/*.sh"), ROOT / ".ci" / "run"]
    done = subprocess.run([SCRIPTS / "shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
