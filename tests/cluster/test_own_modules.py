"""Modules of a user's that are called like this program's own."""

import subprocess
import sys

import pytest

from tests.cluster.commands import environment
from tests.conftest import ROOT

NAMES = ("rewards", "actors", "learner", "policy", "cluster")


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("SCALE = 2\n")
    (tmp_path / "my_experts.py").write_text("SCALE = 3\n")
    return tmp_path


def python(folder, code: str) -> str:
    """As the installed command does: its packages are on the path, the working directory is not."""
    found = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    command = [sys.executable, "-P", "-c", found + code]
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOOK = """
def look():
    import my_experts, actors.rollout, cluster.config, learner.config, policy.model, rewards.client
    return my_experts.SCALE
"""


def test_they_hide_nothing_and_others_are_found(folder):
    code = "from cluster.cli import find_modules_here\nfind_modules_here()\n"
    assert python(folder, code + LOOK + "print(look())") == "3\n"
    # in front, as `python -m` has it
    assert python(folder, "sys.path.insert(1, '')\n" + code + LOOK + "print(look())") == "3\n"


@pytest.mark.slow
@pytest.mark.ray
def test_they_hide_nothing_in_a_worker(folder):
    code = """
import ray
from rich.console import Console
from cluster.cli import find_modules_here
from cluster.config import RayConfig
from cluster.ray_session import ray_session
find_modules_here()
with ray_session(RayConfig(dashboard=False), 1, Console(stderr=True)):
    print(ray.get(ray.remote(look).remote()))
"""
    assert python(folder, LOOK + code).splitlines()[-1] == "3"
