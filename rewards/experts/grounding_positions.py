"""The positions of a caption's tokens as GroundingDINO was trained with them.

A token's position counts from the beginning of its own phrase, the phrase's full stop included.
transformers 5.19 puts the full stop at 0 instead of the end, and cuts the sine embedding of positions
in the encoder off to whole numbers. With the published implementation's positions, both agree to 1e-5.
"""

import torch
from torch import Tensor
from transformers import GroundingDinoForObjectDetection


def phrase_positions(allowed: Tensor) -> Tensor:
    """From which tokens may see which, bool [B, T, T]: int64 [B, T]. A token sees its own phrase alone,
    so its position is how many tokens before it it sees."""
    return allowed.tril(-1).sum(-1)


def use_published_positions(model: GroundingDinoForObjectDetection) -> None:
    """Hand the right positions to both modules of the model that read them, from now on."""
    model.model.text_backbone.register_forward_pre_hook(_to_text_backbone)
    model.model.encoder.register_forward_pre_hook(_to_encoder, with_kwargs=True)


def _to_text_backbone(module: torch.nn.Module, args: tuple) -> tuple:
    input_ids, allowed, token_types, _ = args
    return input_ids, allowed, token_types, phrase_positions(allowed.squeeze(1))


def _to_encoder(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    positions = phrase_positions(~kwargs["text_self_attention_masks"])
    # Not as integers: the embedding is cast to their type.
    return args, kwargs | {"text_position_ids": positions.to(kwargs["text_features"].dtype)}
