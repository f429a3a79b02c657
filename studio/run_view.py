"""One run as a page shows it: its curves as they grow, what became of its prompts, what went wrong."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.ledger import OUTCOMES
from cluster.watch.curves import Points, panels, thin
from cluster.watch.reward_warnings import ALARMS
from policy.errors import UserError
from policy.jsonl import parse_object
from studio.run_folders import read_config
from studio.runs import METRICS, MetricsReader, first_view
from studio.tail import FileTail

MOST_POINTS = 300  # of one curve
MOST_CURVES = 1_000
_NOW = ("reward/mean", "eval/reward", "time/step")
_LOOK_S = 0.25  # how long one request reads on
_MAIN = (
    "Reward", "Expert: ", "KL to the reference", "Entropy", "Length of the semantic CoT",
    "Seconds a step", "Accuracy", "Loss", "Held-out loss", "Diversity", "Reward by task type",
    "Held-out reward by task type", "Benchmark: ",
)  # fmt: skip
_WARNED = {
    "groups/dropped": "groups were dropped, for an expert gave no score",
    "actors/replaced": "samplers were lost and replaced",
    "learner/restarts": "the learner was started again",
    "step/skipped": "the gradient was not finite, and the step was left out",
}


class RunView:
    """Holds what was read of a run. Safe to call from several threads."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.Lock()
        self._reader = MetricsReader(folder / METRICS)
        self._ledger = LedgerCounts(folder / "ledger.jsonl")
        self._first: dict[str, Points] | None = None
        self._behind = True
        self._born = time.time_ns()

    def curves(self, known: str = "", every: bool = False) -> dict[str, Any] | None:
        """All charts, or (unless `every`) the main ones. None if they are still those of the version
        `known`.

        Until all of a long file is read (`behind`) they are a sample of it. Raises UserError if there
        is no file.
        """
        with self._lock:
            self._read_on()
            version = f"{self._born}.{self._reader.version}.{int(self._behind)}.{int(every)}"
            if known == version:
                return None
            names = (list(self._first or ()) if self._behind else self._reader.names)[:MOST_CURVES]
            laid_out = [(t[:1].upper() + t[1:], some) for t, some in panels(names, experts(names))]
            laid_out.sort(key=lambda panel: _rank(panel[0]))
            shown = [(t, some) for t, some in laid_out if every or _rank(t) < len(_MAIN)]
            return {
                "version": version,
                "behind": self._behind,
                "now": {name: self._now(name) for name in _NOW if name in names},
                "experts": experts(names),
                "hidden": len(laid_out) - len(shown),
                "charts": [{"title": t, "lines": [self._curve(n) for n in some]} for t, some in shown],
            }

    def curve(self, name: str) -> dict[str, Any] | None:
        """One curve; None if the run has none of this name."""
        with self._lock:
            self._read_on()
            names = list(self._first or ()) if self._behind else self._reader.names
            return self._curve(name) if name in names else None

    def names(self) -> list[str]:
        with self._lock:
            self._read_on()
            return list(self._first or ()) if self._behind else self._reader.names

    def warnings(self) -> list[dict[str, Any]]:
        """What went wrong so far, at how many steps, and at which one last."""
        with self._lock:
            found = []
            for name in self._reader.names:
                if text := _warning(name):
                    steps, last = self._reader.raised(name)
                    if steps:
                        found.append({"text": text, "steps": steps, "last": last})
        return sorted(found, key=lambda warning: -warning["last"])

    def ledger(self) -> dict[str, Any]:
        """How many groups had which outcome, in what was read so far."""
        with self._lock:
            return self._ledger.counts()

    def _read_on(self) -> None:
        until = time.monotonic() + _LOOK_S
        if self._first is None:
            self._behind = self._reader.read_on()
            # A file of one piece needs no sample of its lines.
            self._first = first_view(self.folder / METRICS) if self._behind else {}
            return
        while (behind := self._reader.read_on()) and time.monotonic() < until:
            pass
        if not behind:
            self._first = {}
        self._behind = behind and bool(self._first)

    def _now(self, name: str) -> float:
        points = (self._first or {})[name] if self._behind else None
        return points[-1][1] if points else self._reader.newest(name)

    def _curve(self, name: str) -> dict[str, Any]:
        if self._behind:
            points = thin((self._first or {})[name], MOST_POINTS)
            steps, values = [step for step, _ in points], [value for _, value in points]
        else:
            steps, values = self._reader.thinned(name, MOST_POINTS)
        return {"name": name, "steps": steps, "values": [float(f"{value:.5g}") for value in values]}


class LedgerCounts:
    """Counts a ledger's outcomes as it grows."""

    def __init__(self, path: Path):
        self._tail = FileTail(path, "ledger")
        self._outcomes: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def counts(self) -> dict[str, Any]:
        until, more = time.monotonic() + _LOOK_S, True
        while more and time.monotonic() < until:
            try:
                lines, more, anew = self._tail.read_on()
            except UserError:  # no ledger: a run of `bicot sft`
                break
            if anew:
                self._outcomes.clear()
                self._reasons.clear()
            for line in lines:
                self._add(line)
        outcomes = [[name, self._outcomes[name], meaning] for name, meaning in OUTCOMES.items()]
        return {"outcomes": outcomes, "reasons": self._reasons.most_common(5)}

    def _add(self, line: bytes) -> None:
        try:
            entry = parse_object(line, "")
        except UserError:
            return
        self._outcomes[str(entry.get("outcome"))] += 1
        if entry.get("why"):
            self._reasons[str(entry["why"])[:200]] += 1


def experts(names: list[str]) -> list[str]:
    """The experts that some metric is about."""
    parts = (name.split("/") for name in names)
    return list(dict.fromkeys(part[1] for part in parts if part[0] == "expert" and len(part) == 3))


def _rank(title: str) -> int:
    """A chart's place on the page; behind the main charts if it is none of them."""
    for place, name in enumerate(_MAIN):
        if title == name or (name.endswith(": ") and title.startswith(name)):
            return place
    return len(_MAIN)


def _warning(name: str) -> str | None:
    part, _, rest = name.partition("/")
    expert, _, alarm = rest.rpartition("/")
    if part == "expert" and alarm in ALARMS:
        return f"expert {expert} {ALARMS[alarm]}"
    return _WARNED.get(name)


def config_rows(folder: Path, other: Path | None) -> list[list[str | None]]:
    """Every key of a run's configuration with its value and, if there is another run, that one's; None
    where a run has no such key."""
    mine = flat(read_config(folder))
    theirs = flat(read_config(other)) if other else mine
    return [[key, mine.get(key), theirs.get(key)] for key in sorted(mine.keys() | theirs.keys())]


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """`a.b.c` -> value as text."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = "null" if value is None else str(value)
    return found
