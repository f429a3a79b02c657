"""The interface of vision experts: one class, one question, any number of images at a time.

An expert scores only prompts that it applies to, and its scores are checked before they count
(`score_checked`). The outcome is an `ExpertResult`: scores, or a failure with its reason.
`load_expert_class` finds the class that a configuration names, and reports what is wrong with it before
anything starts.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from policy.errors import UserError
from policy.imports import did_you_mean, load_module, split_name
from policy.records import Box, Prompt
from rewards.config import ExpertConfig, RewardsConfig
from rewards.images import MAX_ASPECT
from rewards.middleware import token_digest

_LONGEST_TEXT = 100_000  # characters, of an explanation or a label
_MOST_BOXES = 1000  # on one image


@dataclass(frozen=True)
class ExpertScores:
    """One expert's answer on N images: float32 [N], and for people a line and boxes on each."""

    values: np.ndarray
    explanation: tuple[str, ...] = field(default=())
    boxes: tuple[tuple[Box, ...], ...] = field(default=())


class Expert(ABC):
    """Scores images against their prompts. Subclass it in any module and name it in the config.

    The constructor takes the `options` of its config entry as keyword arguments and may be slow: it
    runs once a replica. An expert keeps no state between calls, so any replica may answer.
    """

    pass_threshold: float = 0.5
    """Score from which a sample counts as right in this respect ("strict accuracy")."""

    def applies(self, prompt: Prompt) -> bool:
        """Whether the expert can score images of this prompt; if not, its score is absent, not 0."""
        return True

    def applies_to(self, prompts: Sequence[Prompt]) -> list[bool]:
        """`applies` of many prompts; override it where one call is cheaper than many."""
        return [self.applies(prompt) for prompt in prompts]

    @abstractmethod
    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        """Score N images, uint8 [H, W, 3] each, all of prompts that the expert applies to.

        Raise if a score cannot be computed: training would learn from a made-up one.
        """


class SamplesLost(RuntimeError):
    """The samples to be scored are gone, with the process or the node that held them."""


class InvalidScore(RuntimeError):
    """An expert returned a score that is no finite number."""


def score_checked(
    name: str, expert: Expert, images: Sequence[np.ndarray], prompts: Sequence[Prompt]
) -> ExpertScores:
    """An expert's scores of N images whose prompts it applies to, with a line and boxes for each.

    Raises InvalidScore for NaN or infinity, and RuntimeError for any other invalid answer, since
    answers go to a training run's driver and into JSON, or for an image that is too long and thin.
    """
    check_sides(images)
    answer = expert.score(images, prompts)
    try:
        checked = _checked(answer, len(images))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RuntimeError(f"expert {name} gave {error}") from error
    for value, prompt in zip(checked.values, prompts, strict=True):
        if not np.isfinite(value):
            raise InvalidScore(f"expert {name} gave {value} for prompt {prompt.text!r}")
    return checked


def applies_checked(name: str, expert: Expert, prompts: Sequence[Prompt]) -> list[bool]:
    """Which prompts an expert applies to. Raises RuntimeError for another number of answers."""
    answers = [bool(answer) for answer in expert.applies_to(prompts)]
    if len(answers) != len(prompts):
        raise RuntimeError(f"expert {name} gave {len(answers)} answers for {len(prompts)} prompts")
    return answers


def _checked(answer: ExpertScores, count: int) -> ExpertScores:
    """The answer in Python's own types, whatever number types the expert computed with. Raises one of
    Python's own errors with what it is instead; scores may still not be finite."""
    values = np.asarray(answer.values)
    if values.dtype.kind not in "fiub":
        raise TypeError(f"values of type {values.dtype}, not numbers")
    if isinstance(answer.explanation, str):
        raise TypeError("one text, not one for each image")
    lines = list(answer.explanation) or [""] * count
    boxes = [list(some) for some in answer.boxes] or [[]] * count
    if values.shape != (count,) or len(lines) != count or len(boxes) != count:
        what = f"{len(lines)} explanations and {len(boxes)} lists of boxes"
        raise ValueError(f"values of shape {values.shape}, {what} for {count} images")
    if any(len(some) > _MOST_BOXES for some in boxes):
        raise ValueError(f"more than {_MOST_BOXES} boxes on an image")
    with np.errstate(over="ignore"):  # overflows to infinity, which is refused
        values = values.astype(np.float32)
    return ExpertScores(
        values,
        tuple(map(_checked_text, lines)),
        tuple(tuple(map(_checked_box, some)) for some in boxes),
    )


def _checked_text(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{type(text).__name__} instead of text")
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"a text of {len(text)} characters; {_LONGEST_TEXT} are the most")
    text.encode()  # a lone surrogate cannot be written to any file
    return str(text)


def _checked_box(box: Box) -> Box:
    if not isinstance(box, Box):
        raise TypeError(f"{type(box).__name__} instead of a Box")
    if any(isinstance(number, str | bytes) for number in (box.score, *box.xyxy)):
        raise TypeError(f"text instead of numbers: {box}")
    left, top, right, bottom = map(float, box.xyxy)
    checked = Box(_checked_text(box.label), float(box.score), (left, top, right, bottom))
    if not all(map(math.isfinite, (checked.score, *checked.xyxy))):
        raise ValueError(f"a box with a number that is not finite: {checked}")
    return checked


def check_sides(images: Sequence[np.ndarray]) -> None:
    """Raises RuntimeError for an image [H, W, 3] that is too long and thin: a model that resizes its
    short side would make it huge."""
    for image in images:
        height, width = image.shape[:2]
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise RuntimeError(
                f"an image of {width} x {height} pixels; one may be {MAX_ASPECT} times the other"
            )


def scatter(scores: ExpertScores | None, applies: Sequence[bool]) -> ExpertScores:
    """Spreads the scores of the samples that an expert applies to (None: there are none) over all N:
    NaN, "" and no boxes for the others."""
    values = np.full(len(applies), np.nan, np.float32)
    explanation = [""] * len(applies)
    boxes: list[tuple[Box, ...]] = [()] * len(applies)
    for row, n in enumerate(np.flatnonzero(applies)):
        assert scores is not None
        values[n] = scores.values[row]
        explanation[n], boxes[n] = scores.explanation[row], scores.boxes[row]
    return ExpertScores(values, tuple(explanation), tuple(boxes))


def concat(parts: Sequence[ExpertScores]) -> ExpertScores:
    """Scores of consecutive images as one; "" and no boxes where a part has none to show."""
    explanation: list[str] = []
    boxes: list[tuple[Box, ...]] = []
    for part in parts:
        count = len(part.values)
        explanation += part.explanation or ("",) * count
        boxes += part.boxes or ((),) * count
    return ExpertScores(
        np.concatenate([part.values for part in parts]), tuple(explanation), tuple(boxes)
    )


@dataclass(frozen=True)
class Failure:
    """An expert gave no answer after all tries; `reason` describes the last failure."""

    expert: str
    tries: int
    reason: str
    not_a_score: bool = False
    """Whether the last failure was a score that is no finite number."""

    def __str__(self) -> str:
        return f"expert {self.expert} failed {self.tries} times, at last with: {self.reason}"


@dataclass(frozen=True)
class ExpertResult:
    """One expert's outcome on a group: scores, or a failure, after `retries`, in `seconds` altogether.
    Scores come with the expert's pass threshold."""

    outcome: ExpertScores | Failure
    seconds: float
    retries: int = 0
    pass_threshold: float = math.nan

    @property
    def failed(self) -> bool:
        return isinstance(self.outcome, Failure)

    @property
    def scores(self) -> ExpertScores:
        """The scores of an expert that has not failed."""
        assert isinstance(self.outcome, ExpertScores)
        return self.outcome


@dataclass(frozen=True)
class GroupResults:
    """All experts' results on the samples of one group, by name."""

    sample_ids: tuple[str, ...]
    by_expert: dict[str, ExpertResult] = field(repr=False)


def split_use(use: str) -> tuple[str, str]:
    """Module and class of "package.module:Class". Raises UserError for anything else."""
    parts = split_name(use)
    if parts is None:
        raise UserError(f"{use!r} does not name an expert: write package.module:Class")
    return parts


def load_expert_class(use: str) -> type[Expert]:
    """The class that "package.module:Class" names. Raises UserError with one line on what is wrong."""
    module_name, class_name = split_use(use)
    module = load_module(module_name, use)
    found = getattr(module, class_name, None)
    if found is None:
        experts = [n for n, v in vars(module).items() if _is_expert(v) and not v.__abstractmethods__]
        hint = did_you_mean(class_name, experts)
        raise UserError(f"{use}: {module_name} has no class {class_name}{hint}")
    if not _is_expert(found):
        raise UserError(f"{use}: {class_name} is not a subclass of rewards.expert.Expert")
    if missing := sorted(found.__abstractmethods__):
        raise UserError(f"{use}: {class_name} does not define {', '.join(missing)}")
    return found


def _is_expert(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Expert)


def constructor_options(entry: ExpertConfig) -> dict[str, Any]:
    """The keyword arguments of an expert: its options, device and dtype."""
    placed = {"device": entry.device, "dtype": entry.dtype}
    placed = {name: value for name, value in placed.items() if value is not None}
    if twice := placed.keys() & entry.options.keys():
        raise UserError(f"{min(twice)} is set, and again in options: set it once")
    return {**entry.options, **placed}


def check_experts(config: RewardsConfig, where: str = "rewards.experts") -> None:
    """Load every class and check its options against its constructor, but build nothing; check that the
    gateway's token is set.

    For a driver that must refuse a bad config before it starts. An expert with packages of its own can
    only be loaded where these are installed: only the form of its name is checked. Raises UserError
    naming the expert, whose key is under `where`.
    """
    if config.gateway is not None:
        token_digest(config.gateway)
    for name, entry in config.experts.items():
        try:
            if entry.has_own_packages:
                split_use(entry.use)
                constructor_options(entry)
            else:
                found = load_expert_class(entry.use)
                inspect.signature(found).bind(**constructor_options(entry))
        except (UserError, TypeError) as error:
            what = f"options: {error}" if isinstance(error, TypeError) else str(error)
            raise UserError(f"{where}.{name}: {what}") from error
