"""Run checkpoints, their choice on a resume, the ledger and the lock, on files alone."""

import dataclasses
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.checkpoint import (
    FORMAT,
    CheckpointManager,
    State,
    newest,
    truncate_after,
)
from cluster.config import load_config
from cluster.files import by_step
from cluster.fingerprints import fingerprints
from cluster.ledger import Entry, Ledger, faults, read_ledger
from cluster.resume import where_to_start
from learner.async_checkpoint import Writer, take_digests
from policy.errors import UserError
from policy.lock import run_lock
from tests.cluster.commands import TRAIN
from tests.conftest import ROOT


class InstantLearner:
    """Writes at once; a checkpoint's own rules do not depend on what is in it."""

    def __init__(self, error: Exception | None = None):
        self.error = error

    def begin_save(self, folder: str) -> None:
        with open(f"{folder}/model.safetensors", "wb") as file:
            file.write(b"weights")

    def saved(self) -> float:
        if self.error:
            raise self.error
        return 0.0


def state(step, config=None, **changes):
    return State(step=step, weights_version=step, ranks=2, config=config or {}, **changes)


@pytest.fixture
def messages():
    return []


@pytest.fixture
def checkpoints(tmp_path, messages):
    return CheckpointManager(tmp_path / "checkpoints", 2, messages.append)


def test_the_newest_are_kept(checkpoints, messages):
    for step in (5, 10, 15):
        checkpoints.begin(InstantLearner(), state(step))
        checkpoints.poll(InstantLearner())
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    assert names == ["step_000010", "step_000015"]
    assert newest(checkpoints.folder, messages.append).state.step == 15
    assert not messages
    assert checkpoints.metrics().keys() == {"checkpoint/stall_s", "checkpoint/write_s"}
    assert checkpoints.metrics() == {}


@pytest.mark.parametrize(
    "harm",
    [
        "cut",
        "missing file",
        "flipped byte",
        "no state",
        "state cut",
        {"step": "10"},
        {"ranks": 2.5},
        {"files": ["model.safetensors"]},
        {"files": {"model.safetensors": "7"}},
        {"expert_stats": {"count": {"mean": []}}},
        {"config": None},
        {"format": "2"},
        {"step": 5},
    ],
)
def test_a_torn_checkpoint_is_reported_and_the_one_before_is_used(checkpoints, messages, harm):
    for step in (5, 10):
        checkpoints.begin(InstantLearner(), state(step))
        checkpoints.poll(InstantLearner())
    last = checkpoints.folder / "step_000010"
    if harm == "cut":
        (last / "model.safetensors").write_bytes(b"wei")
    elif harm == "missing file":
        (last / "model.safetensors").unlink()
    elif harm == "flipped byte":
        (last / "model.safetensors").write_bytes(b"weightz")
    elif harm == "no state":
        (last / "state.json").unlink()
    elif isinstance(harm, dict):
        written = json.loads((last / "state.json").read_text())
        (last / "state.json").write_text(json.dumps(written | harm))
    else:
        (last / "state.json").write_text('{"step": 1')
    assert newest(checkpoints.folder, messages.append).state.step == 5
    assert "step_000010 is not whole" in messages[0]


def test_every_file_has_a_digest_and_one_of_an_earlier_version_has_none(checkpoints, messages):
    checkpoints.begin(InstantLearner(), state(5))
    checkpoints.poll(InstantLearner())
    file = checkpoints.folder / "step_000005" / "state.json"
    written = json.loads(file.read_text())
    assert written["sha256"] == {"model.safetensors": hashlib.sha256(b"weights").hexdigest()}
    del written["sha256"]
    file.write_text(json.dumps(written | {"format": 1}))
    assert newest(checkpoints.folder, messages.append).state.step == 5


def test_ranks_tell_the_digests_of_what_they_wrote(tmp_path):
    """As `sha256sum` takes them of the files; the file that brought them is gone."""
    writer = Writer()
    (tmp_path / "learner").mkdir()
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "learner" / "state.pt"
    writer.save({"a": torch.arange(5000), "b": {"c": torch.ones(3, dtype=torch.bfloat16)}}, str(file))
    writer.digest_model(tmp_path)
    writer.write_digests(tmp_path, 1)
    assert take_digests(tmp_path) == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("learner/state.pt", "config.json")
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "learner"]
    assert torch.load(file)["a"].tolist() == list(range(5000))


def test_a_full_disk_raises_an_os_error(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            Writer().save({"a": torch.zeros(5000)}, str(tmp_path / "state.pt"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_steps_are_in_their_order_however_many_figures_they_have(checkpoints, messages):
    for step in (999_998, 999_999, 1_000_000):
        checkpoints.begin(InstantLearner(), state(step))
        checkpoints.poll(InstantLearner())
    assert [step for step, _ in by_step(checkpoints.folder, "step")] == [999_999, 1_000_000]
    assert newest(checkpoints.folder, messages.append).state.step == 1_000_000


def test_what_a_lost_rank_still_writes_is_in_nobodys_way(checkpoints, messages):
    """Its thread goes on for a while, in the folder that was given up: it makes it again."""
    checkpoints.begin(InstantLearner(), state(5))
    (given_up,) = checkpoints.folder.iterdir()
    checkpoints.abandon()
    given_up.mkdir()
    (given_up / "config.json").write_text("{}")
    checkpoints.begin(InstantLearner(), state(5))
    given_up.mkdir()
    (given_up / "model.safetensors").write_text("late")
    checkpoints.poll(InstantLearner())
    assert newest(checkpoints.folder, messages.append).state.step == 5
    assert not messages


def test_a_torn_one_of_a_later_step_keeps_no_new_one_out(tmp_path, messages):
    checkpoints = CheckpointManager(tmp_path / "checkpoints", 1, messages.append)
    for step in (12, 10):
        checkpoints.begin(InstantLearner(), state(step))
        checkpoints.poll(InstantLearner())
        if step == 12:
            (checkpoints.folder / "step_000012" / "model.safetensors").unlink()
    assert newest(checkpoints.folder, messages.append).state.step == 10


def test_a_write_that_fails_leaves_the_one_before(checkpoints, messages):
    checkpoints.begin(InstantLearner(), state(5))
    checkpoints.poll(InstantLearner())
    checkpoints.begin(InstantLearner(), state(10))
    checkpoints.poll(InstantLearner(OSError(28, "No space left on device")))
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_000005"]
    assert "step 10 could not be written: [Errno 28] No space left on device" in messages[0]
    checkpoints.begin(InstantLearner(), state(15))
    checkpoints.poll(InstantLearner())
    assert newest(checkpoints.folder, messages.append).state.step == 15


def test_a_half_written_one_is_swept_away(checkpoints, messages):
    checkpoints.begin(InstantLearner(), state(5))
    again = CheckpointManager(checkpoints.folder, 2, messages.append)
    assert newest(again.folder, messages.append) is None
    assert not list(again.folder.iterdir())


def test_a_newer_version_is_refused(checkpoints, messages):
    checkpoints.begin(InstantLearner(), state(5))
    checkpoints.poll(InstantLearner())
    file = checkpoints.folder / "step_000005" / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": FORMAT + 1, "new": 1}))
    with pytest.raises(UserError, match="written by a newer version of bicot"):
        newest(checkpoints.folder, messages.append)


# --- whether to go on ---


@pytest.fixture
def stopped(tmp_path, messages):
    """A configuration, and a run of it that stopped at step 100."""
    config = load_config(ROOT / TRAIN, [f"runs_dir={tmp_path}"])
    checkpoints = CheckpointManager(config.folder / "checkpoints", 2, messages.append)
    checkpoints.begin(InstantLearner(), state(100, config.model_dump(mode="json")))
    checkpoints.poll(InstantLearner())
    return config


def with_changes(config, *overrides):
    return load_config(ROOT / TRAIN, [f"runs_dir={config.runs_dir}", *overrides])


@pytest.mark.parametrize(
    "free",
    ["train.steps=300", "actors.count=1", "learner.ranks=1", "rewards.experts.count.replicas=2"],
)
def test_a_run_goes_on_with_settings_that_may_change(stopped, messages, free):
    assert where_to_start(with_changes(stopped, free), messages.append).state.step == 100


@pytest.mark.parametrize(
    "binding", ["seed=3", "learner.lr=1e-5", "policy.path=elsewhere", "rewards.experts.count.weight=2"]
)
def test_a_run_of_other_settings_is_refused_by_their_names(stopped, messages, binding):
    key = binding.partition("=")[0]
    with pytest.raises(UserError, match=rf"stopped at step 100, of other settings: .*{key} \("):
        where_to_start(with_changes(stopped, binding), messages.append)
    assert where_to_start(with_changes(stopped, binding, "train.resume=never"), messages.append) is None


@pytest.mark.parametrize("changed", ["train.prompts", "policy.path"])
def test_files_that_are_no_longer_the_same_are_refused(tmp_path, messages, changed):
    prompts, model = tmp_path / "prompts.jsonl", tmp_path / "model"
    prompts.write_text("first")
    model.mkdir()
    (model / "model.safetensors").write_bytes(bytes(100))
    overrides = [f"runs_dir={tmp_path}", f"train.prompts={prompts}", f"policy.path={model}"]
    config = load_config(ROOT / TRAIN, overrides)
    checkpoints = CheckpointManager(config.folder / "checkpoints", 2, messages.append)
    marks = fingerprints(config)
    checkpoints.begin(InstantLearner(), state(100, config.model_dump(mode="json"), fingerprints=marks))
    checkpoints.poll(InstantLearner())
    assert where_to_start(config, messages.append).state.step == 100
    if changed == "train.prompts":
        prompts.write_text("other")
    else:
        (model / "model.safetensors").write_bytes(bytes(50) + b"1" + bytes(49))
    with pytest.raises(UserError, match=rf"the files of {changed} are no longer the ones"):
        where_to_start(config, messages.append)


def test_a_run_that_ended_is_not_gone_on_with(stopped, messages):
    """But one that ended and was killed before its report still has that to write."""
    ended = with_changes(stopped, "train.steps=100")
    assert where_to_start(ended, messages.append) is None
    (stopped.folder / "metrics.jsonl").touch()
    assert where_to_start(ended, messages.append).state.step == 100
    assert where_to_start(with_changes(stopped, "train.steps=99"), messages.append) is None
    (stopped.folder / "report.html").touch()
    assert where_to_start(ended, messages.append) is None
    os.utime(stopped.folder / "report.html", (0, 0))  # made in the middle of the run
    assert where_to_start(ended, messages.append).state.step == 100


def test_a_run_directory_has_one_run(tmp_path):
    hold = "from pathlib import Path; from policy.lock import run_lock\n"
    hold += f"with run_lock(Path({str(tmp_path / 'run')!r})): print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"process {other.pid} on .* is at work there"),
            run_lock(tmp_path / "run"),
        ):
            pass
        other.communicate("\n")
    with run_lock(tmp_path / "run"):
        pass


# --- the ledger ---

ENTRIES = [Entry(n, 1 + n // 3, f"p{n}", 0, n // 3, "trained") for n in range(9)]


def test_a_ledger_reads_back_and_forgets_later_steps(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(ENTRIES)
    ledger.close()
    assert read_ledger(tmp_path) == ENTRIES
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"group": 9, "st')
    with pytest.raises(UserError, match=r"ledger\.jsonl:10"):
        read_ledger(tmp_path)
    assert truncate_after(tmp_path / "ledger.jsonl", 2) == 4
    assert read_ledger(tmp_path) == ENTRIES[:6]


def test_a_line_of_a_ledger_ends_at_a_line_feed_alone(tmp_path):
    """Other separators are letters, and so is half a surrogate, of which a question mark is left."""
    ledger = Ledger(tmp_path)
    odd = ["a\u2028b", "a\u2029b\x85\x0b\x0c\x1c", "a\r", "\ud800"]
    ledger.add([Entry(n, 1, text, 0, 0, "dropped", why=text) for n, text in enumerate(odd)])
    ledger.close()
    assert truncate_after(tmp_path / "ledger.jsonl", 1) == 0
    assert [entry.why for entry in read_ledger(tmp_path)] == [*odd[:3], "?"]


@pytest.mark.parametrize(
    "torn",
    [
        b'{"group": 9, "st',
        '{"group": 9, "step": 2, "prompt_id": "ü'.encode()[:-1],
        b"[" * 99999,
        b"[1]",
    ],
)
def test_a_torn_last_line_goes_and_odd_ones_in_the_middle_stay(tmp_path, torn):
    line = b'{"group": 0, "step": 1}\n'
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(line + b'{"step": "1"}\n' + line + torn)
    assert truncate_after(path, 5) == 1
    assert path.read_bytes() == line + b'{"step": "1"}\n' + line


def test_the_line_that_is_no_entry_is_named(tmp_path):
    row = vars(ENTRIES[0])
    for wrong in ({"group": "x"}, {"step": -1}, {"outcome": "lost"}, {"prompt_id": None}, {"more": 1}):
        lines = [json.dumps(row), "", json.dumps(row | wrong)]
        (tmp_path / "ledger.jsonl").write_text("\n".join(lines))
        with pytest.raises(UserError, match=rf"ledger\.jsonl:3: not an entry .*: {min(wrong)}: "):
            read_ledger(tmp_path)


def test_lines_wait_for_room(tmp_path, messages):
    """The disk takes seven bytes more, then nothing, then all."""
    ledger = Ledger(tmp_path, messages.append)
    ledger.add(ENTRIES[:1])
    whole = (tmp_path / "ledger.jsonl").read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # Python's own choice
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 7, limit[1]))
    try:
        for n in (1, 2, 8):
            ledger.add([ENTRIES[n]])
            assert (tmp_path / "ledger.jsonl").read_bytes() == whole
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    ledger.forget_after(ENTRIES[2].step)
    ledger.add([ENTRIES[3]])
    ledger.close()
    assert read_ledger(tmp_path) == ENTRIES[:4]
    assert [text.partition(":")[0] for text in messages] == ["warning", "ledger.jsonl is written again"]
    assert "ledger.jsonl could not be written: File too large" in messages[0]


def test_a_lock_that_is_gone_at_the_end_is_nobodys_fault(tmp_path):
    path = tmp_path / ".run.lock"
    with run_lock(tmp_path / "run"):
        path.unlink()
    with run_lock(tmp_path / "run"):
        path.unlink()
        path.write_text("another's")
    assert path.exists()


@given(st.lists(st.integers(0, 8), min_size=1, unique=True))
def test_what_is_missing_or_twice_is_found(chosen):
    some = [ENTRIES[n] for n in chosen]
    assert (faults(some) == []) == (sorted(chosen) == list(range(len(chosen))))
    assert any("2 times" in line for line in faults([*some, some[0]]))
    moved = dataclasses.replace(some[0], group=99)
    assert any("were used 2 times" in line for line in faults([*some, moved]))
