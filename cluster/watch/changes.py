"""Compares two evaluations: every number before and after, with intervals."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from cluster.watch.evaluation import RESERVED, Evaluation
from evaluation.bootstrap import ByPrompt, Interval, difference_interval, mean_interval

LABELS = {
    "reward": "Reward",
    "strict_accuracy": "Strict accuracy",
    "cot_accuracy": "Plan accuracy",
    "diversity": "Diversity",
    "cot_tokens": "CoT tokens",
}
NEITHER_GOOD_NOR_BAD = ("diversity", "cot_tokens")
HEADLINES, EXPERTS, WATCHED = "", "expert", "expert, watched, not rewarded"
REWARDS, ACCURACIES = "reward by task type", "strict accuracy by task type"


@dataclass(frozen=True)
class Value:
    """A number as text, and its interval; "" where there is none."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Change:
    """One number of two evaluations, None where it was not measured."""

    label: str
    table: str
    prompts: int
    before: Value | None
    after: Value | None
    difference: Value | None
    verdict: str
    """ "better" or "worse" of a difference beyond noise; "noise"; or "", where that is not known."""


def changes(first: Evaluation, last: Evaluation, watched: Collection[str] = ()) -> list[Change]:
    """The headlines, each expert (`watched`: those of weight 0), and the scores of each task type."""
    before, after = values(first), values(last)
    tables = dict.fromkeys(RESERVED, HEADLINES)
    experts = dict.fromkeys((*first.experts, *last.experts))
    tables |= {name: EXPERTS for name in experts if name not in watched}
    tables |= {name: WATCHED for name in experts if name in watched}
    task_types = sorted({*first.task_types, *last.task_types})
    tables |= {f"reward/task/{task_type}": REWARDS for task_type in task_types}
    tables |= {f"strict_accuracy/task/{task_type}": ACCURACIES for task_type in task_types}
    found = (_change(name, table, before, after) for name, table in tables.items())
    return [change for change in found if change]


def values(evaluation: Evaluation) -> dict[str, ByPrompt]:
    """`Evaluation.values`, and the strict accuracy of each task type."""
    passed = evaluation.values["strict_accuracy"]
    by_type = {
        f"strict_accuracy/task/{task_type}": {
            id: passed[id] for id in evaluation.values[f"reward/task/{task_type}"]
        }
        for task_type in evaluation.task_types
    }
    return {**evaluation.values, **by_type}


def number(name: str, value: float) -> str:
    """A number as text: accuracies as percentages."""
    if name.startswith("strict_accuracy") or name == "cot_accuracy":
        return f"{value:.1%}"
    return f"{value:.1f}" if name == "cot_tokens" else f"{value:.3f}"


def _change(
    name: str, table: str, before: Mapping[str, ByPrompt], after: Mapping[str, ByPrompt]
) -> Change | None:
    a, b = before.get(name), after.get(name)
    if a is None and b is None:
        return None
    difference, verdict = None, ""
    if a and b:
        by, interval = _mean(b) - _mean(a), difference_interval(a, b)
        difference = Value(_signed(name, by), _words(name, interval, _signed))
        if interval and interval.has_zero:
            verdict = "noise"
        elif interval and name not in NEITHER_GOOD_NOR_BAD:
            verdict = "better" if by > 0 else "worse"
    return Change(
        label=LABELS.get(name, name.partition("/task/")[2] or name),
        table=table,
        prompts=len(b or a or ()),
        before=_value(name, a),
        after=_value(name, b),
        difference=difference,
        verdict=verdict,
    )


def _value(name: str, found: ByPrompt | None) -> Value | None:
    if not found:
        return None
    return Value(number(name, _mean(found)), _words(name, mean_interval(found), number))


def _words(name: str, interval: Interval | None, as_text) -> str:
    if interval is None:
        return ""
    return f"{as_text(name, interval.low).removesuffix(' points')} to {as_text(name, interval.high)}"


def _signed(name: str, value: float) -> str:
    text = number(name, abs(value)).replace("%", " points")
    zero = not float(text.split()[0])
    return ("\N{PLUS-MINUS SIGN}" if zero else "+" if value > 0 else "\N{MINUS SIGN}") + text


def _mean(found: ByPrompt) -> float:
    return float(np.mean([value for each in found.values() for value in each]))
