"""The folder of one benchmark run: its identity, its images, and every judge's reply.

    bench.json      benchmark, prompts, generator, judges: a folder holds one of each
    images/         in the benchmark's published layout
    images.jsonl    a line for each image: its hash, and the semantic CoT
    replies.jsonl   a line for each reply
    result.json     the scores (evaluation/result.py)

A line is added after its image or reply is saved, so a killed run goes on where it stopped.
"""

import hashlib
import json
import stat
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException

from evaluation.benchmark import Benchmark, Item, Reply
from evaluation.generators import Drawn, as_png
from evaluation.journal import ImageRow, Journal, ReplyRow, check_empty, check_same, read_record
from evaluation.judges.base import UNUSABLE
from evaluation.tiles import quarters, two_by_two
from policy.errors import UserError
from policy.paths import write_whole
from rewards.images import read_images

_MAX_PIXELS = 8192 * 8192
_MAX_BYTES = 512 * 2**20
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_INCIDENTAL = {"device", "batch_size", "url", "api_key_env", "timeout_s", "retries", "concurrent"}
"""Options of a judge that do not change its replies."""


def identity(
    benchmark: Benchmark,
    generator: Mapping[str, Any],
    seed: int,
    judges: Mapping[str, Any],
    images: Path | None,
) -> dict[str, Any]:
    """The identity of a run. `judges`: name -> {use, options}; `images`: their folder, if not the
    run's."""
    named = {
        name: {
            "use": entry["use"],
            "options": {k: v for k, v in entry["options"].items() if k not in _INCIDENTAL},
        }
        for name, entry in judges.items()
    }
    return {
        "benchmark": benchmark.name,
        "prompts": benchmark.source(),
        "generator": dict(generator),
        "seed": seed,
        "images": None if images is None else str(images.absolute()),
        "judges": named,
    }


class RunFolder:
    """A run's folder, new or begun. `images`: the folder of the images, if not in it."""

    def __init__(self, folder: Path, benchmark: Benchmark, images: Path | None = None):
        self.folder = folder
        self.benchmark = benchmark
        self.foreign = images is not None
        self.images = images if images is not None else folder / "images"
        self._hashes: dict[Path, tuple[tuple[int, int, int], str]] = {}

    def open(self, what: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        """Begin a run or go on; `asked` names the prompts, and may change between calls. Raises
        UserError, with nothing written, if the folder holds another run, or files of no run."""
        path = self.folder / "bench.json"
        what = json.loads(json.dumps(what))
        if path.exists():
            there = read_record(self.folder)
            self._read_journals()
            what = self._continued(there, what)
        elif not (self.foreign and self.images == self.folder):
            instead = "; `bicot bench score` scores images that lie there"
            check_empty(self.folder, "run of a benchmark", instead)
        text = json.dumps({**what, "asked": asked}, indent=1, ensure_ascii=False) + "\n"
        write_whole(path, text)
        self.what = what
        self._read_journals()
        self._drawn.mend()
        self._replies.mend()

    def look(self) -> None:
        """Open a run only to read it, running or not. Raises UserError if there is none."""
        self.what = read_record(self.folder)
        self._read_journals()

    def _continued(self, there: Mapping[str, Any], what: Mapping[str, Any]) -> dict[str, Any]:
        """The record of a run that goes on. A judge without replies may be replaced, and judges that
        are not used now stay. Raises UserError for another run."""
        kept = there["judges"]
        fixed = {name: entry for name, entry in kept.items() if name in self.by}
        wanted = {name: what["judges"].get(name, entry) for name, entry in fixed.items()}
        before = {key: value for key, value in there.items() if key != "asked"} | {"judges": fixed}
        check_same(self.folder, before, {**what, "judges": wanted})
        return {**what, "judges": {**kept, **what["judges"]}}

    def _read_journals(self) -> None:
        self._drawn = Journal(self.folder / "images.jsonl", ImageRow)
        self._replies = Journal(self.folder / "replies.jsonl", ReplyRow)
        self._by_image = {(row["item"], row["index"]): row for row in self._drawn.rows}
        self._by_ask = {(row["item"], row["index"], row["judge"]): row for row in self._replies.rows}
        self._asked: dict[str, Mapping[str, str]] = {}
        self.by: dict[str, dict[str, str]] = {}
        for row in self._replies.rows:
            self._check_by(row["judge"], row["by"])

    # --- images ---

    def write(
        self, item: Item, drawn: Sequence[Drawn | str], indices: Sequence[int] | None = None
    ) -> None:
        """Save the images of an item at these indices (None: all). Of a 2 x 2 picture all four, or
        none."""
        paths = self.benchmark.files(item)
        for path, text in self.benchmark.side_files(item).items():
            write_whole(self.images / path, text)
        if self.benchmark.tiles:
            refused = next((one for one in drawn if isinstance(one, str)), None)
            whole = [one for one in drawn if isinstance(one, Drawn)]
            cots = [one.cot for one in whole if one.cot is not None]
            together = refused or Drawn(
                two_by_two([one.image for one in whole]), "\n\n".join(cots) or None
            )
            drawn, indices = [together], [0]
        for index, one in zip(range(len(paths)) if indices is None else indices, drawn, strict=True):
            path = paths[index]
            if isinstance(one, str):
                row = {"item": item.key, "index": index, "refused": one}
            else:
                content = as_png(one.image)
                write_whole(self.images / path, content)
                sha256 = hashlib.sha256(content).hexdigest()
                row = {"item": item.key, "index": index, "file": path, "sha256": sha256, "cot": one.cot}
            self._drawn.add(row)
            self._by_image[item.key, index] = row

    def missing(self, item: Item) -> list[int]:
        """The indices of an item's images that are still to be drawn: not there as drawn before, or
        refused. Of a 2 x 2 picture all four, or none. Raises UserError for one that was changed since
        it was drawn."""
        indices = []
        for index, path in enumerate(self.benchmark.files(item)):
            row = self._by_image.get((item.key, index))
            file = self.images / path
            if row is None or "refused" in row or (found := self._hash(file)) is None:
                indices.append(index)
            elif found != row["sha256"]:
                raise UserError(
                    f"{file}: not the image that this run drew: put that one back, or delete this one"
                    " to have it drawn again"
                )
        if indices and self.benchmark.tiles:
            return list(range(self.benchmark.images_per_prompt))
        return indices

    def path(self, item: Item, index: int) -> Path:
        """The path of an image."""
        return self.images / self.benchmark.files(item)[0 if self.benchmark.tiles else index]

    def is_there(self, item: Item, index: int) -> bool:
        """Whether there is a file where an image should be."""
        return self._hash(self.path(item, index)) is not None

    def _hash(self, file: Path) -> str | None:
        """SHA-256 of a file, read again only after a change; None: there is no such file."""
        try:
            found = file.stat()
            if not stat.S_ISREG(found.st_mode):
                return None  # reading a pipe, say, would block
            version = (found.st_mtime_ns, found.st_size, found.st_ino)
            known, sha256 = self._hashes.get(file, (None, ""))
            if version != known:
                with file.open("rb") as content:
                    sha256 = hashlib.file_digest(content, "sha256").hexdigest()
                self._hashes[file] = version, sha256
        except OSError:
            return None
        return sha256

    def read(self, item: Item) -> list[np.ndarray | str]:
        """The images of an item, uint8 [H, W, 3] each; in place of a missing or unreadable one the
        reason."""
        found: list[np.ndarray | str] = []
        for path in self.benchmark.files(item):
            found.append(self._read(self.images / path))
        if not self.benchmark.tiles:
            return found
        (whole,) = found
        count = self.benchmark.images_per_prompt
        if isinstance(whole, str):
            return [whole] * count
        return list(quarters(whole)[:count])

    def _read(self, file: Path) -> np.ndarray | str:
        try:
            there = file.stat()
            if not stat.S_ISREG(there.st_mode):
                return "unreadable: not a file"
            if there.st_size > _MAX_BYTES:
                return f"unreadable: more than {_MAX_BYTES // 2**20} MiB"
            return read_images([file.read_bytes()], _MAX_PIXELS)[0]
        except FileNotFoundError:
            return "missing"
        except HTTPException as error:
            return f"unreadable: {error.detail.partition(' ')[2].partition(' ')[2]}"
        except OSError as error:
            return f"unreadable: {error.strerror}"

    def cot(self, item: Item, index: int) -> str | None:
        row = self._by_image.get((item.key, 0 if self.benchmark.tiles else index), {})
        return row.get("cot")

    def refused(self, item: Item, index: int) -> str | None:
        """Why the generator refused an image; of a 2 x 2 picture, any of its four."""
        row = self._by_image.get((item.key, 0 if self.benchmark.tiles else index), {})
        return row.get("refused")

    def strangers(self, items: Sequence[Item]) -> list[str]:
        """Image files that belong to no prompt: misnamed, or of another benchmark."""
        expected = {path for item in items for path in self.benchmark.files(item)}
        there = (p for p in self.images.rglob("*") if p.suffix.lower() in _SUFFIXES)
        names = (p.relative_to(self.images).as_posix() for p in there)
        return sorted(name for name in names if name not in expected)

    # --- replies ---

    def reply(self, item: Item, index: int, judge: str) -> Reply | None:
        """A judge's usable reply to its current question, on the image that is there now, with its
        "by"; or None."""
        row = self._row(item, index, judge)
        if row is None or UNUSABLE in row["reply"]:
            return None
        return {**row["reply"], "by": row["by"]}

    def replies(self, item: Item, index: int) -> dict[str, Reply]:
        """All usable replies on an image, by judge."""
        found = {judge: self.reply(item, index, judge) for judge in self.benchmark.asks(item)}
        return {judge: reply for judge, reply in found.items() if reply is not None}

    def unjudged(self, item: Item, judges: Container[str]) -> bool:
        """Whether an image that is there lacks a usable reply of one of these judges."""
        return any(
            self.reply(item, n, judge) is None
            for judge in self.benchmark.asks(item)
            if judge in judges
            for n in range(self.benchmark.images_per_prompt)
            if self.is_there(item, n)
        )

    def why_unusable(self, item: Item, index: int, judge: str) -> str | None:
        row = self._row(item, index, judge)
        if row is None:
            known = (item.key, index, judge) in self._by_ask
            return "another image was judged, or asked about otherwise" if known else None
        return row["reply"].get(UNUSABLE)

    def _row(self, item: Item, index: int, judge: str) -> dict[str, Any] | None:
        row = self._by_ask.get((item.key, index, judge))
        if row is None or row["ask"] != self._ask(item, judge):
            return None
        return row if row["image"] == self._hash(self.path(item, index)) else None

    def add_reply(self, item: Item, index: int, judge: str, reply: Reply) -> None:
        """Save a judge's reply. Raises UserError if its model is not the one of earlier replies."""
        by = reply.pop("by", {})
        self._check_by(judge, by)
        row = {"item": item.key, "index": index, "judge": judge, "ask": self._ask(item, judge)}
        row |= {"image": self._hash(self.path(item, index)), "by": by, "reply": reply}
        self._replies.add(row)
        self._by_ask[item.key, index, judge] = row

    def _ask(self, item: Item, judge: str) -> str:
        """Hash of a judge's question: with another version of spaCy, say, a benchmark asks other
        questions, and old replies do not answer them."""
        if item.key not in self._asked:
            self._asked[item.key] = {
                name: hashlib.sha256(json.dumps(ask, sort_keys=True).encode()).hexdigest()[:8]
                for name, ask in self.benchmark.asks(item).items()
            }
        return self._asked[item.key].get(judge, "")

    def _check_by(self, judge: str, by: dict[str, str]) -> None:
        if not by:
            return
        before = self.by.setdefault(judge, by)
        if _model_of(before) != _model_of(by):  # the same model may be at another address
            raise UserError(
                f"{self.folder}: the judge {judge} was {_named(before)} and is now {_named(by)};"
                " replies of two judges cannot be scored together: bring the first one back, or score"
                " into another folder with `bicot bench score DIR --out NEW`"
            )


def _model_of(by: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in by.items() if key != "url"}


def _named(by: Mapping[str, str]) -> str:
    return " ".join(str(value) for value in by.values())
