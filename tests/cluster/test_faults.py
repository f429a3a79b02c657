"""Every process of a run is killed or stopped once; the run ends with the weights of one in peace."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.ledger import faults, read_ledger
from tests.cluster.commands import TRAIN, a_few, environment
from tests.conftest import ROOT

STEPS = 30
SMALL = [
    f"train.steps={STEPS}",
    "train.groups_per_step=3",
    "train.group_size=4",
    "train.save_every=5",
    f"evaluate.every={STEPS}",
    "evaluate.samples_per_prompt=1",
    "actors.timeout_s=10",
    "learner.timeout_s=12",
]


class LiveRun:
    """`bicot train` in a process of its own, watched through its output."""

    def __init__(self, folder: Path, *overrides: str):
        self.log = folder / "log.txt"
        held_out = a_few("heldout.jsonl", folder / "heldout.jsonl", every=30)
        command = [sys.executable, "-m", "cluster", "train", TRAIN, *SMALL, *overrides]
        command += [f"runs_dir={folder}", f"evaluate.prompts={held_out}"]
        with self.log.open("a") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment(), stdout=out, stderr=subprocess.STDOUT
            )

    def reach(self, step: int) -> None:
        while f"\nstep {step}/{STEPS} " not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def strike(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Signal one process of a kind, as Ray names it."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        victims = [p for p in family if p.is_running() and name in " ".join(p.cmdline())]
        assert victims, f"no process is named {name}"
        victims[0].send_signal(how)

    def wait(self) -> str:
        self.process.wait(240)
        return self.log.read_text()


def model(folder: Path) -> bytes:
    return (folder / "shapes" / "checkpoints" / f"step_{STEPS:06d}" / "model.safetensors").read_bytes()


@pytest.mark.timeout(600)
def test_a_run_in_trouble_ends_as_one_in_peace(tmp_path):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    for folder in (calm, rough):
        folder.mkdir()
    peace = LiveRun(calm)
    assert "step 30/30" in peace.wait()
    assert peace.process.returncode == 0

    run = LiveRun(rough)
    run.reach(2)
    run.strike("ray::RolloutActor")
    run.reach(5)
    run.strike("ray::RolloutActor", signal.SIGSTOP)
    run.reach(8)
    run.strike("ray::ServeReplica:expert_objects")
    run.reach(10)
    run.strike("ray::ServeController")
    run.reach(13)
    run.strike("ray::LearnerRank")
    run.reach(17)
    run.strike("ray::LearnerRank", signal.SIGSTOP)
    run.reach(22)
    run.strike("ray::Judge")
    run.reach(25)
    run.process.kill()
    run.wait()
    again = LiveRun(rough)
    told = again.wait()
    assert again.process.returncode == 0, told
    for text in (
        "is lost; its groups are drawn again",
        "hangs; its groups",
        "the learner was lost in step 1",
    ):
        assert text in told
    assert "goes on from step" in told

    assert model(rough) == model(calm)
    entries = read_ledger(rough / "shapes")
    assert faults(entries) == []
    assert [e.group for e in entries] == list(range(3 * STEPS))
    assert {e.outcome for e in entries} <= {"trained", "filtered"}
