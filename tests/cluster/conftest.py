"""What all tests of commands share."""

import signal

import psutil
import pytest


@pytest.fixture(autouse=True)
def _no_run_is_left():
    """A test that fails may leave a run behind, which would slow down all that follow."""
    yield
    for child in psutil.Process().children():
        if "cluster" in child.cmdline() and {"train", "sft"} & {*child.cmdline()}:
            family = [*child.children(recursive=True), child]
            child.send_signal(signal.SIGKILL)
            for process in family:
                if process.is_running():
                    process.kill()
