import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.shapes import make_prompts
from examples.shapes.experts import CountExpert, ObjectsExpert, RelationExpert, detect
from examples.shapes.riddles import some_riddles
from examples.shapes.tiny_janus import build_tokenizer
from examples.shapes.warmup import Codes
from examples.shapes.world import (
    OBJECTS,
    Placed,
    all_prompts,
    corrupt,
    cot_is_right,
    is_held_out,
    make_plan,
    plan_text,
    read_plan,
    render,
)
from policy.model import PolicyConfig, load_janus
from policy.prompts import read_prompts
from tests.conftest import SHAPES

EXPERTS = [ObjectsExpert(), CountExpert(), RelationExpert()]
PLAIN = [prompt for prompts in all_prompts().values() for prompt in prompts]
PROMPTS = [*PLAIN, *some_riddles(300, held_out=False), *some_riddles(300, held_out=True)]
cells = st.lists(st.sampled_from(list(product(range(3), range(3)))), unique=True, max_size=9)


def accepted(prompt, image):
    """Every expert that applies gives its pass threshold."""
    asked = [expert for expert in EXPERTS if expert.applies(prompt)]
    return all(e.score([image], [prompt]).values[0] >= e.pass_threshold for e in asked)


@st.composite
def plans(draw):
    return [Placed(draw(st.sampled_from(OBJECTS)), *cell) for cell in draw(cells)]


@given(plans())
def test_what_is_drawn_is_what_is_seen(plan):
    """Every object, in its place, and nothing else, even where neighbours are of one colour."""
    seen = {(d.name, round((d.y - 3) / 8), round((d.x - 3) / 8)) for d in detect(render(plan))}
    assert seen == {(p.name, p.row, p.column) for p in plan}
    assert all(d.confidence > 0.9 for d in detect(render(plan)))


@given(plans().filter(bool))
def test_a_plan_in_words_reads_back(plan):
    assert read_plan(plan_text(plan)) == plan


@pytest.mark.parametrize(
    "text", ["", "red circle", "red circle top left ;", "red cube top left", "hello"]
)
def test_words_that_are_no_plan_are_none(text):
    assert read_plan(text) is None


@given(st.sampled_from(PROMPTS), st.integers(0, 1000), st.floats(0, 0.5))
def test_a_plan_is_right_exactly_when_its_drawing_satisfies_the_experts(prompt, seed, errors):
    rng = random.Random(seed)
    plan = make_plan(prompt, rng)
    assert cot_is_right(prompt, plan_text(plan))
    assert accepted(prompt, render(plan))
    wrong = corrupt(plan, errors, rng)
    apart = len({(p.row, p.column) for p in wrong}) == len(wrong)
    if apart:  # objects drawn over each other may still look right
        assert cot_is_right(prompt, plan_text(wrong)) == accepted(prompt, render(wrong))


def test_noise_blank_and_another_prompts_image_are_not_accepted():
    rng = random.Random(0)
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    prompts = rng.sample(PROMPTS, 100)
    images = [render(make_plan(prompt, rng)) for prompt in prompts]
    for prompt, other in zip(prompts, images[1:], strict=False):
        assert not accepted(prompt, noise)
        assert not accepted(prompt, render([]))
        assert not accepted(prompt, other)


def test_the_prompt_files_are_what_the_generator_writes_and_are_disjoint():
    train, held_out = (read_prompts(SHAPES / "prompts" / f"{n}.jsonl") for n in ("train", "heldout"))
    assert train == make_prompts.choose(False, make_prompts.TRAIN)
    assert held_out == make_prompts.choose(True, make_prompts.HELD_OUT)
    assert len(held_out) >= 128
    assert not {p.text for p in train} & {p.text for p in held_out}
    plain = [p for p in held_out if p.task_type != "riddle"]
    assert all(is_held_out(p) for p in plain)
    assert len(plain) == 3 * (len(held_out) - len(plain))  # one in four is a riddle


def test_the_tokenizer_knows_every_word_of_the_world():
    tokenizer = build_tokenizer()
    rng = random.Random(0)
    for prompt in PROMPTS:
        ids = tokenizer(f"{prompt.text} ; {plan_text(make_plan(prompt, rng))}").input_ids
        assert tokenizer.unk_token_id not in ids


@given(plans())
def test_image_codes_hold_every_image_exactly(plan):
    codes = Codes()
    image = render(plan)
    ids = codes(image[None])[0].tolist()
    grid = image.reshape(6, 4, 6, 4, 3).transpose(0, 2, 1, 3, 4).reshape(36, 4, 4, 3)
    for place, (code, patch) in enumerate(zip(ids, grid, strict=True)):
        if code < 36:
            assert code == place
            assert (patch == render([])[:4, :4]).all()
        else:
            known = (codes.drawn[code - 36].view(4, 4, 3) + 1) * 127.5
            np.testing.assert_allclose(known, patch, atol=0.01)


def test_the_shipped_checkpoint_is_small_and_decodes_drawings():
    folder = SHAPES / "checkpoint"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 5 * 2**20
    assert not list(folder.glob("*.bin"))
    janus = load_janus(PolicyConfig(path=str(folder)))
    rng = random.Random(0)
    prompts = rng.sample(PROMPTS, 40)
    truth = np.stack([render(make_plan(prompt, rng)) for prompt in prompts])
    images = janus.decode_images(Codes()(truth))
    assert np.mean([accepted(p, image) for p, image in zip(prompts, images, strict=True)]) > 0.9
