"""A rank's samples, cut into pieces that one forward and backward pass can hold."""

from collections.abc import Sequence

from policy.records import Sample

Scored = tuple[Sample, float]
"""A sample and its advantage."""


def by_tokens(pairs: Sequence[Scored], budget: int) -> list[list[Scored]]:
    """Cut into micro-batches of at most `budget` padded tokens each, text and image sequences together.

    Sorted by length first, so that little is padding.
    """
    parts: list[list[Scored]] = []
    widest = (0, 0)
    for pair in sorted(pairs, key=lambda p: sum(_lengths(p[0]))):
        wider = tuple(map(max, widest, _lengths(pair[0])))
        if parts and sum(wider) * (len(parts[-1]) + 1) <= budget:
            parts[-1].append(pair)
            widest = wider
        else:
            parts.append([pair])
            widest = _lengths(pair[0])
    return parts


def in_parts(pairs: Sequence[Scored], count: int) -> list[list[Scored]]:
    """Dealt round into exactly `count` micro-batches, or none if there is nothing to deal."""
    return [list(pairs[i::count]) for i in range(count)] if pairs else []


def _lengths(sample: Sample) -> tuple[int, int]:
    """Tokens of its text sequence and of its image sequence."""
    return (
        len(sample.cot_prompt_ids) + len(sample.cot_ids),
        len(sample.image_prompt_ids) + len(sample.image_ids),
    )
