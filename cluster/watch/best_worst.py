"""The samples that each expert scored best and worst, with its boxes drawn on the images: they show
first when a policy learns to please an expert instead of drawing well."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from cluster.watch.evaluation import Evaluation, ScoredSample
from cluster.watch.plots import fit, grid
from policy.records import Box

EACH = 6
CELL = 144
COLORS = ((222, 40, 120), (20, 120, 220), (240, 140, 0), (20, 150, 90), (130, 70, 200))


@dataclass(frozen=True)
class BestWorst:
    """The samples that one expert gave its highest and its lowest scores, best and worst
    first."""

    expert: str
    best: tuple[ScoredSample, ...]
    worst: tuple[ScoredSample, ...]


def best_worst(evaluation: Evaluation, expert: str, each: int = EACH) -> BestWorst:
    """One sample a prompt at most, so that no prompt fills the row; of equal scores, the first ones."""
    scored = [j for group in evaluation.by_prompt().values() for j in group if expert in j.scores]
    rising = sorted(scored, key=lambda j: j.scores[expert])
    return BestWorst(expert, _one_a_prompt(rising[::-1], each), _one_a_prompt(rising, each))


def _one_a_prompt(scored: Sequence[ScoredSample], count: int) -> tuple[ScoredSample, ...]:
    firsts: dict[str, ScoredSample] = {}
    for j in scored:
        firsts.setdefault(j.prompt.id, j)
    return tuple(firsts.values())[:count]


def as_seen(scored: ScoredSample, expert: str, cell: int = CELL) -> np.ndarray:
    """The image, at about `cell` pixels, with the boxes that the expert found: uint8 [H, W, 3]."""
    picture = fit(scored.sample.image, cell)
    pen = ImageDraw.Draw(picture)
    labels = {box.label: None for box in scored.boxes.get(expert, ())}
    for number, label in enumerate(labels):
        for box in scored.boxes[expert]:
            if box.label == label:
                color = COLORS[number % len(COLORS)]
                pen.rectangle(_corners(box, picture.size), outline=color, width=max(1, cell // 72))
    return np.asarray(picture)


def _corners(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    (width, height), (left, top, right, bottom) = size, box.xyxy
    left, right = sorted((left * (width - 1), right * (width - 1)))
    top, bottom = sorted((top * (height - 1), bottom * (height - 1)))
    return left, top, right, bottom


def picture(found: BestWorst) -> Image.Image:
    """Both rows as one picture, each image with its score and the expert's explanation."""
    shown = [*found.best, *found.worst]
    captions = [
        f"{j.scores[found.expert]:.2f}  {j.explanation.get(found.expert) or j.prompt.text}"
        for j in shown
    ]
    images = [as_seen(j, found.expert) for j in shown]
    return grid(images, captions, columns=len(found.best), cell=CELL)
