"""A run's numbers on Weights & Biases, as its own library writes them for a later upload."""

import json
import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from cluster.watch.recorder import Recorder
from cluster.watch.wandb_log import WandbConfig, WandbLog
from policy.errors import UserError
from tests.cluster.commands import wait_for

wandb = pytest.importorskip("wandb", reason="wandb is an extra")


BLOCK, HEADER = 32768, 7


def records(content: bytes) -> Iterator[bytes]:
    """The records of a file that waits for `wandb sync`: LevelDB's log format after a header of seven
    bytes. A record is cut where a block of 32 KiB ends."""
    at, whole = HEADER, b""
    while at < len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # a whole one, or the last part of one
            yield whole
            whole = b""


def logged(folder) -> list[dict]:
    """Every line of numbers in the files that wait for `wandb sync`, in their order."""
    from wandb.proto.wandb_internal_pb2 import Record

    lines = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in records(file.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                lines.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return lines


@pytest.fixture
def begin(tmp_path):
    config = WandbConfig(project="tests", mode="offline")
    return lambda: WandbLog(config, tmp_path, {"seed": 1})


def test_numbers_arrive_with_their_steps_and_go_on_in_the_same_run(begin, tmp_path):
    for steps in ((1, 2), (2, 3)):  # the second life makes a step again
        log = begin()
        recorder = Recorder(tmp_path, next_step=steps[0], wandb=log)
        for step in steps:
            recorder.step(step, {"loss": step / 10, "bad": float("nan")})
        recorder.close()
        log.close()
        time.sleep(1.1)  # W&B names its folders by the second
    lines = [(line["step"], line["loss"]) for line in logged(tmp_path)]
    assert lines == [(1, 0.1), (2, 0.2), (2, 0.2), (3, 0.3)]
    assert not any("bad" in line for line in logged(tmp_path))
    names = {file.name for file in tmp_path.glob("wandb/offline-run-*/*.wandb")}
    assert names == {f"run-{(tmp_path / 'wandb_id.txt').read_text()}.wandb"}


def test_pictures_arrive(begin, tmp_path):
    log = begin()
    log.picture(3, "samples", Image.fromarray(np.zeros((4, 4, 3), np.uint8)))
    log.close()
    # On a busy machine W&B's own process ends a moment later than it says.
    wait_for(
        lambda: logged(tmp_path), "the picture", lambda: str(list(tmp_path.rglob("*"))), limit_s=60
    )
    (line,) = logged(tmp_path)
    assert (line["step"], line["samples/_type"], line["samples/width"]) == (3, "image-file", 4)


def test_a_service_that_does_not_take_the_run_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "not a key")
    with pytest.raises(UserError, match=r"train\.wandb: .*key"):
        WandbLog(WandbConfig(project="tests"), tmp_path, {})
