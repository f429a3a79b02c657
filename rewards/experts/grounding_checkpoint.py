"""Converts GroundingDINO from its authors' layout to transformers' GroundingDinoForObjectDetection.

The original stacks q, k and v of every attention on the first axis, and keeps each encoder layer in
three lists. A checkpoint that came without a config gets one from its tensors' sizes; what sizes do not
determine is as in both published models, Swin-T OGC and Swin-B.

A token's position in a caption counts from the beginning of its own phrase, the phrase's full stop
included. transformers 5.19 puts the full stop at 0 instead of the end, and cuts the sine embedding of
positions in the encoder off to whole numbers. With the published implementation's positions, both agree
to 1e-5.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

from policy.errors import UserError
from rewards.experts.published_weights import listed, renamed, split_qkv

_HEADS = 8  # in the encoder and the decoder
_POINTS = 4  # sampling points of a deformable attention, for each head and level
_BERT_HEAD = 64  # channels of each
_BACKBONE_SWIN = "model.backbone.conv_encoder.model.swin."


def config_of(tensors: Mapping[str, Tensor], source: str) -> GroundingDinoConfig:
    """The config of converted tensors. Raises UserError if a tensor that determines a size is
    missing."""
    try:
        return GroundingDinoConfig(
            backbone_config=_swin_config(tensors),
            text_config=_bert_config(tensors).to_dict(),
            d_model=tensors["model.level_embed"].shape[1],
            num_feature_levels=tensors["model.level_embed"].shape[0],
            num_queries=tensors["model.query_position_embeddings.weight"].shape[0],
            encoder_layers=_count(tensors, r"model\.encoder\.layers\.(\d+)\."),
            decoder_layers=_count(tensors, r"model\.decoder\.layers\.(\d+)\."),
            encoder_ffn_dim=tensors["model.encoder.layers.0.deformable_layer.fc1.weight"].shape[0],
            decoder_ffn_dim=tensors["model.decoder.layers.0.fc1.weight"].shape[0],
            encoder_attention_heads=_HEADS,
            decoder_attention_heads=_HEADS,
            encoder_n_points=_POINTS,
            decoder_n_points=_POINTS,
        )
    except KeyError as error:
        raise UserError(f"{source}: not a GroundingDINO: no tensor for {error}") from None


def _swin_config(tensors: Mapping[str, Tensor]) -> SwinConfig:
    layers = _BACKBONE_SWIN + "encoder.layers."
    width = tensors[_BACKBONE_SWIN + "embeddings.norm.weight"].shape[0]
    depths = [_count(tensors, re.escape(f"{layers}{n}.blocks.") + r"(\d+)\.") for n in range(4)]
    table = "blocks.0.attention.relative_position_bias.relative_position_bias_table"
    tables = [tensors[f"{layers}{n}.{table}"] for n in range(4)]
    return SwinConfig(
        embed_dim=width,
        depths=depths,
        num_heads=[table.shape[1] for table in tables],
        window_size=(round(tables[0].shape[0] ** 0.5) + 1) // 2,
        out_indices=[2, 3, 4],
    )


def _bert_config(tensors: Mapping[str, Tensor]) -> BertConfig:
    bert = "model.text_backbone."
    words = tensors[bert + "embeddings.word_embeddings.weight"]
    return BertConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        num_hidden_layers=_count(tensors, r"model\.text_backbone\.encoder\.layer\.(\d+)\."),
        num_attention_heads=max(1, words.shape[1] // _BERT_HEAD),
        intermediate_size=tensors[bert + "encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=tensors[bert + "embeddings.position_embeddings.weight"].shape[0],
    )


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many different indices follow `pattern` in the names."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


_SWIN = "model.backbone.conv_encoder.model."
_BLOCK, _NEW_BLOCK = (
    r"backbone\.0\.layers\.(\d+)\.blocks\.(\d+)\.",
    _SWIN + r"swin.encoder.layers.\1.blocks.\2.",
)
_NEW_ENCODER = r"model.encoder.layers.\1."
_VISION = (r"transformer\.encoder\.layers\.(\d+)\.", _NEW_ENCODER + "deformable_layer.")
_TEXT = (r"transformer\.encoder\.text_layers\.(\d+)\.", _NEW_ENCODER + "text_enhancer_layer.")
_FUSION = (r"transformer\.encoder\.fusion_layers\.(\d+)\.", _NEW_ENCODER + "fusion_layer.")
_DECODER = (r"transformer\.decoder\.layers\.(\d+)\.", r"model.decoder.layers.\1.")
_SIDES = (("v", "vision"), ("l", "text"))

# A name that ends in "qkv.weight" or "qkv.bias" stands for three tensors.
_RULES: tuple[tuple[str, str], ...] = (
    # vision backbone
    (
        r"backbone\.0\.patch_embed\.proj\.(\w+)",
        _SWIN + r"swin.embeddings.patch_embeddings.projection.\1",
    ),
    (r"backbone\.0\.patch_embed\.norm\.(\w+)", _SWIN + r"swin.embeddings.norm.\1"),
    (r"backbone\.0\.layers\.(\d+)\.downsample\.(.+)", _SWIN + r"swin.encoder.layers.\1.downsample.\2"),
    *(
        (rf"backbone\.0\.norm{n}\.(\w+)", _SWIN + rf"hidden_states_norms.stage{n + 1}.\1")
        for n in range(4)
    ),
    (_BLOCK + r"norm1\.(\w+)", _NEW_BLOCK + r"layernorm_before.\3"),
    (_BLOCK + r"norm2\.(\w+)", _NEW_BLOCK + r"layernorm_after.\3"),
    (_BLOCK + r"mlp\.(fc[12]\.\w+)", _NEW_BLOCK + r"mlp.\3"),
    (_BLOCK + r"attn\.qkv\.(\w+)", _NEW_BLOCK + r"attention.qkv.\3"),
    (_BLOCK + r"attn\.proj\.(\w+)", _NEW_BLOCK + r"attention.o_proj.\3"),
    (
        _BLOCK + r"attn\.relative_position_bias_table",
        _NEW_BLOCK + "attention.relative_position_bias.relative_position_bias_table",
    ),
    # text backbone, and both into the joint space
    (r"bert\.(.+)", r"model.text_backbone.\1"),
    (r"feat_map\.(\w+)", r"model.text_projection.\1"),
    (r"input_proj\.(.+)", r"model.input_proj_vision.\1"),
    (r"transformer\.level_embed", "model.level_embed"),
    # encoder
    *(
        (old + r"norm1\.(\w+)", new + rf"{norm}.\2")
        for (old, new), norm in ((_VISION, "self_attn_layer_norm"), (_TEXT, "layer_norm_before"))
    ),
    *(
        (old + r"norm2\.(\w+)", new + rf"{norm}.\2")
        for (old, new), norm in ((_VISION, "final_layer_norm"), (_TEXT, "layer_norm_after"))
    ),
    *((old + r"linear([12])\.(\w+)", new + r"fc\2.\3") for old, new in (_VISION, _TEXT, _DECODER)),
    (_TEXT[0] + r"self_attn\.in_proj_(\w+)", _TEXT[1] + r"self_attn.qkv.\2"),
    *((old + r"(self_attn\..+)", new + r"\2") for old, new in (_VISION, _TEXT)),
    *(
        rule
        for short, long in _SIDES
        for rule in (
            (_FUSION[0] + rf"gamma_{short}", _FUSION[1] + f"{long}_param"),
            (_FUSION[0] + rf"layer_norm_{short}\.(\w+)", _FUSION[1] + rf"layer_norm_{long}.\2"),
            (
                _FUSION[0] + rf"attn\.((?:values_|out_)?){short}_proj\.(\w+)",
                _FUSION[1] + rf"attn.\2{long}_proj.\3",
            ),
        )
    ),
    # decoder
    (_DECODER[0] + r"self_attn\.in_proj_(\w+)", _DECODER[1] + r"self_attn.qkv.\2"),
    (_DECODER[0] + r"self_attn\.out_proj\.(\w+)", _DECODER[1] + r"self_attn.out_proj.\2"),
    (_DECODER[0] + r"norm2\.(\w+)", _DECODER[1] + r"self_attn_layer_norm.\2"),
    (_DECODER[0] + r"ca_text\.in_proj_(\w+)", _DECODER[1] + r"encoder_attn_text.qkv.\2"),
    (_DECODER[0] + r"ca_text\.out_proj\.(\w+)", _DECODER[1] + r"encoder_attn_text.out_proj.\2"),
    (_DECODER[0] + r"catext_norm\.(\w+)", _DECODER[1] + r"encoder_attn_text_layer_norm.\2"),
    (_DECODER[0] + r"cross_attn\.(.+)", _DECODER[1] + r"encoder_attn.\2"),
    (_DECODER[0] + r"norm1\.(\w+)", _DECODER[1] + r"encoder_attn_layer_norm.\2"),
    (_DECODER[0] + r"norm3\.(\w+)", _DECODER[1] + r"final_layer_norm.\2"),
    (r"transformer\.decoder\.norm\.(\w+)", r"model.decoder.layer_norm.\1"),
    (r"transformer\.decoder\.ref_point_head\.(.+)", r"model.decoder.reference_points_head.\1"),
    # queries and boxes
    (r"transformer\.tgt_embed\.weight", "model.query_position_embeddings.weight"),
    (r"transformer\.(enc_output(?:_norm)?\.\w+)", r"model.\1"),
    (r"transformer\.enc_out_bbox_embed\.(.+)", r"model.encoder_output_bbox_embed.\1"),
    (r"transformer\.decoder\.(bbox_embed\..+)", r"model.decoder.\1"),
    (r"(bbox_embed\..+)", r"\1"),
)
_UNUSED = re.compile(
    r"label_enc\.weight"  # of the training with noised labels
    r"|bert\.pooler\..+|bert\.embeddings\.position_ids"
    r"|.+\.relative_position_index|.+\.attn_mask"
)


def to_transformers(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """All tensors under transformers' names. Raises UserError that lists the ones no rule knows."""
    found: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        plain = name.removeprefix("module.")  # of the training in parallel
        if _UNUSED.fullmatch(plain):
            continue
        if new := renamed(plain, _RULES):
            swin = new.startswith(_SWIN)
            parts = ("q_proj", "k_proj", "v_proj") if swin else ("query", "key", "value")
            found.update(split_qkv(new, tensor, parts))
        else:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{source}: {len(unknown)} tensors that no GroundingDINO has: {listed(unknown)}"
        )
    return found | _unread(found)


def _unread(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' backbone has a last norm that no output depends on, and the original has none."""
    last = found.get(_SWIN + "hidden_states_norms.stage4.weight")
    if last is None:
        return {}
    names = (_SWIN + "swin.layernorm.weight", _SWIN + "swin.layernorm.bias")
    return {name: last.clone() for name in names}


def phrase_positions(allowed: Tensor) -> Tensor:
    """From which tokens may see which, bool [B, T, T]: int64 [B, T]. A token sees its own phrase alone,
    so its position is the number of earlier tokens that it sees."""
    return allowed.tril(-1).sum(-1)


def use_published_positions(model: GroundingDinoForObjectDetection) -> None:
    """Pass the published positions to both modules of the model that read them, by hooks."""
    model.model.text_backbone.register_forward_pre_hook(_to_text_backbone)
    model.model.encoder.register_forward_pre_hook(_to_encoder, with_kwargs=True)


def _to_text_backbone(module: torch.nn.Module, args: tuple) -> tuple:
    input_ids, allowed, token_types, _ = args
    return input_ids, allowed, token_types, phrase_positions(allowed.squeeze(1))


def _to_encoder(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    positions = phrase_positions(~kwargs["text_self_attention_masks"])
    # Not as integers: the embedding is cast to their type.
    return args, kwargs | {"text_position_ids": positions.to(kwargs["text_features"].dtype)}
