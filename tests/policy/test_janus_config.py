import copy
import json
import math

import pytest

from policy.errors import UserError
from policy.janus_checkpoint import model_shapes
from policy.janus_config import TokenIds, to_original, to_transformers
from tests.conftest import shared_file

TOKENS = TokenIds(bos=100000, eos=100001, pad=100002, image=100581)


def published(language: dict, hidden: int) -> dict:
    """The config of a published Janus-Pro."""
    projector = {"depth": 2, "n_embed": hidden, "projector_type": "mlp_gelu"}
    head = {"image_token_embed": hidden, "image_token_size": 16384, "n_embed": hidden}
    vision = {
        "image_size": 384,
        "model_name": "siglip_large_patch16_384",
        "select_feature": "same",
        "select_layer": -1,
    }
    return {
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        "language_config": {
            "model_type": "llama",
            "max_position_embeddings": 16384,
            "torch_dtype": "bfloat16",
            "vocab_size": 102400,
            **language,
        },
        "vision_config": {"cls": "CLIPVisionTower", "params": vision},
        "aligner_config": {"cls": "MlpProjector", "params": {**projector, "input_dim": 1024}},
        "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 16384, "n_embed": 8}},
        "gen_aligner_config": {"cls": "MlpProjector", "params": {**projector, "input_dim": 8}},
        "gen_head_config": {"cls": "vision_head", "params": head},
    }


JANUS_PRO_1B = published(
    {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "num_key_value_heads": 16,
    },
    hidden=2048,
)
JANUS_PRO_7B = published({"num_hidden_layers": 30}, hidden=4096)  # Llama's defaults for the rest


def test_janus_pro_1b_has_its_published_size():
    shapes = model_shapes(to_transformers(JANUS_PRO_1B, TOKENS))
    # The pooling head, which transformers leaves out: q, kv, proj, norm, mlp, latent.
    width, mlp = 1024, 4096
    pool = 4 * (width**2 + width) + 2 * width + (2 * width * mlp + mlp + width) + width
    assert sum(math.prod(shape) for shape in shapes.values()) + pool == 2_089_232_011


def test_janus_pro_7b_takes_llamas_defaults():
    config = to_transformers(JANUS_PRO_7B, TOKENS)
    text = config.text_config
    assert (text.hidden_size, text.intermediate_size, text.num_attention_heads) == (4096, 11008, 32)
    assert (text.num_hidden_layers, text.num_key_value_heads, text.vocab_size) == (30, 32, 102400)
    assert config.vision_config.num_image_tokens == 576
    assert config.vq_config.num_patches == 24
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == TOKENS[:3]
    assert config.tie_word_embeddings is False and text.tie_word_embeddings is False


@pytest.mark.parametrize("original", [JANUS_PRO_1B, JANUS_PRO_7B], ids=["1B", "7B"])
def test_a_published_configuration_comes_back_as_published(original):
    config = to_transformers(original, TOKENS)
    again = to_original(config, "bfloat16")
    assert "_siglip" not in again and "_vq_small" not in again
    for part, value in original.items():
        if part.endswith("_config") and part != "language_config":
            assert again[part]["params"] == value["params"]
    assert again["language_config"].items() >= original["language_config"].items()
    assert to_transformers(again, TOKENS).to_dict() == config.to_dict()


def test_a_model_of_other_shapes_states_them(janus):
    original = to_original(janus.model.config)
    assert original["_vq_small"]["ch_mult"] == [1, 1, 1]
    assert original["_siglip"]["width"] == 32
    tokens = TokenIds(janus.tokenizer.bos_token_id, janus.eos_id, janus.pad_id, None)
    again = to_transformers(json.loads(json.dumps(original)), tokens)
    assert model_shapes(again) == model_shapes(janus.model.config)
    assert again.image_token_id == janus.model.config.image_token_id


def test_a_stretched_rope_survives():
    original = copy.deepcopy(JANUS_PRO_1B)
    stretched = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    original["language_config"] |= stretched
    again = to_original(to_transformers(original, TOKENS))
    assert {key: again["language_config"][key] for key in stretched} == stretched


def test_the_tiny_published_config():
    config = json.loads(shared_file("vectors/janus_tiny/reference_config.json").read_text())
    janus = to_transformers(config, TokenIds(512, 513, 514, 515))
    assert janus.vision_config.num_image_tokens == 36
    assert janus.vq_config.base_channels == 32
    assert janus.image_token_id == 515


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda c: c.pop("gen_vision_config"), "it lacks 'gen_vision_config'"),
        (
            lambda c: c["vision_config"]["params"].update(model_name="clip_b"),
            "a 'clip_b', where siglip",
        ),
        (lambda c: c["gen_vision_config"].update(cls="VQ-8"), "a 'VQ-8', where VQ-16 is known"),
        (lambda c: c["gen_head_config"]["params"].update(n_embed=7), "gen_head_config n_embed is 7"),
        (lambda c: c["aligner_config"]["params"].update(projector_type="linear"), "projector_type"),
        (lambda c: c["language_config"].update(model_type="mamba"), "language model is 'mamba'"),
        (lambda c: c["language_config"].update(hidden_size="wide"), "not one of an original Janus"),
        (lambda c: c.update(language_config=None), "not one of an original Janus"),
    ],
)
def test_a_config_that_is_no_supported_janus(change, complaint):
    config = copy.deepcopy(JANUS_PRO_1B)
    change(config)
    with pytest.raises(UserError, match=complaint):
        to_transformers(config, TOKENS)
