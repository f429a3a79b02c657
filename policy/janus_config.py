"""The two config.json of a Janus: the original's ("multi_modality") and the one of transformers.

The original names its vision tower and its VQ model and leaves their shapes to its code; the table
below is that code. A model of other shapes (a tiny one for tests) states them under keys with a leading
underscore, which the released code ignores."""

import copy
from typing import Any, NamedTuple

from huggingface_hub.errors import StrictDataclassError
from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from policy.errors import UserError

Json = dict[str, Any]

SIGLIP: dict[str, Json] = {
    "siglip_large_patch16_384": {
        "patch_size": 16,
        "width": 1024,
        "layers": 24,
        "heads": 16,
        "mlp_ratio": 4,
    }
}
VQ: dict[str, Json] = {
    "VQ-16": {"ch": 128, "z_channels": 256, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2}
}
_SIGLIP_KEY, _VQ_KEY, _TOKENS_KEY = "_siglip", "_vq_small", "_tokens"

# What is kept of language_config; LlamaConfig's defaults fill what a config leaves out.
_LANGUAGE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "attention_bias",
    "mlp_bias",
    "initializer_range",
)
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")


class TokenIds(NamedTuple):
    """Token ids, read from the tokenizer: the published config has Llama's defaults."""

    bos: int | None
    eos: int | None
    pad: int | None
    image: int | None
    """<image_placeholder>, which stands for an image that is looked at"""


def to_transformers(original: Json, tokens: TokenIds, dtype: str | None = None) -> JanusConfig:
    """Raises UserError for a config that is not a Janus's, or asks for what transformers lacks."""
    try:
        # A copy: LlamaConfig writes into the dicts that it is given.
        return _to_transformers(copy.deepcopy(original), tokens, dtype)
    except KeyError as error:
        raise UserError(f"config.json: not one of an original Janus: it lacks {error}") from None
    except (TypeError, AttributeError, ValueError, StrictDataclassError) as error:
        raise UserError(f"config.json: not one of an original Janus: {error}") from None


def _to_transformers(original: Json, tokens: TokenIds, dtype: str | None) -> JanusConfig:
    vision, aligner, vq, vq_aligner, head = (
        original[f"{part}_config"]["params"]
        for part in ("vision", "aligner", "gen_vision", "gen_aligner", "gen_head")
    )
    language = original["language_config"]
    siglip = original.get(_SIGLIP_KEY) or _named(SIGLIP, vision["model_name"])
    vq_shape = original.get(_VQ_KEY) or _named(VQ, original["gen_vision_config"]["cls"])
    text = LlamaConfig(
        **{key: language[key] for key in _LANGUAGE + _ROPE if language.get(key) is not None},
        bos_token_id=tokens.bos,
        eos_token_id=tokens.eos,
        pad_token_id=tokens.pad,
        tie_word_embeddings=False,
    )
    _require(
        ("language model", language.get("model_type", "llama"), "llama"),
        ("vision_config select_feature", vision["select_feature"], "same"),
        ("vision_config select_layer", vision["select_layer"], -1),
        ("aligner_config projector_type", aligner["projector_type"], "mlp_gelu"),
        ("aligner_config input_dim", aligner["input_dim"], siglip["width"]),
        ("aligner_config n_embed", aligner["n_embed"], text.hidden_size),
        ("gen_aligner_config projector_type", vq_aligner["projector_type"], "mlp_gelu"),
        ("gen_aligner_config input_dim", vq_aligner["input_dim"], vq["n_embed"]),
        ("gen_aligner_config n_embed", vq_aligner["n_embed"], text.hidden_size),
        ("gen_head_config n_embed", head["n_embed"], text.hidden_size),
        ("gen_head_config image_token_embed", head["image_token_embed"], text.hidden_size),
        ("gen_head_config image_token_size", head["image_token_size"], vq["image_token_size"]),
    )
    image_token = original.get(_TOKENS_KEY, {}).get("image_placeholder", tokens.image)
    config = JanusConfig(
        text_config=text,
        vision_config=_vision_config(siglip, vision["image_size"], aligner),
        vq_config=JanusVQVAEConfig(
            embed_dim=vq["n_embed"],
            num_embeddings=vq["image_token_size"],
            latent_channels=vq_shape["z_channels"],
            base_channels=vq_shape["ch"],
            channel_multiplier=vq_shape["ch_mult"],
            num_res_blocks=vq_shape["num_res_blocks"],
            projection_dim=vq_aligner["n_embed"],
            num_hidden_layers=vq_aligner["depth"],
            image_token_embed_dim=head["n_embed"],
        ),
        # The default is True, and would silently replace the text head by the embeddings.
        tie_word_embeddings=False,
        **({} if image_token is None else {"image_token_id": image_token}),
    )
    config.architectures = ["JanusForConditionalGeneration"]
    config.dtype = dtype
    return config


def _vision_config(siglip: Json, image_size: int, aligner: Json) -> JanusVisionConfig:
    return JanusVisionConfig(
        hidden_size=siglip["width"],
        num_hidden_layers=siglip["layers"],
        num_attention_heads=siglip["heads"],
        mlp_ratio=siglip["mlp_ratio"],
        image_size=image_size,
        patch_size=siglip["patch_size"],
        num_image_tokens=(image_size // siglip["patch_size"]) ** 2,
        projection_dim=aligner["n_embed"],
        depth=aligner["depth"],
    )


def to_original(config: JanusConfig, dtype: str | None = None) -> Json:
    """Raises UserError for a model that the original layout cannot express."""
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    _require(
        ("text_config model_type", text.model_type, "llama"),
        ("vision_config use_qk_norm", vision.use_qk_norm, False),
        ("vision_config hidden_act", vision.hidden_act, "gelu"),
        ("vision_config projection_dim", vision.projection_dim, text.hidden_size),
        ("vq_config projection_dim", vq.projection_dim, text.hidden_size),
        ("vq_config image_token_embed_dim", vq.image_token_embed_dim, text.hidden_size),
        ("vq_config double_latent", vq.double_latent, False),
        ("vq_config hidden_act", vq.hidden_act, "gelu"),
    )
    siglip, vq_shape = _siglip_shape(vision), _vq_shape(vq)
    siglip_name, vq_name = _name(SIGLIP, siglip), _name(VQ, vq_shape)
    original = {
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        "torch_dtype": dtype,
        "language_config": _language_config(text, dtype),
        "vision_config": _part(
            "vision",
            "CLIPVisionTower",
            model_name=siglip_name or f"siglip_w{vision.hidden_size}_l{vision.num_hidden_layers}",
            image_size=vision.image_size,
            select_feature="same",
            select_layer=-1,
        ),
        "aligner_config": _projector("aligner", vision.hidden_size, text.hidden_size, vision.depth),
        "gen_vision_config": _part(
            "gen_vision", "VQ-16", image_token_size=vq.num_embeddings, n_embed=vq.embed_dim
        ),
        "gen_aligner_config": _projector(
            "gen_aligner", vq.embed_dim, text.hidden_size, vq.num_hidden_layers
        ),
        "gen_head_config": _part(
            "gen_head",
            "vision_head",
            image_token_embed=text.hidden_size,
            image_token_size=vq.num_embeddings,
            n_embed=text.hidden_size,
        ),
        _TOKENS_KEY: {"image_placeholder": config.image_token_id},
    }
    if siglip_name is None:
        original[_SIGLIP_KEY] = siglip
    if vq_name is None:
        original[_VQ_KEY] = vq_shape
    return original


def _siglip_shape(vision: JanusVisionConfig) -> Json:
    return {
        "patch_size": vision.patch_size,
        "width": vision.hidden_size,
        "layers": vision.num_hidden_layers,
        "heads": vision.num_attention_heads,
        "mlp_ratio": vision.mlp_ratio,
    }


def _vq_shape(vq: JanusVQVAEConfig) -> Json:
    return {
        "ch": vq.base_channels,
        "z_channels": vq.latent_channels,
        "ch_mult": list(vq.channel_multiplier),
        "num_res_blocks": vq.num_res_blocks,
    }


def _language_config(text: LlamaConfig, dtype: str | None) -> Json:
    language: Json = {"model_type": "llama", "torch_dtype": dtype}
    language |= {key: value for key in _LANGUAGE if (value := getattr(text, key, None)) is not None}
    rope = dict(text.rope_parameters)
    language["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type") != "default":
        language["rope_scaling"] = rope
    return language


def _part(model_type: str, cls: str, **params: Any) -> Json:
    return {"cls": cls, "model_type": model_type, "params": params}


def _projector(model_type: str, input_dim: int, n_embed: int, depth: int) -> Json:
    params = {"depth": depth, "input_dim": input_dim, "n_embed": n_embed}
    return _part(model_type, "MlpProjector", projector_type="mlp_gelu", **params)


def _named(table: dict[str, Json], name: str) -> Json:
    if name not in table:
        raise UserError(f"config.json: a {name!r}, where {' or '.join(table)} is known")
    return table[name]


def _name(table: dict[str, Json], shape: Json) -> str | None:
    return next((name for name, known in table.items() if known == shape), None)


def _require(*facts: tuple[str, Any, Any]) -> None:
    """Each fact: what it is about, what the config says, what alone is supported."""
    wrong = [f"{what} is {found!r}, not {wanted!r}" for what, found, wanted in facts if found != wanted]
    if wrong:
        raise UserError(f"config.json: not a Janus that is supported: {'; '.join(wrong)}")
