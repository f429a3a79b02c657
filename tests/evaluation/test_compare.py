"""Runs side by side: the right numbers in the right columns, no table of what cannot be compared."""

import csv
import json
from dataclasses import replace

import pytest

from evaluation.benchmark import BENCHMARKS
from evaluation.compare import as_csv, read_runs, tables
from evaluation.compare_page import comparison, differences, item_scores, write_page
from evaluation.generators import Drawn
from evaluation.result import score
from policy.errors import UserError
from tests.evaluation.test_run_folder import judged, opened
from tests.evaluation.toy import Toy, gray

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(BENCHMARKS, Toy.name, Toy.name)


@pytest.fixture
def runs(tmp_path):
    """Two runs: the second is brighter by 100 on 001 and by 10 elsewhere."""
    folders = []
    for name, more in (("before", 0), ("after", 10)):
        folder = opened(tmp_path / name, generator={"kind": "policy", "path": name, "cot": True})
        for number, item in enumerate(folder.benchmark.items):
            level = 20 * number + 10 + (10 * more if number == 1 else more)
            folder.write(item, [Drawn(gray(level), HOSTILE)] * 2)
            judged(folder, item, 0, level)
            judged(folder, item, 1, level)
        score(folder, folder.benchmark.items, published_rules=False)
        folders.append(folder.folder)
    return folders


def test_all_models_by_all_tasks(runs):
    (table,) = tables(read_runs(runs))
    assert [run.label for run in table.runs] == ["before (with CoT)", "after (with CoT)"]
    assert table.scores["even"] == [pytest.approx(30 / 255), pytest.approx(40 / 255)]
    assert table.scores["odd"] == [pytest.approx(50 / 255), pytest.approx(105 / 255)]
    assert list(table.scores) == ["even", "odd", "overall"]
    rows = list(csv.DictReader(as_csv([table]).splitlines()))
    assert len(rows) == 6
    assert float(rows[1]["score"]) == table.scores["even"][1]
    assert {row["comparable"] for row in rows} == {"yes"}


def test_the_largest_difference_comes_first_and_strangers_words_stay_text(runs, tmp_path):
    found = tables(read_runs(runs))
    order = [one.item.key for one in differences(item_scores(found[0]))]
    assert order[0] == "001" and len(order) == 4
    write_page(found, tmp_path / "compare.html")
    page = (tmp_path / "compare.html").read_text()
    assert HOSTILE not in page and "&lt;script&gt;" in page
    assert page.index("a red circle 001") < page.index("a red circle 000")
    assert "http" not in page.replace("http-equiv", "")  # needs nothing from elsewhere


def test_one_run_alone_shows_its_worst_and_its_best(runs):
    (table,) = tables(read_runs(runs[:1]))
    assert next(one.item.key for one in differences(item_scores(table))) == "000"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda r: r["judges"]["meter"].update(model="other"),
            "the judge meter differs: m 1 and other 1",
        ),
        (lambda r: r["judges"]["meter"].update(revision="2"), "the judge meter differs"),
        (
            lambda r: r["judges"]["meter"]["options"].update(threshold=0.3),
            r"m 1 with options\.threshold null and m 1 with options\.threshold 0\.3",
        ),
        (lambda r: r["prompts"].update(hash="2"), "the prompts differ"),
        (lambda r: r.update(rules="published"), "the rules of scoring differ"),
        (
            lambda r: r["asked"].update(keys="x", prompts=2),
            r"not the same prompts were asked \(4 and 2\)",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_or_marked(runs, change, complaint):
    path = runs[1] / "result.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))
    with pytest.raises(UserError, match=complaint):
        tables(read_runs(runs))
    (table,) = tables(read_runs(runs), anyway=True)
    assert len(table.differing) == 1
    assert "no: " in as_csv([table])


def test_a_folder_without_a_result_says_how_to_get_one(tmp_path):
    with pytest.raises(UserError, match=r"result\.json: no such result: `bicot bench score"):
        read_runs([tmp_path])


def test_a_result_that_is_none_is_refused(runs):
    (runs[0] / "result.json").write_text('{"benchmark": "x"}')
    with pytest.raises(UserError, match="not the result of a benchmark"):
        read_runs(runs)


@pytest.mark.parametrize("unit", ["", "%"])
def test_what_is_a_mean_of_images_has_an_interval(tmp_path, monkeypatch, unit):
    """10 prompts a task; the second run is brighter by 25 of 255 in even ones, and as bright in odd
    ones on average."""
    monkeypatch.setattr("tests.evaluation.toy.KEYS", tuple(f"{n:03}" for n in range(20)))
    monkeypatch.setattr(Toy, "unit", unit)
    if unit:
        plain = Toy.summarise

        def percent(self, judged, **rules):
            found = plain(self, judged, **rules)
            tasks = {task: value and 100 * value for task, value in found.tasks.items()}
            return replace(found, overall=found.overall and 100 * found.overall, tasks=tasks)

        monkeypatch.setattr(Toy, "summarise", percent)
    folders = []
    for after in (0, 1):
        folder = opened(tmp_path / str(after), generator={"kind": "policy", "path": "x", "cot": True})
        for n, item in enumerate(folder.benchmark.items):
            more = 25 if n % 2 == 0 else 20 * (-1) ** (n // 2)
            level = 50 + 5 * n + after * more
            folder.write(item, [Drawn(gray(level), "")] * 2)
            judged(folder, item, 0, level)
            judged(folder, item, 1, level)
        score(folder, folder.benchmark.items, published_rules=False)
        folders.append(folder.folder)
    (table,) = tables(read_runs(folders))
    rows = {row.label: row for row in comparison(table).rows}
    assert [rows[task].difference.verdict for task in ("even", "odd")] == ["better", "noise"]
    low, high = rows["even"].difference.interval.split(" to ")
    assert low == high == rows["even"].difference.text
    low, high = map(float, rows["overall"].cells[0].interval.split(" to "))
    assert low < float(rows["overall"].cells[0].text) < high


def test_few_prompts_have_no_interval_and_no_colour(runs):
    (table,) = tables(read_runs(runs))
    found = comparison(table)
    assert {row.difference.verdict for row in found.rows} == {""}
    assert any(note.startswith("No intervals") for note in found.notes)
