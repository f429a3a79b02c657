"""Converts CLIP from open_clip's layout to transformers' CLIPModel.

open_clip stacks q, k and v on the first axis, and multiplies by its two projections from the right, so
that they lie transposed. Sizes are those of the tensors, which do not determine the number of heads.
"""

from collections.abc import Mapping

from torch import Tensor
from transformers import CLIPConfig

from policy.errors import UserError
from rewards.experts.published_weights import listed, renamed, split_qkv

_BLOCK = r"transformer\.resblocks\.(\d+)\."
_LAYER = r"encoder.layers.\1."
_RULES: tuple[tuple[str, str], ...] = (
    (r"logit_scale", r"logit_scale"),
    (r"text_projection", r"text_projection.weight"),
    (r"visual\.proj", r"visual_projection.weight"),
    (r"visual\.class_embedding", r"vision_model.embeddings.class_embedding"),
    (r"visual\.positional_embedding", r"vision_model.embeddings.position_embedding.weight"),
    (r"visual\.conv1\.weight", r"vision_model.embeddings.patch_embedding.weight"),
    (r"visual\.ln_pre\.(\w+)", r"vision_model.pre_layrnorm.\1"),  # transformers' own spelling
    (r"visual\.ln_post\.(\w+)", r"vision_model.post_layernorm.\1"),
    (r"token_embedding\.weight", r"text_model.embeddings.token_embedding.weight"),
    (r"positional_embedding", r"text_model.embeddings.position_embedding.weight"),
    (r"ln_final\.(\w+)", r"text_model.final_layer_norm.\1"),
    *(
        (source + _BLOCK + old, target + _LAYER + new)
        for source, target in ((r"visual\.", "vision_model."), ("", "text_model."))
        for old, new in (
            (r"ln_([12])\.(\w+)", r"layer_norm\2.\3"),
            (r"attn\.in_proj_(weight|bias)", r"self_attn.qkv.\2"),
            (r"attn\.out_proj\.(\w+)", r"self_attn.out_proj.\2"),
            (r"mlp\.c_fc\.(\w+)", r"mlp.fc1.\2"),
            (r"mlp\.c_proj\.(\w+)", r"mlp.fc2.\2"),
        )
    ),
)
_TRANSPOSED = ("text_projection", "visual.proj")
_UNUSED = ("attn_mask",)  # a constant


def to_transformers(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """All tensors under transformers' names. Raises UserError that lists the ones no rule knows."""
    found: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        if name in _UNUSED:
            continue
        if new := renamed(name, _RULES):
            whole = tensor.T.contiguous() if name in _TRANSPOSED else tensor
            found.update(split_qkv(new, whole, ("q_proj", "k_proj", "v_proj")))
        else:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{source}: {len(unknown)} tensors that no open_clip model has: {listed(unknown)}"
        )
    return found


def config_of(tensors: Mapping[str, Tensor], heads: int, source: str) -> CLIPConfig:
    """The config of converted tensors, with `heads` in each layer of both towers, as a ViT-H/14 has.

    Raises UserError if a tensor that determines a size is missing.
    """
    try:
        patches = tensors["vision_model.embeddings.patch_embedding.weight"]
        positions = tensors["vision_model.embeddings.position_embedding.weight"]
        words = tensors["text_model.embeddings.token_embedding.weight"]
        context = tensors["text_model.embeddings.position_embedding.weight"].shape[0]
        joint = tensors["text_projection.weight"].shape[0]
        sizes = {
            tower: {
                "intermediate_size": tensors[f"{tower}.encoder.layers.0.mlp.fc1.weight"].shape[0],
                "num_hidden_layers": len(
                    {n.split(".")[3] for n in tensors if n.startswith(f"{tower}.enc")}
                ),
                "num_attention_heads": heads,
                "hidden_act": "gelu",
                "projection_dim": joint,
            }
            for tower in ("text_model", "vision_model")
        }
    except KeyError as error:
        raise UserError(f"{source}: not an open_clip model: no tensor for {error}") from None
    patch = patches.shape[-1]
    return CLIPConfig(
        text_config={
            "vocab_size": words.shape[0],
            "hidden_size": words.shape[1],
            "max_position_embeddings": context,
            "eos_token_id": 2,  # transformers' sign for open_clip's rule: read off at the largest id
            **sizes["text_model"],
        },
        vision_config={
            "hidden_size": patches.shape[0],
            "patch_size": patch,
            "image_size": patch * round((positions.shape[0] - 1) ** 0.5),
            **sizes["vision_model"],
        },
        projection_dim=joint,
    )
