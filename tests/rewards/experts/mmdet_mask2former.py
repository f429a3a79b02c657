"""A tiny Mask2Former on disk in transformers' layout, and its tensors as MMDetection saves them."""

import re
from pathlib import Path

import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

_TABLE = "relative_position_bias_table"
_PIXELS, _QUERIES = "panoptic_head.pixel_decoder.", "panoptic_head.transformer_decoder."
# transformers' name of a part -> MMDetection's, the longer parts first
_NAMES = (
    ("model.pixel_level_module.encoder.swin.embeddings.patch_embeddings.", "backbone.patch_embed."),
    ("model.pixel_level_module.encoder.swin.embeddings.", "backbone.patch_embed."),
    ("model.pixel_level_module.encoder.swin.encoder.layers.", "backbone.stages."),
    *((f"model.pixel_level_module.encoder.hidden_states_norms.stage{n + 1}", f"backbone.norm{n}")
      for n in range(4)),
    ("model.pixel_level_module.decoder.adapter_1.", _PIXELS + "lateral_convs.0."),
    ("model.pixel_level_module.decoder.layer_1.", _PIXELS + "output_convs.0."),
    ("model.pixel_level_module.decoder.input_projections.", _PIXELS + "input_convs."),
    ("model.pixel_level_module.decoder.mask_projection", _PIXELS + "mask_feature"),
    ("model.pixel_level_module.decoder.level_embed", _PIXELS + "level_encoding.weight"),
    ("model.pixel_level_module.decoder.", _PIXELS),
    ("model.transformer_module.decoder.mask_predictor.mask_embedder.", "panoptic_head.mask_embed."),
    ("model.transformer_module.decoder.layernorm", _QUERIES + "post_norm"),
    ("model.transformer_module.decoder.", _QUERIES),
    ("model.transformer_module.queries_embedder", "panoptic_head.query_embed"),
    ("model.transformer_module.queries_features", "panoptic_head.query_feat"),
    ("model.transformer_module.", "panoptic_head."),
    ("class_predictor", "panoptic_head.cls_embed"),
)  # fmt: skip
_IN_BACKBONE = (
    (f"attention.relative_position_bias.{_TABLE}", f"attn.w_msa.{_TABLE}"),
    ("attention.o_proj", "attn.w_msa.proj"),
    ("attention.", "attn.w_msa."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("mlp.fc1", "ffn.layers.0.0"),
    ("mlp.fc2", "ffn.layers.1"),
)
# By release: how the parts of a layer are called.
_IN_PIXEL_LAYER = {
    2: (("self_attn.", "attentions.0."), (".fc1", ".ffns.0.layers.0.0"), (".fc2", ".ffns.0.layers.1")),
    3: ((".fc1", ".ffn.layers.0.0"), (".fc2", ".ffn.layers.1")),
}
_IN_QUERY_LAYER = {
    2: (("cross_attn.", "attentions.0.attn."), ("self_attn.", "attentions.1.attn."),
        *_IN_PIXEL_LAYER[2][1:]),
    3: (("cross_attn.", "cross_attn.attn."), ("self_attn.", "self_attn.attn."), *_IN_PIXEL_LAYER[3]),
}  # fmt: skip
_PIXEL_NORMS = (("self_attn_layer_norm", "norms.0"), ("final_layer_norm", "norms.1"))
_QUERY_NORMS = (
    ("cross_attn_layer_norm", "norms.0"),
    ("self_attn_layer_norm", "norms.1"),
    ("final_layer_norm", "norms.2"),
)


def tiny_mask2former(folder: Path, classes: int = 80) -> Mask2FormerForUniversalSegmentation:
    """Saved in transformers' layout."""
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(
            embed_dim=8,
            depths=[1, 1, 2, 1],
            num_heads=[1, 1, 2, 2],
            window_size=3,
            out_features=[f"stage{n}" for n in (1, 2, 3, 4)],
        ),
        feature_size=32,
        mask_feature_size=16,
        hidden_dim=32,
        num_attention_heads=2,
        encoder_layers=2,
        encoder_feedforward_dim=48,
        decoder_layers=4,
        dim_feedforward=40,
        num_queries=12,
        num_labels=classes,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            spread = 1.2 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(torch.randn_like(parameter) * spread + around)
        model.class_predictor.weight.mul_(3)  # so that some classes are sure
        model.criterion.empty_weight[-1] = 1.0
    model.save_pretrained(folder)
    return model


def mmdet_tensors(model: Mask2FormerForUniversalSegmentation, release: int = 2) -> dict[str, Tensor]:
    """Names and shapes as MMDetection's state_dict has them."""
    found: dict[str, Tensor] = {}
    stacked: dict[str, dict[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if ".swin.layernorm." in name or name.startswith("criterion."):  # MMDetection has none
            continue
        old = _old_name(name, release)
        if ".downsample." in old:
            tensor = _interleaved(tensor)
        if part := re.search(r"[qkv]_proj\.", old):
            joined = old.replace(part[0], "qkv." if old.startswith("backbone.") else "in_proj_")
            stacked.setdefault(joined, {})[part[0]] = tensor
        else:
            found[old] = tensor.clone()
    for name, parts in stacked.items():
        found[name] = torch.cat([parts["q_proj."], parts["k_proj."], parts["v_proj."]])
    found["backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"] = torch.zeros(9, 9)
    return found


def _old_name(name: str, release: int) -> str:
    name = _replaced(name, _NAMES, once=True)
    if name.startswith("backbone."):
        return _replaced(name, _IN_BACKBONE)
    if name.startswith(_PIXELS + "encoder."):
        return _replaced(name, (*_PIXEL_NORMS, *_IN_PIXEL_LAYER[release]))
    if name.startswith(_QUERIES + "layers."):
        return _replaced(name, (*_QUERY_NORMS, *_IN_QUERY_LAYER[release]))
    if name.startswith(_PIXELS) and "_convs." in name:
        head, number, rest = name.rsplit(".", 2)
        return f"{head}.{('conv', 'gn')[int(number)]}.{rest}"
    if name.startswith("panoptic_head.mask_embed."):
        layer, rest = name.removeprefix("panoptic_head.mask_embed.").split(".0.")
        return f"panoptic_head.mask_embed.{2 * int(layer)}.{rest}"
    return name


def _interleaved(tensor: Tensor) -> Tensor:
    """The last axis from four blocks of channels, for (row, column) = (0, 0), (1, 0), (0, 1), (1, 1),
    to the four places of the first channel row by row, and so on."""
    top_left, low_left, top_right, low_right = tensor.chunk(4, dim=-1)
    return torch.stack([top_left, top_right, low_left, low_right], dim=-1).flatten(-2)


def _replaced(name: str, parts, once: bool = False) -> str:
    for new, old in parts:
        if new in name:
            name = name.replace(new, old)
            if once:
                break
    return name
