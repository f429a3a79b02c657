"""`bicot bench` as people use it, on the shapes world; stopped, gone on, scored again, compared."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from cluster.cli import app
from policy.errors import UserError
from tests.cluster.commands import bicot, environment, obey_ctrl_c, wait_for
from tests.conftest import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CHECKPOINT = "examples/shapes/checkpoint"
RUN = ("bench", "run", "shapes", "--policy", CHECKPOINT, "--limit", 8)
SMALL = ("actors.batch_size=4", "actors.count=1", "ray.dashboard=false")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was stopped by Ctrl-C after the first images, and begun again."""
    out = tmp_path_factory.mktemp("bench") / "before"
    command = [sys.executable, "-m", "cluster", *map(str, (*RUN, *SMALL, "--out", out))]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=obey_ctrl_c,
    )
    journal = out / "images.jsonl"
    wait_for(lambda: journal.exists() and len(rows(journal)) >= 4, "the first images", lambda: "")
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    psutil.wait_procs(children, timeout=10)
    left = [child for child in children if child.is_running()]
    first = rows(journal)
    done = bicot(*RUN, *SMALL, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, first, done, (process.returncode, output, left)


def test_ctrl_c_keeps_what_there_is_and_leaves_no_process(run):
    out, first, _, (status, output, left) = run
    assert status not in (0, 2) and not left
    assert f"stopped; what was drawn and judged is in {out}" in output.replace("\n", " ")
    assert "Traceback" not in output
    assert 4 <= len(first) < 32


def test_a_stopped_run_goes_on_and_draws_nothing_twice(run):
    out, first, done, _ = run
    images = rows(out / "images.jsonl")
    assert images[: len(first)] == first and 4 <= len(first) < 32
    assert len({(row["item"], row["index"]) for row in images}) == len(images) == 32
    assert len({(row["item"], row["index"]) for row in rows(out / "replies.jsonl")}) == 32
    result = json.loads((out / "result.json").read_text())
    assert result["asked"]["prompts"] == 8 and result["asked"]["images"] == 32
    assert set(result["tasks"]) == {"color", "numeracy", "complex", "spatial", "riddle"}
    assert not any(result["gaps"].values())
    assert f"{result['overall']:.4f}" in done.stdout and str(out / "result.json") in done.stdout


def test_a_run_is_scored_again_without_drawing_or_judging(run, no_ray):
    out, *_ = run
    before = {path.name: path.read_bytes() for path in out.glob("*.json*")}
    app(["bench", "score", str(out), "--no-judge"], standalone_mode=False)
    assert {path.name: path.read_bytes() for path in out.glob("*.json*")} == before
    app(["bench", "score", str(out), "--no-judge", "--published-rules"], standalone_mode=False)
    (out / "result_published.json").unlink()


def test_images_of_a_folder_are_judged_anew_into_another_and_compared(run, tmp_path, capsys):
    out, *_ = run
    again = tmp_path / "again"
    done = bicot(
        "bench",
        "score",
        out / "images",
        "--benchmark",
        "shapes",
        "--limit",
        8,
        "--out",
        again,
        SMALL[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, other = (json.loads((folder / "result.json").read_text()) for folder in (out, again))
    assert one["tasks"] == other["tasks"] and other["generator"]["kind"] == "images"
    app(
        ["bench", "compare", str(out), str(again), "--out", str(tmp_path / "side")],
        standalone_mode=False,
    )
    output = capsys.readouterr().out
    assert "before (with CoT)" in output and "again" in output
    page = (tmp_path / "side" / "compare.html").read_text()
    assert page.count("data:image/png") == 8 * 2 * 2
    assert (tmp_path / "side" / "compare.csv").read_text().count("\n") == 1 + 2 * 6


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ("run", "genevil", "--policy", CHECKPOINT),
            "no benchmark is called 'genevil'; there are geneval",
        ),
        (("run", "shapes"), "name one source of images"),
        (("run", "shapes", "--policy", "/nowhere"), "/nowhere: no such model directory"),
        (("run", "shapes", "--policy", CHECKPOINT, "--tasks", "blue"), "no prompt has the task 'blue'"),
        (
            ("run", "shapes", "--policy", CHECKPOINT, "judges.ears.replicas=2"),
            "shapes has no such judge",
        ),
        (("run", "shapes", "--policy", CHECKPOINT, "actors.cont=2"), "did you mean 'actors.count'?"),
        (("run", "shapes", "--policy", CHECKPOINT, "--judge-url", "http://x/v1"), "asked over HTTP"),
        (
            ("run", "shapes", "--policy", CHECKPOINT, "--seed", "1", "--out", "{run}"),
            "another run in it",
        ),
        (("score", "{tmp}"), "name the one whose layout the images have, by --benchmark"),
        (("score", "{tmp}/nothing"), "no such folder"),
        (("compare", "{run}", "{tmp}"), "no such result"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(run, no_ray, tmp_path, arguments, complaint):
    out, *_ = run
    before = sorted(path.name for path in out.iterdir())
    there = {"run": out, "tmp": tmp_path}
    with pytest.raises(UserError) as error:
        app(["bench", *(argument.format(**there) for argument in arguments)], standalone_mode=False)
    assert complaint in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in out.iterdir()) == before
    assert not os.listdir(tmp_path)
    assert not (ROOT / "bench").exists()


def test_a_model_that_is_not_asked_to_think_needs_no_template_and_one_that_is_does(
    run, no_ray, tmp_path
):
    templates = tmp_path / "templates"
    templates.mkdir()
    command = [*map(str, RUN), f"policy.templates={templates}", "--out", str(tmp_path / "x")]
    with pytest.raises(UserError, match=r"no semantic_cot\.txt.*--no-cot"):
        app(command, standalone_mode=False)
    assert not (tmp_path / "x").exists()
