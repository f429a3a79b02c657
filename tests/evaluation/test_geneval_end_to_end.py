"""GenEval from prompt to table as a user runs it: tiny random models draw and judge."""

import json

import pytest

from cluster.cli import app
from evaluation.compare import read_runs, tables
from evaluation.geneval import TASKS
from policy.errors import UserError
from tests.cluster.commands import bicot
from tests.evaluation.small_geneval import SmallGenEval, write_data
from tests.evaluation.test_geneval_judge import clip_folder, detector_folder

pytestmark = pytest.mark.e2e

__all__ = ["clip_folder", "detector_folder"]


@pytest.mark.slow
def test_six_prompts_drawn_judged_scored_and_compared(
    policy_config, detector_folder, clip_folder, tmp_path
):
    write_data(tmp_path / "data")
    options = {"path": detector_folder, "clip_path": clip_folder, "dtype": "float32"}
    common = [
        *("bench", "run", SmallGenEval.name, "--policy", policy_config.path),
        *("--data", tmp_path / "data", "--out", tmp_path / "out", "ray.dashboard=false"),
        *("actors.num_cpus=0.1", "actors.sampling.max_cot_tokens=8"),
        f"policy.templates={policy_config.templates}",
    ]
    judges = [f"judges.objects.options.{name}={value}" for name, value in options.items()]
    done = bicot(*common, *judges)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    result = json.loads((out / "result.json").read_text())
    assert tuple(result["tasks"]) == TASKS
    assert result["overall"] == pytest.approx(sum(result["tasks"].values()) / 6)
    assert not any(result["gaps"].values())
    assert result["prompts"] == {"repository": "somebody/geneval", "commit": "0" * 40}
    assert result["judges"]["objects"]["model"] == str(detector_folder)
    assert any("weights are not the published judge's" in note for note in result["notes"])
    assert json.loads((out / "images/00003/metadata.jsonl").read_text())["tag"] == "colors"
    assert len(list(out.glob("images/*/samples/*.png"))) == 24

    replies = [json.loads(line) for line in (out / "replies.jsonl").read_text().splitlines()]
    assert len(replies) == 24 and all("detections" in row["reply"] for row in replies)
    # The published layout is read back by itself: the same images give the same score.
    again = bicot(
        *("bench", "score", out / "images", "--benchmark", SmallGenEval.name),
        *("--data", tmp_path / "data", "--out", tmp_path / "again", "ray.dashboard=false", *judges),
    )
    assert again.returncode == 0, again.stdout + again.stderr
    (table,) = tables(read_runs([out, tmp_path / "again"]))
    assert table.scores["overall"][0] == table.scores["overall"][1]


def test_prompts_that_are_not_here_say_how_to_get_them(policy_config, tmp_path):
    command = ["bench", "run", SmallGenEval.name, "--policy", policy_config.path]
    command += ["--out", str(tmp_path / "out"), "--data"]
    with pytest.raises(UserError, match="`bicot fetch small_geneval` gets it"):
        app([*command, str(tmp_path / "none")], standalone_mode=False)
    write_data(tmp_path / "data")
    with (tmp_path / "data" / "evaluation_metadata.jsonl").open("a") as file:
        file.write('{"tag": "colors", "include": [], "prompt": "one more"}\n')
    with pytest.raises(UserError, match="prompts that were changed make another benchmark"):
        app([*command, str(tmp_path / "data")], standalone_mode=False)
    assert not (tmp_path / "out").exists()
