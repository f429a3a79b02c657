"""The config of a GroundingDINO that came without one, read off its tensors' sizes.

What sizes do not tell is as in both published models, Swin-T OGC and Swin-B.
"""

import re
from collections.abc import Mapping

from torch import Tensor
from transformers import BertConfig, GroundingDinoConfig, SwinConfig

from policy.errors import UserError

_HEADS = 8  # in the encoder and the decoder
_POINTS = 4  # that a deformable attention looks at, for each head and level
_BERT_HEAD = 64  # channels of each
_SWIN = "model.backbone.conv_encoder.model.swin."


def config_of(tensors: Mapping[str, Tensor], source: str) -> GroundingDinoConfig:
    """The config of converted tensors. Raises UserError if the ones that tell the sizes are missing."""
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
    layers = _SWIN + "encoder.layers."
    width = tensors[_SWIN + "embeddings.norm.weight"].shape[0]
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
    """How many different numbers there are in names that begin with `pattern`."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})
