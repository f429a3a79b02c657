"""The interface of judges: experts that get a question about each image, and answer with a reply, a
JSON object, instead of a number.

A judge runs on Ray Serve as any expert does, with replicas, batches, retries and limits of its own: the
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


def unusable(why: str, **details: Any) -> Reply:
    """The reply for an image on which a judge has no usable one after all tries. It is saved and
    counted, and the next run asks again; it is never a score."""
    return {UNUSABLE: why, **details}


class Judge(Expert):
    """Subclass it in any module and name it in the configuration, as an expert. Replicas share
    nothing, so any may answer."""

    @abstractmethod
    def replies(self, images: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[Reply]:
        """The replies on N images, uint8 [H, W, 3] each; `unusable` where there is none. An exception
        fails the images of one request, which is tried again."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Identifies the model behind the replies: {"model": ..., "revision": ...}. A reply's own "by"
        takes its place."""

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        replies = self.replies(images, [json.loads(prompt.text) for prompt in prompts])
        whole = [{"by": self.identity(), **reply} for reply in replies]
        lines = [json.dumps(reply, ensure_ascii=False, allow_nan=False) for reply in whole]
        return ExpertScores(np.zeros(len(lines), np.float32), tuple(lines))


def ask_prompt(key: str, ask: Ask) -> Prompt:
    """A question in the form of an expert's prompt."""
    return Prompt(id=key, text=json.dumps(ask, ensure_ascii=False), task_type="benchmark")
