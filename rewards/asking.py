"""How an expert is asked: only where it applies, and what it says is checked before it counts."""

from collections.abc import Sequence

import numpy as np

from policy.records import Prompt
from rewards.expert import Expert, Judgement


class SamplesLost(RuntimeError):
    """The samples to be judged are gone, with the process or the node that held them."""


class NotAScore(RuntimeError):
    """An expert gave something that is no finite number."""


def ask_expert(
    name: str, expert: Expert, images: Sequence[np.ndarray], prompts: Sequence[Prompt]
) -> Judgement:
    """What an expert says of N images whose prompts it applies to, with a line and boxes for each.

    Raises NotAScore for NaN or infinity, and RuntimeError for another number of answers than N.
    """
    answer = expert.score(images, prompts)
    values = np.asarray(answer.values, np.float32)
    lines = answer.evidence or ("",) * len(images)
    boxes = answer.boxes or ((),) * len(images)
    if values.shape != (len(images),) or len(lines) != len(images) or len(boxes) != len(images):
        what = f"values of shape {values.shape}, {len(lines)} evidences and {len(boxes)} lists of boxes"
        raise RuntimeError(f"expert {name} gave {what} for {len(images)} images")
    for value, prompt in zip(values, prompts, strict=True):
        if not np.isfinite(value):
            raise NotAScore(f"expert {name} gave {value} for prompt {prompt.text!r}")
    return Judgement(values, tuple(lines), tuple(map(tuple, boxes)))


def spread(judgement: Judgement | None, applies: Sequence[bool]) -> Judgement:
    """A judgement of those that an expert applies to (None: there were none) as one of all N: NaN, ""
    and no boxes for the others."""
    values = np.full(len(applies), np.nan, np.float32)
    evidence, boxes = [""] * len(applies), [()] * len(applies)
    for row, n in enumerate(np.flatnonzero(applies)):
        values[n] = judgement.values[row]
        evidence[n], boxes[n] = judgement.evidence[row], judgement.boxes[row]
    return Judgement(values, tuple(evidence), tuple(boxes))


def joined(parts: Sequence[Judgement]) -> Judgement:
    """Judgements of consecutive images as one; "" and no boxes where a part has none to show."""
    evidence, boxes = [], []
    for part in parts:
        count = len(part.values)
        evidence += part.evidence or ("",) * count
        boxes += part.boxes or ((),) * count
    return Judgement(np.concatenate([part.values for part in parts]), tuple(evidence), tuple(boxes))
