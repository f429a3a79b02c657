"""CLIP's cosine as a judge, on a tiny random model."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from evaluation.judges.base import ask_prompt
from evaluation.judges.clip_similarity import ClipSimilarity
from rewards.experts.clip import CLIPScore
from tests.rewards.experts import tiny

TEXTS = ["a red dog", "a big blue bench", "a red dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    layer = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    layer |= {"num_attention_heads": 4, "projection_dim": 24}
    text = layer | {"vocab_size": tiny.clip_tokenizer(folder), "max_position_embeddings": 40}
    vision = layer | {"image_size": tiny.SIZE, "patch_size": tiny.PATCH}
    config = CLIPConfig(
        text_config=text | {"eos_token_id": 53}, vision_config=vision, projection_dim=24
    )
    tiny.randomize(CLIPModel(config)).save_pretrained(folder)
    tiny.clip_images(folder)
    return folder


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_it_replies_the_cosine_of_the_two_embeddings(folder, batch_size):
    judge = ClipSimilarity(str(folder), **tiny.EXACT, batch_size=batch_size)
    shown = tiny.images(3)
    replies = judge.replies(shown, [{"text": text} for text in TEXTS])
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    for image, text, reply in zip(shown, TEXTS, replies, strict=True):
        with torch.no_grad():
            of_image = model.get_image_features(**processor([image], return_tensors="pt")).pooler_output
            of_text = model.get_text_features(**tokenizer([text], return_tensors="pt")).pooler_output
        wanted = torch.cosine_similarity(of_image, of_text).item()
        assert reply == {"cosine": pytest.approx(wanted, abs=1e-5)}
    assert len({reply["cosine"] for reply in replies}) == 3


def test_it_is_the_raw_cosine_of_the_expert(folder):
    judge = ClipSimilarity(str(folder), **tiny.EXACT)
    prompts = tiny.prompts()
    replies = judge.replies(tiny.images(), [{"text": prompt.text} for prompt in prompts])
    scores = CLIPScore(str(folder), **tiny.EXACT).score(tiny.images(), prompts)
    assert [reply["cosine"] for reply in replies] == scores.values.tolist()


def test_it_says_by_whom(folder):
    judge = ClipSimilarity(str(folder), **tiny.EXACT)
    prompt = ask_prompt("non_spatial/0000", {"text": "a red dog"})
    reply = json.loads(judge.score(tiny.images(1), [prompt]).explanation[0])
    assert set(reply) == {"by", "cosine"} and reply["by"]["model"] == str(folder)
