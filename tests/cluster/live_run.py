"""`bicot train` in a process of its own, watched through its output, and struck."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.cluster.commands import TRAIN, a_few, environment
from tests.conftest import ROOT

SMALL = [
    "ray.dashboard=false",
    "train.groups_per_step=3",
    "train.group_size=4",
    "train.save_every=4",
    "train.keep_checkpoints=6",
    "evaluate.every=1000",
    "evaluate.samples_per_prompt=1",
    "actors.timeout_s=6",
    "learner.timeout_s=9",
    "rewards.timeout_s=10",
]


class LiveRun:
    def __init__(self, folder: Path, steps: int, *overrides: str, env: Mapping[str, str] | None = None):
        folder.mkdir(exist_ok=True)
        self.folder = folder / "shapes"
        self.log = folder / "log.txt"
        self.steps = steps
        held_out = a_few("heldout.jsonl", folder / "heldout.jsonl", every=30)
        own = [f"train.steps={steps}", f"runs_dir={folder}", f"evaluate.prompts={held_out}"]
        command = [sys.executable, "-m", "cluster", "train", TRAIN, *SMALL, *own, *overrides]
        with self.log.open("a") as out:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment() | dict(env or {}),
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def reach(self, step: int) -> None:
        while not self.has_reached(step):
            time.sleep(0.05)

    def has_reached(self, step: int) -> bool:
        if f"\nstep {step}/{self.steps} " in self.log.read_text():
            return True
        assert self.process.poll() is None, self.log.read_text()
        return False

    @contextmanager
    def paused(self) -> Iterator[int]:
        """Nothing goes on meanwhile; gives the newest step in metrics.jsonl."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            lines = (self.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
            yield max(json.loads(line)["step"] for line in lines if line.endswith("\n"))
        finally:
            self.process.send_signal(signal.SIGCONT)

    def strike(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Signal one process of a kind, as Ray names it."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        victims = [p for p in family if p.is_running() and name in " ".join(p.cmdline())]
        assert victims, f"no process is named {name}"
        victims[0].send_signal(how)

    def wait(self) -> str:
        """Its whole output, when it has ended."""
        self.process.wait(240)
        return self.log.read_text()

    def wait_for_success(self) -> str:
        output = self.wait()
        assert self.process.returncode == 0, output
        return output

    def model(self, step: int) -> str:
        """A digest of the weights after a step: of bytes, pytest would show the difference for
        minutes."""
        saved = self.folder / f"checkpoints/step_{step:06d}/model.safetensors"
        return hashlib.sha256(saved.read_bytes()).hexdigest()
