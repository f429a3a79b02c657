"""What all tests of commands share."""

import signal
from contextlib import suppress

import psutil
import pytest


@pytest.fixture(autouse=True)
def _no_run_is_left():
    """A test that fails may leave a run behind, which would slow down all that follow."""
    yield
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # ended, or a zombie that nobody has waited for
            command = child.cmdline()
            if "cluster" in command and {"train", "sft"} & {*command}:
                family = [*child.children(recursive=True), child]
                child.send_signal(signal.SIGKILL)
                for process in family:
                    if process.is_running():
                        process.kill()
