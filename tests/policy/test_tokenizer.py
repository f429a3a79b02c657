"""A byte-level tokenizer under the name of Llama's class, as the published checkpoints have it."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from policy.janus_checkpoint import load_tokenizer, save_tokenizer

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
TEXT = "User: a red circle.\n\nAssistant:<begin_of_image>"


@pytest.fixture(params=["adds its first token", "leaves it to the class"])
def published(request, tmp_path) -> Path:
    """Bytes as tokens, saved as the original checkpoints are, with and without a template."""
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = [BOS, EOS, PAD, "<begin_of_image>"]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate([*words, *specials])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if request.param == "adds its first token":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, len(words))]
        )
    settings = {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_bos_token": True,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
    }
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "multi_modality"}))
    return tmp_path


def right_ids() -> list[int]:
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = {" ": "Ġ", "\n": "Ċ"}
    body = [words.index(letters.get(char, char)) for char in TEXT.removesuffix("<begin_of_image>")]
    return [len(words), *body, len(words) + 3]


def test_ids_are_right_and_text_comes_back(published):
    tokenizer = load_tokenizer(published)
    assert tokenizer(TEXT).input_ids == right_ids()
    assert tokenizer.decode(right_ids(), skip_special_tokens=True) == TEXT.partition("<begin")[0]


def test_loading_by_class_name_is_the_trap(published):
    assert AutoTokenizer.from_pretrained(published)(TEXT).input_ids != right_ids()


@pytest.mark.parametrize("model_type", ["multi_modality", "janus"])
def test_saved_again_every_loader_reads_it_right(published, tmp_path, model_type):
    target = tmp_path / "saved"
    save_tokenizer(load_tokenizer(published), target)
    (target / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert AutoTokenizer.from_pretrained(target)(TEXT).input_ids == right_ids()
    assert load_tokenizer(target)(TEXT).input_ids == right_ids()


def test_special_tokens_stay_special(policy_config, tmp_path):
    folder = shutil.copytree(policy_config.path, tmp_path / "janus")
    before = load_tokenizer(folder)
    save_tokenizer(before, folder)
    after = load_tokenizer(folder)
    assert after.all_special_tokens == before.all_special_tokens
    assert after.get_vocab() == before.get_vocab()
