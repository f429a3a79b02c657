"""BLIP-VQA as T2I-CompBench asks it, on a tiny random model, against a computation of its own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import BlipConfig, BlipForQuestionAnswering, BlipImageProcessorPil

from evaluation.judges.base import ask_prompt
from evaluation.judges.blip_vqa import BlipQuestions, cleaned
from policy.errors import UserError
from rewards.experts.vqa import BlipVqa
from tests.rewards.experts import tiny

LAYER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "a", "red", "blue", "big", "dog"]
WORDS += ["bench", "on", "and", "?", "[DEC]", "[ENC]"]
QUESTIONS = [["A red dog?", "a big (blue) bench?"], [], ["dog?"], ["a dog and a dog?"], ["Red?", "no?"]]


def blip(folder: Path, *more: str) -> Path:
    words = tiny.bert_tokenizer(folder, *more)
    text = {"vocab_size": 18, "bos_token_id": 16, "sep_token_id": 3, "pad_token_id": 0}
    text |= LAYER | {"encoder_hidden_size": 32, "max_position_embeddings": 40}
    vision = LAYER | {"image_size": tiny.SIZE, "patch_size": tiny.PATCH}
    assert words == 16 + len(more)
    config = BlipConfig(text_config=text, vision_config=vision)
    tiny.randomize(BlipForQuestionAnswering(config), scale=0.6).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 14, "width": 14}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return blip(tmp_path_factory.mktemp("blip"), "[DEC]", "[ENC]")


def by_hand(folder: Path, image: np.ndarray, words: str, size: int) -> float:
    """P(yes) / (P(yes) + P(no)), one layer after the other."""
    model = BlipForQuestionAnswering.from_pretrained(folder).eval()
    squashed = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = torch.tensor((np.asarray(squashed) / 255 - mean) / std).float().permute(2, 0, 1)[None]
    where = model.vision_model.embeddings.position_embedding
    side, wanted = tiny.SIZE // tiny.PATCH, size // tiny.PATCH
    grid = where[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    spread = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)
    positions = torch.cat([where[:, :1], spread.flatten(2).transpose(1, 2)], 1)
    with torch.no_grad():
        vision = model.vision_model
        patches = vision.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        seen = torch.cat([vision.embeddings.class_embedding, patches], 1) + positions
        seen = vision.post_layernorm(vision.encoder(inputs_embeds=seen).last_hidden_state)
        ids = torch.tensor([[WORDS.index(word) for word in words.split()]])
        question = model.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
        start = torch.tensor([[WORDS.index("[DEC]")]])
        logits = model.text_decoder(input_ids=start, encoder_hidden_states=question).logits[0, -1]
    yes, no = logits.double().softmax(-1)[[WORDS.index("yes"), WORDS.index("no")]]
    return float(yes / (yes + no))


@pytest.mark.parametrize("size", [tiny.SIZE, 3 * tiny.PATCH])
def test_it_answers_as_the_model_in_its_published_form(folder, size):
    judge = BlipQuestions(str(folder), device="cpu", image_size=size)
    image = tiny.images(1, height=30, width=50)[0]  # squashed, not cut
    (reply,) = judge.replies([image], [{"questions": ["A Red dog!?", "a big blue bench?"]}])
    asked = ["[ENC] a red dog ? [SEP]", "[ENC] a big blue bench ? [SEP]"]
    assert reply["yes"] == pytest.approx([by_hand(folder, image, q, size) for q in asked], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_batches_change_nothing_and_no_question_has_no_answer(folder, batch_size):
    judge = BlipQuestions(str(folder), device="cpu", image_size=tiny.SIZE, batch_size=batch_size)
    asks = [{"questions": some} for some in QUESTIONS]
    together = judge.replies(tiny.images(), asks)
    alone = [judge.replies([i], [a])[0] for i, a in zip(tiny.images(), asks, strict=True)]
    assert [len(reply["yes"]) for reply in together] == [2, 0, 1, 1, 2]
    for one, many in zip(alone, together, strict=True):
        assert one["yes"] == pytest.approx(many["yes"], abs=1e-5)


def test_it_is_not_the_expert(folder):
    """Whose first token stays, so that its scores are those that it has always given."""
    image = tiny.images(1, height=28, width=28)[0]
    (reply,) = BlipQuestions(str(folder), device="cpu", image_size=14).replies(
        [image], [{"questions": ["red dog?"]}]
    )
    expert = BlipVqa(str(folder), **tiny.EXACT)
    (answers,) = expert.yes([image], [["red dog"]])
    assert answers[0] == pytest.approx(by_hand(folder, image, "[CLS] red dog ? [SEP]", 14), abs=1e-5)
    (asked,) = reply["yes"]
    assert asked == pytest.approx(by_hand(folder, image, "[ENC] red dog ? [SEP]", 14), abs=1e-6)
    assert asked != answers[0]


def test_a_long_question_is_cut_at_35_tokens(folder):
    judge = BlipQuestions(str(folder), device="cpu", image_size=tiny.SIZE)
    image = tiny.images(1)[0]
    long, cut = ("red " * 60 + "dog?", "red " * 33)
    replies = judge.replies([image, image], [{"questions": [long]}, {"questions": [cut.strip()]}])
    assert replies[0] == replies[1]


def test_a_tokenizer_that_does_not_know_the_token_by_name(folder, tmp_path):
    nameless = blip(tmp_path)
    image, ask = tiny.images(1), [{"questions": ["a dog?"]}]
    given = BlipQuestions(str(nameless), device="cpu", image_size=tiny.SIZE, encoder_token=17)
    known = BlipQuestions(str(folder), device="cpu", image_size=tiny.SIZE)
    assert given.replies(image, ask) == known.replies(image, ask)
    with pytest.raises(UserError, match=r"encoder_token: 30523 is not one of the model's 18 tokens"):
        BlipQuestions(str(nameless), device="cpu", image_size=tiny.SIZE)


def test_as_an_expert_its_reply_is_the_explanation_and_says_by_whom(folder):
    judge = BlipQuestions(str(folder), device="cpu", image_size=tiny.SIZE)
    prompt = ask_prompt("color/0000", {"questions": ["a red dog?"]})
    assert judge.applies(prompt)
    reply = json.loads(judge.score(tiny.images(1), [prompt]).explanation[0])
    assert reply["by"] == {"model": str(folder), "revision": judge.identity()["revision"]}
    assert len(reply["yes"]) == 1


def test_clean_questions():
    assert cleaned('A "Red" (big) dog: #1; a*b~c.!?') == "a red big dog 1 abc?"
    assert cleaned("a dog? ") == "a dog?"
    assert cleaned("x " * 60) == " ".join(["x"] * 50)
