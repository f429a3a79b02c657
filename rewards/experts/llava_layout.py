"""LLaVA-OneVision as LLaVA-NeXT saves it (`llava_qwen`), as transformers' class of that name.

Its config is a Qwen2's with a few fields on the vision tower, a SigLIP whose sizes are those of its
tensors. T2I-R1's output reward model is published so.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import LlavaOnevisionConfig, Qwen2Config

from policy.errors import UserError
from policy.shards import Shards
from rewards.experts.published_weights import listed, renamed

MODEL_TYPES = ("llava", "llava_qwen")
_TOWER = "model.vision_tower.vision_tower.vision_model."
_RULES: tuple[tuple[str, str], ...] = (
    (r"lm_head\.weight", r"lm_head.weight"),
    (r"model\.image_newline", r"model.image_newline"),
    (r"model\.mm_projector\.0\.(\w+)", r"model.multi_modal_projector.linear_1.\1"),
    (r"model\.mm_projector\.2\.(\w+)", r"model.multi_modal_projector.linear_2.\1"),
    (re.escape(_TOWER) + r"(?!head\.)(.+)", r"model.vision_tower.\1"),
    (r"model\.((?:embed_tokens|layers|norm)\..+)", r"model.language_model.\1"),
)
_UNUSED = re.compile(re.escape(_TOWER) + r"(head\..+|embeddings\.position_ids)")
_SIGLIP_HEADS = 16  # of the one vision tower that these models have, siglip-so400m-patch14-384


def read_tensors(shards: Shards, tied: bool) -> dict[str, Tensor]:
    """All tensors that transformers needs, under its names. `tied`: the output layer is the embedding.

    Raises UserError that lists the ones no rule knows.
    """
    names = sorted(
        (n for n in shards.specs if not _UNUSED.fullmatch(n)), key=lambda n: shards.file_of[n]
    )
    new_names = {name: renamed(name, _RULES) for name in names}
    if unknown := [name for name, new in new_names.items() if new is None]:
        raise UserError(f"{shards.folder}: {len(unknown)} tensors that no LLaVA has: {listed(unknown)}")
    tensors = {new: shards.read(name) for name, new in new_names.items() if new is not None}
    if tied and "lm_head.weight" not in tensors:
        tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"]
    return tensors


def config_of(
    raw: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str
) -> LlavaOnevisionConfig:
    """transformers' config, from an original config.json and the tensors.

    Raises UserError if the model is put together in another way than LLaVA-OneVision.
    """
    wanted = {"mm_projector_type": "mlp2x_gelu", "mm_patch_merge_type": "spatial_unpad"}
    for key, value in wanted.items():
        if raw.get(key) != value:
            raise UserError(
                f"{source}: config.json has {key} {raw.get(key)!r}; only {value!r} is known"
            )
    text = Qwen2Config.from_dict({key: value for key, value in raw.items() if key not in _NOT_TEXT})
    try:
        patches = tensors["model.vision_tower.embeddings.patch_embedding.weight"]
        positions = tensors["model.vision_tower.embeddings.position_embedding.weight"]
        inner = tensors["model.vision_tower.encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise UserError(f"{source}: its vision tower is not among its tensors: no {error}") from None
    layers = {n.split(".")[4] for n in tensors if n.startswith("model.vision_tower.encoder.layers.")}
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": patches.shape[0],
        "intermediate_size": inner,
        "num_hidden_layers": len(layers),
        "num_attention_heads": _SIGLIP_HEADS,
        "patch_size": patches.shape[-1],
        "image_size": patches.shape[-1] * round(positions.shape[0] ** 0.5),
        "vision_use_head": False,
    }
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text.to_dict(),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
    )


_NOT_TEXT = ("model_type", "architectures", "quantization_config", "auto_map")
