"""Run directories read while they grow."""

import json
import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.watch.curves import Points, read_metrics, series
from policy.errors import UserError
from studio.runs import MetricsReader, first_view, list_runs


def line(step: int, **values: float | None) -> bytes:
    named = {name.replace("_", "/"): value for name, value in values.items()}
    return json.dumps({"step": step, "time": float(step), **named}).encode() + b"\n"


def long_run(steps: int, every: int) -> bytes:
    """Training and evaluations of the same steps, as a run writes them."""
    lines = []
    for step in range(1, steps + 1):
        lines.append(line(step, reward_mean=step / steps, loss=1 / step))
        if step % every == 0:
            lines.append(line(step, eval_reward=step / steps))
    return b"".join(lines)


def curves(reader: MetricsReader) -> dict[str, Points]:
    return {name: reader.curve(name) for name in reader.names}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


# Numbers, gaps, steps that come again after a resume, and lines that are torn or are none.
LINES = st.lists(
    st.one_of(
        st.builds(
            line,
            st.integers(0, 12),
            reward_mean=st.floats(allow_nan=False, allow_infinity=False, width=32) | st.none(),
            eval_reward=st.floats(0, 1) | st.none(),
        ),
        st.sampled_from([b"\n", b'{"step": 3, "rew\n', b'{"step": "x"}\n', b'{"step": 3, "a": "b"}\n']),
    ),
    max_size=25,
)


@given(LINES, st.data())
def test_read_in_pieces_while_it_grows_a_file_is_what_it_is_as_a_whole(tmp_path_factory, lines, data):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    content = b"".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=4)))
    path.touch()
    reader = MetricsReader(path)
    for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        with path.open("ab") as file:
            file.write(content[begin:end])
        while reader.read_on(data.draw(st.integers(1, 200))):
            pass
        whole = path.with_name("so_far.jsonl")  # without a line that has no end yet
        whole.write_bytes(content[: content[:end].rfind(b"\n") + 1])
        assert curves(reader) == series(read_metrics(whole).lines)


@given(LINES)
def test_a_first_view_of_a_short_file_is_all_of_it(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    path.write_bytes(b"".join(lines))
    assert first_view(path, most=10_000) == series(read_metrics(path).lines)


def test_a_first_view_of_a_long_file_has_few_points_of_training_and_all_evaluations(path):
    path.write_bytes(long_run(5000, every=100) + line(5001, reward_mean=0.5) + b'{"step": 5002, "re')
    seen, whole = first_view(path, most=50), series(read_metrics(path).lines)
    assert seen["eval/reward"] == whole["eval/reward"]
    assert len(whole["eval/reward"]) == 50
    points = seen["reward/mean"]
    assert 40 <= len(points) <= 51
    assert set(points) <= set(whole["reward/mean"])
    assert points[-1] == (5001, 0.5)
    steps = [step for step, _ in points]
    assert max(b - a for a, b in pairwise(steps)) < 250  # spread over all of it


def test_only_what_was_added_is_read(path):
    path.write_bytes(long_run(1000, every=100))
    reader = MetricsReader(path)
    while reader.read_on():
        pass
    with path.open("r+b") as file:
        file.write(b"#" * 1000)  # what was read already is not looked at again
        file.seek(0, os.SEEK_END)
        file.write(line(1001, reward_mean=0.25))
    assert not reader.read_on()
    assert reader.curve("reward/mean")[-1] == (1001, 0.25)
    assert len(reader.curve("reward/mean")) == 1001


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_cut_is_read_anew(path, replaced):
    """As a run does that goes back to a checkpoint, in place or by another file."""
    path.write_bytes(long_run(100, every=10))
    reader = MetricsReader(path)
    assert not reader.read_on()
    other = b"".join(line(step, reward_mean=-1.0) for step in range(1, 200))
    target = path.with_suffix(".new") if replaced else path
    target.write_bytes(other)
    target.replace(path)
    assert not reader.read_on()
    assert curves(reader) == {"reward/mean": [(step, -1.0) for step in range(1, 200)]}
    path.write_bytes(b"")
    assert not reader.read_on()
    assert curves(reader) == {}


def test_runs_are_listed_last_written_first(tmp_path):
    for age, name in enumerate(["new", "old", "empty"]):
        folder = tmp_path / name
        folder.mkdir()
        content = b"" if name == "empty" else long_run(300, every=7) + b'{"step": 301, "rew'
        (folder / "metrics.jsonl").write_bytes(content)
        os.utime(folder / "metrics.jsonl", (1000 - age, 1000 - age))
    (tmp_path / "no_run").mkdir()
    runs = list_runs(tmp_path)
    assert [(run.name, run.written, run.last.get("step")) for run in runs] == [
        ("new", 1000, 300),
        ("old", 999, 300),
        ("empty", 998, None),
    ]
    assert [run.name for run in list_runs(tmp_path / "old")] == ["old"]
    with pytest.raises(UserError, match="no such folder of runs"):
        list_runs(tmp_path / "nowhere")


def test_a_file_that_is_not_there_is_named(path):
    for read in (MetricsReader(path).read_on, lambda: first_view(path)):
        with pytest.raises(UserError, match=r"metrics\.jsonl: no such metrics file"):
            read()
