import json
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from cluster.commands.generate import prompts_to_draw
from cluster.config import load_config
from cluster.validate import validate_run
from policy.errors import UserError
from tests.cluster.commands import (
    ONE_EACH,
    TRAIN,
    a_few,
    assert_gone,
    bicot,
    bicot_here,
    environment,
    obey_ctrl_c,
)
from tests.conftest import ROOT, SHAPES

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("learner.lrr=1", "unknown key 'learner.lrr'; did you mean 'learner.lr'?"),
        ("train.prompts=none.jsonl", "none.jsonl: no such prompt file"),
        ("evaluate.prompts={tmp}/bad.jsonl", "bad.jsonl:2: field 'prompt': Field required"),
        ("train.prompts={tmp}/long.jsonl", "long.jsonl:3: the prompt is too long: with a semantic CoT"),
        ("policy.path={tmp}", "it has no config.json"),
        ("policy.path=examples/shapes/nowhere", "no such model directory"),
        ("policy.templates={tmp}/nowhere", "no such folder of prompt templates"),
        ("rewards.experts.count.use=examples.shapes.experts:CuontExpert", "did you mean CountExpert?"),
        ("rewards.experts.extra.use=nowhere.experts:One", "there is no module 'nowhere'"),
        ("evaluate.cot_checker=examples.shapes.world:nobody", "evaluate.cot_checker"),
        ("learner.deepspeed={tmp}/none.json", "none.json: no such file"),
        ("train.wandb.mode=offline", "key 'train.wandb.project' is missing"),
        ("learner.freeze=[model.vqmodle]", "no module 'model.vqmodle'; did you mean 'model.vqmodel'?"),
    ],
)
def test_bad_input_is_found_before_anything_starts(tmp_path, monkeypatch, override, complaint):
    good = '{"prompt": "a red circle", "task_type": "color"}\n'
    (tmp_path / "bad.jsonl").write_text(good + '{"task_type": "color"}\n')
    (tmp_path / "long.jsonl").write_text(good + "\n" + good.replace("red", "red " * 60))
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as caught:
        validate_run(load_config(TRAIN, [override.format(tmp=tmp_path)]))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_input_ends_the_command_with_one_line_and_no_half_start(tmp_path):
    done = bicot("train", TRAIN, f"runs_dir={tmp_path}/runs", "train.prompts=none.jsonl")
    assert done.returncode == 2
    assert done.stdout == "error: none.jsonl: no such prompt file\n"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file"
    for command in (["generate", TRAIN, "a red circle", "--out"], ["train", TRAIN]):
        status, output = bicot_here(*command, f"runs_dir={out}" if command[0] == "train" else out)
        assert status == 2
        assert output.startswith(f"error: {out}")
        assert "cannot be written: " in output
        assert output.count("\n") == 1
    status, output = bicot_here("report", tmp_path / ("n" * 300))
    assert (status, output.count("\n")) == (2, 1)
    assert "File name too long" in output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_prompt_is_a_prompt_whatever_files_there_are(tmp_path, monkeypatch):
    (tmp_path / "a red circle").write_text("")
    monkeypatch.chdir(tmp_path)
    overrides = [f"policy.path={SHAPES}/checkpoint", f"policy.templates={SHAPES}/templates"]
    config = load_config(ROOT / TRAIN, overrides)
    for text in ("a red circle", "/etc/passwd", "~", "circle.json", "s" * 300):
        assert [prompt.text for prompt in prompts_to_draw([text], config)] == [text]
    with pytest.raises(UserError, match=r"prompt 2: field 'prompt': is blank"):
        prompts_to_draw(["a", " "], config)
    with pytest.raises(UserError, match="prompt 1: the prompt is too long"):
        prompts_to_draw(["red " * 100], config)
    with pytest.raises(UserError, match=r"none\.jsonl: no such prompt file"):
        prompts_to_draw(["none.jsonl"], config)


@pytest.mark.usefixtures("no_ray")
def test_a_dry_run_prints_config_and_placement_and_starts_nothing(tmp_path):
    status, output = bicot_here(
        "train", TRAIN, "--dry-run", f"runs_dir={tmp_path}/runs", "actors.count=3"
    )
    assert status == 0
    assert "max_staleness: 0" in output
    assert "rollout" in output
    assert "spread over nodes" in output
    assert not (tmp_path / "runs").exists()


def test_a_busy_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = bicot("serve-experts", TRAIN, "ray.dashboard=false", f"rewards.gateway.port={port}")
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [["train", TRAIN, "ray.address={}"], ["experts", "--address", "{}"]]
)
def test_an_address_where_nobody_answers_is_named_at_once(tmp_path, command):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"  # bound, so that nobody else listens there
        own = [f"runs_dir={tmp_path}/runs"] if command[0] == "train" else []
        status, output = bicot_here(*(part.format(address) for part in command), *own)
    assert status == 2
    assert f"error: no Ray cluster answers at {address}: " in output
    assert not (tmp_path / "runs").exists()


def test_generate_writes_cots_images_and_a_grid(tmp_path):
    done = bicot(
        "generate", TRAIN, "a red circle", "two blue squares.", "--samples", 3, "--out", tmp_path
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "cots.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["a red circle"] * 3 + ["two blue squares."] * 3
    assert all(row["cot"] for row in rows)
    pictures = [np.asarray(Image.open(tmp_path / row["image"])) for row in rows]
    assert {p.shape for p in pictures} == {(24, 24, 3)}
    assert (tmp_path / "grid.png").exists()
    assert "a red circle" in done.stdout
    again = tmp_path / "again"
    assert bicot_here("generate", TRAIN, "two blue squares.", "--samples", 3, "--out", again)[0] == 0
    for n, picture in enumerate(pictures[3:]):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"again/{n:04d}.png")), picture)


def test_evaluate_writes_a_table_json_and_a_grid(tmp_path):
    held_out = a_few("heldout.jsonl", tmp_path / "heldout.jsonl", every=20)
    out = tmp_path / "out"
    done = bicot("evaluate", TRAIN, "ray.dashboard=false", f"evaluate.prompts={held_out}", "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "evaluation.json").read_text())
    assert len(found["scored"]) == 2 * len(held_out.read_text().splitlines()) > 0
    assert 0 < found["metrics"]["eval/reward"] < 1
    assert f"{found['metrics']['eval/reward']:.3f}" in done.stdout
    assert (out / "grid.png").exists()


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(tmp_path):
    """In the middle of training: workers, Ray and Serve are gone within ten seconds."""
    held_out = a_few("heldout.jsonl", tmp_path / "heldout.jsonl", every=60)
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "cluster",
                "train",
                TRAIN,
                *ONE_EACH,
                f"runs_dir={tmp_path}",
                f"evaluate.prompts={held_out}",
            ],
            cwd=ROOT,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=obey_ctrl_c,
        )
    deadline = time.monotonic() + 200
    while "step 2/" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) > 8
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) != 0
    assert_gone(children)
    assert "Traceback" not in log.read_text()
    assert "stopped; what" in log.read_text()
    assert not list((tmp_path / "shapes" / "checkpoints").glob("step_*/state.json"))
    lines = (tmp_path / "shapes" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines][:3] == [0, 1, 2]
