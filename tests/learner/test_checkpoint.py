"""Checkpoints of real DeepSpeed ranks: going on is the same as never having stopped."""

import os
import pickle
import shutil
import time

import pytest
import ray
import torch

from learner.async_checkpoint import to_universal
from learner.deepspeed_engine import Resume
from policy.errors import UserError
from policy.model import load_janus
from tests.learner.ranks import save, weights_of

pytestmark = [pytest.mark.deepspeed, pytest.mark.usefixtures("local_ray")]


def steps(learner, groups, count):
    return [ray.get(learner.step(groups))[0]["loss"] for _ in range(count)]


@pytest.mark.parametrize(
    "stage", [1, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 3))]
)
def test_going_on_is_bit_exact(groups, start, tmp_path, stage, policy_config):
    first = start(ranks=2, zero_stage=stage, fresh=True)
    steps(first, groups, 2)
    first.begin_save(str(tmp_path))
    at_save = weights_of(first)
    losses = steps(first, groups, 2)  # while the files are written
    while first.saved() is None:
        time.sleep(0.05)
    wanted = weights_of(first)
    start.stop(first)

    resume = Resume(str(tmp_path))
    second = start(ranks=2, zero_stage=stage, fresh=True, resume=resume)
    assert steps(second, groups, 2) == losses
    found = weights_of(second)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    model = load_janus(policy_config.model_copy(update={"path": str(tmp_path)})).model
    assert all(torch.equal(model.get_parameter(name), at_save[name]) for name in at_save)


@pytest.mark.parametrize("stage", [2, 3])
def test_another_number_of_ranks_goes_on_alike(groups, start, tmp_path, stage):
    first = start(ranks=2, zero_stage=stage)
    steps(first, groups, 2)
    save(first, tmp_path)
    losses = steps(first, groups, 2)
    wanted = weights_of(first)
    start.stop(first)

    to_universal(tmp_path)
    second = start(ranks=1, zero_stage=stage, resume=Resume(str(tmp_path), universal=True))
    assert steps(second, groups, 2) == pytest.approx(losses, abs=1e-5)
    found = weights_of(second)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)


class Harmful:
    """Unpickled, it leaves a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_nothing_in_a_checkpoint_is_run(groups, start, tmp_path, stage, policy_config):
    """Whichever file is another's: at a resume, in the converter, at a resume with another number of
    ranks, and where the checkpoint is a model."""
    first = start(ranks=1, zero_stage=stage)
    steps(first, groups, 1)
    sound, planted, mark = tmp_path / "sound", tmp_path / "planted", tmp_path / "executed"
    sound.mkdir()
    save(first, sound)
    start.stop(first)

    def go_on(universal=False):
        start(ranks=1, zero_stage=stage, resume=Resume(str(planted), universal))

    def refused(files, then):
        shutil.copytree(sound, planted)
        chosen = list(planted.glob(files))
        assert chosen, files
        for file in chosen:
            file.write_bytes(pickle.dumps(Harmful(mark)))
            if file.suffix == ".pt":
                torch.save(Harmful(mark), file)
        with pytest.raises(UserError):
            then()
        assert not mark.exists(), files
        shutil.rmtree(planted)

    for files in ("learner/*model_states.pt", "learner/*optim_states.pt"):
        refused(files, lambda: to_universal(planted))
        refused(files, go_on)
    to_universal(sound)
    of_converter = ["learner_universal/zero/*/fp32.pt"]
    if stage == 3:  # they are the same at either stage, so once is enough
        of_converter += [
            f"learner_universal/{files}" for files in ("*.pt", "zero/*.pt", "zero/*/exp_avg.pt")
        ]
    for files in of_converter:
        refused(files, lambda: go_on(universal=True))
    as_model = policy_config.model_copy(update={"path": str(planted)})
    for files in ("*.safetensors", "*.json"):
        refused(files, lambda: load_janus(as_model))


def test_a_write_that_fails_raises_and_training_goes_on(groups, start, tmp_path):
    learner = start(ranks=1)
    (tmp_path / "model.safetensors").mkdir()  # no file can have that name now
    with pytest.raises(ray.exceptions.RayTaskError):
        save(learner, tmp_path)
    steps(learner, groups, 1)  # and training goes on
