"""HPSv3 from its published layouts, against the whole conversation read by transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLModel

from policy.errors import UserError
from rewards.experts.common import read_template
from rewards.experts.hpsv3 import HPSv3
from tests.rewards.experts import tiny

PIXELS = 56 * 56
SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """What is needed of the model that HPSv3 was trained from: its tokenizer and config."""
    folder = tmp_path_factory.mktemp("qwen2_vl")
    words = tiny.qwen_tokenizer(folder, *SPECIAL)
    Qwen2VLConfig(
        image_token_id=words - 1,
        text_config={
            "vocab_size": words,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
        },
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64},
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(base) -> tuple[Qwen2VLModel, nn.Sequential]:
    config = Qwen2VLConfig.from_pretrained(base)
    config.text_config.vocab_size += 1  # the reward token
    head = nn.Sequential(
        nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.05), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    return tiny.randomize(Qwen2VLModel(config), scale=0.3), tiny.randomize(head, seed=1)


@pytest.fixture(params=["old names", "new names"])
def published(request, parts, tmp_path) -> Path:
    """A language model's output layer, which nothing reads, is in the file too."""
    model, head = parts
    state = {f"rm_head.{name}": tensor for name, tensor in head.state_dict().items()}
    state["lm_head.weight"] = torch.zeros(4, 64)
    for name, tensor in model.state_dict().items():
        old = name if name.startswith("visual.") else "model." + name.removeprefix("language_model.")
        state[old if request.param == "old names" else f"model.{name}"] = tensor
    save_file(state, tmp_path / "HPSv3.safetensors")
    return tmp_path / "HPSv3.safetensors"


def expert(published: Path, base: Path, **options) -> HPSv3:
    return HPSv3(str(published), base=str(base), pixels=PIXELS, **tiny.EXACT, **options)


def test_the_whole_conversation_read_by_transformers_says_the_same(published, base, parts):
    values = tiny.assert_batches_change_nothing(expert(published, base, batch_size=2))
    model, head = parts
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL, "<|Reward|>"]})
    reward = tokenizer.convert_tokens_to_ids("<|Reward|>")
    assert reward == len(tokenizer) - 1
    size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
    pictures = Qwen2VLImageProcessorPil(size=size)
    template = read_template(None, "hpsv3.txt") + "\n\nEND\n<|im_end|>\n<|im_start|>assistant\n"
    for value, image, prompt in zip(values, tiny.images(), tiny.prompts(), strict=True):
        inputs = pictures([image], return_tensors="pt")
        places = "<|image_pad|>" * int(inputs.image_grid_thw.prod() // 4)
        text = template.replace("<image>", places).replace("{prompt}", prompt.text)
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            hidden = model(
                input_ids=ids,
                position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1),
                pixel_values=inputs.pixel_values,
                image_grid_thw=inputs.image_grid_thw,
            ).last_hidden_state
            mu, _ = head(hidden[ids == reward])[0]
        assert value == pytest.approx(float(mu), abs=1e-5)


def test_evidence_tells_the_spread(published, base):
    answer = expert(published, base).score(tiny.images(1), tiny.prompts()[:1])
    assert answer.explanation[0].startswith(f"mu {answer.values[0]:.2f}, sigma ")


def test_a_file_that_is_no_hpsv3(published, base, tmp_path):
    state = load_file(published)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("rm_head.5")}
    save_file(kept, tmp_path / "headless.safetensors")
    with pytest.raises(UserError, match=r"not an HPSv3: its reward head has the tensors 0\.bias"):
        expert(tmp_path / "headless.safetensors", base)
    gone = next(name for name in state if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({n: t for n, t in state.items() if n != gone}, tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"1 missing: language_model\.layers\.1\.mlp\.up_proj\.weight"):
        expert(tmp_path / "short.safetensors", base)


def test_a_base_that_does_not_fit(published, base, tmp_path):
    tiny.qwen_tokenizer(tmp_path, *SPECIAL, "<|one_more|>")
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    with pytest.raises(UserError, match="fewer than the tokenizer of"):
        expert(published, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UserError, match="a 'qwen2' checkpoint, where 'qwen2_vl' is needed"):
        expert(published, tmp_path)


def test_wide_images_keep_their_shape(published, base):
    asked = tiny.prompts()[:2]
    wide, high = tiny.images(1, 20, 60)[0], tiny.images(1, 60, 20)[0]
    together = expert(published, base).score([wide, high], asked).values
    alone = [
        expert(published, base).score([i], [p]).values[0]
        for i, p in zip((wide, high), asked, strict=True)
    ]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_half_precision(published, base):
    options = {"base": str(base), "pixels": PIXELS, "atol": 0.5}
    tiny.assert_half_precision_is_close(HPSv3, str(published), **options)
