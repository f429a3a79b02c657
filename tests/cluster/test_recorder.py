"""What a run directory holds after the recorder wrote to it, read back from the files themselves."""

import json
import re
import resource
import time
from urllib.request import urlopen

import numpy as np
import pytest
import ray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.watch.evaluation import Evaluation, ScoredSample, load_evaluation
from cluster.watch.plots import before_after, grid, reward_curve
from cluster.watch.recorder import Recorder, gauge_name
from policy.errors import UserError
from policy.records import ObjectCount, Prompt, Sample, SpatialInfo

pytestmark = pytest.mark.ray

PROMPT = Prompt(
    "p0",
    "a red circle left of a blue square",
    "spatial",
    ("circle", "square"),
    ("red circle", "blue square"),
    SpatialInfo("red circle", "blue square", "left of"),
    (ObjectCount("red circle", 1), ObjectCount("blue square", 1)),
)
OTHER = Prompt("p1", "two | green triangles", "numeracy")


def sample(prompt: Prompt, index: int, shade: int, cot_tokens: int = 4) -> Sample:
    ids, logps = np.arange(cot_tokens), np.zeros(cot_tokens, np.float32)
    image, plan = np.full((24, 24, 3), shade, np.uint8), "red circle top left"
    return Sample(prompt.id, index, 7, 3, ids, ids, plan, ids, ids, *[logps] * 3, image, "stop")


def scored(prompt=PROMPT, index=0, shade=0, reward=1.0, passed=True, plan=True, tokens=4, **scores):
    explanation = {name: f"saw {name}" for name in scores}
    drawn = sample(prompt, index, shade, tokens)
    return ScoredSample(prompt, drawn, reward, passed, plan, scores, explanation)


@pytest.fixture
def evaluation() -> Evaluation:
    return Evaluation(
        100,
        42,
        (
            scored(index=0, shade=0, reward=1.0, objects=1.0, relation=0.8),
            scored(index=1, shade=51, reward=0.5, passed=False, tokens=8, objects=0.6, relation=0.4),
            scored(index=2, shade=255, reward=0.0, passed=False, plan=False, objects=0.2, relation=0.0),
            scored(OTHER, shade=9, reward=0.7, passed=True, plan=False, objects=1.0),
        ),
    )


def lines(folder):
    def no_constant(text):
        raise AssertionError(f"{text} is not JSON")

    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=no_constant) for line in text.splitlines()]


def board(folder) -> EventAccumulator:
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(folder / "tensorboard"), everything).Reload()


# --- the record ----------------------------------------------------------------------------------


def test_evaluation_metrics_are_the_means_one_gets_by_hand(evaluation):
    metrics = evaluation.metrics()
    assert metrics == {
        "eval/reward": pytest.approx(2.2 / 4),
        "eval/strict_accuracy": 0.5,
        "eval/cot_accuracy": 0.5,
        "eval/cot_tokens": 5.0,
        "eval/diversity": pytest.approx((0.2 + 1.0 + 0.8) / 3),  # a single sample is left out
        "eval/objects": pytest.approx(2.8 / 4),
        "eval/relation": pytest.approx(1.2 / 3),  # it does not apply to the other prompt
        "eval/reward/task/spatial": 0.5,
        "eval/reward/task/numeracy": pytest.approx(0.7),
    }


def test_metrics_without_data_are_absent():
    metrics = Evaluation(0, 0, (scored(plan=None),)).metrics()
    known = {"eval/reward", "eval/strict_accuracy", "eval/cot_tokens", "eval/reward/task/spatial"}
    assert set(metrics) == known


def test_evaluations_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match="step 5 holds no sample"):
        Evaluation(5, 0, ())
    with pytest.raises(UserError, match="may not be named 'diversity'"):
        Evaluation(5, 0, (scored(diversity=1.0),))
    with pytest.raises(ValueError, match="objects of sample p0/0 is nan"):
        scored(objects=float("nan"))


# --- the recorder --------------------------------------------------------------------------------


def test_a_step_is_one_flushed_line(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.step(1, {"reward/mean": np.float32(0.5), "groups/dropped": 2})
    first = lines(tmp_path)  # before anything is closed
    recorder.step(2, {"reward/mean": 0.75})
    recorder.close()

    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert {name: first[0][name] for name in ("reward/mean", "groups/dropped")} == {
        "reward/mean": 0.5,
        "groups/dropped": 2.0,
    }
    scalars = board(tmp_path).Scalars("reward/mean")
    assert [(event.step, event.value) for event in scalars] == [(1, 0.5), (2, 0.75)]


def test_a_number_that_is_not_finite_is_null(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.step(1, {"loss": float("nan"), "grad_norm": float("inf"), "lr": 1e-5})
    recorder.step(2, {"loss": 0.5})
    recorder.close()

    (line, _) = lines(tmp_path)
    assert (line["loss"], line["grad_norm"], line["lr"]) == (None, None, 1e-5)
    assert [event.step for event in board(tmp_path).Scalars("loss")] == [2]


def test_a_metric_may_not_take_the_name_of_the_step(tmp_path):
    with pytest.raises(ValueError, match="'time'"):
        Recorder(tmp_path).step(1, {"time": 3.0})


def test_a_resumed_run_appends_and_its_time_goes_on(tmp_path):
    torn = '{"step": 6, "ti'
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "time": 1000.5, "loss": 1.0}\n' + torn)
    recorder = Recorder(tmp_path, next_step=6)
    recorder.step(6, {"loss": 0.5})
    recorder.close()

    before, middle, after = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(before)["step"] == 5
    assert middle == torn
    assert json.loads(after)["step"] == 6
    assert json.loads(after)["time"] >= 1000.5


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path):
    for value, steps, next_step in ((1.0, range(1, 6), None), (2.0, range(4, 7), 4)):
        recorder = Recorder(tmp_path, next_step)
        for step in steps:
            recorder.step(step, {"loss": value})
        recorder.close()
    events = board(tmp_path).Scalars("loss")
    assert [(e.step, e.value) for e in events] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]


def test_training_samples_are_shown_with_their_cots(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.samples(7, [scored(shade=9, reward=0.25), scored(OTHER, shade=9)])
    recorder.close()

    assert Image.open(tmp_path / "samples" / "step_000007.png").width == 2 * (96 + 10) + 10
    events = board(tmp_path)
    assert events.Images("samples")[0].step == 7
    text = events.Tensors("samples/cots/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| two \\| green triangles | red circle top left | 1.000 |" in text


def test_an_evaluation_comes_back_as_it_was(tmp_path, evaluation):
    folder = tmp_path / "samples" / "eval_000100"
    recorder = Recorder(tmp_path)
    recorder.evaluation(100, evaluation)
    (folder / "notes.txt").write_text("somebody's own file")
    recorder.evaluation(100, evaluation)  # done again after a resume
    recorder.close()

    files = [*(f"{n:04d}.png" for n in range(4)), "evaluation.json", "grid.png", "notes.txt"]
    assert sorted(path.name for path in folder.iterdir()) == files
    assert lines(tmp_path)[0]["eval/reward"] == evaluation.metrics()["eval/reward"]

    again = load_evaluation(folder)
    assert again.metrics() == evaluation.metrics()
    assert (again.step, again.weights_version) == (100, 42)
    for a, b in zip(again.scored, evaluation.scored, strict=True):
        assert (a.prompt, a.scores, a.explanation) == (b.prompt, b.scores, b.explanation)
        assert (a.sample.id, a.sample.cot_text) == (b.sample.id, b.sample.cot_text)
        assert np.array_equal(a.sample.image, b.sample.image)


def test_an_evaluation_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match=r"evaluation\.json: not a readable evaluation"):
        load_evaluation(tmp_path)


def test_metrics_are_ray_gauges_where_ray_runs(tmp_path, local_ray):
    assert gauge_name("eval/reward") == "bicot_eval_reward"
    recorder = Recorder(tmp_path)
    recorder.step(1, {"eval/reward": 0.625})
    recorder.close()
    port = ray.nodes()[0]["MetricsExportPort"]
    for _ in range(60):  # Ray exports them from a process of its own
        exported = urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        if found := re.search(
            rf'^ray_bicot_eval_reward\{{.*run="{tmp_path.name}".*\}} (\S+)$', exported, re.MULTILINE
        ):
            break
        time.sleep(1)
    assert found
    assert float(found[1]) == 0.625


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_cannot_be_written_is_reported_once_and_written_again_later(tmp_path, evaluation):
    """Files can grow to no size that a picture has; TensorBoard's thread dies of it."""
    messages = []
    recorder = Recorder(tmp_path, tell=messages.append)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2, limit[1]))
    try:
        for step in (1, 2):
            recorder.step(step, {"loss": 1.0})
            recorder.samples(step, [scored(shade=9, reward=0.25)])
            recorder.evaluation(step, evaluation)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(messages) == 5
    assert all("could not be written: File too large; the run goes on" in text for text in messages)
    recorder.step(3, {"loss": 3.0})
    recorder.samples(3, [scored(shade=9, reward=0.25)])
    recorder.evaluation(3, evaluation)
    recorder.close()
    assert len(messages) == 10
    assert [line["step"] for line in lines(tmp_path)] == [1, 1, 2, 2, 3, 3]
    assert [event.value for event in board(tmp_path).Scalars("loss")] == [3]
    assert load_evaluation(tmp_path / "samples" / "eval_000003").step == 100


# --- pictures ------------------------------------------------------------------------------------


def test_a_grid_enlarges_small_images_and_reduces_large_ones():
    small = np.zeros((24, 24, 3), np.uint8)
    large = np.full((400, 200, 3), 255, np.uint8)
    large[:, :, 0] = 200
    picture = grid([small, large, small], None, columns=2)
    assert picture.size == (2 * 106 + 10, 2 * 106 + 10)

    pixels = np.asarray(picture)
    assert (pixels[10:106, 10:106] == 0).all()  # four times as large, with hard edges
    tall = (pixels[10:106, 116:212] == (200, 255, 255)).all(axis=-1)
    assert tall.sum() == 96 * 48


def test_captions_make_room_for_themselves():
    images = [np.zeros((24, 24, 3), np.uint8)] * 2
    short = grid(images, ["one", "one"], columns=2)
    long = grid(images, ["one", "word " * 100], columns=2)
    assert short.width == long.width
    assert 116 < short.height < long.height < 96 + 20 + 5 * 20


def test_before_and_after_frame_what_passed(evaluation):
    later = Evaluation(200, 80, tuple(scored(j.prompt, j.sample.index) for j in evaluation.scored))
    colors = {color for _, color in before_after(evaluation, later).getcolors(1 << 20)}
    assert {(34, 160, 90), (222, 70, 70)} <= colors
    colors = {color for _, color in before_after(later, later).getcolors(1 << 20)}
    assert (222, 70, 70) not in colors

    stranger = Evaluation(0, 0, (scored(Prompt("p9", "a cat", "other")),))
    with pytest.raises(UserError, match="no prompt in common"):
        before_after(stranger, later)


def test_the_reward_curve_is_drawn_from_any_of_its_series(tmp_path):
    steps = [{"step": 1, "reward/mean": 0.1}, {"step": 2, "reward/mean": None}]
    reward_curve(steps, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").width > 1000
    with pytest.raises(UserError, match="no reward to draw"):
        reward_curve([{"step": 1, "loss": 0.1}], tmp_path / "b.png")


def test_training_samples_are_kept_one_by_one(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.samples(7, [scored(shade=9, reward=0.25, objects=0.5), scored(OTHER, index=1, shade=200)])
    recorder.close()

    folder = tmp_path / "samples" / "step_000007"
    first, second = json.loads((folder / "samples.json").read_text())["scored"]
    assert first["prompt"]["prompt"] == PROMPT.text
    assert (first["scores"], first["explanation"]) == ({"objects": 0.5}, {"objects": "saw objects"})
    assert (second["cot"], second["reward"], second["index"]) == ("red circle top left", 1.0, 1)
    assert np.asarray(Image.open(folder / second["image"])).tolist() == [[[200] * 3] * 24] * 24
