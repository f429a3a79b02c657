"""GIT and BLIP-VQA: one question a phrase, answered by the first token's distribution."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    GitConfig,
    GitForCausalLM,
)

from policy.errors import UserError
from policy.prompts import plain_prompt
from rewards.experts.common import yes_share
from rewards.experts.vqa import BlipVqa, Git
from tests.rewards.experts import tiny

LAYER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = LAYER | {"image_size": tiny.SIZE, "patch_size": tiny.PATCH}


@pytest.fixture(scope="module")
def git(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("git")
    words = tiny.bert_tokenizer(folder)
    config = GitConfig(vision_config=VISION, vocab_size=words, max_position_embeddings=32, **LAYER)
    tiny.randomize(GitForCausalLM(config)).save_pretrained(folder)
    tiny.clip_images(folder)
    return folder


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    words = tiny.bert_tokenizer(folder, "[DEC]")
    text = {"vocab_size": words, "bos_token_id": words - 1, "sep_token_id": 3, "pad_token_id": 0}
    text |= LAYER | {"encoder_hidden_size": 32, "max_position_embeddings": 32}
    config = BlipConfig(text_config=text, vision_config=VISION)
    tiny.randomize(BlipForQuestionAnswering(config)).save_pretrained(folder)
    size = {"height": tiny.SIZE, "width": tiny.SIZE}
    BlipImageProcessorPil(size=size).save_pretrained(folder)
    return folder


@given(st.lists(st.floats(-50, 50), min_size=3, max_size=3))
def test_yes_share_is_the_ratio_of_the_two_probabilities(logits):
    row = torch.tensor([logits], dtype=torch.float64)
    yes, no, _ = row.softmax(-1)[0]
    assert float(yes_share(row, 0, 1)) == pytest.approx(float(yes / (yes + no)), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_batches_change_nothing(git, blip, batch_size):
    for expert in (
        Git(str(git), **tiny.EXACT, batch_size=batch_size),
        BlipVqa(str(blip), **tiny.EXACT, batch_size=batch_size),
    ):
        values = tiny.assert_batches_change_nothing(expert)
        assert (values > 0).all() and (values < 1).all()


def test_git_says_what_the_plain_model_says(git):
    model, tokenizer = GitForCausalLM.from_pretrained(git).eval(), AutoTokenizer.from_pretrained(git)
    processor = CLIPImageProcessorPil.from_pretrained(git)
    prompt, image = tiny.prompts()[1], tiny.images(2)[1]
    shares = []
    for phrase in prompt.attr_nouns:
        ids = [tokenizer.cls_token_id, *tokenizer(f"{phrase}?", add_special_tokens=False).input_ids]
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([ids]),
                pixel_values=processor([image], return_tensors="pt").pixel_values,
            ).logits[0, -1]
        yes, no = logits.softmax(-1)[tokenizer.convert_tokens_to_ids(["yes", "no"])]
        shares.append(float(yes / (yes + no)))
    answer = Git(str(git), **tiny.EXACT).score([image], [prompt])
    assert answer.values[0] == pytest.approx(np.mean(shares), abs=1e-5)
    assert answer.explanation == (f"red dog: {shares[0]:.2f}; a big blue bench: {shares[1]:.2f}",)


def test_blip_answers_as_it_generates(blip):
    model, tokenizer = (
        BlipForQuestionAnswering.from_pretrained(blip).eval(),
        AutoTokenizer.from_pretrained(blip),
    )
    processor = BlipImageProcessorPil.from_pretrained(blip)
    image, prompt = tiny.images(1)[0], tiny.prompts()[0]
    out = model.generate(
        **tokenizer("is there red dog ?", return_tensors="pt", return_token_type_ids=False),
        pixel_values=processor([image], return_tensors="pt").pixel_values,
        max_new_tokens=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    yes, no = out.logits[0][0].softmax(-1)[tokenizer.convert_tokens_to_ids(["yes", "no"])]
    expert = BlipVqa(str(blip), **tiny.EXACT, question="is there {phrase} ?")
    assert expert.score([image], [prompt]).values[0] == pytest.approx(float(yes / (yes + no)), abs=1e-5)


def test_a_prompt_without_phrases_does_not_concern_it(git):
    expert = Git(str(git), **tiny.EXACT)
    assert expert.applies(tiny.prompts()[0])
    assert not expert.applies(plain_prompt("a red dog"))


def test_a_question_without_its_phrase(git):
    with pytest.raises(UserError, match="a question must contain"):
        Git(str(git), **tiny.EXACT, question="is it there?")


def test_the_wrong_checkpoint(git, blip):
    with pytest.raises(UserError, match="a 'blip' checkpoint, where 'git' is needed"):
        Git(str(blip))
    with pytest.raises(UserError, match="a 'git' checkpoint, where 'blip' is needed"):
        BlipVqa(str(git))


def test_a_checkpoint_that_lacks_tensors(git, tmp_path):
    model = GitForCausalLM.from_pretrained(git)
    state = {
        n: t
        for n, t in model.state_dict().items()
        if n != "git.visual_projection.visual_projection.0.bias"
    }
    model.save_pretrained(tmp_path, state_dict=state)
    tiny.bert_tokenizer(tmp_path)
    tiny.clip_images(tmp_path)
    with pytest.raises(
        UserError, match=r"1 missing: git\.visual_projection\.visual_projection\.0\.bias"
    ):
        Git(str(tmp_path))


def test_half_precision(git, blip):
    tiny.assert_half_precision_is_close(Git, str(git), atol=0.02)
    tiny.assert_half_precision_is_close(BlipVqa, str(blip), atol=0.02)


@pytest.mark.parametrize(("expert_class", "folder"), [(Git, "git"), (BlipVqa, "blip")])
def test_no_answer_depends_on_the_questions_beside_it(expert_class, folder, request, tmp_path):
    """Weights so large that one look at padding would be seen."""
    shutil.copytree(request.getfixturevalue(folder), tmp_path, dirs_exist_ok=True)
    model = tiny.randomize(expert_class.model_class.from_pretrained(tmp_path), scale=0.6)
    model.save_pretrained(tmp_path)
    expert = expert_class(str(tmp_path), **tiny.EXACT)
    image, phrases = tiny.images(1)[0], ["dog", "a big blue bench", "no", "red dog on a big bench", "a"]
    (together,) = expert.yes([image], [phrases])
    alone = [expert.yes([image], [[phrase]])[0][0] for phrase in phrases]
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=0)
    assert np.ptp(together) > 1e-3
