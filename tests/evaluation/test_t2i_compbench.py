"""T2I-CompBench as a benchmark: its prompts and files, what is asked of whom, its table."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from evaluation import data
from evaluation.benchmark import Item, Judged, load_benchmark, some_of
from evaluation.compbench_text import prompt_of_file, questions, reader
from evaluation.t2i_compbench import TASKS, T2ICompBench
from policy.errors import UserError
from rewards.expert import load_expert_class
from tests.conftest import shared_file
from tests.evaluation.test_compbench_text import cases

SMALL = {
    "color_val.txt": ["a red train and a blue vase", "a red cube"],
    "shape_val.txt": ["a round pizza and a square box."],
    "texture_val.txt": ["a fluffy pillow"],
    "spatial_val.txt": ["a cat on the left of a dog", "a girl near a woman"],
    "non_spatial_val.txt": ["A man is mowing the lawn."],
    "complex_val.txt": [
        "The black chair was on top of the blue rug.",
        "The soft bed embraced the tired body.",
        "The red cup hung near the white wall and waited.",
        "The red book was on top of the yellow bookshelf.",
    ],
    "complex_val_spatial.txt": [
        "The black chair was on top of the blue rug",
        "The red book was on top of the yellow bookshelf.",
    ],
    "complex_val_action.txt": ["the soft bed embraced the tired body."],
    "numeracy_val.txt": ["two dogs and a ship"],
    "3d_spatial_val.txt": ["a cat in front of a dog"],
    "new_objects.txt": ["dog - dogs", "ship - ships"],
}
CAT, DOG = ["cat", [0, 0, 100, 100], 0.8], ["dog", [60, 0, 160, 100], 0.6]
BY = {"by": {"model": "some-detector", "revision": "1"}}


def benchmark_on(folder: Path, monkeypatch, files: dict[str, list[str]]) -> T2ICompBench:
    """The benchmark on other prompts than the published ones, as if these were published."""
    known = []
    for name, lines in files.items():
        content = "\r\n".join(lines).encode()
        (folder / name).write_bytes(content)
        sha = hashlib.sha256(content).hexdigest()
        known.append(data.PublishedFile(f"examples/dataset/{name}", len(content), sha))
    release = data.Release("some/body", "0" * 40, "MIT", tuple(known))
    monkeypatch.setitem(data.RELEASES, "t2i_compbench", release)
    return T2ICompBench(folder)


@pytest.fixture
def small(tmp_path, monkeypatch) -> T2ICompBench:
    return benchmark_on(tmp_path, monkeypatch, SMALL)


def item_of(benchmark: T2ICompBench, key: str) -> Item:
    return next(item for item in benchmark.items if item.key == key)


def replies_to(benchmark: T2ICompBench, item: Item) -> dict[str, dict]:
    """What judges would say of a good image."""
    asks = benchmark.asks(item)
    found = [[name, [100 * n, 0, 100 * n + 80, 80], 0.8] for n, name in enumerate(["cat", "dog"])]
    if item.task == "3d_spatial":
        found = [CAT, ["dog", [10, 0, 100, 100], 0.6]]
    replies = {
        "vqa": {"yes": [0.9] * len(asks.get("vqa", {}).get("questions", ()))},
        "detector": {"detections": found, "size": [479, 479]} | BY,
        "clip": {"cosine": 0.3},
        "depth": {"nearness": [[3, 1], [2, 1]]},
    }
    return {name: replies[name] for name in asks}


# --- prompts and files ---


def test_keys_and_files(small):
    assert [item.key for item in small.items][:3] == ["color/0000", "color/0001", "shape/0000"]
    assert [item.task for item in small.items[-2:]] == ["numeracy", "3d_spatial"]
    files = small.files(small.items[1])
    assert files[0] == "color/samples/a red cube_000010.png"
    assert files[-1] == "color/samples/a red cube_000019.png" and len(files) == 10
    assert small.files(small.items[2])[0] == "shape/samples/a round pizza and a square box._000000.png"
    assert prompt_of_file(Path(files[0]).name) == "a red cube"


@pytest.mark.parametrize("prompt", ["a cat / a dog", "a red_cube", "a " * 123])
def test_a_prompt_that_is_no_file_name(prompt, tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"color_val\.txt, line 2: the prompt cannot begin a file's name"
    ):
        benchmark_on(tmp_path, monkeypatch, SMALL | {"color_val.txt": ["a cat", prompt]})


def test_the_published_prompts():
    benchmark = load_benchmark("t2i_compbench", shared_file("bench/t2i_compbench"))
    assert Counter(item.task for item in benchmark.items) == dict.fromkeys(TASKS, 300)
    assert len({path for item in benchmark.items for path in benchmark.files(item)}) == 24_000
    kinds = Counter(benchmark._kind(item) for item in benchmark.items if item.task == "complex")
    assert kinds == {"spatial": 58, "action": 212, "all three": 30}
    some = some_of(benchmark.items, limit=80)
    asked = {item.key: benchmark.asks(item) for item in some}
    assert all(asks["detector"]["objects"] for asks in asked.values() if "detector" in asks)
    assert all(asks["vqa"]["questions"] for asks in asked.values() if "vqa" in asks)


def test_only_what_is_needed_is_asked(small):
    asks = {item.key: dict(small.asks(item)) for item in small.items}
    assert asks["color/0000"] == {"vqa": {"questions": ["a red train?", "a blue vase?"]}}
    assert asks["non_spatial/0000"] == {"clip": {"text": "A man is mowing the lawn."}}
    assert asks["spatial/0001"] == {"detector": {"objects": ["person"]}}
    assert asks["numeracy/0000"] == {"detector": {"objects": ["dog", "boat"]}}
    assert asks["3d_spatial/0000"] == {
        "detector": {"objects": ["cat", "dog"]},
        "depth": {"map": "nearness"},
    }
    assert asks["complex/0000"] == {
        "vqa": {"questions": ["The black chair?", "the blue rug?"]},
        "detector": {"objects": ["chair", "rug"]},
    }
    assert asks["complex/0001"] == {
        "vqa": {"questions": ["The soft bed?", "the tired body?"]},
        "clip": {"text": "The bed embraced the body ."},
    }
    assert set(asks["complex/0002"]) == {"vqa", "detector", "clip"}
    assert set(asks["complex/0003"]) == {"vqa"}  # its two objects cannot be read


def test_its_judges_can_be_built():
    for entry in T2ICompBench.judges.values():
        load_expert_class(entry["use"])


def test_at_most_eight_questions(tmp_path, monkeypatch):
    many = " and ".join(
        f"a {color} cat near a dog" for color in ("red", "blue", "green", "black", "white")
    )
    benchmark = benchmark_on(tmp_path, monkeypatch, SMALL | {"color_val.txt": [many]})
    assert len(questions(many)) > 8
    assert len(benchmark.asks(benchmark.items[0])["vqa"]["questions"]) == 8


# --- scores ---


def score(benchmark: T2ICompBench, key: str, **replies: dict) -> float | None:
    return benchmark.image_score(Judged(item_of(benchmark, key), 0, replies))


def test_the_score_of_an_image(small):
    both = {"detections": [CAT, DOG], "size": [479, 479]}
    assert score(small, "color/0000", vqa={"yes": [0.5, 0.5]}) == 0.25
    assert score(small, "non_spatial/0000", clip={"cosine": 0.31}) == 0.31
    assert score(small, "spatial/0000", detector=both) == pytest.approx(0.2 + 0.15 + 0.5 * 0.1 / 0.25)
    counted = {"detections": [DOG, ["dog", [200, 0, 250, 50], 0.5]]}
    assert score(small, "numeracy/0000", detector=counted) == 0.5
    rug = [["chair", [0, 0, 50, 50], 0.8], ["rug", [0, 60, 50, 110], 0.8]]
    replies = {"vqa": {"yes": [0.5, 1.0]}, "detector": {"detections": rug}}
    assert score(small, "complex/0000", **replies) == pytest.approx((0.5 + 0.9) / 2)
    assert score(small, "complex/0001", vqa={"yes": [0.5, 1.0]}, clip={"cosine": 0.3}) == 0.4
    assert score(small, "complex/0003", vqa={"yes": [0.5, 1.0]}) is None


def test_on_top_of_scores_0_by_the_published_rules(small):
    rug = [["chair", [0, 0, 50, 50], 0.8], ["rug", [0, 60, 50, 110], 0.8]]
    replies = {"vqa": {"yes": [0.5, 1.0]}, "detector": {"detections": rug}}
    ten = [Judged(item_of(small, "complex/0000"), n, replies) for n in range(10)]
    assert small.summarise(ten).tasks == {"complex": pytest.approx((0.5 + 0.9) / 2)}
    assert small.summarise(ten, published_rules=True).tasks == {"complex": 0.25}
    ten = [Judged(item_of(small, "complex/0003"), n, {"vqa": {"yes": [0.5, 1.0]}}) for n in range(10)]
    assert small.summarise(ten, published_rules=True).tasks == {"complex": 0.25}
    assert small.summarise(ten).tasks == {"complex": None}


def test_depth_is_that_at_a_box_s_centre(small):
    here = {"detections": [["cat", [0, 0, 50, 100], 0.8], ["dog", [0, 0, 100, 100], 0.6]]}
    here["size"] = [100, 100]
    near = {"nearness": [[1, 1, 1, 1], [1, 1, 1, 1], [1, 9, 2, 1], [1, 1, 1, 1]]}
    assert score(small, "3d_spatial/0000", detector=here, depth=near) == pytest.approx(0.85)
    turned = {"nearness": [list(row) for row in zip(*near["nearness"], strict=True)]}
    assert score(small, "3d_spatial/0000", detector=here, depth=turned) == 0.0
    assert score(small, "3d_spatial/0000", detector=here) is None


def test_the_table(small):
    judged = [Judged(item, n, replies_to(small, item)) for item in small.items for n in range(10)]
    summary = small.summarise(judged)
    assert list(summary.tasks) == list(TASKS)
    assert summary.tasks["color"] == pytest.approx((0.81 + 0.9) / 2)
    assert summary.tasks["non_spatial"] == pytest.approx(0.3)
    assert summary.overall == pytest.approx(sum(summary.tasks.values()) / 8)
    assert summary.further == {"mean of categories": summary.overall}
    assert f"prompts are read by {reader()}" in summary.notes
    assert any("some-detector in UniDet's place" in note for note in summary.notes)
    published = small.summarise(judged, published_rules=True)
    assert published.tasks["3d_spatial"] is None and published.overall is None
    assert published.further == {}
    assert published.tasks["color"] == summary.tasks["color"]


def test_what_is_missing_is_in_no_mean(small):
    item, other = small.items[0], small.items[1]
    judged = [
        Judged(item, 0, {"vqa": {"yes": [1.0, 0.5]}}),
        Judged(item, 1, {}),
        Judged(other, 0, {"vqa": {"yes": [1.0]}}, present=False),
    ]
    for rules in (False, True):
        summary = small.summarise(judged, published_rules=rules)
        assert summary.tasks == {"color": 0.5} and summary.overall is None
    assert small.summarise([]).tasks == {}


def test_published_rules_want_ten_images_of_a_complex_prompt(small):
    nine = [Judged(item_of(small, "complex/0001"), n, {}) for n in range(9)]
    with pytest.raises(UserError, match=r"complex/0001 has 9 images.*ends with ValueError"):
        small.summarise(nine, published_rules=True)


def test_replies_that_do_not_fit(small):
    with pytest.raises(UserError, match=r"color/0000: 1 answers are kept where 2 questions are asked"):
        score(small, "color/0000", vqa={"yes": [1.0]})
    with pytest.raises(UserError, match=r"spatial/0000, image 0: a reply without 'detections'"):
        score(small, "spatial/0000", detector={"boxes": []})


# --- the published numbers, through the table ---


def published(folder, monkeypatch, task: str, case: dict, reply) -> float | None:
    """What the published rules make of a case: images with names of files, and what is replied on
    each."""
    prompts = list(dict.fromkeys(prompt_of_file(image["file"]) for image in case["images"]))
    objects = shared_file("bench/t2i_compbench/new_objects.txt").read_text().splitlines()
    files = SMALL | {f"{task}_val.txt": prompts, "new_objects.txt": objects}
    benchmark = benchmark_on(folder, monkeypatch, files)
    items = {item.text: item for item in benchmark.items if item.task == task}
    judged = [
        Judged(items[prompt_of_file(image["file"])], n, reply(n, image))
        for n, image in enumerate(case["images"])
    ]
    return benchmark.summarise(judged, published_rules=True).tasks[task]


@pytest.mark.parametrize(
    ("name", "task", "reply"),
    [
        ("blip_score", "color", lambda _n, i: {"vqa": {"yes": [float(p) for _, p in i["asked"]]}}),
        ("spatial_average", "spatial", lambda _n, i: {"detector": i}),
        ("numeracy_average", "numeracy", lambda _n, i: {"detector": i}),
    ],
)
def test_published_averages(tmp_path, monkeypatch, name, task, reply):
    for case in cases(name):
        assert published(tmp_path, monkeypatch, task, case, reply) == case["out"]["average"], case


def test_published_average_cosines(tmp_path, monkeypatch):
    for case in cases("clip"):
        if case["complex"]:
            continue  # no table of its own
        rows = [{"clip": {"cosine": answer}} for answer in case["out"]["answers"]]
        found = published(tmp_path, monkeypatch, "non_spatial", case, lambda n, _, rows=rows: rows[n])
        assert found == case["out"]["average"]
