import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from policy.errors import UserError
from policy.model import PolicyConfig, load_janus


def test_a_saved_janus_loads_with_its_tokenizer(janus, policy_config):
    assert janus.image_tokens == 36
    assert not janus.model.training
    ids = janus.image_prompt_ids("a red circle", "red circle top left")
    words = janus.tokenizer.convert_ids_to_tokens(ids)
    assert words[0] == "<bos>"
    assert words[-1] == "<begin_of_image>"
    assert "<unk>" not in words


def test_the_unconditional_row_has_its_own_prompts_length(janus):
    ids = janus.image_prompt_ids("a red circle", "red circle top left")
    row = janus.unconditional_ids(ids)
    assert len(row) == len(ids)
    assert row[0] == ids[0]
    assert row[-1] == ids[-1]
    assert set(row[1:-1]) == {janus.pad_id}


def test_images_are_rounded_not_cut(janus, monkeypatch):
    pixels = torch.tensor([-1.5, -1.0, 0.0, 0.999, 1.0, 2.0]).view(1, 1, 2, 3)
    monkeypatch.setattr(janus.model, "decode_image_tokens", lambda ids: pixels)
    image = janus.decode_images(torch.zeros(1, 36, dtype=torch.long))
    assert image.dtype == np.uint8
    assert image.ravel().tolist() == [0, 0, 128, 255, 255, 255]


def broken(policy_config, tmp_path, change):
    folder = shutil.copytree(policy_config.path, tmp_path / "broken")
    change(folder)
    return PolicyConfig(path=str(folder))


def test_a_directory_that_is_not_a_janus_is_refused(policy_config, tmp_path):
    with pytest.raises(UserError, match="no such model directory"):
        load_janus(PolicyConfig(path=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"it has no config\.json"):
        load_janus(PolicyConfig(path=str(tmp_path)))

    def become_llama(folder):
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))

    with pytest.raises(UserError, match="a 'llama' checkpoint, where a Janus"):
        load_janus(broken(policy_config, tmp_path, become_llama))


def test_missing_weights_are_an_error_not_random_weights(policy_config, tmp_path):
    def drop_one(folder):
        state = load_file(folder / "model.safetensors")
        del state["lm_head.weight"]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(UserError, match=r"1 missing: lm_head\.weight"):
        load_janus(broken(policy_config, tmp_path, drop_one))


def test_a_truncated_weights_file_is_an_error(policy_config, tmp_path):
    def cut(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(UserError, match=r"model\.safetensors: truncated"):
        load_janus(broken(policy_config, tmp_path, cut))
