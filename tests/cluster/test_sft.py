"""`bicot sft` as a user runs it: what it learns and leaves; a broken run ends as a whole one."""

import hashlib
import json
import random
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from PIL import Image

from cluster.cli import app
from examples.shapes.warmup import Codes
from examples.shapes.world import all_prompts, make_plan, plan_text, render
from tests.cluster.commands import TRAIN, assert_gone, bicot, environment, wait_for
from tests.conftest import ROOT

pytestmark = pytest.mark.e2e
STEPS = 24
CONFIG = """
name: whole
policy: {{path: {policy}, templates: examples/shapes/templates}}
learner:
  ranks: 2
  num_cpus: 0.3
  lr: 2.0e-3
  freeze: [model.vision_model, model.aligner, model.vqmodel]
sft:
  data: {folder}/rows.jsonl
  heldout: {folder}/heldout.jsonl
  steps: {steps}
  batch_size: 8
  evaluate_every: 10
  save_every: 3
ray: {{dashboard: false}}
"""


def worked_examples(folder, count, rng):
    """Of every kind: pictures and ids, with and without a CoT, a CoT alone."""
    prompts = [prompt for some in all_prompts().values() for prompt in some]
    codes = Codes()
    for n in range(count):
        prompt = rng.choice(prompts)
        plan = make_plan(prompt, rng)
        row = {"prompt": prompt.text}
        if n % 5 != 1:
            row["cot"] = plan_text(plan)
        if n % 5 == 0:
            row["image"] = f"{n}.png"
            Image.fromarray(render(plan)).save(folder / row["image"])
        elif n % 5 != 2:
            row["image_ids"] = codes(render(plan)[None])[0].tolist()
        yield row


@pytest.fixture(scope="module")
def config(tmp_path_factory, policy_config):
    folder, rng = tmp_path_factory.mktemp("sft"), random.Random(0)
    for name, count in (("rows", 60), ("heldout", 20)):
        rows = worked_examples(folder, count, rng)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "sft.yaml"
    path.write_text(CONFIG.format(policy=policy_config.path, folder=folder, steps=STEPS))
    return path


@pytest.fixture(scope="module")
def whole(config):
    done = bicot("sft", config, f"runs_dir={config.parent}")
    assert done.returncode == 0, done.stdout + done.stderr
    return config.parent / "whole", done.stdout


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def model_of(folder):
    saved = folder / f"checkpoints/step_{STEPS:06d}/model.safetensors"
    return hashlib.sha256(saved.read_bytes()).hexdigest()


def test_both_cots_become_likelier_also_in_held_out_examples(whole):
    folder, output = whole
    looks = [line for line in lines_of(folder) if "eval/loss" in line]
    assert [line["step"] for line in looks] == [0, 10, 20, STEPS]
    for name in ("eval/loss", "eval/loss/cot", "eval/loss/image"):
        assert looks[-1][name] < looks[0][name]
    steps = [line for line in lines_of(folder) if "time/step" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert np.mean([s["loss"] for s in steps[-5:]]) < np.mean([s["loss"] for s in steps[:5]])
    assert not any(name.startswith(("sampler_gap", "reward")) for name in steps[0])
    assert f"step {STEPS}/{STEPS}  loss" in output and "held-out examples at step 0: loss" in output


def test_the_run_directory_is_one_that_the_commands_read(whole, capsys):
    folder, output = whole
    assert str(folder / "report.html") in output
    assert "Held-out loss" in (folder / "report.html").read_text()
    app(["status", str(folder)], standalone_mode=False)
    shown = capsys.readouterr().out
    assert f"{STEPS} of {STEPS}" in shown and "loss/cot" in shown and "eval/loss at step 0" in shown


def test_the_checkpoint_thinks_and_draws(whole, tmp_path):
    checkpoint = whole[0] / f"checkpoints/step_{STEPS:06d}"
    arguments = ["generate", TRAIN, "a red circle", "--policy", str(checkpoint)]
    app([*arguments, "--samples", "1", "--out", str(tmp_path)], standalone_mode=False)
    (row,) = map(json.loads, (tmp_path / "cots.jsonl").read_text().splitlines())
    assert row["cot"]
    assert np.asarray(Image.open(tmp_path / row["image"])).shape == (24, 24, 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_loses_a_rank_and_is_stopped_ends_as_a_whole_one(config, whole):
    """Killed in step 5 or soon after, asked to stop some steps later, and given again."""
    folder, log = config.parent / "broken", config.parent / "broken.log"
    arguments = ["sft", str(config), f"runs_dir={config.parent}", "name=broken"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster", *arguments],
            cwd=ROOT,
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    wait_for(lambda: f"step 4/{STEPS} " in log.read_text(), "step 4", log.read_text)
    family = psutil.Process(process.pid).children(recursive=True)
    ranks = [p for p in family if "LearnerWorker" in " ".join(p.cmdline())]
    ranks[1].kill()
    wait_for(lambda: "it was built again" in log.read_text(), "a new learner", log.read_text)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75, log.read_text()
    assert_gone(family)
    assert "stopped after step" in log.read_text()
    assert "Traceback" not in log.read_text()
    stopped = max(line["step"] for line in lines_of(folder))
    assert 3 <= stopped < STEPS

    done = bicot(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"goes on from step {stopped}" in done.stdout.replace("\n", " ")
    assert model_of(folder) == model_of(whole[0])

    def losses(run):
        return {line["step"]: line["loss"] for line in lines_of(run) if "loss" in line}

    assert losses(folder) == losses(whole[0])


def test_a_run_goes_on_with_no_other_data(config, whole):
    other = config.parent / "other.jsonl"
    other.write_text((config.parent / "rows.jsonl").read_text() + '{"prompt": "x", "cot": "y"}\n')
    more = [f"runs_dir={config.parent}", f"sft.steps={STEPS + 2}", f"sft.data={other}"]
    done = bicot("sft", config, *more)
    assert done.returncode == 2
    output = " ".join(done.stdout.split())
    assert "of other settings: sft.data" in output and "sft.resume=never" in output


def test_a_broken_picture_ends_the_run_before_anything_is_written(config, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "p.png")
    (tmp_path / "p.png").write_bytes((tmp_path / "p.png").read_bytes()[:800])
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x", "image": "p.png"}\n')
    one = (f"runs_dir={tmp_path}", f"sft.data={tmp_path}/rows.jsonl", "learner.ranks=1")
    done = bicot("sft", config, *one)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "rows.jsonl:1: image" in done.stdout and "cannot be decoded" in done.stdout
    assert not (tmp_path / "whole").exists()
