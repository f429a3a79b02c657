"""A member that is lost costs the others a time limit, and no more. NCCL needs GPUs: a fake group
stands for one that blocks until it is aborted."""

import multiprocessing
import os
import threading
import time

import pytest
import torch

from policy.rendezvous import Rendezvous
from policy.weights import Broadcast, BroadcastRendezvous, _errors_spare_the_process

HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"


class Blocking:
    """A group whose broadcast waits for a member that is gone, as NCCL's does, until it is aborted."""

    def __init__(self):
        self.aborted = threading.Event()

    def broadcast(self, tensors, options):
        assert self.aborted.wait(60), "nobody aborted"
        return self

    def wait(self, timeout):
        return True

    def abort(self):
        self.aborted.set()


def test_a_broadcast_that_blocks_is_aborted_and_raises():
    member = Broadcast.__new__(Broadcast)
    member._device, member._limit_s, member._group = torch.device("cpu"), 0.1, Blocking()
    with pytest.raises(RuntimeError, match=r"was not with all members of the broadcast within 0\.1 s"):
        member.send([torch.zeros(3)])
    assert member._group.aborted.is_set()


def _be_there_and_idle(meeting: BroadcastRendezvous) -> None:
    Broadcast(meeting, 1, "cpu")
    time.sleep(60)


def test_a_bucket_that_nobody_takes_fails_within_its_own_limit():
    """The receiver lives and does not receive; they had ten minutes to meet, and half a second for a
    bucket, which is larger than what the kernel would buffer."""
    where = Rendezvous.at("127.0.0.1")
    meeting = BroadcastRendezvous(where, 2, timeout_s=600, bucket_timeout_s=0.5)
    receiver = multiprocessing.get_context("spawn").Process(target=_be_there_and_idle, args=(meeting,))
    receiver.start()
    try:
        member = Broadcast(meeting, 0, "cpu")
        with pytest.raises(RuntimeError):
            member.send([torch.zeros(64 * 2**20, dtype=torch.uint8)])
        assert receiver.is_alive()  # else it is its end that was noticed
    finally:
        receiver.kill()
        receiver.join()


@pytest.mark.parametrize("before", [None, "3"])
def test_nccls_own_watchdog_is_set_to_leave_the_process_alone(monkeypatch, before):
    monkeypatch.delenv(HANDLING, raising=False)
    if before is not None:
        monkeypatch.setenv(HANDLING, before)
    with _errors_spare_the_process():
        assert os.environ[HANDLING] == "0"
    assert os.environ.get(HANDLING) == before
