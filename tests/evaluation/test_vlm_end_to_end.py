"""A benchmark whose judge is a model on a server, as a user runs it: killed, gone on, scored again."""

import json
import re
import signal
import subprocess
import sys
from collections import Counter

import pytest

from cluster.cli import app
from evaluation.journal import ImageRow, Journal, ReplyRow
from evaluation.judges.base import UNUSABLE
from policy.errors import UserError
from tests.cluster.commands import bicot, environment, wait_for
from tests.conftest import ROOT
from tests.evaluation.judges.test_vlm import MODEL, Server
from tests.evaluation.small_wise import IDS, SmallWise, write_data

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
NONSENSE_FIRST, BUSY_FIRST, REFUSED = 401, 521, 641


def asked_about(body: dict) -> int | None:
    """The id of the prompt that a request is about; None: the trial."""
    text = " ".join(part.get("text", "") for part in body["messages"][-1]["content"])
    found = re.search(r"a thing of number (\d+)", text)
    return int(found[1]) if found else None


class Judge(Server):
    """Says 1 on odd prompts and 0 on even ones, in the end."""

    def __init__(self):
        super().__init__()
        self.says = [self.say]

    def say(self, body: dict):
        key = asked_about(body)
        if key is None:
            return "yes"
        if key == REFUSED:
            return 400, "not this picture"
        if self.counts()[key] == 1 and key == NONSENSE_FIRST:
            return "What a lovely picture."
        if self.counts()[key] == 1 and key == BUSY_FIRST:
            return 500, "out of memory"
        return f"Because.\nScore: {key % 2}"

    def counts(self) -> Counter[int]:
        return Counter(key for body in list(self.asked) if (key := asked_about(body)) is not None)


@pytest.fixture(scope="module")
def server():
    server = Judge()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def command(policy_config, server, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("wise")
    write_data(folder / "data")
    return [
        *("bench", "run", SmallWise.name, "--policy", policy_config.path),
        *("--data", str(folder / "data"), "--out", str(folder / "out")),
        *("--judge-url", server.url, "--judge-model", MODEL),
        *("ray.dashboard=false", "actors.num_cpus=0.1", "actors.sampling.max_cot_tokens=8"),
        *(f"policy.templates={policy_config.templates}", "actors.batch_size=1"),
    ]


@pytest.fixture(scope="module")
def out(command, tmp_path_factory):
    return ROOT / command[command.index("--out") + 1]


@pytest.fixture(scope="module")
def killed(command, server, out):
    """The replies that were kept when the run was killed, and how often each prompt was asked about."""
    server.pause_s = 0.2
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster", *command],
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    replies = out / "replies.jsonl"
    wait_for(lambda: len(Journal(replies, ReplyRow).rows) >= 2, "the first replies", lambda: "")
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    server.pause_s = 0.0
    return (out / "replies.jsonl").read_bytes(), server.counts()


@pytest.fixture(scope="module")
def changed(command, killed, server):
    """The same command while the server answers under another name."""
    server.models[:] = ["another-judge"]
    ended = bicot(*command)
    server.models[:] = [MODEL]
    return ended


@pytest.fixture(scope="module")
def done(command, changed):
    return bicot(*command)


def test_another_model_in_the_middle_is_one_line_and_nothing_is_mixed(changed, killed, out):
    assert changed.returncode == 2, changed.stdout + changed.stderr
    (message,) = [line for line in changed.stdout.splitlines() if line.startswith("error:")]
    assert f"the judge vlm was {MODEL} 127.0.0.1 and is now another-judge 127.0.0.1" in message
    assert "Traceback" not in changed.stdout + changed.stderr
    assert not (out / "result.json").exists()
    kept, _ = killed
    assert (out / "replies.jsonl").read_bytes() == kept


def test_a_killed_run_goes_on_and_asks_nothing_twice(done, killed, server, out):
    assert done.returncode == 0, done.stdout + done.stderr
    kept, before = killed
    assert (out / "replies.jsonl").read_bytes().startswith(kept)
    rows = Journal(out / "replies.jsonl", ReplyRow).rows
    assert {row["by"]["model"] for row in rows} == {MODEL}
    usable = [int(row["item"]) for row in rows if UNUSABLE not in row["reply"]]
    assert sorted(usable) == sorted({*IDS} - {REFUSED})
    assert {int(row["item"]) for row in rows if UNUSABLE in row["reply"]} == {REFUSED}
    for row in map(json.loads, kept.splitlines()):
        if UNUSABLE not in row["reply"]:  # any other is asked for again
            key = int(row["item"])
            assert server.counts()[key] == before[key]
    images = Journal(out / "images.jsonl", ImageRow).rows
    assert sorted(int(row["item"]) for row in images) == sorted(IDS)


def test_usable_replies_are_scored_and_a_missing_one_is_noted(done, out):
    result = json.loads((out / "result.json").read_text())
    assert result["tasks"] == {
        "CULTURE": pytest.approx(2 / 3),
        "TIME": 1.0,
        "SPACE": 1.0,
        "BIOLOGY": None,
        "PHYSICS": 1.0,
        "CHEMISTRY": 1.0,
    }
    assert result["overall"] is None
    assert result["gaps"] | {"unjudged": 0} == dict.fromkeys(result["gaps"], 0)
    assert result["judges"]["vlm"]["model"] == MODEL
    notes = "\n".join(result["notes"])
    assert re.search(r"1 image has no usable reply: 641/0 by vlm \(.*400: .*not this picture", notes)
    assert "no overall: no image of BIOLOGY was judged" in notes
    assert notes.replace("\n", "") in done.stdout.replace("\n", "")


def test_it_is_scored_again_without_the_server(done, server, out, command, no_ray):
    before, asked = (out / "result.json").read_bytes(), len(server.asked)
    data = command[command.index("--data") + 1]
    app(["bench", "score", str(out), "--no-judge", "--data", data], standalone_mode=False)
    assert (out / "result.json").read_bytes() == before
    assert len(server.asked) == asked


def test_another_judge_by_name_is_another_run(done, out, command):
    other = [*command, "judges.vlm.options.model=other"]
    with pytest.raises(UserError, match=r'judges\.vlm\.options\.model: "tiny-judge" there, "other"'):
        app(other, standalone_mode=False)
