"""The disk of a run directory fills up while the run is at work, and has room again before its end."""

import subprocess
from contextlib import suppress

import pytest

from cluster.checkpoint import newest
from cluster.ledger import faults, read_ledger
from cluster.watch.curves import read_metrics
from tests.cluster.commands import ONE_EACH
from tests.cluster.live_run import LiveRun

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs of 64 MB cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(file) -> None:
    """Until not one byte more finds room."""
    with file.open("ab", buffering=0) as more:
        for size in (2**16, 1):
            with suppress(OSError):
                while True:
                    more.write(bytes(size))


@pytest.mark.timeout(400)
def test_a_full_disk_costs_what_it_has_no_room_for_and_no_step(small_disk, tmp_path):
    """Pictures, TensorBoard and a checkpoint are reported; ledger and metrics are whole in the end."""
    run = LiveRun(
        tmp_path,
        18,
        f"runs_dir={small_disk}",
        "train.keep_checkpoints=1",
        "train.show_every=2",
        "evaluate.every=6",
        *ONE_EACH,
    )
    run.folder = small_disk / "shapes"
    run.reach(5)
    while not run.has_reached(10):
        fill(small_disk / "fill")  # a checkpoint that was given up leaves room
    (small_disk / "fill").unlink()
    output = run.wait_for_success()

    assert "Traceback" not in output
    shown = ("tensorboard/", "samples/step_*.png", "samples/eval_*")
    for what in ("ledger.jsonl", "metrics.jsonl", *shown):
        assert f"warning: {what} could not be written: No space left on device" in output
        assert f"{what} is written again" in output
    assert "the checkpoint of step 8 could not be written" in output
    entries = read_ledger(run.folder)
    assert faults(entries) == []
    assert len(entries) == 3 * 18
    lines, unreadable = read_metrics(run.folder / "metrics.jsonl")
    assert not unreadable
    assert [line["step"] for line in lines if "time/step" in line] == list(range(1, 19))
    assert newest(run.folder / "checkpoints", pytest.fail).state.step == 18
    assert (run.folder / "report.html").exists()
