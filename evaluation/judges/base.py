"""What a judge is: an expert that is asked something of its own about each image, and whose answer is
a reply, a JSON object, not one number.

It runs as any expert does, on Ray Serve, with replicas, batches, retries and limits of its own: the
question travels as the prompt's text, the reply as the score's explanation.
"""

import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.benchmark import Ask, Reply
from policy.records import Prompt
from rewards.expert import Expert, ExpertScores

UNUSABLE = "unusable"


def unusable(why: str, **said: Any) -> Reply:
    """For an image on which a judge has no usable reply, after all tries. It is kept, counted, and
    asked for again next time; it is never a score."""
    return {UNUSABLE: why, **said}


class Judge(Expert):
    """Subclass it in any module and name it in the configuration, as an expert. Replicas share
    nothing, so any may answer."""

    @abstractmethod
    def replies(self, images: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[Reply]:
        """Answer on N images, uint8 [H, W, 3] each; `unusable` where that cannot be done. An exception
        fails the images of one request, which are asked about again."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Which model this is, to tell one judge's replies from another's: {"model": ..., "revision":
        ...}. A reply's own "by" takes its place."""

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        replies = self.replies(images, [json.loads(prompt.text) for prompt in prompts])
        whole = [{"by": self.identity(), **reply} for reply in replies]
        lines = [json.dumps(reply, ensure_ascii=False, allow_nan=False) for reply in whole]
        return ExpertScores(np.zeros(len(lines), np.float32), tuple(lines))


def ask_prompt(key: str, ask: Ask) -> Prompt:
    """A question as the prompt that an expert takes."""
    return Prompt(id=key, text=json.dumps(ask, ensure_ascii=False), task_type="benchmark")
