"""Experts that fail in ways a test can choose."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from policy.records import Box, Prompt
from rewards.expert import Expert, ExpertScores


class Brightness(Expert):
    """Mean pixel level, 0..1: an expert that applies to every prompt."""

    pass_threshold = 0.7

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        return ExpertScores(np.array([image.mean() / 255 for image in images], np.float32))


class FailsAtFirst(Brightness):
    """Fails in as many calls as asked; a file counts them, whichever replica is called."""

    def __init__(self, counter: str, failures: int):
        self._counter, self._failures = Path(counter), failures

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        with self._counter.open("a") as file:
            file.write("x")
        calls = len(self._counter.read_text())
        if calls <= self._failures:
            raise OSError(f"the lens is fogged (call {calls})")
        return super().score(images, prompts)


class GoesAway(Brightness):
    """Scores so many images, and fails from then on; for one replica."""

    def __init__(self, after: int):
        self._left = after

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        self._left -= len(images)
        if self._left < 0:
            raise OSError("the lens is gone")
        return super().score(images, prompts)


class GoesWrongOnce(Brightness):
    """Leaves the interpreter, or hangs, in its first call; a file remembers that there was one."""

    def __init__(self, seen: str, hang: bool):
        self._seen, self._hang = Path(seen), hang

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        if not self._seen.exists():
            self._seen.touch()
            time.sleep(3600) if self._hang else sys.exit("enough")
        return super().score(images, prompts)


class FixedAnswer(Expert):
    """Answers with fixed values, right or wrong."""

    def __init__(self, values: Sequence[float], explanation: Sequence[str] = ()):
        self._answer = ExpertScores(np.array(values, np.float32), tuple(explanation))

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        return self._answer


class TellsItsProcess(Brightness):
    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        return ExpertScores(np.full(len(images), os.getpid(), np.float32))


class OnlySpatial(Brightness):
    """Applies to spatial prompts alone, and must not be asked about others."""

    def applies(self, prompt: Prompt) -> bool:
        return prompt.task_type == "spatial"

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        assert all(prompt.task_type == "spatial" for prompt in prompts)
        return super().score(images, prompts)


class CannotStart(Brightness):
    def __init__(self):
        raise FileNotFoundError("weights.pt is nowhere to be found")


class Unfinished(Expert):
    """Forgot to define score."""


class NotAnExpert:
    pass


class WaitsForFile(Brightness):
    """Answers once a file exists."""

    def __init__(self, file: str):
        self._file = Path(file)

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        while not self._file.exists():
            time.sleep(0.05)
        return super().score(images, prompts)


class FailsOn(Brightness):
    """Cannot judge prompts that contain a word."""

    def __init__(self, word: str):
        self._word = word

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        if any(self._word in prompt.text for prompt in prompts):
            raise OSError(f"blind to {self._word}")
        return super().score(images, prompts)


class TakesItsTime(Brightness):
    """Sleeps through every call, and leaves its process id and the number of images in a file."""

    def __init__(self, seconds: float, calls: str | None = None):
        self._seconds, self._calls = seconds, calls and Path(calls)

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        if self._calls:
            with self._calls.open("a") as file:
                file.write(f"{os.getpid()} {len(images)}\n")
        time.sleep(self._seconds)
        return super().score(images, prompts)


class ReadsItsEnvironment(Brightness):
    """Cannot start without a variable; applies where the prompt says its value."""

    def __init__(self):
        self._word = os.environ["BICOT_TEST_WORD"]

    def applies(self, prompt: Prompt) -> bool:
        return self._word in prompt.text


class Boxes(Brightness):
    """Finds the left half of every image."""

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        values = super().score(images, prompts).values
        half = Box("left half", 0.5, (0.0, 0.0, 0.5, 1.0))
        return ExpertScores(values, ("half",) * len(images), ((half,),) * len(images))


class Placed(Brightness):
    """Wants to know where it runs, and in which numbers."""

    def __init__(self, words: int, device: str = "auto", dtype: str = "auto"):
        self.where = (device, dtype)
