"""Worked examples: what a row may be, where a wrong one is, and the order in which they come."""

import json
import random
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cluster.cli import app
from cluster.encode import PictureEncoder
from cluster.sft_config import load_sft_config
from cluster.sft_rows import Example, Lessons, as_sample, read_examples
from examples.shapes.warmup import Codes
from examples.shapes.world import OBJECTS, Placed, render
from learner.batch import make_batch
from learner.config import LearnerConfig
from learner.logprobs import JanusLogps
from learner.losses import LossInputs
from learner.sft import sft_loss
from policy.errors import UserError
from policy.model import PolicyConfig, load_janus
from policy.pictures import read_picture
from tests.conftest import SHAPES

IDS = list(range(36))
RIGHT = {"prompt": "a red circle", "cot": "red circle top left", "image_ids": IDS}


@pytest.fixture(scope="module")
def model(policy_config):
    return load_janus(policy_config)


def write(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def picture(folder, name="p.png", size=(24, 24)):
    Image.new("RGB", size, (200, 10, 10)).save(folder / name)
    return name


def test_a_row_is_what_the_model_would_have_written(model, tmp_path):
    (example,) = read_examples(write(tmp_path, RIGHT), model, resize=False)
    sample = as_sample(example, model, example.image_ids)
    assert sample.cot_prompt_ids.tolist() == model.cot_prompt_ids("a red circle")
    assert sample.cot_ids[-1] == model.eos_id
    assert model.cot_text(sample.cot_ids[:-1].tolist()) == "red circle top left"
    wanted = model.image_prompt_ids("a red circle", "red circle top left")
    assert sample.image_prompt_ids.tolist() == wanted
    assert sample.image_ids.tolist() == IDS
    dropped = as_sample(example, model, example.image_ids, drop_prompt=True)
    assert dropped.image_prompt_ids.tolist() == model.unconditional_ids(wanted)
    assert dropped.cot_prompt_ids.tolist() == sample.cot_prompt_ids.tolist()


def test_of_what_a_row_lacks_nothing_is_learned(model, tmp_path):
    rows = [RIGHT, {**RIGHT, "cot": None}, {"prompt": "a red circle", "cot": "red circle top left"}]
    examples = read_examples(write(tmp_path, *rows), model, resize=False)
    samples = [as_sample(e, model, e.image_ids) for e in examples]
    assert samples[1].image_prompt_ids.tolist() == model.plain_prompt_ids("a red circle")
    batch = make_batch(samples, [0.0] * 3, pad_id=model.pad_id, cot_weight=2.0)
    cot, image = batch.token_weights.split([5, 36], 1)
    assert cot.sum(1).tolist() == [10, 0, 10]
    assert image.sum(1).tolist() == [36, 36, 0]


@pytest.mark.parametrize("aggregation", ["token_mean", "sample_mean", "cot_mean", "constant"])
@pytest.mark.parametrize("lacks", ["cot", "image_ids"])
def test_a_batch_that_lacks_one_of_the_two_altogether_teaches_the_other(
    policy_config, tmp_path, lacks, aggregation
):
    model = load_janus(policy_config)
    rows = [{k: v for k, v in RIGHT.items() if k != lacks}] * 2
    examples = read_examples(write(tmp_path, *rows), model, resize=False)
    samples = [as_sample(e, model, e.image_ids) for e in examples]
    batch = make_batch(samples, [0.0] * 2, pad_id=model.pad_id, aggregation=aggregation)
    found = JanusLogps(model)(batch)
    logps = torch.cat([found.cot, found.image], 1)
    nothing = torch.zeros_like(logps)
    weights, split = batch.token_weights, batch.cot.shape[1]
    inputs = LossInputs(logps, nothing, nothing, None, None, nothing, weights, split, 0.0, {})
    result = sft_loss(inputs, LearnerConfig())
    assert batch.counts.sum() > 0
    result.sum.backward()
    heads = {"cot": model.text_head, "image_ids": model.image_head}
    learned = {
        name: any(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
        for name, head in heads.items()
    }
    assert learned == {name: name != lacks for name in heads}
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.model.parameters())


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{", "not valid JSON"),
        ({"cot": "x"}, "field 'prompt': Field required"),
        ({**RIGHT, "prompt": " "}, "field 'prompt': is blank"),
        ({**RIGHT, "cot": ""}, "field 'cot': is blank"),
        ({**RIGHT, "cots": "x"}, "field 'cots': Extra inputs"),
        ({"prompt": "x"}, "there is nothing to learn: give 'cot', 'image' or 'image_ids'"),
        ({**RIGHT, "image": "p.png"}, "give 'image' or 'image_ids', not both"),
        ({**RIGHT, "image_ids": IDS[1:]}, "'image_ids' has 35 ids, and the model's images have 36"),
        ({**RIGHT, "image_ids": [128, *IDS[1:]]}, "holds 128, and the model's codebook has 128"),
        ({**RIGHT, "image_ids": [-1, *IDS[1:]]}, "field 'image_ids.0'"),
        ({**RIGHT, "image_ids": [0.5, *IDS[1:]]}, "field 'image_ids.0'"),
        ({**RIGHT, "cot": "red " * 120}, "prompt and CoT are too long: they take"),
        ({"prompt": "x", "image": "none.png"}, r"image .*none\.png: no such file"),
        ({"prompt": "x", "image": "rows.jsonl"}, "is no PNG, JPEG or WebP image"),
        ({"prompt": "x", "image": "wide.png"}, "has 30 x 20 pixels, and the model's have 24 x 24"),
    ],
)
def test_a_row_that_cannot_be_learned_is_named(model, tmp_path, row, complaint):
    picture(tmp_path, "wide.png", (30, 20))
    path = write(tmp_path, RIGHT, row)
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*{complaint}"):
        read_examples(path, model, resize=False)


def test_a_file_without_rows_is_an_error(model, tmp_path):
    with pytest.raises(UserError, match=r"rows\.jsonl: it has no rows"):
        read_examples(write(tmp_path, ""), model, resize=False)


def test_a_picture_that_breaks_off_is_refused_when_it_is_decoded(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "p.png")
    whole = (tmp_path / "p.png").read_bytes()
    (tmp_path / "p.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"rows:7: image .*p\.png cannot be decoded"):
        read_picture(tmp_path / "p.png", "rows:7", 24, resize=False)


def test_a_picture_of_another_size_is_cut_to_its_middle_square_and_scaled(tmp_path):
    pixels = np.zeros((48, 96, 3), np.uint8)
    pixels[:, 24:72] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    found = read_picture(tmp_path / "wide.png", "rows:1", 24, resize=True)
    assert found.shape == (24, 24, 3)
    assert (found == 200).all()


def test_pictures_become_the_ids_that_the_shipped_model_draws_them_with(tmp_path):
    """Its encoder finds the code of nearly every patch."""
    rng = random.Random(0)
    plans = [[Placed(rng.choice(OBJECTS), n % 3, n // 3 % 3)] for n in range(9)]
    images = np.stack([render(plan) for plan in plans])
    for n, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{n}.png")
    examples = [Example(f"rows:{n}", "x", picture=tmp_path / f"{n}.png") for n in range(9)]
    encoder = PictureEncoder(PolicyConfig(path=str(SHAPES / "checkpoint")), on_gpu=False)
    found = encoder.encode(examples, resize=False)
    assert (found == Codes()(images).numpy()).mean() > 0.98


EXAMPLES = [Example(f"rows:{n}", f"{n}", image_ids=np.array(IDS)) for n in range(7)]


def lessons(janus, **changes):
    return Lessons(EXAMPLES, [e.image_ids for e in EXAMPLES], janus, **changes)


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_each_example_comes_once_an_epoch_and_epochs_differ(seed, epochs):
    order = list(islice(lessons(None, seed=seed).order(), 7 * epochs))
    for n in range(epochs):
        assert sorted(order[7 * n : 7 * n + 7]) == list(range(7))
    assert order == list(islice(lessons(None, seed=seed).order(), 7 * epochs))


def test_a_run_that_goes_on_gets_the_batches_that_it_would_have_had(model):
    def first(batches):
        return [
            [(s.prompt_id, s.image_prompt_ids.tolist()) for s in batch] for batch in islice(batches, 4)
        ]

    some = lessons(model, seed=3, drop_prompt=0.5)
    whole = first(some.batches(3))
    assert first(some.batches(3, done=2))[:2] == whole[2:]
    prompts = {tuple(ids) for batch in whole for _, ids in batch}
    dropped = [ids for ids in prompts if model.pad_id in ids]
    assert 0 < len(dropped) < len(prompts)


def test_the_loss_is_the_weighted_negative_log_likelihood_of_what_counts():
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -torch.inf, -6.0]], requires_grad=True)
    weights = torch.tensor([[2.0, 2.0, 1.0], [2.0, 0.0, 1.0]])
    nothing = torch.zeros(2, 3)
    inputs = LossInputs(logps, nothing, nothing, None, None, nothing, weights, 2, 0.0, {})
    result = sft_loss(inputs, LearnerConfig(cot_weight=2.0))
    assert result.sum.item() == 2 * (1 + 2 + 4) + 3 + 6
    means = {name: (total / count).item() for name, (total, count) in result.metrics.items()}
    assert means == {"loss/cot": pytest.approx(7 / 3), "loss/image": 4.5}
    result.sum.backward()
    assert logps.grad.tolist() == [[-2, -2, -1], [-2, 0, -1]]
    assert set(sft_loss(inputs, LearnerConfig(image_weight=0.0)).metrics) == {"loss/cot"}


CONFIG = """
policy: {{path: {path}, templates: examples/shapes/templates}}
sft: {{data: {data}}}
"""


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("learner.ranks=3", "sft.batch_size 32 is not a multiple of learner.ranks 3"),
        ("learner.kl_coef=0.1", "'learner.kl_coef'"),
        ("learner.train_distribution=guided", "'learner.train_distribution'"),
        ("train.steps=3", "unknown key 'train'"),
        ("sft.stepps=3", "unknown key 'sft.stepps'; did you mean 'sft.steps'?"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, override, complaint):
    path = tmp_path / "sft.yaml"
    path.write_text(CONFIG.format(path="x", data="y"))
    with pytest.raises(UserError, match=complaint):
        load_sft_config(path, [override])


def test_a_dry_run_reads_everything_and_writes_nothing(tmp_path, policy_config, capsys):
    path = tmp_path / "sft.yaml"
    path.write_text(CONFIG.format(path=policy_config.path, data=write(tmp_path, RIGHT, RIGHT)))
    arguments = ["sft", str(path), f"runs_dir={tmp_path}/runs", "--dry-run"]
    app(arguments, standalone_mode=False)
    output = capsys.readouterr().out
    assert "2 examples, 0 held out" in output and "learner" in output
    assert not (tmp_path / "runs").exists()
    write(tmp_path, RIGHT, {"prompt": "x"})
    with pytest.raises(UserError, match=r"rows\.jsonl:2"):
        app(arguments, standalone_mode=False)
