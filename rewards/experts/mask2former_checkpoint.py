"""Converts Mask2Former with a Swin backbone from MMDetection's layout (2.x and 3.x, instance
segmentation) to transformers' Mask2FormerForUniversalSegmentation.

MMDetection stacks q, k and v of every attention on the first axis; transformers does so in the
decoder's cross attention alone. MMDetection merges 2 x 2 patches with the four places of a channel side
by side, row by row; transformers has one block of channels after the other, column by column. In 2.x a
layer's attentions and its feed-forward network are in lists, in the order in which they run: the cross
attention comes first. A config is made from the tensors' sizes.

Names and orders are those of open-mmlab/mmdetection: models/backbones/swin.py, models/dense_heads/
mask2former_head.py, and msdeformattn_pixel_decoder.py in models/plugins (2.x) and models/layers (3.x).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import Mask2FormerConfig, SwinConfig

from policy.errors import UserError
from rewards.experts.published_weights import listed, renamed, split_qkv

_LEVELS, _POINTS = 3, 4  # that each head of a deformable attention looks at; transformers has no others

_ENCODER = "model.pixel_level_module.encoder."
_PIXELS = "model.pixel_level_module.decoder."
_QUERIES = "model.transformer_module."
_STAGE, _NEW_STAGE = r"backbone\.stages\.(\d+)\.", _ENCODER + r"swin.encoder.layers.\1."
_BLOCK, _NEW_BLOCK = _STAGE + r"blocks\.(\d+)\.", _NEW_STAGE + r"blocks.\2."
_OLD_PIXELS = r"panoptic_head\.pixel_decoder\."
_PIXEL_LAYER = (_OLD_PIXELS + r"encoder\.layers\.(\d+)\.", _PIXELS + r"encoder.layers.\1.")
_QUERY_LAYER = (
    r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.",
    _QUERIES + r"decoder.layers.\1.",
)
_FFN = r"(?:ffns\.0|ffn)\.layers\."
_CROSS, _SELF = r"(?:attentions\.0|cross_attn)\.attn\.", r"(?:attentions\.1|self_attn)\.attn\."

# A name that ends in "qkv.weight" or "qkv.bias" stands for three tensors.
_RULES: tuple[tuple[str, str], ...] = (
    # backbone
    (
        r"backbone\.patch_embed\.projection\.(\w+)",
        _ENCODER + r"swin.embeddings.patch_embeddings.projection.\1",
    ),
    (r"backbone\.patch_embed\.norm\.(\w+)", _ENCODER + r"swin.embeddings.norm.\1"),
    *(
        (rf"backbone\.norm{n}\.(\w+)", _ENCODER + rf"hidden_states_norms.stage{n + 1}.\1")
        for n in range(4)
    ),
    (_STAGE + r"downsample\.(.+)", _NEW_STAGE + r"downsample.\2"),
    (_BLOCK + r"norm1\.(\w+)", _NEW_BLOCK + r"layernorm_before.\3"),
    (_BLOCK + r"norm2\.(\w+)", _NEW_BLOCK + r"layernorm_after.\3"),
    (_BLOCK + r"attn\.w_msa\.qkv\.(\w+)", _NEW_BLOCK + r"attention.qkv.\3"),
    (_BLOCK + r"attn\.w_msa\.proj\.(\w+)", _NEW_BLOCK + r"attention.o_proj.\3"),
    (
        _BLOCK + r"attn\.w_msa\.relative_position_bias_table",
        _NEW_BLOCK + "attention.relative_position_bias.relative_position_bias_table",
    ),
    (_BLOCK + r"ffn\.layers\.0\.0\.(\w+)", _NEW_BLOCK + r"mlp.fc1.\3"),
    (_BLOCK + r"ffn\.layers\.1\.(\w+)", _NEW_BLOCK + r"mlp.fc2.\3"),
    # pixel decoder
    (_OLD_PIXELS + r"input_convs\.(\d)\.conv\.(\w+)", _PIXELS + r"input_projections.\1.0.\2"),
    (_OLD_PIXELS + r"input_convs\.(\d)\.gn\.(\w+)", _PIXELS + r"input_projections.\1.1.\2"),
    (_OLD_PIXELS + r"lateral_convs\.0\.conv\.(\w+)", _PIXELS + r"adapter_1.0.\1"),
    (_OLD_PIXELS + r"lateral_convs\.0\.gn\.(\w+)", _PIXELS + r"adapter_1.1.\1"),
    (_OLD_PIXELS + r"output_convs\.0\.conv\.(\w+)", _PIXELS + r"layer_1.0.\1"),
    (_OLD_PIXELS + r"output_convs\.0\.gn\.(\w+)", _PIXELS + r"layer_1.1.\1"),
    (_OLD_PIXELS + r"level_encoding\.weight", _PIXELS + "level_embed"),
    (_OLD_PIXELS + r"mask_feature\.(\w+)", _PIXELS + r"mask_projection.\1"),
    (_PIXEL_LAYER[0] + r"(?:attentions\.0|self_attn)\.(.+)", _PIXEL_LAYER[1] + r"self_attn.\2"),
    (_PIXEL_LAYER[0] + r"norms\.0\.(\w+)", _PIXEL_LAYER[1] + r"self_attn_layer_norm.\2"),
    (_PIXEL_LAYER[0] + r"norms\.1\.(\w+)", _PIXEL_LAYER[1] + r"final_layer_norm.\2"),
    *(
        rule
        for old, new in (_PIXEL_LAYER, _QUERY_LAYER)
        for rule in (
            (old + _FFN + r"0\.0\.(\w+)", new + r"fc1.\2"),
            (old + _FFN + r"1\.(\w+)", new + r"fc2.\2"),
        )
    ),
    # queries
    (_QUERY_LAYER[0] + _CROSS + "(.+)", _QUERY_LAYER[1] + r"cross_attn.\2"),
    (_QUERY_LAYER[0] + _SELF + r"in_proj_(\w+)", _QUERY_LAYER[1] + r"self_attn.qkv.\2"),
    (_QUERY_LAYER[0] + _SELF + r"out_proj\.(\w+)", _QUERY_LAYER[1] + r"self_attn.out_proj.\2"),
    (_QUERY_LAYER[0] + r"norms\.0\.(\w+)", _QUERY_LAYER[1] + r"cross_attn_layer_norm.\2"),
    (_QUERY_LAYER[0] + r"norms\.1\.(\w+)", _QUERY_LAYER[1] + r"self_attn_layer_norm.\2"),
    (_QUERY_LAYER[0] + r"norms\.2\.(\w+)", _QUERY_LAYER[1] + r"final_layer_norm.\2"),
    (r"panoptic_head\.transformer_decoder\.post_norm\.(\w+)", _QUERIES + r"decoder.layernorm.\1"),
    (r"panoptic_head\.query_embed\.weight", _QUERIES + "queries_embedder.weight"),
    (r"panoptic_head\.query_feat\.weight", _QUERIES + "queries_features.weight"),
    (r"panoptic_head\.level_embed\.weight", _QUERIES + "level_embed.weight"),
    (r"panoptic_head\.cls_embed\.(\w+)", r"class_predictor.\1"),
    *(
        (
            rf"panoptic_head\.mask_embed\.{2 * n}\.(\w+)",
            _QUERIES + rf"decoder.mask_predictor.mask_embedder.{n}.0.\1",
        )
        for n in range(3)
    ),
)
_UNUSED = re.compile(r".+\.relative_position_index")  # follows from the window's size
_PARTS = ("q_proj", "k_proj", "v_proj")


def to_transformers(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """All tensors under transformers' names. Raises UserError that lists the ones no rule knows."""
    found: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        if _UNUSED.fullmatch(name):
            continue
        if new := renamed(name, _RULES):
            if ".downsample." in new:
                tensor = _patches_in_blocks(tensor, f"{source}: {name}")
            found.update(split_qkv(new, tensor, _PARTS))
        else:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{source}: {len(unknown)} tensors that no Mask2Former of MMDetection with a Swin backbone"
            f" has: {listed(unknown)}"
        )
    return found | _unread(found)


def _patches_in_blocks(tensor: Tensor, what: str) -> Tensor:
    """The last axis from (channel, row, column) to (column, row, channel)."""
    if tensor.shape[-1] % 4:
        raise UserError(f"{what}: {list(tensor.shape)}, where the last axis holds 2 x 2 patches")
    patches = tensor.unflatten(-1, (-1, 2, 2))
    return patches.transpose(-1, -3).flatten(-3).contiguous()


def _unread(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that transformers has and no output depends on: a last norm of the backbone, and the
    classes' weights in the training loss."""
    more: dict[str, Tensor] = {}
    if (last := found.get(_ENCODER + "hidden_states_norms.stage4.weight")) is not None:
        more |= {f"{_ENCODER}swin.layernorm.{part}": last.clone() for part in ("weight", "bias")}
    if (classes := found.get("class_predictor.bias")) is not None:
        more["criterion.empty_weight"] = torch.ones(classes.shape)
    return more


def config_of(tensors: Mapping[str, Tensor], source: str) -> Mask2FormerConfig:
    """The config of converted tensors. Raises UserError if a tensor that determines a size is
    missing."""
    pixels, queries = _PIXELS + "encoder.layers.", _QUERIES + "decoder.layers."
    try:
        looks = tensors[pixels + "0.self_attn.attention_weights.bias"].shape[0]
        return Mask2FormerConfig(
            backbone_config=_swin_config(tensors),
            feature_size=tensors[_PIXELS + "level_embed"].shape[1],
            mask_feature_size=tensors[_PIXELS + "mask_projection.weight"].shape[0],
            hidden_dim=tensors[_QUERIES + "queries_features.weight"].shape[1],
            num_queries=tensors[_QUERIES + "queries_features.weight"].shape[0],
            num_attention_heads=max(1, looks // (_LEVELS * _POINTS)),
            encoder_layers=_count(tensors, re.escape(pixels) + r"(\d+)\."),
            # transformers counts the queries before the first layer as a layer.
            decoder_layers=_count(tensors, re.escape(queries) + r"(\d+)\.") + 1,
            encoder_feedforward_dim=tensors[pixels + "0.fc1.weight"].shape[0],
            dim_feedforward=tensors[queries + "0.fc1.weight"].shape[0],
            num_labels=tensors["class_predictor.weight"].shape[0] - 1,
        )
    except (KeyError, IndexError) as error:
        raise UserError(f"{source}: not a Mask2Former of MMDetection: no tensor for {error}") from None


def _swin_config(tensors: Mapping[str, Tensor]) -> SwinConfig:
    layers = _ENCODER + "swin.encoder.layers."
    width = tensors[_ENCODER + "swin.embeddings.norm.weight"].shape[0]
    table = "blocks.0.attention.relative_position_bias.relative_position_bias_table"
    tables = [tensors[f"{layers}{n}.{table}"] for n in range(4)]
    return SwinConfig(
        embed_dim=width,
        depths=[_count(tensors, re.escape(f"{layers}{n}.blocks.") + r"(\d+)\.") for n in range(4)],
        num_heads=[table.shape[1] for table in tables],
        window_size=(round(tables[0].shape[0] ** 0.5) + 1) // 2,
        mlp_ratio=tensors[f"{layers}0.blocks.0.mlp.fc1.bias"].shape[0] / width,
        out_features=[f"stage{n + 1}" for n in range(4)],
    )


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many different indices follow `pattern` in the names."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})
