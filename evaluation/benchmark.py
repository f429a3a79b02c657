"""The interface of public benchmarks: prompts, the paths of their images, what judges are asked about
an image, and the published formula on their replies.

A formula is a pure function of replies, so saved replies give the same numbers again. `BENCHMARKS`
names those that ship; any other is "package.module:Class".
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

from evaluation.data import RELEASES
from policy.errors import UserError
from policy.imports import load_named

BENCHMARKS = {
    "geneval": "evaluation.geneval:GenEval",
    "t2i_compbench": "evaluation.t2i_compbench:T2ICompBench",
    "wise": "evaluation.wise:WiseVerified",
    "wise_legacy": "evaluation.wise:WiseLegacy",
    "dpg": "evaluation.dpg:DpgBench",
    "unigenbench_en": "evaluation.unigenbench:English",
    "unigenbench_en_long": "evaluation.unigenbench:EnglishLong",
    "unigenbench_zh": "evaluation.unigenbench:Chinese",
    "unigenbench_zh_long": "evaluation.unigenbench:ChineseLong",
    "tiif_mini": "evaluation.tiif:TiifMini",
    "shapes": "examples.shapes.benchmark:Shapes",
}

Ask = dict[str, Any]
"""What one judge is asked about one image, as JSON. The judge's class documents the keys."""
Reply = dict[str, Any]
"""The judge's answer, as JSON."""


@dataclass(frozen=True)
class Item:
    """One prompt of a benchmark."""

    key: str
    """Its name in every file of a run; unique in the benchmark."""
    text: str
    task: str
    """The row of the published table that it belongs to."""
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Other fields of the prompt file, for questions and formula."""


@dataclass(frozen=True)
class Judged:
    """One image of an item, and the replies of its judges by their names. A judge that gave no usable
    reply is absent. `present`: the image is there and can be read."""

    item: Item
    index: int
    replies: Mapping[str, Reply] = field(default_factory=dict)
    present: bool = True


@dataclass(frozen=True)
class Summary:
    """A benchmark's result. None: it cannot be computed, because no image of it was judged, or the
    published rules give no number."""

    overall: float | None
    tasks: dict[str, float | None]
    """Row of the published table -> score, in the table's order."""
    further: dict[str, float | None] = field(default_factory=dict)
    """Other numbers that the published script prints."""
    notes: tuple[str, ...] = ()
    """What one must know to read the numbers. Images that are missing or not judged are not among the
    notes: a run's result lists those for every benchmark."""


class Benchmark(ABC):
    """A benchmark on prompts in the folder `data`, where `bicot fetch` puts them."""

    name: ClassVar[str]
    """Its key in BENCHMARKS."""
    title: ClassVar[str]
    """The name in tables and pages: "GenEval"."""
    data_name: ClassVar[str]
    """What `bicot fetch` gets for it: a key of evaluation.data.RELEASES."""
    images_per_prompt: ClassVar[int]
    tiles: ClassVar[bool] = False
    """Whether the images of a prompt are one file, a 2 x 2 picture."""
    unit: ClassVar[str] = ""
    """Unit of the scores: "" for shares 0..1, "%" where the published scale is 0..100."""
    judges: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Name -> the defaults of its entry in the configuration, an ExpertConfig: {use, options, ...}."""

    defaults: ClassVar[Mapping[str, Any]] = {}
    """Keys of a BenchConfig with other defaults for this benchmark."""

    def __init__(self, data: Path):
        self.data = data
        self.items = tuple(self.read_items())
        keys = [item.key for item in self.items]
        if len(set(keys)) < len(keys):
            raise UserError(f"{data}: two prompts of {self.title} have the same key")

    @abstractmethod
    def read_items(self) -> Iterable[Item]:
        """Read the prompt files, in their order. Raises UserError naming file and line."""

    @abstractmethod
    def files(self, item: Item) -> Sequence[str]:
        """Paths of an item's images below the folder of images, as published: one for each image, or
        the one of their 2 x 2 picture."""

    @abstractmethod
    def asks(self, item: Item) -> Mapping[str, Ask]:
        """What each judge is asked about any image of an item. A judge without a question is absent."""

    @abstractmethod
    def image_score(self, judged: Judged) -> float | None:
        """The score of one image, higher is better, to pick the best and the worst. None: a reply is
        missing."""

    @abstractmethod
    def summarise(self, judged: Sequence[Judged], *, published_rules: bool = False) -> Summary:
        """The scores of images, missing ones among them.

        By default an image that is missing or not judged is in no mean. `published_rules`: exactly what
        the published scripts compute from the same replies, faults included.
        """

    def source(self) -> dict[str, str]:
        """Where the prompts are from, for the record of a run."""
        release = RELEASES[self.data_name]
        return {"repository": release.repository, "commit": release.commit}

    def side_files(self, item: Item) -> Mapping[str, str]:
        """Other files of the published layout, path -> text."""
        return {}


def benchmark_class(name: str) -> type[Benchmark]:
    """The benchmark of a name. Raises UserError for an unknown one."""
    if name not in BENCHMARKS and ":" not in name:
        raise UserError(f"no benchmark is called {name!r}; there are {', '.join(BENCHMARKS)}")
    found = load_named(BENCHMARKS.get(name, name), "benchmark")
    if not isinstance(found, type) or not issubclass(found, Benchmark):
        raise UserError(f"{name}: not a subclass of evaluation.benchmark.Benchmark")
    return found


def load_benchmark(name: str, data: Path | str | None = None) -> Benchmark:
    """A benchmark on the prompts in `data` (None: where `bicot fetch` puts them). Raises UserError."""
    found = benchmark_class(name)
    return found(Path(data) if data else Path("data") / found.data_name)


def some_of(items: Sequence[Item], tasks: Sequence[str] = (), limit: int | None = None) -> list[Item]:
    """The items of some tasks (none named: of all), at most `limit`: from each task the first ones, as
    evenly as possible. They keep their order.

    Raises UserError for an unknown task.
    """
    by_task: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_task[item.task].append(item)
    if unknown := [task for task in tasks if task not in by_task]:
        raise UserError(f"no prompt has the task {unknown[0]!r}; there are {', '.join(by_task)}")
    chosen = [by_task[task] for task in by_task if not tasks or task in tasks]
    dealt = [item for row in zip_longest(*chosen) for item in row if item is not None][:limit]
    wanted = {item.key for item in dealt}
    return [item for item in items if item.key in wanted]


def mean(values: Iterable[float]) -> float | None:
    """The mean; None for no values."""
    found = list(values)
    return sum(found) / len(found) if found else None
