"""The report as a reader's browser gets it, and the curves that it is drawn from."""

import io
import json
import re
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from cluster.checkpoint import State
from cluster.commands.runs import show_status
from cluster.config import dump_config, load_config
from cluster.fingerprints import fingerprints
from cluster.train import train
from cluster.watch.changes import Value, changes
from cluster.watch.curves import charts, read_metrics, series
from cluster.watch.evaluation import Evaluation, ScoredSample
from cluster.watch.flat import fold
from cluster.watch.plots import before_after
from cluster.watch.recorder import Recorder
from cluster.watch.report import (
    data_uri,
    experts_of,
    first_and_last,
    spread_with_ends,
    write_report,
    write_summary,
)
from cluster.watch.starts import command, note_start, read_starts
from policy.errors import UserError
from policy.records import Prompt, Sample
from tests.cluster.commands import TRAIN
from tests.conftest import ROOT

ATTACK = "<script>alert(1)</script>"


def evaluation(
    step: int, reward: float, prompts: int = 3, name: str = "p", **scores: float
) -> Evaluation:
    ids, logps, image = np.arange(5), [np.zeros(5, np.float32)] * 3, np.zeros((24, 24, 3), np.uint8)

    def one(n: int) -> ScoredSample:
        prompt = Prompt(f"{name}{n}", f"{ATTACK} number {n} of {name}", "color")
        plan = f"plan {ATTACK}"
        sample = Sample(prompt.id, 0, 1, step, ids, ids, plan, ids, ids, *logps, image, "stop")
        explanation = dict.fromkeys(scores, f'"{ATTACK}')
        return ScoredSample(prompt, sample, reward, reward > 0.5, True, scores, explanation)

    return Evaluation(step, step, tuple(one(n) for n in range(prompts)))


@pytest.fixture
def run(tmp_path):
    recorder = Recorder(tmp_path / "shapes <b>run")
    recorder.evaluation(0, evaluation(0, 0.25, objects=0.5))
    for step in range(1, 11):
        own = float("nan") if step == 3 else 1.0
        recorder.step(step, {"reward/mean": step / 10, "kl/cot": 0.1, "my/own": own})
    recorder.evaluation(10, evaluation(10, 0.75, objects=0.875, relation=1.0))
    recorder.close()
    (recorder.folder / "config.yaml").write_text("note: a < b & c\n")
    return recorder.folder


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text, self._code = [], "", False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._code = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._code = False

    def handle_data(self, data):
        if not self._code:
            self.text += data


def page(run) -> Page:
    return Page(write_report(run).read_text())


def test_the_report_loads_nothing(run):
    html = write_report(run).read_text()
    for tag, attributes in Page(html).tags:
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"url\(|@import|fetch\(|https?://", html)


def test_the_first_and_the_last_evaluation_stand_side_by_side(run):
    text = " ".join(page(run).text.split())
    assert "+0.500 from 0.250" in text
    assert "+100.0 points from 0.0%" in text

    found = changes(evaluation(0, 0.25, objects=0.5), evaluation(9, 0.2, relation=1))
    rows = {row.label: row for row in found}
    assert (rows["Reward"].difference, rows["Reward"].verdict) == (Value("\N{MINUS SIGN}0.050"), "")
    assert (rows["objects"].before, rows["objects"].after) == (Value("0.500"), None)
    assert (rows["relation"].before, rows["relation"].after) == (None, Value("1.000"))
    assert "Diversity" not in rows  # no prompt had two samples
    by_type = {row.table: row for row in found if row.label == "color"}
    assert set(by_type) == {"reward by task type", "strict accuracy by task type"}
    assert by_type["reward by task type"].before == Value("0.250")
    assert "reward by task typepromptsstep 0step 10difference color30.2500.750+0.500" in text
    assert "No intervals: the evaluation has fewer than 5 prompts" in text


def test_whatever_a_prompt_says_is_text(run):
    report = page(run)
    assert f"{ATTACK} number 0" in report.text
    assert f"plan {ATTACK}" in report.text
    assert "shapes <b>run" in report.text
    assert "a < b & c" in report.text
    assert [tag for tag, _ in report.tags].count("script") == 1
    assert any(attrs.get("title") == f'"{ATTACK}' for tag, attrs in report.tags if tag == "span")


def test_a_torn_line_is_left_out_and_counted(run):
    assert "unreadable" not in page(run).text
    with (run / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 11, "note": "é'.encode()[:-1])  # in the middle of a character
    assert "10 steps" in page(run).text
    assert "1 unreadable line in metrics.jsonl left out" in page(run).text


@pytest.mark.parametrize(
    "odd",
    [
        {"step": "11"},
        {"step": True},
        {"loss": "much"},
        {"loss": [1]},
        {"loss": 10**400},
        {"time": None},
        {"note": "\u2028"},
    ],
)
def test_lines_that_are_no_metrics_are_named_and_left_out(run, odd):
    good = {"step": 11, "time": 1.0, "loss": 1.0, "ownlossofmine": 2.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(good | odd, ensure_ascii=False) + "\n" + json.dumps(good) + "\n")
    lines, unreadable = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines][-2:] == [10, 11]
    (complaint,) = unreadable
    assert f"metrics.jsonl:13: `{min(odd)}` is no " in complaint
    messages = []
    assert "11 steps" in Page(write_report(run, messages.append).read_text()).text
    assert messages == [f"left out: {complaint}"]


def test_status_names_the_lines_that_it_leaves_out(run):
    config = load_config(ROOT / TRAIN)
    (run / "config.yaml").write_text(dump_config(config))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 11, "time/step": "long"}\n{"step": 11, "time/step": null, "eval/reward": null}\n'
        )
        file.write('{"step": 12, "time/step": 2.0}\n')
    console = Console(file=io.StringIO(), width=200)
    show_status(run, console)
    output = console.file.getvalue()
    assert "metrics.jsonl:13: `time/step` is no number" in output
    assert f"12 of {config.train.steps}" in output


def test_a_run_that_was_killed_before_its_report_gets_it_and_nothing_else(run, monkeypatch):
    """The same command starts no Ray for it, and makes no step again."""
    run = run.rename(run.parent / "again")
    overrides = [f"runs_dir={run.parent}", "name=again", "train.steps=10"]
    config = load_config(ROOT / TRAIN, overrides)
    saved = run / "checkpoints" / "step_000010"
    saved.mkdir(parents=True)
    marks = fingerprints(config)
    state = State(10, 10, 1, config.model_dump(mode="json"), fingerprints=marks)
    (saved / "state.json").write_text(json.dumps(asdict(state)))
    monkeypatch.setattr("cluster.train.start_workers", pytest.fail)
    monkeypatch.setattr("cluster.train.ray_session", pytest.fail)
    console = Console(file=io.StringIO(), width=200)
    assert train(config, console) == run
    for name in ("reward_curve.png", "before_after.png", "report.html"):
        assert (run / name).exists()
    assert not run.with_name(f"{run.name}.1").exists()
    assert "goes on from step 10" in console.file.getvalue()


@pytest.mark.parametrize("odd", ["[]", '{"scored": 5}', '{"scored": [[]]}', "{", "cut image"])
def test_an_evaluation_that_cannot_be_read_is_reported_and_left_out(run, odd):
    folder = run / "samples" / "eval_000010"
    if odd == "cut image":
        (folder / "0001.png").write_bytes((folder / "0001.png").read_bytes()[:40])
    else:
        (folder / "evaluation.json").write_text(odd)
    messages = []
    text = Page(write_report(run, messages.append).read_text()).text
    assert "2 evaluations" in " ".join(text.split())
    assert len(messages) == 1
    assert "eval_000010/evaluation.json: not a readable evaluation" in messages[0]
    assert first_and_last(run, messages.append)[1].step == 0


def test_a_run_that_went_on_with_other_prompts_compares_like_with_like(run):
    """The first evaluation of the same prompts stands beside the last; with none there is a report."""
    recorder = Recorder(run)
    for step in (999_999, 1_000_000):
        recorder.evaluation(step, evaluation(step, 0.5, name="q"))
        messages = []
        before, after = first_and_last(run, messages.append)
        paths = write_summary(run, before, after, messages.append)
        names = [path.name for path in paths]
        assert not messages
        assert after.step == step
        if step == 999_999:
            assert before is None
            assert names == ["reward_curve.png", "report.html"]
        else:
            assert before.step == 999_999
            assert names == ["reward_curve.png", "before_after.png", "report.html"]
    recorder.close()


def test_half_a_surrogate_does_not_cost_the_report(run):
    messages = []
    recorder = Recorder(run, tell=messages.append)
    recorder.evaluation(20, evaluation(20, 0.5, name="\ud800"))
    recorder.close()
    assert not messages
    assert "?0" in (run / "samples/eval_000020/evaluation.json").read_text()
    write_report(run)


def test_a_run_that_has_only_begun_has_a_report(tmp_path):
    Recorder(tmp_path).close()
    text = page(tmp_path).text
    for missing in ("No step is recorded yet", "No evaluation is recorded yet", "no config.yaml"):
        assert missing in text


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is not a run directory: it has no metrics\.jsonl"):
        write_report(tmp_path)


def test_an_evaluation_that_was_not_finished_is_not_shown(run):
    (run / "samples" / "eval_000010" / "evaluation.json").unlink()
    assert "1 evaluation" in " ".join(page(run).text.split())


def test_a_large_evaluation_is_cut_and_says_so(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.evaluation(5, evaluation(5, 1.0, prompts=60))
    recorder.close()
    report = page(tmp_path)
    assert "Shown: 48 of 60 prompts" in report.text
    assert [tag for tag, _ in report.tags].count("img") == 48


def test_images_are_embedded_as_they_are_or_reduced():
    assert data_uri(np.zeros((24, 24, 3), np.uint8)).startswith("data:image/png;base64,")
    noise = np.random.default_rng(0).integers(0, 255, (768, 768, 3), np.uint8)
    assert data_uri(noise).startswith("data:image/jpeg;base64,")
    assert len(data_uri(noise)) < 60_000


def test_a_finished_run_has_its_curve_its_pictures_and_its_report(run):
    paths = write_summary(run, evaluation(0, 0.25), evaluation(10, 0.75))
    assert [path.name for path in paths] == ["reward_curve.png", "before_after.png", "report.html"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_a_choice_of_evaluations_keeps_both_ends():
    assert spread_with_ends(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert spread_with_ends([1, 2], 5) == [1, 2]


# --- curves --------------------------------------------------------------------------------------


def test_every_series_is_in_exactly_one_chart(run):
    found = charts(series(read_metrics(run / "metrics.jsonl").lines), ["objects", "relation"])
    names = [line.name for chart in found for line in chart.lines]
    assert len(names) == len(set(names))
    assert {"reward/mean", "eval/reward", "kl/cot", "my/own", "eval/relation"} <= set(names)
    titles = {chart.lines[0].name: chart.title for chart in found}
    assert titles["my/own"] == "my"
    assert titles["eval/reward/task/color"] == "Held-out reward by task type"


# --- what a reader learns ------------------------------------------------------------------------


def noisy(step: int, rewards: list[float], **weights: float) -> Evaluation:
    """One sample a prompt; every expert gives the reward."""
    found = evaluation(step, 0.5, prompts=len(rewards))
    scored = [
        replace(one, reward=reward, passed=reward > 0.5, scores=dict.fromkeys(weights, reward))
        for one, reward in zip(found.scored, rewards, strict=True)
    ]
    return replace(found, scored=tuple(scored))


def test_only_what_is_beyond_noise_is_called_better_or_worse():
    before = noisy(0, [0.1 * n for n in range(10)], a=1)
    up = changes(before, noisy(1, [0.1 * n + 0.2 for n in range(10)], a=1))
    found = {row.label: row for row in up}
    assert (found["Reward"].verdict, found["a"].verdict) == ("better", "better")
    assert found["Reward"].difference == Value("+0.200", "+0.200 to +0.200")
    low, high = found["Reward"].after.interval.split(" to ")
    assert float(low) < float(found["Reward"].after.text) < float(high)
    assert found["CoT tokens"].verdict == "noise"  # neither good nor bad, and the same
    down = changes(before, noisy(1, [0.1 * n - 0.2 for n in range(10)]))
    assert next(row for row in down if row.label == "Reward").verdict == "worse"
    mixed = changes(before, noisy(1, [0.9 - 0.1 * n + 0.01 for n in range(10)]))
    row = next(row for row in mixed if row.label == "Reward")
    assert (row.difference.text, row.verdict) == ("+0.010", "noise")


def test_an_expert_of_weight_0_is_watched_and_not_rewarded(run):
    config = {"rewards": {"experts": {"objects": {"weight": 1.0}, "relation": {"weight": 0.0}}}}
    (run / "config.yaml").write_text(json.dumps(config))
    text = " ".join(page(run).text.split())
    assert "expertprompts" in text.replace(" ", "")
    assert text.index("objects") < text.index("expert, watched, not rewarded") < text.index("Curves")
    assert "relation (watched, not rewarded)" in text and "objects (watched" not in text
    for odd in ("", "rewards: 5", "rewards: {experts: [1]}", "sft: {}", "rewards: {experts: {a: 1}}"):
        assert experts_of(odd, "here") == {}
    (run / "config.yaml").write_text("a: [")
    messages = []
    write_report(run, messages.append)
    assert len(messages) == 1 and "config.yaml" in messages[0]


def test_pictures_stand_before_curves_and_faults_that_never_happened_in_a_line(run):
    recorder = Recorder(run)
    for step in (11, 12):
        faults = {"groups/dropped": 0, "actors/replaced": 0, "expert/a/constant": 0, "lr": 2e-4}
        recorder.step(step, {**faults, "grad_norm": step})
    text = " ".join(page(run).text.split())
    assert text.index("What it drew") < text.index("Scores") < text.index("Curves")
    assert "No faults: no groups dropped, rollout workers lost, constant scores." in text
    assert "Never changed, and not drawn: kl/cot 0.1, my/own 1, lr 2e-4." in text
    assert "Gradient norm" in text and "Learning rate" not in text
    recorder.step(13, {"groups/dropped": 1})
    recorder.close()
    text = " ".join(page(run).text.split())
    assert "Faults: groups dropped (charts below). None of the others: rollout workers lost" in text


def test_a_curve_is_drawn_or_folded_and_never_lost(run):
    curves = series(read_metrics(run / "metrics.jsonl").lines) | {
        "groups/dropped": [(1, 0.0), (2, 0.0)]
    }
    folded = fold(curves)
    assert {*folded.curves, *folded.unchanged, "groups/dropped"} == set(curves)
    assert folded.no_faults == ["groups dropped"]


def test_the_report_says_how_the_run_was_started(run, tmp_path):
    assert "does not name the command that made it" in page(run).text
    note_start(run)
    note_start(run)
    first, second = read_starts(run)
    assert first.command == second.command == command(sys.argv)
    report = page(run)
    assert report.text.count(first.command) == 2
    assert f"bicot {first.version}" in report.text
    (run / "starts.jsonl").write_text('{"command": 5}\n')
    messages = []
    write_report(run, messages.append)
    wrong = "time, command, version, commit must be texts"
    assert messages == [f"left out: {run}/starts.jsonl:1: no start of a run: {wrong}"]
    assert command(["/x/cluster/__main__.py", "train", "a b"]) == "bicot train 'a b'"
    assert command(["bicot", "\udcff"]) == "bicot '?'"


def test_the_pictures_make_room_for_the_cots_under_them():
    def picture(plan: str):
        found = evaluation(0, 0.25)
        scored = [replace(one, sample=replace(one.sample, cot_text=plan)) for one in found.scored]
        found = replace(found, scored=tuple(scored))
        return before_after(found, found)

    none, short_plan, long_plan = picture(""), picture("a red circle"), picture("word " * 200)
    assert none.width == short_plan.width == long_plan.width
    assert none.height < short_plan.height < long_plan.height
