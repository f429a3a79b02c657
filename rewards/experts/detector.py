"""Experts that look for objects: which question a prompt asks, and its score from detections.

| variant | spatial | count | existence |
|---|---|---|---|
| `paper` | the prompt has a `spatial_info` | else, it has a `numeracy_info` | else, it has `nouns` |
| `released` | its task_type is "spatial" | it is "numeracy" | it is any other |

They do not apply to a prompt that lacks what its question needs, or has an unknown relation.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from torch import Tensor
from transformers import BaseImageProcessor

from policy.records import Box, Prompt
from rewards.detection import count_score, existence_score, knows_relation, spatial_score
from rewards.expert import Expert, ExpertScores, check_sides
from rewards.experts.common import batches
from rewards.experts.published_weights import Placement, load_part
from rewards.matching import Detection, Variant, same_noun, to_xyxy

T = TypeVar("T", bound=BaseImageProcessor)
Question = Literal["spatial", "count", "existence"]
_OF_TASK: dict[str, Question] = {"spatial": "spatial", "numeracy": "count"}


class Detector(Expert):
    """What `detect` finds, scored by rewards/detection.py."""

    pass_threshold = 0.999  # every object there, counted right, and in its place

    def __init__(self, variant: Variant = "paper"):
        self._variant = variant

    @abstractmethod
    def detect(
        self, images: Sequence[np.ndarray], nouns: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """Look for the nouns of image n in image n; a detection's phrase is one of them."""

    def question(self, prompt: Prompt) -> Question | None:
        """The question that scores the prompt's images; None: the expert does not apply."""
        if self._variant == "released":
            asked = _OF_TASK.get(prompt.task_type, "existence")
        elif prompt.spatial_info:
            asked = "spatial"
        else:
            asked = "count" if prompt.numeracy_info else "existence"
        where = prompt.spatial_info
        there = {
            "spatial": where and (self._variant == "released" or knows_relation(where.locality)),
            "count": prompt.numeracy_info,
            "existence": prompt.nouns,
        }
        return asked if there[asked] else None

    def nouns(self, prompt: Prompt) -> tuple[str, ...]:
        """The nouns to look for, each once."""
        if self._variant == "released":
            return prompt.nouns
        asked = self.question(prompt)
        every: tuple[str, ...]
        if asked == "spatial":
            assert prompt.spatial_info is not None
            every = (prompt.spatial_info.obj1, prompt.spatial_info.obj2)
        elif asked == "count":
            every = tuple(count.obj_name for count in prompt.numeracy_info)
        else:
            every = prompt.nouns
        return tuple(n for i, n in enumerate(every) if not any(same_noun(n, m) for m in every[:i]))

    def applies(self, prompt: Prompt) -> bool:
        return self.question(prompt) is not None

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        wanted = [self.nouns(prompt) for prompt in prompts]
        found = self.detect(images, wanted)
        values = [self._grade(d, prompt) for d, prompt in zip(found, prompts, strict=True)]
        lines = [
            f"{self.question(prompt)}: {_describe(d, nouns)}"
            for d, prompt, nouns in zip(found, prompts, wanted, strict=True)
        ]
        boxes = tuple(tuple(Box(d.phrase, d.score, to_xyxy(d.box)) for d in some) for some in found)
        return ExpertScores(np.array(values, np.float32), tuple(lines), boxes)

    def _grade(self, found: Sequence[Detection], prompt: Prompt) -> float:
        asked = self.question(prompt)
        if asked == "spatial":
            assert prompt.spatial_info is not None
            return spatial_score(found, prompt.spatial_info, variant=self._variant)
        if asked == "count":
            return count_score(found, prompt.numeracy_info, variant=self._variant)
        return existence_score(found, prompt.nouns, variant=self._variant)


def _describe(found: Sequence[Detection], nouns: Sequence[str]) -> str:
    """ "dog 0.62 0.41, no cat"."""
    scores = {
        noun: sorted((d.score for d in found if same_noun(d.phrase, noun)), reverse=True)
        for noun in nouns
    }
    return ", ".join(
        f"{noun} {' '.join(f'{s:.2f}' for s in some)}" if some else f"no {noun}"
        for noun, some in scores.items()
    )


def same_size_batches(images: Sequence[np.ndarray], size: int) -> Iterator[Sequence[int]]:
    """Indices of images that have one shape, at most `size` at a time: in such a batch no image is
    padded, so none depends on the others."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for n, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(n)
    for indices in by_shape.values():
        yield from batches(indices, size)


def image_processor(kind: type[T], folder: Path) -> T:
    """The folder's image processor, or the published one if it has none."""
    if not (folder / "preprocessor_config.json").is_file():
        return kind()
    return load_part(kind.from_pretrained, folder, "image processor")


def pixels(processor, images: Sequence[np.ndarray], place: Placement) -> Tensor:
    """Images of one shape as [B, 3, H, W]. Raises RuntimeError for one that is long and thin."""
    check_sides(images)
    found = processor(list(images), input_data_format="channels_last", return_tensors="pt")
    return found.pixel_values.to(place.device, place.dtype)


def token_probabilities(logits: Tensor) -> Tensor:
    """Probabilities, on the CPU. Raises for NaN, which would look like a missing object."""
    found = logits.float().sigmoid().cpu()
    if found.isnan().any():
        raise RuntimeError("the detector computed nan: its dtype may be too small for it")
    return found


def detections(phrase: str, scores: Tensor, boxes: Tensor, kept: Tensor) -> Iterator[Detection]:
    """Detections from scores [N], boxes [N, 4] and which of them count, bool [N]."""
    for score, box in zip(scores[kept].tolist(), boxes[kept].tolist(), strict=True):
        yield Detection(phrase, score, tuple(box))
