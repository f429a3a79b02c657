"""A byte-level tokenizer under the name of Llama's class, as the published checkpoints have it."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from policy.errors import UserError
from policy.janus_checkpoint import load_tokenizer, open_checkpoint, save_tokenizer

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


def without(folder, *names):
    """tokenizer_config.json lacks these keys; with none, there is no such file."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.unlink()
    if names:
        file.write_text(json.dumps({k: v for k, v in settings.items() if k not in names}))


@pytest.mark.parametrize("names", [(), ("eos_token",), ("pad_token",), ("bos_token", "eos_token")])
def test_ids_that_the_tokenizer_does_not_name_are_read_from_config_json(policy_config, tmp_path, names):
    folder = shutil.copytree(policy_config.path, tmp_path / "janus")
    before = load_tokenizer(folder)
    without(folder, *names)
    after = load_tokenizer(folder)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(after, name) == getattr(before, name)
    assert after(TEXT).input_ids == before(TEXT).input_ids
    assert after.decode([after.eos_token_id], skip_special_tokens=True) == ""


@pytest.mark.parametrize("name", ["bos_token", "eos_token", "pad_token"])
def test_an_id_that_is_nowhere_is_refused(policy_config, tmp_path, name):
    folder = shutil.copytree(policy_config.path, tmp_path / "janus")
    without(folder, name)
    config = json.loads((folder / "config.json").read_text())
    for wrong in (None, [1], 12, 10**6):  # 12: a word; Llama's defaults are words of Janus too
        config["text_config"][f"{name}_id"] = wrong
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=f"it has no {name}"):
            open_checkpoint(folder)


def test_a_special_token_beyond_the_vocabulary_is_refused(policy_config, tmp_path):
    folder = shutil.copytree(policy_config.path, tmp_path / "janus")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "</s>"}))
    with pytest.raises(UserError, match=r"eos_token '</s>' is not in tokenizer\.json"):
        open_checkpoint(folder)


def test_begin_of_image_is_asked_for_where_a_checkpoint_is_opened(policy_config, tmp_path):
    folder = shutil.copytree(policy_config.path, tmp_path / "janus")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text().replace("<begin_of_image>", "<another>")
        (folder / name).write_text(text)
    with pytest.raises(UserError, match="has no token <begin_of_image>"):
        open_checkpoint(folder)


def test_the_first_token_is_there_without_settings(published):
    without(published)
    config = {"model_type": "janus", "text_config": {}}
    for n, name in enumerate(("bos", "eos", "pad")):
        config["text_config"][f"{name}_token_id"] = 256 + n
    (published / "config.json").write_text(json.dumps(config))
    assert load_tokenizer(published)(TEXT).input_ids == right_ids()
