"""A tiny GroundingDINO on disk in both its layouts."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    SwinConfig,
)

from tests.rewards.experts import tiny

# As BERT numbers them: the model knows its separators by their numbers.
_SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}
_WORDS = ("hot", "dog", "tv", "roll", "of", "tape", "ca", "##t", "##s")
_VISION = "model.backbone.conv_encoder.model."
_TABLE = "relative_position_bias_table"
# transformers' name of a part -> the published implementation's, the longer parts first
_NAMES = (
    (_VISION + "swin.embeddings.patch_embeddings.projection", "backbone.0.patch_embed.proj"),
    (_VISION + "swin.embeddings.norm", "backbone.0.patch_embed.norm"),
    (_VISION + "swin.encoder.", "backbone.0."),
    (_VISION + "hidden_states_norms.stage2", "backbone.0.norm1"),
    (_VISION + "hidden_states_norms.stage3", "backbone.0.norm2"),
    (_VISION + "hidden_states_norms.stage4", "backbone.0.norm3"),
    (f"attention.relative_position_bias.{_TABLE}", f"attn.{_TABLE}"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.o_proj", "attn.proj"),
    ("model.text_backbone.", "bert."),
    ("model.text_projection.", "feat_map."),
    ("model.input_proj_vision.", "input_proj."),
    ("model.query_position_embeddings.", "transformer.tgt_embed."),
    ("model.encoder_output_bbox_embed.", "transformer.enc_out_bbox_embed."),
    ("model.enc_output", "transformer.enc_output"),
    ("model.level_embed", "transformer.level_embed"),
    ("model.decoder.layer_norm.", "transformer.decoder.norm."),
    ("model.decoder.reference_points_head.", "transformer.decoder.ref_point_head."),
    ("model.decoder.", "transformer.decoder."),
    ("encoder_attn_text_layer_norm", "catext_norm"),
    ("encoder_attn_text", "ca_text"),
    ("encoder_attn_layer_norm", "norm1"),
    ("encoder_attn", "cross_attn"),
)
_SWIN_PARTS = ("q_proj", "k_proj", "v_proj")
_PARTS = ("query", "key", "value")
_ENCODER = {
    "text_enhancer_layer": ("text_layers", {"layer_norm_before": "norm1", "layer_norm_after": "norm2"}),
    "fusion_layer": (
        "fusion_layers",
        {
            "vision_param": "gamma_v",
            "text_param": "gamma_l",
            "layer_norm_vision": "layer_norm_v",
            "layer_norm_text": "layer_norm_l",
            "vision_proj": "v_proj",
            "text_proj": "l_proj",
        },
    ),
    "deformable_layer": ("layers", {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2"}),
}
_DECODER = {"self_attn_layer_norm": "norm2", "final_layer_norm": "norm3"}


def tiny_grounding_dino(folder: Path) -> GroundingDinoForObjectDetection:
    """Saved in transformers' layout, with what it takes to run it."""
    vocabulary = {f"[unused{n}]": n for n in range(1030) if n not in _SPECIAL} | {
        token: n for n, token in _SPECIAL.items()
    }
    vocabulary |= {word: 1030 + n for n, word in enumerate(_WORDS)}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 144}).save_pretrained(
        folder
    )
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8,
            depths=[1, 1, 2, 1],
            num_heads=[1, 1, 2, 2],
            window_size=2,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=1,
            intermediate_size=32,
            max_position_embeddings=256,
        ).to_dict(),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=20,
    )
    model = tiny.randomize(GroundingDinoForObjectDetection(config))
    with torch.no_grad():
        for norm in (model.model.enc_output_norm, model.model.decoder.layer_norm):
            norm.weight.mul_(8)  # so that boxes and tokens differ in their scores
    model.save_pretrained(folder)
    return model


def original_tensors(model: GroundingDinoForObjectDetection) -> dict[str, Tensor]:
    """Names and shapes as the published implementation's state_dict has them, with what the published
    files hold beside it."""
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if ".swin.layernorm." in name:  # made up by transformers
            continue
        old = _original(name)
        parts = _SWIN_PARTS if old.startswith("backbone.") else _PARTS
        part = next((part for part in parts if f".{part}." in old), None)
        if part is None or old.startswith("bert."):
            found[old] = tensor.clone()
            continue
        stacked = "qkv." if parts is _SWIN_PARTS else "in_proj_"
        joined = old.replace(f"{part}.", stacked)
        found[joined] = torch.cat([found[joined], tensor]) if joined in found else tensor.clone()
    found["label_enc.weight"] = torch.zeros(5, 32)
    found["bert.embeddings.position_ids"] = torch.arange(256)[None]
    found["bert.pooler.dense.weight"] = torch.zeros(16, 16)
    found["backbone.0.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4)
    return {f"module.{name}": tensor for name, tensor in found.items()}


def _original(name: str) -> str:
    encoder = "model.encoder.layers."
    if name.startswith(encoder):
        number, layer, rest = name.removeprefix(encoder).split(".", 2)
        group, parts = _ENCODER[layer]
        return _linears(f"transformer.encoder.{group}.{number}.{_replaced(rest, parts.items())}")
    if name.startswith("model.decoder.layers."):
        name = _linears(_replaced(name, _DECODER.items()))
    name = _replaced(name, _NAMES)
    return name.replace(".attention.", ".attn.") if name.startswith("backbone") else name


def _linears(name: str) -> str:
    return name.replace(".fc1.", ".linear1.").replace(".fc2.", ".linear2.")


def _replaced(name: str, parts) -> str:
    for new, old in parts:
        name = name.replace(new, old)
    return name
