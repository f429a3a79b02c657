"""Experts that fail in ways a test can choose."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from policy.records import Prompt
from rewards.expert import Expert, Judgement


class Brightness(Expert):
    """Mean pixel level, 0..1: an expert that applies to every prompt."""

    pass_mark = 0.7

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Judgement:
        return Judgement(np.array([image.mean() / 255 for image in images], np.float32))


class FailsAtFirst(Brightness):
    """Fails in as many calls as asked; a file counts them, whichever replica is called."""

    def __init__(self, counter: str, failures: int):
        self._counter, self._failures = Path(counter), failures

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Judgement:
        with self._counter.open("a") as file:
            file.write("x")
        calls = len(self._counter.read_text())
        if calls <= self._failures:
            raise OSError(f"the lens is fogged (call {calls})")
        return super().score(images, prompts)


class SaysWhatItIsTold(Expert):
    """Answers with fixed values, right or wrong."""

    def __init__(self, values: Sequence[float], evidence: Sequence[str] = ()):
        self._answer = Judgement(np.array(values, np.float32), tuple(evidence))

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Judgement:
        return self._answer


class OnlySpatial(Brightness):
    """Applies to spatial prompts alone, and must not be asked about others."""

    def applies(self, prompt: Prompt) -> bool:
        return prompt.task_type == "spatial"

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Judgement:
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

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Judgement:
        while not self._file.exists():
            time.sleep(0.05)
        return super().score(images, prompts)


class FailsOn(Brightness):
    """Cannot judge prompts that contain a word."""

    def __init__(self, word: str):
        self._word = word

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Judgement:
        if any(self._word in prompt.text for prompt in prompts):
            raise OSError(f"blind to {self._word}")
        return super().score(images, prompts)
