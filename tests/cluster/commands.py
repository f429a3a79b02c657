"""Run `bicot` as a user does: a process of its own, in the repository, with nothing set."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import psutil
import pytest

from cluster import cli
from tests.conftest import ROOT

TRAIN = "examples/shapes/train.yaml"
ONE_EACH = ("actors.count=1", "learner.ranks=1")
"""For a run whose test is not about several of them: each process takes seconds to start."""


def environment() -> dict[str, str]:
    """This process's, less what the tests set for themselves."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "HF_", "OMP_"))}


def bicot(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster", *map(str, arguments)]
    options = {"env": environment(), **options}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, **options)


def bicot_here(*arguments: object) -> tuple[int, str]:
    """The same in this process, for commands that start no Ray: exit status and output. A fault
    of the program is raised."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", ["bicot", *map(str, arguments)])
        patch.setattr(sys, "excepthook", sys.excepthook)  # put back at the end, as the next is
        patch.setattr(sys, "path", sys.path[:])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return ended.value.code or 0, output.getvalue()


def obey_ctrl_c() -> None:
    """For `preexec_fn`: a shell that runs these tests in the background has its children ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def assert_gone(processes: list[psutil.Process]) -> None:
    """Within five seconds."""
    _, alive = psutil.wait_procs(processes, timeout=5)
    alive = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not alive, alive


def a_few(prompts: str, path: Path, every: int) -> Path:
    """A prompt file with every n-th prompt of another."""
    lines = (ROOT / "examples/shapes/prompts" / prompts).read_text().splitlines()[::every]
    path.write_text("\n".join(lines) + "\n")
    return path


def wait_for(condition: Callable[[], bool], what: str, say: Callable[[], str], limit_s: float = 200):
    """Look until it is so; after `limit_s` fail with all that `say` knows."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come: {say()}"
        time.sleep(0.5)
