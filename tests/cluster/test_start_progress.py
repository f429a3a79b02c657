"""Progress while processes start: in a terminal, in a log, and who reports it."""

import io
import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import GetTimeoutError
from rich.console import Console

from cluster.rollout_workers import RolloutWorkers
from cluster.start_progress import StartProgress, in_a_line
from policy.errors import UserError
from policy.starting import report, reporting_to, wait_for


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_log_has_a_line_every_15_seconds_while_something_is_loading():
    console, clock = Console(file=io.StringIO(), width=40), Clock()
    with StartProgress(console, clock) as starting:
        starting.begin("starting experts")
        for second in range(62):
            clock.now = 100.0 + second
            report(
                ["clip", "vqa"] if second > 20 else ["clip"],
                ["detector"] if second > 20 else ["vqa", "detector"],
            )
        report(["clip", "vqa", "detector"], [])
        starting.begin("starting the learner")
        clock.now += 14
        report([], ["rank 0"])
        clock.now += 1
        report([], ["rank 0"])
    report([], ["nobody listens any more"])
    assert console.file.getvalue().splitlines() == [
        "starting experts: 1 of 3 ready; vqa, detector loading for 15 s",
        "starting experts: 2 of 3 ready; detector loading for 30 s",
        "starting experts: 2 of 3 ready; detector loading for 45 s",
        "starting experts: 2 of 3 ready; detector loading for 60 s",
        "starting the learner: 0 of 1 ready; rank 0 loading for 15 s",
    ]


def test_a_terminal_has_one_line_that_changes():
    console, clock = Console(file=io.StringIO(), width=100, force_terminal=True), Clock()
    with StartProgress(console, clock) as starting:
        starting.begin("starting experts")
        clock.now += 3
        report(["clip"], ["detector"])
        shown = str(starting._status.renderable.text)
    assert shown == "starting experts: 1 of 2 ready; detector loading for 3 s"


def test_of_many_names_only_the_first_are_shown():
    names = [f"worker {n}" for n in range(12)]
    assert in_a_line("starting rollout workers", names[:2], names[2:], 7.4) == (
        "starting rollout workers: 2 of 12 ready; worker 2, worker 3, worker 4, worker 5 and 6 more"
        " loading for 7 s"
    )


@ray.remote(num_cpus=0)
class Loads:
    """A worker that is ready when a file is there, or says what is wrong."""

    def __init__(self, number: int, gate: str):
        self.number, self.gate = number, Path(gate)

    def ready(self) -> bool:
        while self.number == 1 and not self.gate.exists():
            time.sleep(0.05)
        if self.number == 2:
            raise UserError("no such model")
        return True


@pytest.mark.ray
def test_workers_are_reported_as_loading_until_they_hold_the_model(local_ray, tmp_path):
    gate, reports = tmp_path / "gate", []

    def listen(ready, loading):
        reports.append((tuple(ready), tuple(loading)))
        if ready == ["worker 0"]:
            gate.touch()

    def start(number: int):
        return Loads.remote(number, str(gate))

    with reporting_to(listen):
        RolloutWorkers(2, start, load_timeout_s=60)
    assert (("worker 0",), ("worker 1",)) in reports
    assert reports[-1] == (("worker 0", "worker 1"), ())
    gate.unlink()
    with pytest.raises(
        UserError, match=r"have not loaded the model within actors.load_timeout_s \(2 s\)"
    ):
        RolloutWorkers(2, start, load_timeout_s=2)
    replies = {f"worker {n}": start(n).ready.remote() for n in (1, 2)}
    with pytest.raises(UserError, match="no such model"):  # though the first is still loading
        wait_for(replies, ray.wait, ray.get, 60)
    with pytest.raises(GetTimeoutError):
        wait_for({"worker 1": replies["worker 1"]}, ray.wait, ray.get, 0.1)
