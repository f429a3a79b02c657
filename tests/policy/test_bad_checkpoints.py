"""What is wrong with a checkpoint is one readable error, before anything is built or written."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from policy.convert import convert
from policy.errors import UserError
from policy.model import PolicyConfig, load_janus


@pytest.fixture(params=["transformers", "original"])
def whole(request, policy_config, original_folder) -> Path:
    return Path(policy_config.path) if request.param == "transformers" else original_folder


@pytest.fixture
def broken(whole, tmp_path) -> Path:
    """A copy to break: one file of weights."""
    return shutil.copytree(whole, tmp_path / "broken")


@pytest.fixture
def sharded(policy_config, original_folder, whole, tmp_path) -> Path:
    """A copy in several shards: the other layout, converted."""
    is_original = whole == original_folder
    source, to = (policy_config.path, "original") if is_original else (original_folder, "transformers")
    convert(str(source), tmp_path / "sharded", to, shard_bytes=300_000)
    return tmp_path / "sharded"


def refused(folder: Path, complaint: str) -> None:
    """By loading and by converting, which leaves nothing behind."""
    with pytest.raises(UserError, match=complaint):
        load_janus(PolicyConfig(path=str(folder)))
    target = folder.parent / "target"
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    with pytest.raises(UserError, match=complaint):
        convert(str(folder), target, "original" if kind == "janus" else "transformers")
    assert not list(folder.parent.glob("target*"))


def change_weights(folder: Path, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_unknown_missing_and_misshapen_tensors_are_one_error(broken):
    def change(state):
        names = sorted(name for name in state if "decoder" in name and "bias" in name)[:12]
        for name in names:
            del state[name]
        first = next(name for name in state if name.endswith("lm_head.weight"))
        state[first] = state[first][:-1].clone()
        state["spare.weight"] = torch.zeros(2)

    change_weights(broken, change)
    lost = r"12 missing: ([\w.]+, ){10}\.\.\."
    shapes = r"1 misshapen: [\w.]*lm_head\.weight \[\d+, 64\] instead of \[\d+, 64\]"
    refused(broken, rf"do not fit its config: {lost}; {shapes}; 1 unknown: spare\.weight")


def test_a_config_that_does_not_match_its_weights(broken):
    config = json.loads((broken / "config.json").read_text())
    text = config.get("text_config") or config["language_config"]
    text["num_hidden_layers"] += 1
    text["vocab_size"] += 1
    (broken / "config.json").write_text(json.dumps(config))
    refused(broken, r"9 missing: .*2 misshapen: .*embed_tokens\.weight .* instead of")


def test_a_config_from_which_no_model_can_be_built(broken):
    config = json.loads((broken / "config.json").read_text())
    text = config.get("text_config") or config["language_config"]
    text["num_attention_heads"] = 7
    (broken / "config.json").write_text(json.dumps(config))
    refused(broken, "not a Janus's config|not one of an original Janus|no Janus can be built")


def test_a_truncated_shard(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(sharded, rf"{shard.name}: truncated, or not a safetensors file")


def test_a_missing_shard(sharded):
    lost = sorted(sharded.glob("model-*.safetensors"))[:2]
    for shard in lost:
        shard.unlink()
    refused(sharded, f"2 of the shards are missing: {lost[0].name}, {lost[1].name}")


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ("{", "not an index of shards"),
        ('{"metadata": {}}', "not an index of shards"),
        ('{"weight_map": {"a": ["x"]}}', "not an index of shards"),
        ('{"weight_map": {}}', "not names of .safetensors files"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "not names of .safetensors files"),
        ('{"weight_map": {"a": "weights.bin"}}', "not names of .safetensors files"),
    ],
)
def test_an_index_that_is_none(broken, index, complaint):
    (broken / "model.safetensors.index.json").write_text(index)
    refused(broken, complaint)


def test_a_tensor_in_two_shards(sharded):
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    doubled = load_file(second)
    name, tensor = next(iter(load_file(first).items()))
    doubled[name] = tensor
    save_file(doubled, second)
    refused(sharded, f"both {first.name} and {second.name} hold the tensor {name}")


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harmful-was-here"),))


def as_bin(folder: Path, content) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


def test_pickled_code_is_not_run(broken, monkeypatch):
    monkeypatch.chdir(broken)
    as_bin(broken, {"harm": Harmful()})
    refused(broken, "more than tensors, and unpickling that could run any code")
    (broken / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful()))
    refused(broken, r"pytorch_model\.bin: ")
    assert not (broken / "harmful-was-here").exists()


def test_a_pytorch_file_that_is_truncated_or_holds_something_else(broken):
    as_bin(broken, load_file(broken / "model.safetensors"))
    file = broken / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-2000])
    refused(broken, r"pytorch_model\.bin: truncated, or not a PyTorch weights file")
    file.write_bytes(b"")
    refused(broken, r"pytorch_model\.bin: truncated")
    torch.save({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, file)
    refused(broken, "not a plain mapping of names to tensors")
    torch.save({"a": torch.zeros(1, dtype=torch.complex64)}, file)
    refused(broken, "a is of a type not known here: complex64")


def test_no_weights_no_tokenizer_no_janus(broken):
    (broken / "model.safetensors").rename(broken / "weights.safetensors")
    refused(broken, r"holds no weights: none of model\.safetensors\.index\.json, ")
    (broken / "tokenizer.json").write_text("{}")
    refused(broken, "its tokenizer cannot be read")
    (broken / "tokenizer.json").unlink()
    refused(broken, r"it has no tokenizer\.json")
    (broken / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    refused(broken, "a 'qwen2_vl' checkpoint, where a Janus")


def test_quantized_weights_are_refused(broken):
    config = json.loads((broken / "config.json").read_text())
    part = config.get("text_config") or config["language_config"]
    for place in (part, config):
        place["quantization_config"] = {"quant_method": "awq"}
        (broken / "config.json").write_text(json.dumps(config))
        refused(broken, r"quantized weights \(awq\), which cannot be trained")


def test_an_adapter_alone_is_no_model(tmp_path):
    settings = {"peft_type": "LORA", "base_model_name_or_path": "deepseek-community/Janus-Pro-1B"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"a PEFT adapter of deepseek-community/.*merge_and_unload"):
        load_janus(PolicyConfig(path=str(tmp_path)))


def test_a_stack_of_two_types_is_refused(policy_config, tmp_path):
    folder = shutil.copytree(policy_config.path, tmp_path / "mixed")
    name = "model.vision_model.encoder.layers.0.self_attn.k_proj.weight"
    change_weights(folder, lambda state: state.update({name: state[name].half()}))
    with pytest.raises(UserError, match=r"differ in type.*float16, float32"):
        convert(str(folder), tmp_path / "target", "original")
    assert not list(tmp_path.glob("target*"))


def test_targets_that_are_refused(policy_config, original_folder, tmp_path):
    with pytest.raises(UserError, match="is in the transformers layout already"):
        convert(policy_config.path, tmp_path / "target", "transformers")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="is there already; give a new directory"):
        convert(policy_config.path, tmp_path / "target", "original")
    (tmp_path / "new.part").mkdir()
    with pytest.raises(UserError, match=r"new\.part: is there already, perhaps from a broken run"):
        convert(policy_config.path, tmp_path / "new", "original")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        convert(policy_config.path, tmp_path / "file" / "new", "original")
    assert (tmp_path / "target" / "mine.txt").read_text() == "keep"
