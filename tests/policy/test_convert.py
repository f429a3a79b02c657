"""From one layout to the other and back: nothing is lost, whatever the files look like."""

import hashlib
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, JanusForConditionalGeneration

from policy.convert import convert, keep_side_files
from policy.janus_checkpoint import save_tokenizer
from policy.model import PolicyConfig, load_janus
from policy.shards import Shards


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    shards = Shards(folder)
    return {name: shards.read(name).clone() for name in shards.specs}


def assert_same_tensors(found: dict, wanted: dict):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def as_bin(folder: Path, target: Path, files: int = 1) -> Path:
    """The same checkpoint as PyTorch files."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    state = tensors(folder)
    if files == 1:
        torch.save(state, target / "pytorch_model.bin")
        return target
    names = [f"pytorch_model-{n:05}-of-{files:05}.bin" for n in range(1, files + 1)]
    weight_map = {key: names[i % files] for i, key in enumerate(state)}  # q, k and v in different files
    for name in names:
        torch.save({k: t for k, t in state.items() if weight_map[k] == name}, target / name)
    index = {"metadata": {}, "weight_map": weight_map}
    (target / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return target


@torch.no_grad()
def outputs(folder: Path) -> list[torch.Tensor]:
    """Text logits, image logits, pixels and seen images of fixed inputs."""
    janus = load_janus(PolicyConfig(path=str(folder)))
    ids = torch.tensor([janus.image_prompt_ids("a red circle", "red circle top left")])
    image = torch.arange(janus.image_tokens)[None]
    pixels = janus.model.decode_image_tokens(image)
    embedded = torch.cat([janus.embed_text(ids), janus.embed_image(image)], 1)
    states = janus.model.model.language_model(inputs_embeds=embedded).last_hidden_state
    seen = janus.model.model.get_image_features(pixels.permute(0, 3, 1, 2)).pooler_output
    return [janus.text_logits(states), janus.image_logits(states), pixels, seen]


@pytest.mark.parametrize("shard_bytes", [10**9, 200_000])
def test_to_the_original_layout_and_back(policy_config, tmp_path, shard_bytes):
    start = Path(policy_config.path)
    original, back = tmp_path / "original", tmp_path / "back"
    there = convert(str(start), original, "original", shard_bytes)
    convert(str(original), back, "transformers", shard_bytes)
    assert (len(there.files) > 1) == (shard_bytes < 10**9)
    assert there.nbytes == sum(t.nbytes for t in tensors(start).values())
    assert json.loads((original / "config.json").read_text())["model_type"] == "multi_modality"
    assert_same_tensors(tensors(back), tensors(start))
    for folder in (original, back):
        for found, wanted in zip(outputs(folder), outputs(start), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("files", [1, 3])
def test_pytorch_files_convert_too(original_folder, policy_config, tmp_path, files):
    source = as_bin(original_folder, tmp_path / "bin", files)
    convert(str(source), tmp_path / "new", "transformers")
    assert_same_tensors(tensors(tmp_path / "new"), tensors(Path(policy_config.path)))
    source = as_bin(Path(policy_config.path), tmp_path / "janus_bin", files)
    convert(str(source), tmp_path / "original", "original")
    assert_same_tensors(tensors(tmp_path / "original"), tensors(original_folder))
    assert torch.equal(outputs(source)[0], outputs(original_folder)[0])


def test_every_tensor_keeps_its_type(original_folder, tmp_path):
    source = shutil.copytree(original_folder, tmp_path / "source")
    state = {name: tensor.to(torch.bfloat16) for name, tensor in tensors(source).items()}
    state["gen_embed.weight"] = state["gen_embed.weight"].to(torch.float16)
    save_file(state, source / "model.safetensors")
    convert(str(source), tmp_path / "new", "transformers")
    convert(str(tmp_path / "new"), tmp_path / "back", "original")
    assert_same_tensors(tensors(tmp_path / "back"), state)
    assert json.loads((tmp_path / "new" / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_transformers_has_no_place_for_comes_back(original_folder, tmp_path):
    source = shutil.copytree(original_folder, tmp_path / "source")
    state = tensors(source)
    state["vision_model.vision_tower.attn_pool.latent"] = torch.rand(1, 1, 32)
    state["gen_vision_model.quantize.codebook_used"] = torch.rand(7)
    save_file(state, source / "model.safetensors")
    settings = {"image_size": 24, "sft_format": "deepseek"}
    (source / "preprocessor_config.json").write_text(json.dumps(settings))
    config = json.loads((source / "config.json").read_text()) | {"_note": "ours"}
    (source / "config.json").write_text(json.dumps(config))

    convert(str(source), tmp_path / "new", "transformers")
    assert "model.vision_model.embeddings.position_embedding.weight" in tensors(tmp_path / "new")
    assert not (tmp_path / "new" / "preprocessor_config.json").exists()
    convert(str(tmp_path / "new"), tmp_path / "back", "original")
    assert_same_tensors(tensors(tmp_path / "back"), state)
    assert json.loads((tmp_path / "back" / "preprocessor_config.json").read_text()) == settings
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config


def test_plain_transformers_loads_what_was_converted(original_folder, policy_config, tmp_path):
    convert(str(original_folder), tmp_path / "new", "transformers", shard_bytes=200_000)
    model, report = JanusForConditionalGeneration.from_pretrained(
        tmp_path / "new", output_loading_info=True
    )
    assert not any(report.values())
    assert not model.config.tie_word_embeddings
    assert_same_tensors(dict(model.state_dict()), tensors(Path(policy_config.path)))


def test_shards_are_safetensors_that_others_read(policy_config, tmp_path):
    convert(policy_config.path, tmp_path / "original", "original", shard_bytes=200_000)
    index = json.loads((tmp_path / "original" / "model.safetensors.index.json").read_text())
    read = {}
    for file in sorted(set(index["weight_map"].values())):
        shard = load_file(tmp_path / "original" / file)
        assert len(shard) == 1 or sum(t.nbytes for t in shard.values()) <= 200_000
        assert all(index["weight_map"][name] == file for name in shard)
        read |= shard
    assert_same_tensors(read, tensors(tmp_path / "original"))
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in read.values())


def test_the_published_checkpoint_goes_there_and_back(reference_folder, prompt_cases, tmp_path):
    convert(str(reference_folder), tmp_path / "new", "transformers")
    convert(str(tmp_path / "new"), tmp_path / "back", "original")
    assert_same_tensors(tensors(tmp_path / "back"), tensors(reference_folder))
    assert (tmp_path / "back" / "config.json").read_text() == json.dumps(
        json.loads((reference_folder / "config.json").read_text()), indent=2
    ) + "\n"
    for folder in ("new", "back"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / folder)
        for case in prompt_cases:
            assert tokenizer(case["sft"]).input_ids == case["input_ids"]


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_source_is_left_alone_and_the_result_is_reproducible(policy_config, tmp_path):
    before = digest(Path(policy_config.path))
    convert(policy_config.path, tmp_path / "one", "original")
    (tmp_path / "two").mkdir()  # an empty directory is as good as none
    convert(policy_config.path, tmp_path / "two", "original")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert digest(Path(policy_config.path)) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_training_in_place_leaves_the_files_alone(original_folder, tmp_path):
    """Loading maps the files; writing to a parameter must not write to them."""
    for folder in (original_folder, as_bin(original_folder, tmp_path / "bin")):
        before = digest(folder)
        janus = load_janus(PolicyConfig(path=str(folder)))
        with torch.no_grad():
            for parameter in janus.model.parameters():
                parameter.add_(1)
        del janus
        assert digest(folder) == before


def test_no_two_parameters_share_memory(original_folder):
    janus = load_janus(PolicyConfig(path=str(original_folder)))
    spans = sorted((p.data_ptr(), p.data_ptr() + p.nbytes) for p in janus.model.parameters())
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_a_model_that_was_loaded_and_saved_goes_back(original_folder, tmp_path):
    """As a training run does: it starts from the original layout and saves in transformers'."""
    janus = load_janus(PolicyConfig(path=str(original_folder)))
    janus.model.save_pretrained(tmp_path / "saved")
    janus.tokenizer.save_pretrained(tmp_path / "saved")
    convert(str(tmp_path / "saved"), tmp_path / "back", "original")
    assert_same_tensors(tensors(tmp_path / "back"), tensors(original_folder))


def trained(source: Path, target: Path) -> Path:
    """What a checkpoint holds of a model, as the learner writes it."""
    janus = load_janus(PolicyConfig(path=str(source)))
    janus.model.save_pretrained(target)
    save_tokenizer(janus.tokenizer, target)
    assert janus.source == source
    keep_side_files(janus.source, target)
    return target


SIDE_FILES = {"processor_config.json": "p", "preprocessor_config.json": "q", "chat_template.jinja": "r"}


def test_after_training_the_original_layout_has_what_it_had(original_folder, tmp_path):
    source = shutil.copytree(original_folder, tmp_path / "source")
    state = tensors(source)
    state["vision_model.vision_tower.attn_pool.latent"] = torch.ones(1, 1, 32)
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"note": "kept"}
    (source / "config.json").write_text(json.dumps(config))
    for name, text in SIDE_FILES.items():
        (source / name).write_text(text)
    convert(str(trained(source, tmp_path / "checkpoint")), tmp_path / "back", "original")
    assert_same_tensors(tensors(tmp_path / "back"), state)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config
    for name, text in SIDE_FILES.items():
        assert (tmp_path / "back" / name).read_text() == text
    # and once more from a converted copy, whose checkpoints keep what it kept
    convert(str(source), tmp_path / "converted", "transformers")
    again = trained(tmp_path / "converted", tmp_path / "again")
    assert_same_tensors(
        tensors(again / "original"), {k: v for k, v in state.items() if "attn_pool" in k}
    )


def test_a_processor_stays_beside_a_model_in_the_transformers_layout(policy_config, tmp_path):
    source = shutil.copytree(policy_config.path, tmp_path / "source")
    for name, text in SIDE_FILES.items():
        (source / name).write_text(text)
    target = trained(source, tmp_path / "checkpoint")
    for name, text in SIDE_FILES.items():
        assert (target / name).read_text() == text


@pytest.mark.parametrize("to", ["original", "transformers"])
def test_every_config_names_the_version_of_transformers(policy_config, original_folder, tmp_path, to):
    """Else transformers takes the tokenizer for a broken one of Mistral's, and says so."""
    source = policy_config.path if to == "original" else original_folder
    convert(str(source), tmp_path / "target", to)
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    assert config["transformers_version"] == transformers.__version__
