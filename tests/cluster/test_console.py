"""What a run says in a job's log."""

import io
import json
from datetime import datetime

from rich.console import Console

from cluster.watch.console import TrainProgress

METRICS = {"reward/mean": 0.5, "reward/strict_accuracy": 0.25, "time/step": 2.0, "loss": float("nan")}


def output_lines(as_json: bool) -> list[str]:
    out = io.StringIO()
    progress = TrainProgress(Console(file=out), steps=10, as_json=as_json)
    with progress:
        progress.step(3, METRICS, failures=["'a cat': no expert answers"])
        progress.say("rollout worker 1 is lost")
    return out.getvalue().splitlines()


def test_a_line_a_step_for_people():
    step, dropped, message = output_lines(as_json=False)
    assert step.startswith("step 3/10  reward 0.500  strict 0.250  2.00 s")
    assert dropped == "step 3: dropped the group of 'a cat': no expert answers"
    assert message == "rollout worker 1 is lost"


def test_a_json_object_a_line_for_collectors():
    step, dropped, message = map(json.loads, output_lines(as_json=True))
    assert datetime.fromisoformat(step.pop("time")).tzinfo is not None
    assert step == {"event": "step", "step": 3, "steps": 10, **METRICS, "loss": None}
    assert (dropped["event"], message["event"]) == ("message", "message")
    assert message["message"] == "rollout worker 1 is lost"
