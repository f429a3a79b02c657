"""The whole loop as a user runs it, with every real component: Ray, Serve, DeepSpeed on two ranks."""

import json
import os
import socket
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.checkpoint import newest
from cluster.cli import app
from cluster.config import load_config
from cluster.ledger import faults, read_ledger
from cluster.validate import run_folder
from cluster.watch.benchmarks import BenchmarkSlice
from evaluation.generators import make_generator
from evaluation.result import read_result
from examples.shapes.benchmark import Eyes, Shapes
from policy.model import load_janus
from tests.cluster.commands import ONE_EACH, TRAIN, a_few, bicot, environment
from tests.conftest import ROOT

pytestmark = pytest.mark.e2e
QUIETLY = ("train", TRAIN, "ray.dashboard=false")


def read_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def sync_run(tmp_path_factory):
    """Four synchronous steps, with three evaluations and looks at a benchmark."""
    tmp = tmp_path_factory.mktemp("sync")
    held_out = a_few("heldout.jsonl", tmp / "heldout.jsonl", every=14)
    overrides = ["train.steps=4", "evaluate.every=2", f"evaluate.prompts={held_out}", f"runs_dir={tmp}"]
    overrides += ["evaluate.benchmarks=[shapes]", "evaluate.benchmark_prompts=5"]
    done = bicot("train", TRAIN, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, tmp / "shapes", overrides


def test_a_run_tells_its_steps_and_ends_with_a_summary(sync_run):
    done, folder, _ = sync_run
    for text in (
        "step 4/4",
        "strict",
        "s left",
        "evaluation at step 0",
        "evaluation at step 4",
        "before",
    ):
        assert text in done.stdout
    for name in ("reward_curve.png", "before_after.png", "report.html"):
        assert str(folder / name) in done.stdout
        assert (folder / name).stat().st_size > 1000


def test_metrics_have_a_line_a_step_and_a_line_an_evaluation(sync_run):
    _, folder, _ = sync_run
    lines = read_lines(folder)
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval/reward" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert [line["step"] for line in evaluations] == [0, 2, 4]
    names = ("reward", "strict_accuracy", "cot_accuracy", "diversity", "objects", "count", "relation")
    for line in evaluations:
        assert all(0 <= line[f"eval/{name}"] <= 1 for name in names)
    for line in steps:
        assert line["staleness/max"] == 0
        assert line["groups/dropped"] == 0
        assert 0 < line["reward/mean"] < 1 and 0 < line["image/edge_density"] < 1
        # Exactly on-policy: what the learner computes is what the sampler drew from.
        assert line["ratio/cot"] == pytest.approx(1, abs=1e-4)
        assert line["ratio/image"] == pytest.approx(1, abs=1e-4)
        parts = [line[f"time/{p}"] for p in ("generate", "score", "learn", "publish", "wait", "driver")]
        assert sum(parts) == pytest.approx(line["time/step"], rel=0.1)
    assert steps[0]["kl/cot"] == pytest.approx(0, abs=1e-6)
    assert steps[3]["kl/cot"] > 0


def test_the_run_directory_is_complete(sync_run):
    _, folder, overrides = sync_run
    assert load_config(folder / "config.yaml") == load_config(ROOT / TRAIN, overrides)
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert {"reward/mean", "loss/cot", "loss/image", "eval/reward"} <= set(tags["scalars"])
    assert "evaluation" in tags["images"]
    assert any("cots" in tag for tag in tags["tensors"])
    assert (folder / "samples" / "eval_000004" / "grid.png").exists()
    assert " train " in (folder / "starts.jsonl").read_text()
    assert (folder / "samples" / "step_000004.png").exists()


def test_the_checkpoint_is_a_model_that_has_learned_where_it_may(sync_run):
    _, folder, _ = sync_run
    config = load_config(ROOT / TRAIN).policy
    before = load_janus(config).model.state_dict()
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert checkpoint.name == "step_000004"
    after = load_janus(config.model_copy(update={"path": str(checkpoint)})).model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in changed
    frozen = ("model.vision_model", "model.aligner", "model.vqmodel")
    assert not any(name.startswith(frozen) for name in changed)


TASKS = {"color", "numeracy", "complex", "spatial", "riddle"}


def test_a_benchmark_is_scored_before_the_first_step_and_after_the_last(sync_run, capsys):
    """By its own formula on the images that are kept, which anybody can score again."""
    done, folder, _ = sync_run
    lines = [line for line in read_lines(folder) if "bench/shapes/unjudged" in line]
    assert [line["step"] for line in lines] == [0, 2, 4]
    for line in lines:
        kept = folder / "samples" / f"bench_shapes_{line['step']:06d}"
        assert len(list((kept / "images").glob("*.png"))) == 20
        written = read_result(kept)
        app(["bench", "score", str(kept), "--no-judge"], standalone_mode=False)
        result = read_result(kept)
        assert result == written and result["tasks"].keys() == TASKS
        assert line["bench/shapes/overall"] == result["overall"]
        assert all(line[f"bench/shapes/{task}"] == result["tasks"][task] for task in TASKS)
        assert line["bench/shapes/unjudged"] == 0
        message = f"benchmark at step {line['step']}: shapes: overall {result['overall']:.4f}\n"
        assert message in done.stdout
        judge = Eyes()
        for row in map(json.loads, (kept / "replies.jsonl").read_text().splitlines()):
            item = next(i for i in Shapes(Path()).items if i.key == row["item"])
            image = np.asarray(Image.open(kept / "images" / f"{row['item']}_{row['index']}.png"))
            assert judge.replies([image], [{"prompt": item.facts}]) == [row["reply"]]
    report = (folder / "report.html").read_text()
    assert "shapes, 5 of" in report and "Benchmark: shapes" in report


def test_a_benchmark_gets_the_images_that_its_command_draws(sync_run):
    _, folder, overrides = sync_run
    config = load_config(ROOT / TRAIN, overrides)
    (look,) = BenchmarkSlice.all_of(config)
    drawn = make_generator(look.config).draw([(look.items[0], n) for n in range(4)])
    kept = folder / "samples" / "bench_shapes_000000"
    for n, one in enumerate(drawn):
        path = kept / "images" / look.benchmark.files(look.items[0])[n]
        assert np.array_equal(np.asarray(Image.open(path)), one.image)


@pytest.mark.slow
def test_generating_ahead_is_one_step_stale_and_a_group_without_a_score_is_dropped(tmp_path):
    """max_staleness 1, and an expert that is blind to yellow: its groups are dropped, reported and
    counted. Another, blind to blue, is left out of the steps that have any, and takes no group with it.
    A benchmark's judge fails, too: its images are counted, and are in no score."""
    held_out = a_few("heldout.jsonl", tmp_path / "heldout.jsonl", every=40)
    without = [line for line in held_out.read_text().splitlines() if "yellow" not in line]
    held_out.write_text("\n".join(without) + "\n")
    done = bicot(
        *QUIETLY,
        "train.steps=5",
        "train.max_staleness=1",
        "train.groups_per_step=8",
        *ONE_EACH,
        f"evaluate.prompts={held_out}",
        f"runs_dir={tmp_path}",
        "rewards.retries=0",
        "rewards.experts.picky.use=tests.rewards.experts_for_tests:FailsOn",
        "rewards.experts.picky.options.word=yellow",
        "rewards.experts.moody.use=tests.rewards.experts_for_tests:FailsOn",
        "rewards.experts.moody.options.word=blue",
        "rewards.experts.moody.on_failure=leave_out",
        "evaluate.benchmarks=[shapes]",
        "evaluate.benchmark_prompts=5",
        "evaluate.judges.eyes.use=tests.evaluation.toy:MoodyEyes",
        "evaluate.judges.eyes.options.word=and",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    looks = [line for line in read_lines(tmp_path / "shapes") if "bench/shapes/unjudged" in line]
    assert [line["step"] for line in looks] == [0, 5]
    lost = [task for task in TASKS if f"bench/shapes/{task}" not in looks[0]]
    assert 0 < len(lost) < 5
    for line in looks:
        assert line["bench/shapes/unjudged"] == 4 * len(lost)
        assert all(f"bench/shapes/{task}" not in line for task in lost)
    assert f"{4 * len(lost)} of 20 images not judged" in done.stdout
    assert "expert eyes failed 3 times, at last with: OSError: blind to and" in done.stdout
    steps = [line for line in read_lines(tmp_path / "shapes") if "loss" in line]
    assert [line["staleness/max"] for line in steps] == [0, 1, 1, 1, 1]
    dropped = sum(line["groups/dropped"] for line in steps)
    assert 0 < dropped < 40
    assert done.stdout.count("dropped the group of") == dropped
    assert "OSError: blind to yellow" in done.stdout
    assert "warning: expert moody gave no answer, and is left out" in done.stdout
    assert any(line["expert/moody/left_out"] for line in steps)
    assert all(("reward/moody" in line) != bool(line["expert/moody/left_out"]) for line in steps)
    assert sum(line["expert/picky/failures"] for line in steps) == dropped
    assert all(line["groups/dropped"] + line["groups/filtered"] < 8 for line in steps)


def test_an_earlier_run_is_kept(tmp_path):
    config = load_config(ROOT / TRAIN, [f"runs_dir={tmp_path}"])
    for name in ("first", "second", "third"):
        folder = run_folder(config)
        assert {p.name for p in folder.iterdir()} == {"config.yaml", "starts.jsonl"}
        (folder / name).touch()
    found = {p.relative_to(tmp_path) for p in tmp_path.rglob("*")}
    assert found >= {Path("shapes/third"), Path("shapes.1/first"), Path("shapes.2/second")}


def test_a_run_that_cannot_start_leaves_nothing(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = bicot(*QUIETLY, f"runs_dir={tmp_path}/runs", f"rewards.gateway.port={port}")
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use" in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install")
def test_vllm_trains_as_the_torch_sampler_does(sync_run, tmp_path):
    """Two steps with broadcast weights; the samples are token for token those of the other run."""
    _, folder, _ = sync_run
    done = bicot(
        *QUIETLY,
        "train.steps=2",
        "actors.sampler=vllm",
        "actors.vllm.kv_cache_mb=16",
        "learner.transport=broadcast",
        f"evaluate.prompts={folder.parent / 'heldout.jsonl'}",
        f"runs_dir={tmp_path}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    torch_lines, vllm_lines = read_lines(folder), read_lines(tmp_path / "shapes")
    for step, kind in ((0, "eval/reward"), (1, "reward/mean"), (2, "reward/mean"), (2, "eval/reward")):
        (one,) = (line[kind] for line in torch_lines if line["step"] == step and kind in line)
        (other,) = (line[kind] for line in vllm_lines if line["step"] == step and kind in line)
        assert one == pytest.approx(other, abs=1e-6), (step, kind)


@pytest.mark.slow
def test_gradients_that_are_not_finite_stop_the_run_with_what_was_good(sync_run, tmp_path):
    """A KL term of 1e38 is nothing in the first step, where policy and reference are the same, and
    overflows in every later one."""
    _, folder, _ = sync_run
    done = bicot(
        *QUIETLY,
        "train.steps=9",
        "train.save_every=1",
        "train.max_skipped_steps=2",
        "train.groups_per_step=2",
        *ONE_EACH,
        "learner.kl_coef=1e38",
        f"evaluate.prompts={folder.parent / 'heldout.jsonl'}",
        f"runs_dir={tmp_path}",
    )
    assert done.returncode == 2
    run = tmp_path / "shapes"
    assert "error: the gradient was not finite in 2 steps in a row, up to step 3;" in done.stdout
    assert f"the last good checkpoint is in {run / 'checkpoints'}" in done.stdout
    steps = [line for line in read_lines(run) if "loss" in line]
    assert [line["step/skipped"] for line in steps] == [0, 1, 1]
    entries = read_ledger(run)
    assert faults(entries) == []
    assert {e.outcome for e in entries if e.step > 1} <= {"skipped", "filtered"}
    kept = newest(run / "checkpoints", print)
    config = load_config(ROOT / TRAIN).policy.model_copy(update={"path": str(kept.folder)})
    assert all(p.isfinite().all() for p in load_janus(config).model.parameters())


@pytest.mark.slow
def test_a_run_that_learns_nothing_stops_and_says_why(sync_run, tmp_path):
    """An expert answers the first evaluation and nothing after it. What was begun is kept."""
    _, folder, _ = sync_run
    held_out = folder.parent / "heldout.jsonl"
    enough = len(held_out.read_text().splitlines())
    done = bicot(
        *QUIETLY,
        "train.steps=9",
        "train.groups_per_step=2",
        "train.max_empty_steps=4",
        *ONE_EACH,
        "rewards.retries=0",
        "rewards.experts={gone: {use: tests.rewards.experts_for_tests:GoesAway,"
        f" options: {{after: {enough}}}}}}}",
        "evaluate.samples_per_prompt=1",
        f"evaluate.prompts={held_out}",
        f"runs_dir={tmp_path}",
    )
    run = tmp_path / "shapes"
    assert done.returncode == 2
    assert "nothing was learned in 3 steps in a row, up to step 3: " in done.stdout
    assert "the run stops after 4 (train.max_empty_steps)" in done.stdout
    assert "error: nothing was learned in 4 steps in a row, up to step 4: " in done.stdout
    assert "OSError: the lens is gone" in done.stdout.splitlines()[-1]
    assert {e.outcome for e in read_ledger(run)} == {"dropped"}
    assert newest(run / "checkpoints", print).state.step == 4


@pytest.mark.slow
def test_a_run_whose_experts_give_no_score_ends_with_their_error(tmp_path):
    done = bicot(
        *QUIETLY,
        *ONE_EACH,
        "rewards.retries=0",
        "rewards.experts={odd: {use: tests.rewards.experts_for_tests:FixedAnswer,"
        " options: {values: [1]}}}",
        f"evaluate.prompts={a_few('heldout.jsonl', tmp_path / 'few.jsonl', every=40)}",
        f"runs_dir={tmp_path}",
    )
    assert done.returncode == 2
    last = done.stdout.splitlines()[-1]
    assert "error: no held-out prompt was scored at step 0: " in last
    assert "expert odd failed" in last


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            ["rewards.experts.objects.num_gpus=1", "learner.num_gpus=1", "learner.ranks=2"],
            "this machine has 0 GPUs; the run asks for 3: learner 2, expert 1",
        ),
        (
            ["rewards.experts.objects.resources={vision: 1}"],
            "no room for expert objects, 1 x 0.1 CPU, 1 vision: the nodes hold 0 of them",
        ),
    ],
)
def test_a_role_that_cannot_start_is_reported_in_one_line(tmp_path, overrides, complaint):
    done = bicot(*QUIETLY, f"runs_dir={tmp_path}/runs", *overrides)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"error: {complaint}")
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("RAY_TMPDIR", "{tmp}/" + "x" * 100, "set RAY_TMPDIR to a short one"),
        ("HOME", "/proc/nowhere", "No such file or directory: '/proc/nowhere'"),
        ("RAY_ADDRESS", "http://127.0.0.1:{port}", "an http:// address is for `ray job submit`"),
    ],
)
def test_ray_that_cannot_start_is_reported_in_one_line(tmp_path, name, value, complaint):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        value = value.format(tmp=tmp_path, port=listening.getsockname()[1])
        if name == "RAY_TMPDIR":
            os.mkdir(value)
        env = environment() | {name: value}
        done = bicot("train", TRAIN, f"runs_dir={tmp_path}/runs", env=env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert complaint in done.stdout.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_run_of_many_updates_asks_for_more_groups_and_goes_on_where_it_stopped(tmp_path):
    """DAPO's preset, generating ahead: groups whose rewards are equal are replaced, by bounds; every
    group of the stream is accounted for, over a checkpoint as well."""
    overrides = ["algorithm=dapo", "train.max_staleness=1", "train.group_size=2", "seed=3"]
    overrides += ["train.groups_per_step=4", "train.resample_equal_groups=3", "train.save_every=1"]
    overrides += ["learner.schedule=linear", "learner.advantages=gdpo", f"runs_dir={tmp_path}"]
    overrides += ["rewards.experts.relation.credits=cot", "learner.importance=truncated"]
    held_out = a_few("heldout.jsonl", tmp_path / "heldout.jsonl", every=40)
    overrides += [f"evaluate.prompts={held_out}", "ray.dashboard=false", *ONE_EACH]
    for steps in (2, 4):
        done = bicot("train", TRAIN, *overrides, f"train.steps={steps}")
        assert done.returncode == 0, done.stdout + done.stderr
        if steps == 2:
            (tmp_path / "shapes" / "report.html").unlink()  # as if it had been killed there
    assert "goes on from step 2" in done.stdout
    entries = read_ledger(tmp_path / "shapes")
    assert not faults(entries)
    per_step = [sum(entry.step == step for entry in entries) for step in (1, 2, 3, 4)]
    assert all(4 <= count <= 7 for count in per_step)
    assert any(count > 4 for count in per_step)
    steps = [line for line in read_lines(tmp_path / "shapes") if "loss" in line]
    for line, count in zip(steps, per_step, strict=True):
        assert line["step/updates"] == 2
        assert line["groups/filtered"] == sum(
            entry.step == line["step"] and entry.outcome == "filtered" for entry in entries
        )
        assert line["groups/resampled"] == count - 4
        assert line["entropy/cot"] > 0
        assert line["staleness/max"] <= 1
    assert [line["lr"] for line in steps[2:]] == pytest.approx([1e-4, 5e-5])
