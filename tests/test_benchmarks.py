"""The benchmarks run. What they measure is not asserted here: machines are noisy."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.conftest import ROOT


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install")
def test_the_gpu_benchmark_runs_all_its_parts_on_a_tiny_model():
    small = [
        "--model",
        "tiny",
        "--pairs",
        "8",
        "--cot-tokens",
        "2",
        "--micro-groups",
        "1",
        "--runs",
        "1",
    ]
    command = [sys.executable, "-m", "benchmarks.gpu", *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("plain", "torch", "vllm", "limit", "learner: full update of 8 samples"):
        assert text in done.stdout
    assert "failed" not in done.stdout


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
