"""A benchmark and judges small enough to know every number by heart."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation.benchmark import Ask, Benchmark, Item, Judged, Reply, Summary, mean
from evaluation.judges.base import Judge, unusable
from examples.shapes.benchmark import Eyes

KEYS = ("000", "001", "002", "003")


class Brightness(Judge):
    """Says how bright an image is, of 255; nothing usable on one that is all black."""

    def __init__(self, model: str = "meter"):
        self._model = model

    def identity(self) -> dict[str, str]:
        return {"model": self._model, "revision": "1"}

    def replies(self, images: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[Reply]:
        return [
            {"brightness": float(image.mean()), "asked": ask["question"]}
            if image.any()
            else unusable("dark")
            for image, ask in zip(images, asks, strict=True)
        ]


class Toy(Benchmark):
    name = "tests.evaluation.toy:Toy"
    title = "Toy"
    data_name = "toy"
    images_per_prompt = 2
    judges = {"meter": {"use": "tests.evaluation.toy:Brightness", "num_cpus": 0.1}}

    def __init__(self, data: Path = Path(".")):
        super().__init__(data)

    def read_items(self) -> Iterable[Item]:
        for n, key in enumerate(KEYS):
            yield Item(key, f"a red circle {key}", "even" if n % 2 == 0 else "odd")

    def source(self) -> dict[str, str]:
        return {"file": "toy", "hash": "1"}

    def files(self, item: Item) -> Sequence[str]:
        return [f"{item.key}/{n}.png" for n in range(2)]

    def asks(self, item: Item) -> Mapping[str, Ask]:
        return {"meter": {"question": f"how bright is {item.key}?"}}

    def image_score(self, judged: Judged) -> float | None:
        reply = judged.replies.get("meter")
        return None if reply is None else reply["brightness"] / 255

    def summarise(self, judged: Sequence[Judged], *, published_rules: bool = False) -> Summary:
        scores = [(one.item.task, self.image_score(one)) for one in judged]
        if published_rules:
            scores = [(task, score or 0.0) for task, score in scores]
        tasks = {
            task: mean(score for t, score in scores if t == task and score is not None)
            for task in dict.fromkeys(one.item.task for one in judged)
        }
        return Summary(mean(s for s in tasks.values() if s is not None), tasks)


class TiledToy(Toy):
    name = "tests.evaluation.toy:TiledToy"
    images_per_prompt = 4
    tiles = True

    def files(self, item: Item) -> Sequence[str]:
        return [f"{item.key}.png"]


class MoodyEyes(Eyes):
    """The shapes world's judge, which fails on prompts with a word."""

    def __init__(self, word: str):
        super().__init__()
        self._word = word

    def replies(self, images: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[Reply]:
        if any(self._word in ask["prompt"]["prompt"].split() for ask in asks):
            raise OSError(f"blind to {self._word}")
        return super().replies(images, asks)


def gray(level: int, side: int = 8) -> np.ndarray:
    return np.full((side, side, 3), level, np.uint8)
