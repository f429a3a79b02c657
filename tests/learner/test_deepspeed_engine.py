"""Settings of a rank's process: it keeps the memory that it freed."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.deepspeed

FAULTS = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page is one fault for 512
import torch
from learner.deepspeed_engine import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(6):  # the heap needs a few to find its shape
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    one = torch.ones(64 * 2**20, dtype=torch.uint8)
    other = torch.ones(32 * 2**20, dtype=torch.uint8)
    sum_ = one + 1
    del one, other, sum_
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc's")
def test_memory_that_was_freed_is_there_for_the_next_tensor():
    """A step's large tensors again and again: in the end, most pages are made anew only where nobody
    kept those of the step before. (A heap that something blocks may lose one tensor of three.)"""
    pages = (64 + 32 + 64) * 2**20 // 4096

    def faults(how):
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("given back") >= pages * 3 // 4
    assert faults("kept") <= pages // 2
