"""The folder of a benchmark run, on files alone: what it keeps, what it refuses, what it counts."""

import json

import numpy as np
import pytest
from PIL import Image

from evaluation.benchmark import some_of
from evaluation.generators import Drawn
from evaluation.judges.base import unusable
from evaluation.result import judged_images, read_result, score
from evaluation.run_folder import RunFolder, identity
from policy.errors import UserError
from tests.evaluation.toy import KEYS, TiledToy, Toy, gray

METER = {
    "meter": {"use": "tests.evaluation.toy:Brightness", "options": {"model": "m", "device": "cpu"}}
}


def opened(path, benchmark=None, seed=0, judges=METER, images=None, generator=None) -> RunFolder:
    benchmark = benchmark or Toy()
    folder = RunFolder(path, benchmark, images)
    what = identity(benchmark, generator or {"kind": "policy", "path": "x"}, seed, judges, images)
    folder.open(what, {})
    return folder


def judged(folder: RunFolder, item, n: int, level: float, by=None) -> None:
    reply = {"by": by or {"model": "m", "revision": "1"}, "brightness": level}
    folder.add_reply(item, n, "meter", reply)


@pytest.fixture
def full(tmp_path) -> RunFolder:
    """All images are there, of brightness 10, 20, ... 80, and judged."""
    folder = opened(tmp_path / "run")
    for number, item in enumerate(folder.benchmark.items):
        levels = [20 * number + 10, 20 * number + 20]
        folder.write(item, [Drawn(gray(level), f"plan {level}") for level in levels])
        for n, level in enumerate(levels):
            judged(folder, item, n, level)
    return folder


def test_a_run_that_is_opened_again_has_what_it_had(full):
    again = opened(full.folder)
    for item in again.benchmark.items:
        assert not again.missing(item)
        for n, image in enumerate(again.read(item)):
            np.testing.assert_array_equal(image, full.read(item)[n])
            assert again.reply(item, n, "meter") == full.reply(item, n, "meter")
            assert again.cot(item, n) == full.cot(item, n) != None  # noqa: E711
    assert again.by == {"meter": {"model": "m", "revision": "1"}}


def test_scores_are_the_means_and_the_result_says_what_it_is_of(full):
    result = score(full, full.benchmark.items, published_rules=False)
    assert result["tasks"] == {"even": pytest.approx(35 / 255), "odd": pytest.approx(55 / 255)}
    assert result["overall"] == pytest.approx(45 / 255)
    assert result["gaps"] == dict.fromkeys(
        ("missing", "unreadable", "refused", "unjudged", "strangers"), 0
    )
    assert result["notes"] == []
    assert result["seed"] == 0 and result["rules"] == "mended"
    assert result["judges"]["meter"]["revision"] == "1"
    assert "device" not in result["judges"]["meter"]["options"]
    assert read_result(full.folder) == result


def test_what_is_missing_is_counted_named_and_in_no_mean(full):
    images = full.images
    (images / "000/0.png").unlink()
    (images / "001/1.png").write_bytes((images / "001/1.png").read_bytes()[:40])
    Image.fromarray(gray(1)).save(images / "misnamed.png")
    full.add_reply(
        full.benchmark.items[2], 0, "meter", unusable("dark", by={"model": "m", "revision": "1"})
    )
    result = score(full, full.benchmark.items, published_rules=False)
    assert result["gaps"] == {
        "missing": 1,
        "unreadable": 1,
        "refused": 0,
        "unjudged": 1,
        "strangers": 1,
    }
    assert result["tasks"]["even"] == pytest.approx((20 + 60) / 2 / 255)
    assert result["tasks"]["odd"] == pytest.approx((30 + 70 + 80) / 3 / 255)
    notes = "\n".join(result["notes"])
    for text in (
        "1 image is missing: 000/0 (000/0.png)",
        "001/1 (",
        "002/0 by meter (dark)",
        "misnamed.png",
    ):
        assert text in notes
    published = score(full, full.benchmark.items, published_rules=True)
    assert published["tasks"]["even"] == pytest.approx((0 + 20 + 0 + 60) / 4 / 255)
    assert read_result(full.folder)["rules"] == "mended"  # each has a file of its own
    assert read_result(full.folder, published_rules=True)["rules"] == "published"


def test_a_reply_to_another_question_is_no_answer_to_this_one(full, monkeypatch):
    item = full.benchmark.items[0]
    monkeypatch.setattr(Toy, "asks", lambda self, item: {"meter": {"question": "how dark is it?"}})
    again = opened(full.folder)
    assert again.reply(item, 0, "meter") is None
    judged(again, item, 0, 7.0)
    assert opened(full.folder).reply(item, 0, "meter")["brightness"] == 7.0


def test_an_unusable_reply_is_asked_for_again_and_then_counts(full):
    item = full.benchmark.items[0]
    by = {"model": "m", "revision": "1"}
    full.add_reply(item, 0, "meter", unusable("dark", by=by))
    assert full.reply(item, 0, "meter") is None
    again = opened(full.folder)
    assert again.reply(item, 0, "meter") is None and again.why_unusable(item, 0, "meter") == "dark"
    judged(again, item, 0, 99.0)
    assert opened(full.folder).reply(item, 0, "meter")["brightness"] == 99.0


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"seed": 1}, "seed: 0 there, 1 asked for"),
        ({"generator": {"kind": "policy", "path": "y"}}, 'generator.path: "x" there, "y" asked for'),
        (
            {"judges": {"meter": {"use": METER["meter"]["use"], "options": {"model": "other"}}}},
            "judges.meter.options.model",
        ),
        ({"benchmark": TiledToy()}, "benchmark"),
    ],
)
def test_two_runs_do_not_share_a_folder(full, changed, complaint):
    before = (full.folder / "bench.json").read_bytes()
    with pytest.raises(UserError, match="there is another run in it") as refused:
        opened(full.folder, **changed)
    assert complaint in str(refused.value)
    assert (full.folder / "bench.json").read_bytes() == before


def test_where_a_judge_runs_makes_no_other_run(full):
    elsewhere = {
        "meter": {**METER["meter"], "options": {"model": "m", "device": "cuda", "batch_size": 3}}
    }
    assert opened(full.folder, judges=elsewhere).by


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds thesis\.tex and is no run"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_judge_that_changes_in_the_middle_ends_the_run(full):
    item = full.benchmark.items[0]
    kept = (full.folder / "replies.jsonl").read_bytes()
    with pytest.raises(UserError, match="the judge meter was m 1 and is now m 2"):
        judged(full, item, 0, 1.0, by={"model": "m", "revision": "2"})
    assert (full.folder / "replies.jsonl").read_bytes() == kept


def test_an_image_that_was_changed_is_not_taken_for_the_one_that_was_drawn(full):
    file = full.images / "000/0.png"
    Image.fromarray(gray(200)).save(file)
    with pytest.raises(UserError, match=r"000/0\.png: not the image that this run drew"):
        full.missing(full.benchmark.items[0])
    file.unlink()
    assert full.missing(full.benchmark.items[0]) == [0]


@pytest.mark.parametrize("name", ["images.jsonl", "replies.jsonl"])
def test_a_line_that_was_cut_off_by_a_kill_is_made_again(full, name):
    path = full.folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    again = opened(full.folder)
    last = again.benchmark.items[-1]
    if name == "images.jsonl":
        assert again.missing(last) == [1]
        again.write(last, [Drawn(gray(80), "plan 80")], [1])
    else:
        assert again.reply(last, 1, "meter") is None
        judged(again, last, 1, 80.0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(row["item"], row["index"]) for row in rows} == {(k, n) for k in KEYS for n in range(2)}
    opened(full.folder)


def test_a_refused_prompt_is_neither_missing_nor_zero(tmp_path):
    folder = opened(tmp_path / "run")
    item = folder.benchmark.items[0]
    folder.write(item, [Drawn(gray(100)), "400: not this one"])
    judged(folder, item, 0, 100.0)
    result = score(folder, [item], published_rules=False)
    assert result["gaps"]["refused"] == 1 and result["gaps"]["missing"] == 0
    assert result["tasks"] == {"even": pytest.approx(100 / 255)}
    kept = (folder.images / "000/0.png").stat().st_mtime_ns
    assert folder.missing(item) == [1]
    folder.write(item, [Drawn(gray(50))], [1])
    assert not folder.missing(item)
    assert [int(image[0, 0, 0]) for image in folder.read(item)] == [100, 50]
    assert (folder.images / "000/0.png").stat().st_mtime_ns == kept
    assert folder.reply(item, 0, "meter") is not None and folder.reply(item, 1, "meter") is None


def test_four_tiles_are_one_file_and_come_back_as_four(tmp_path):
    folder = opened(tmp_path / "run", TiledToy())
    item = folder.benchmark.items[1]
    folder.write(item, [Drawn(gray(level), f"plan {level}") for level in (10, 20, 30, 40)])
    with Image.open(folder.images / "001.png") as picture:
        assert picture.size == (16, 16)
        corners = [picture.getpixel(at)[0] for at in ((0, 0), (15, 0), (0, 15), (15, 15))]
    assert corners == [10, 20, 30, 40]
    assert [int(image[0, 0, 0]) for image in folder.read(item)] == [10, 20, 30, 40]
    assert not folder.missing(item) and not opened(folder.folder, TiledToy()).missing(item)
    assert folder.missing(folder.benchmark.items[0]) == [0, 1, 2, 3]
    missing, _ = judged_images(folder, [folder.benchmark.items[0]])
    assert [one.present for one in missing] == [False] * 4


def test_a_refused_picture_of_four_is_refused_four_times_and_not_missing(tmp_path):
    folder = opened(tmp_path / "run", TiledToy())
    item = folder.benchmark.items[0]
    folder.write(item, [Drawn(gray(1)), "400: not this one", Drawn(gray(2)), Drawn(gray(3))])
    _, gaps = judged_images(folder, [item])
    assert (len(gaps.refused), len(gaps.missing)) == (4, 0)


def test_nothing_judged_is_no_score(tmp_path):
    folder = opened(tmp_path / "run")
    with pytest.raises(UserError, match="nothing to score: 8 images are missing"):
        score(folder, folder.benchmark.items, published_rules=False)
    assert not (folder.folder / "result.json").exists()


def test_a_limit_takes_as_many_of_each_task_as_can_be():
    items = Toy().items
    assert [item.key for item in some_of(items, limit=3)] == ["000", "001", "002"]
    assert [item.key for item in some_of(items, ["odd"])] == ["001", "003"]
    assert [item.key for item in some_of(items, ["odd"], 1)] == ["001"]
    with pytest.raises(UserError, match="no prompt has the task 'blue'; there are even, odd"):
        some_of(items, ["blue"])
