"""The shapes benchmark's scores: shares of accepted images, so that the compare page has intervals."""

from collections.abc import Mapping

import pytest

from evaluation.benchmark import Judged, load_benchmark
from evaluation.compare_page import _interval, _means_of


@pytest.fixture
def benchmark():
    return load_benchmark("shapes")


def accepted_if(benchmark, rule) -> list[Judged]:
    """Two images a prompt, the n-th of all accepted by `rule`; one is not judged."""
    found = []
    for number, item in enumerate(benchmark.items):
        for index in range(2):
            reply = {"scores": {"objects": 0.5, "count": 1.0}, "passed": rule(2 * number + index)}
            replies: Mapping = {} if number == index == 0 else {"eyes": reply}
            found.append(Judged(item, index, replies))
    return found


def test_a_score_is_the_share_of_accepted_images_and_the_overall_one_the_mean_of_kinds(benchmark):
    judged = accepted_if(benchmark, lambda n: n % 4 == 1)
    summary = benchmark.summarise(judged)
    for task, score in summary.tasks.items():
        marks = [
            one.replies["eyes"]["passed"] for one in judged if one.item.task == task and one.replies
        ]
        assert score == pytest.approx(sum(marks) / len(marks))
    assert summary.overall == pytest.approx(sum(summary.tasks.values()) / len(summary.tasks))
    assert summary.further["mean score of the experts"] == pytest.approx(0.75)


def test_scores_of_five_prompts_and_more_have_an_interval(benchmark):
    judged = accepted_if(benchmark, lambda n: n % 3 == 1)
    summary = benchmark.summarise(judged)
    by_item = {}
    for item in benchmark.items:
        scores = [benchmark.image_score(one) for one in judged if one.item.key == item.key]
        by_item[item.key] = item, [score for score in scores if score is not None]
    for task in ("complex", "numeracy", "spatial", "riddle"):
        interval = _interval([_means_of(summary.tasks[task], task, by_item)], "")
        assert interval is not None and interval.low < summary.tasks[task] < interval.high
