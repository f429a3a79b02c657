"""The benchmarks run. What they measure is not asserted here: machines are noisy."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.soak import trend
from tests.conftest import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_the_benchmark_of_experts_runs():
    command = [sys.executable, "-m", "benchmarks.rewards", "batching", "--runs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CLIPScore" in done.stdout and "GroundingDino" in done.stdout


def test_the_benchmark_of_long_runs_watches_every_process():
    small = ["--steps", "6", "--first", "1", "--pause", "0.5"]
    command = [sys.executable, "-m", "benchmarks.soak", *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("driver", "RolloutWorker", "LearnerWorker", "RewardWorker", "expert", "raylet"):
        assert kind in done.stdout
    assert "object store" in done.stdout


def test_a_trend_is_a_straight_line():
    begin, end, slope = trend(np.array([(200, 10.0), (700, 11.0), (1200, 12.0)]))
    assert (begin, end, slope) == pytest.approx((10.0, 12.0, 2.0))


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
