"""The benchmarks run. What they measure is not asserted here: machines are noisy."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_the_benchmark_of_experts_runs():
    command = [sys.executable, "-m", "benchmarks.rewards", "batching", "--runs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CLIPScore" in done.stdout and "GroundingDino" in done.stdout


def test_the_benchmark_of_scale_runs_the_real_loop_to_its_picture(tmp_path):
    picture = tmp_path / "scale.png"
    small = ["--actors", "2", "--steps", "3", "--picture", str(picture)]
    command = [sys.executable, "-m", "benchmarks.scale", *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of linear" in done.stdout
    assert picture.stat().st_size > 0


def test_the_benchmark_of_checkpoints_runs():
    command = [sys.executable, "-m", "benchmarks.checkpoint", "--hidden", "64", "--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training stands still" in done.stdout
