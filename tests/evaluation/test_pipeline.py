"""Images are generated and judged side by side, on a real Ray with real judges on Serve."""

import json

import pytest

from actors.config import ActorsConfig
from actors.sampler import SamplingConfig
from evaluation import pipeline
from evaluation.config import BenchConfig, judges_of
from evaluation.generators import Drawn
from evaluation.pipeline import Pipeline, Progress
from evaluation.result import score
from evaluation.run_folder import RunFolder, identity
from policy.errors import UserError
from rewards.serving import deploy_experts, shutdown_experts
from tests.evaluation.toy import TiledToy, Toy, gray

pytestmark = pytest.mark.serve


@pytest.fixture(scope="module")
def config(policy_config) -> BenchConfig:
    sampling = SamplingConfig(guidance=2.0, max_cot_tokens=8)
    actors = ActorsConfig(count=2, num_cpus=0.1, batch_size=4, sampling=sampling)
    return BenchConfig(benchmark=Toy.name, policy=policy_config, actors=actors)


@pytest.fixture(scope="module")
def workers(config, local_ray):
    found = pipeline.start_workers(config)
    yield found
    pipeline.stop_workers(found)


@pytest.fixture(scope="module")
def judges(config, local_ray):
    found = judges_of(Toy(), config)
    found = found.model_copy(update={"retries": 0})
    deploy_experts(found)
    yield found
    shutdown_experts()


def opened(path, config, benchmark, judges) -> RunFolder:
    folder = RunFolder(path, benchmark)
    entries = judges.model_dump(mode="json")["experts"]
    folder.open(identity(benchmark, config.generator(), 0, entries, None), {})
    return folder


def go(folder, items, config, workers, judges) -> Progress:
    progress = Progress()
    Pipeline(folder, items, config, workers, judges, progress).run()
    return progress


def hashes(folder: RunFolder) -> dict[tuple[str, int], str]:
    rows = [json.loads(line) for line in (folder.folder / "images.jsonl").read_text().splitlines()]
    assert len({(row["item"], row["index"]) for row in rows}) == len(rows)  # none was drawn twice
    return {(row["item"], row["index"]): row["sha256"] for row in rows}


def test_every_image_is_drawn_once_judged_once_and_its_own(config, workers, judges, tmp_path):
    benchmark = Toy()
    folder = opened(tmp_path / "whole", config, benchmark, judges)
    progress = go(folder, benchmark.items, config, workers, judges)
    assert (progress.drawn, progress.to_draw, progress.judged, progress.to_judge) == (8, 8, 8, 8)
    drawn = hashes(folder)
    assert len(set(drawn.values())) == 8
    for item in benchmark.items:
        for n, image in enumerate(folder.read(item)):
            reply = folder.reply(item, n, "meter")
            assert reply == {
                "brightness": pytest.approx(image.mean()),
                "asked": f"how bright is {item.key}?",
                "by": {"model": "meter", "revision": "1"},
            }
    assert score(folder, benchmark.items, published_rules=False)["notes"] == []

    # A run that was stopped after half of it: what is there is not drawn again, the rest is the same.
    begun = opened(tmp_path / "begun", config, benchmark, judges)
    go(begun, benchmark.items[:2], config, workers, judges)
    assert go(begun, benchmark.items, config, workers, judges).to_draw == 4
    assert hashes(begun) == drawn
    # One that is gone is drawn again, alone.
    item = benchmark.items[3]
    (begun.images / benchmark.files(item)[1]).unlink()
    assert begun.missing(item) == [1]
    assert go(begun, benchmark.items, config, workers, judges).to_draw == 1
    rows = [json.loads(line) for line in (begun.folder / "images.jsonl").read_text().splitlines()]
    assert len(rows) == 9 and (rows[-1]["item"], rows[-1]["index"]) == (item.key, 1)
    assert rows[-1]["sha256"] == drawn[item.key, 1]
    # Drawn without being judged, and judged later.
    later = opened(tmp_path / "later", config, benchmark, judges)
    go(later, benchmark.items, config, workers, None)
    assert later.by == {}
    progress = go(later, benchmark.items, config, [], judges)
    assert (progress.to_draw, progress.judged) == (0, 8)
    assert hashes(later) == drawn
    assert score(later, benchmark.items, published_rules=False)["overall"] == pytest.approx(
        score(begun, benchmark.items, published_rules=False)["overall"]
    )


def test_without_a_semantic_cot_there_is_none_and_the_record_says_so(config, workers, judges, tmp_path):
    benchmark = Toy()
    plain = config.model_copy(update={"cot": False})
    drawers = pipeline.start_workers(plain)
    folder = opened(tmp_path / "plain", plain, benchmark, judges)
    try:
        go(folder, benchmark.items[:1], plain, drawers, None)
    finally:
        pipeline.stop_workers(drawers)
    thinking = opened(tmp_path / "thinking", config, benchmark, judges)
    go(thinking, benchmark.items[:1], config, workers, None)
    item = benchmark.items[0]
    assert folder.cot(item, 0) is None and isinstance(thinking.cot(item, 0), str)
    assert folder.what["generator"]["cot"] is False
    assert "max_cot_tokens" not in folder.what["generator"]


def test_tiles_are_judged_one_by_one(config, workers, judges, tmp_path):
    benchmark = TiledToy()
    folder = opened(tmp_path / "tiled", config, benchmark, judges)
    go(folder, benchmark.items[:1], config, workers, judges)
    item = benchmark.items[0]
    tiles = folder.read(item)
    assert [folder.reply(item, n, "meter")["brightness"] for n in range(4)] == [
        pytest.approx(tile.mean()) for tile in tiles
    ]
    assert [path.name for path in folder.images.iterdir()] == ["000.png"]


def test_what_a_judge_cannot_say_is_counted_and_asked_again(config, judges, tmp_path):
    benchmark = Toy()
    folder = opened(tmp_path / "dark", config, benchmark, judges)
    item = benchmark.items[0]
    folder.write(item, [Drawn(gray(0)), Drawn(gray(9))])
    for _ in range(2):
        go(folder, [item], config, [], judges)
    rows = [json.loads(line) for line in (folder.folder / "replies.jsonl").read_text().splitlines()]
    assert [(row["index"], row["reply"].get("unusable")) for row in rows] == [
        (0, "dark"),
        (1, None),
        (0, "dark"),
    ]
    assert score(folder, [item], published_rules=False)["gaps"]["unjudged"] == 1


def test_another_judge_in_the_middle_ends_the_run_in_one_line(config, judges, tmp_path):
    benchmark = Toy()
    folder = opened(tmp_path / "changed", config, benchmark, judges)
    folder.write(benchmark.items[0], [Drawn(gray(5)), Drawn(gray(9))])
    reply = {"by": {"model": "old", "revision": "1"}, "brightness": 1.0}
    folder.add_reply(benchmark.items[1], 0, "meter", reply)
    with pytest.raises(UserError, match="the judge meter was old 1 and is now meter 1"):
        go(folder, benchmark.items[:1], config, [], judges)


def test_a_model_that_does_not_load_is_one_line(config, local_ray):
    broken = config.model_copy(update={"policy": config.policy.model_copy(update={"path": "/nowhere"})})
    with pytest.raises(UserError, match=r"a worker does not start: .*no such model directory"):
        pipeline.start_workers(broken)
