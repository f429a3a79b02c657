"""A rank's samples, cut into pieces that one forward and backward pass can hold."""

from collections.abc import Sequence
from typing import Any

from policy.records import Sample

Row = tuple[Any, ...]
"""A sample first, then what goes with it: its advantage, ..."""


def by_tokens(rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """Cut into micro-batches of at most `budget` padded tokens each, text and image sequences together.

    Sorted by length first, so that little is padding.
    """
    parts: list[list[Row]] = []
    widest = (0, 0)
    for row in sorted(rows, key=lambda row: sum(_lengths(row[0]))):
        wider = tuple(map(max, widest, _lengths(row[0])))
        if parts and sum(wider) * (len(parts[-1]) + 1) <= budget:
            parts[-1].append(row)
            widest = wider
        else:
            parts.append([row])
            widest = _lengths(row[0])
    return parts


def in_parts(rows: Sequence[Row], count: int) -> list[list[Row]]:
    """Dealt round into exactly `count` micro-batches, or none if there is nothing to deal."""
    return [list(rows[i::count]) for i in range(count)] if rows else []


def deal(sizes: Sequence[int], hands: int) -> list[list[int]]:
    """Numbers of the items for each hand, so that the hands hold about the same: the largest first,
    each to whoever holds least (Graham's LPT rule: at most a third more than the best there is)."""
    dealt: list[list[int]] = [[] for _ in range(hands)]
    held = [0] * hands
    for n in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        least = held.index(min(held))
        dealt[least].append(n)
        held[least] += sizes[n]
    return dealt


def _lengths(sample: Sample) -> tuple[int, int]:
    """Tokens of its text sequence and of its image sequence."""
    return (
        len(sample.cot_prompt_ids) + len(sample.cot_ids),
        len(sample.image_prompt_ids) + len(sample.image_ids),
    )
