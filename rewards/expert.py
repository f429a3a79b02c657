"""What a vision expert is: one class, one question, any number of images at a time."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from policy.records import Box, Prompt


@dataclass(frozen=True)
class Judgement:
    """One expert's answer on N images: float32 [N], and for people a line and boxes on each."""

    values: np.ndarray
    evidence: tuple[str, ...] = field(default=())
    boxes: tuple[tuple[Box, ...], ...] = field(default=())


class Expert(ABC):
    """Judges images against their prompts. Subclass it in any module and name it in the config.

    The constructor takes the `options` of its config entry as keyword arguments and may be slow: it
    runs once a replica. An expert keeps no state between calls, so any replica may answer.
    """

    pass_mark: float = 0.5
    """Score from which a sample counts as right in this respect ("strict accuracy")."""

    def applies(self, prompt: Prompt) -> bool:
        """Whether the expert has anything to say on this prompt; if not, it is absent, not 0."""
        return True

    def applies_to(self, prompts: Sequence[Prompt]) -> list[bool]:
        """`applies` of many prompts; override it where asking once is cheaper than asking each."""
        return [self.applies(prompt) for prompt in prompts]

    @abstractmethod
    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Judgement:
        """Judge N images, uint8 [H, W, 3] each, all of prompts that the expert applies to.

        A score that cannot be given must raise: a made-up one would be learned from.
        """
