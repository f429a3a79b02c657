"""The result of a benchmark run: scores by the published formula, with everything that is needed to
compare them: prompts, generator, judges, seed, rules, and what is missing.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evaluation.benchmark import Item, Judged, Summary
from evaluation.journal import ResultRecord, checked, difference
from evaluation.run_folder import RunFolder
from policy.errors import UserError
from policy.jsonl import read_object
from policy.paths import write_whole

NAMES = {False: "result.json", True: "result_published.json"}
_SHOWN = 5  # names of files in a note


@dataclass(frozen=True)
class Gaps:
    """Images that have no score, by reason, with a few examples of each."""

    missing: tuple[str, ...]
    unreadable: tuple[str, ...]
    refused: tuple[str, ...]
    unjudged: tuple[str, ...]
    strangers: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        return {name: len(found) for name, found in vars(self).items()}

    def notes(self) -> list[str]:
        what = {
            "missing": ("image is missing", "images are missing"),
            "unreadable": ("image cannot be read", "images cannot be read"),
            "refused": ("image was refused by the generator", "images were refused by the generator"),
            "unjudged": ("image has no usable reply", "images have no usable reply"),
            "strangers": (
                "file belongs to no prompt and was passed over",
                "files belong to no prompt and were passed over",
            ),
        }
        found = []
        for name, phrases in what.items():
            some = getattr(self, name)
            if some:
                more = ", ..." if len(some) > _SHOWN else ""
                found.append(f"{len(some)} {phrases[len(some) > 1]}: {', '.join(some[:_SHOWN])}{more}")
        return found


def judged_images(folder: RunFolder, items: Sequence[Item]) -> tuple[list[Judged], Gaps]:
    """Every image of some items with its replies, and the images without a score."""
    found: list[Judged] = []
    missing: list[str] = []
    unreadable: list[str] = []
    refused: list[str] = []
    unjudged: list[str] = []
    for item in items:
        asks = folder.benchmark.asks(item)
        every = [folder.replies(item, n) for n in range(folder.benchmark.images_per_prompt)]
        # An image that all judges scored is readable: it need not be opened.
        whole = all(asks and len(replies) == len(asks) for replies in every)
        whole = whole and all(folder.is_there(item, n) for n in range(len(every)))
        images = [None] * len(every) if whole else folder.read(item)
        for n, (image, replies) in enumerate(zip(images, every, strict=True)):
            name = f"{item.key}/{n}"
            lost = image if isinstance(image, str) else None
            found.append(Judged(item, n, {} if lost else replies, lost is None))
            if why := folder.refused(item, n):
                refused.append(f"{name} ({why})")
            elif lost == "missing":
                missing.append(f"{name} ({printable(folder.path(item, n).relative_to(folder.images))})")
            elif lost:
                unreadable.append(f"{name} ({lost.removeprefix('unreadable: ')})")
            elif absent := [judge for judge in asks if judge not in replies]:
                why = folder.why_unusable(item, n, absent[0])
                unjudged.append(f"{name} by {absent[0]}" + (f" ({why})" if why else ""))
    strangers = map(printable, folder.strangers(folder.benchmark.items))
    gaps = Gaps(*map(tuple, (missing, unreadable, refused, unjudged, strangers)))
    return found, gaps


def printable(name: object) -> str:
    """A file's name in one line: a name may hold any characters."""
    return text if (text := str(name)).isprintable() else ascii(text)


def score(
    folder: RunFolder,
    items: Sequence[Item],
    *,
    published_rules: bool = False,
    may_be_empty: bool = False,
) -> dict[str, Any]:
    """Compute the result of some items and write it. Returns it. Raises UserError if no image at all
    was judged, unless the result `may_be_empty`: it counts them, and has no scores then."""
    judged, gaps = judged_images(folder, items)
    if not may_be_empty and not any(one.replies for one in judged):
        reasons = "; ".join(gaps.notes()) or "no judge was asked"
        raise UserError(f"{folder.folder}: nothing to score: {reasons}")
    benchmark = folder.benchmark
    summary = benchmark.summarise(judged, published_rules=published_rules)
    what = folder.what
    tasks = list(dict.fromkeys(item.task for item in items))
    result = {
        **what,
        "bicot": version("bicot"),
        "title": benchmark.title,
        "unit": benchmark.unit,
        "rules": "published" if published_rules else "mended",
        "judges": {name: {**e, **folder.by.get(name, {})} for name, e in what["judges"].items()},
        "asked": {
            "tasks": tasks,
            "prompts": len(items),
            "of": len(benchmark.items),
            "images": len(judged),
            "keys": _digest(items),
        },
        "gaps": gaps.counts(),
        **_summary(summary),
        "notes": [*summary.notes, *gaps.notes()],
    }
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder.folder / NAMES[published_rules], text)
    return result


def _summary(summary: Summary) -> dict[str, Any]:
    return {"overall": summary.overall, "tasks": summary.tasks, "further": summary.further}


def _digest(items: Sequence[Item]) -> str:
    return hashlib.sha256("\n".join(item.key for item in items).encode()).hexdigest()[:12]


def read_result(folder: Path, *, published_rules: bool = False) -> dict[str, Any]:
    """The result of a run's folder. Raises UserError if it has none, or an invalid one."""
    path = folder / NAMES[published_rules]
    if not path.exists():
        rules = " --published-rules" if published_rules else ""
        raise UserError(f"{path}: no such result: `bicot bench score {folder}{rules}` makes one")
    return checked(read_object(path), ResultRecord, f"{path}: not the result of a benchmark")


def label(result: Mapping[str, Any], folder: Path) -> str:
    """The heading of a model's column: the folder's name, and whether it wrote a CoT first."""
    generator = result["generator"]
    if generator.get("kind") == "policy":
        return f"{folder.name} ({'with' if generator.get('cot') else 'no'} CoT)"
    return folder.name


def what_differs(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why results of one benchmark cannot be compared, in words; [] if they can."""
    found = []
    first = results[0]
    for key, phrase in (("prompts", "the prompts"), ("rules", "the rules of scoring")):
        if any(result.get(key) != first.get(key) for result in results):
            found.append(f"{phrase} differ")
    if any(result["asked"].get("keys") != first["asked"].get("keys") for result in results):
        counts = " and ".join(str(result["asked"].get("prompts")) for result in results)
        found.append(f"not the same prompts were asked ({counts})")
    for judge in first["judges"]:
        one = _judge(first, judge)
        for result in results[1:]:
            other = _judge(result, judge)
            if one != other:
                key, *values = difference(one, other) or ("", "", "")
                models = [_model(one), _model(other)]
                if models[0] == models[1]:  # the same model with other settings
                    models = [f"{models[0]} with {key} {value}" for value in values]
                found.append(f"the judge {judge} differs: {' and '.join(models)}")
                break
    return found


def _judge(result: Mapping[str, Any], judge: str) -> dict[str, Any]:
    """A judge's entry without the address: class, model and options."""
    return {key: value for key, value in result["judges"].get(judge, {}).items() if key != "url"}


def _model(entry: Mapping[str, Any]) -> str:
    model = entry.get("model") or entry.get("options", {}).get("model") or entry.get("use", "none")
    return f"{model} {entry.get('revision', '')}".strip()
