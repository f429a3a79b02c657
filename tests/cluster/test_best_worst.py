"""What each expert liked best and least, and what it saw."""

import dataclasses

import numpy as np

from cluster.watch.best_worst import as_seen, best_worst, picture
from cluster.watch.evaluation import Evaluation, load_evaluation, save_evaluation
from policy.records import Box
from tests.cluster.test_recorder import evaluation  # noqa: F401 (a fixture)


def with_scores(found: Evaluation, expert: str) -> Evaluation:
    """Rising scores, and a box in every image's right half."""
    box = Box("thing", 0.9, (0.5, 0.25, 0.95, 0.75))
    scored = [
        dataclasses.replace(
            j,
            scores={**j.scores, expert: n / 10},
            boxes={expert: (box,)},
            explanation={expert: f"saw {n}"},
        )
        for n, j in enumerate(found.scored)
    ]
    return dataclasses.replace(found, scored=tuple(scored))


def test_the_best_and_the_worst_are_found_one_a_prompt(evaluation):  # noqa: F811
    found = with_scores(evaluation, "new")
    rows = best_worst(found, "new", each=2)
    best, worst = ([j.scores["new"] for j in row] for row in (rows.best, rows.worst))
    assert best == sorted(best, reverse=True)
    assert worst == sorted(worst)
    assert best[0] == max(j.scores["new"] for j in found.scored)
    assert worst[0] == 0
    for row in (rows.best, rows.worst):
        assert len({j.prompt.id for j in row}) == len(row)


def test_boxes_are_drawn_where_they_are_and_come_back_from_disk(evaluation, tmp_path):  # noqa: F811
    found = with_scores(evaluation, "new")
    save_evaluation(found, tmp_path)
    again = load_evaluation(tmp_path)
    for one, other in zip(found.scored, again.scored, strict=True):
        assert one.boxes == other.boxes
        plain = as_seen(dataclasses.replace(one, boxes={}), "new")
        seen = as_seen(other, "new")
        changed = np.argwhere((plain != seen).any(-1)) / plain.shape[:2]
        assert len(changed)
        assert changed[:, 1].min() >= 0.45
        assert 0.2 <= changed[:, 0].min() <= changed[:, 0].max() <= 0.8
    assert picture(best_worst(again, "new")).width > 100
