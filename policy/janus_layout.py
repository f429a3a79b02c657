"""Which tensor of a Janus in its original layout is which in the transformers layout.

The rules read from transformers to original; `correspondences` groups them, so the same rules serve
both ways. Two tensors differ in more than their name: the original stacks the q, k and v of the vision
tower on the first axis, and its position embedding has a leading axis of one."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_VQ = r"model\.vqmodel\.(encoder|decoder)\."
_VISION_LAYER = r"model\.vision_model\.encoder\.layers\.(\d+)\."
_VISION_BLOCK = r"vision_model.vision_tower.blocks.\1."
_MAX_PROJECTOR_DEPTH = 8

RULES: tuple[tuple[str, str], ...] = (
    (r"lm_head\.weight", r"language_model.lm_head.weight"),
    (r"model\.language_model\.(.+)", r"language_model.model.\1"),
    # image tokens: embedding, projector, head
    (r"model\.generation_embeddings\.weight", r"gen_embed.weight"),
    (r"model\.generation_aligner\.fc1\.(\w+)", r"gen_aligner.layers.0.\1"),
    (r"model\.generation_head\.proj_out\.(\w+)", r"gen_head.output_mlp_projector.\1"),
    (r"model\.generation_head\.vision_head\.(\w+)", r"gen_head.vision_head.\1"),
    # vision tower and its projector
    (r"model\.aligner\.fc1\.(\w+)", r"aligner.layers.0.\1"),
    (
        r"model\.vision_model\.embeddings\.position_embedding\.weight",
        r"vision_model.vision_tower.pos_embed",
    ),
    (
        r"model\.vision_model\.embeddings\.patch_embedding\.(\w+)",
        r"vision_model.vision_tower.patch_embed.proj.\1",
    ),
    (r"model\.vision_model\.post_layernorm\.(\w+)", r"vision_model.vision_tower.norm.\1"),
    (_VISION_LAYER + r"layer_norm([12])\.(\w+)", _VISION_BLOCK + r"norm\2.\3"),
    (_VISION_LAYER + r"mlp\.(fc[12]\.\w+)", _VISION_BLOCK + r"mlp.\2"),
    (_VISION_LAYER + r"self_attn\.projection_layer\.(\w+)", _VISION_BLOCK + r"attn.proj.\2"),
    (_VISION_LAYER + r"self_attn\.[qkv]_proj\.(\w+)", _VISION_BLOCK + r"attn.qkv.\2"),
    # the VQ model of images
    (r"model\.vqmodel\.quantize\.embedding\.weight", r"gen_vision_model.quantize.embedding.weight"),
    (r"model\.vqmodel\.((?:post_)?quant_conv\.\w+)", r"gen_vision_model.\1"),
    (_VQ + r"((?:conv_in|conv_out|norm_out)\.\w+)", r"gen_vision_model.\1.\2"),
    (_VQ + r"mid\.block_1\.(.+)", r"gen_vision_model.\1.mid.0.\2"),
    (_VQ + r"mid\.attn_1\.(.+)", r"gen_vision_model.\1.mid.1.\2"),
    (_VQ + r"mid\.block_2\.(.+)", r"gen_vision_model.\1.mid.2.\2"),
    (_VQ + r"(?:up|down)\.(\d+)\.block\.(.+)", r"gen_vision_model.\1.conv_blocks.\2.res.\3"),
    (
        _VQ + r"(?:up|down)\.(\d+)\.((?:attn|upsample|downsample)\..+)",
        r"gen_vision_model.\1.conv_blocks.\2.\3",
    ),
    # The original counts a projector's activations as layers too: its linear layers are 0, 2, 4, ...
    *(
        (rf"model\.{new}\.hidden_layers\.{n}\.(\w+)", rf"{old}.layers.{2 * n + 2}.\1")
        for new, old in (("aligner", "aligner"), ("generation_aligner", "gen_aligner"))
        for n in range(_MAX_PROJECTOR_DEPTH - 1)
    ),
)

UNUSED_BY_TRANSFORMERS = re.compile(
    r"vision_model\.vision_tower\.attn_pool\..+|gen_vision_model\.quantize\.codebook_used"
)
"""Tensors of the original that no output depends on: a pooling head and a training statistic."""


def original_name(name: str) -> str | None:
    """The original's name of a transformers tensor, or None if no rule knows it."""
    for pattern, template in RULES:
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    return None


@dataclass(frozen=True)
class Correspondence:
    """One tensor of the original and what it is in transformers: one tensor, or a stack's q, k, v."""

    original: str
    transformers: tuple[str, ...]

    @property
    def _leading_axis(self) -> bool:
        return self.original.endswith(".pos_embed")

    def original_shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The original's shape, from the shapes of the transformers tensors."""
        rows, *rest = shapes[0]
        if self._leading_axis:
            return (1, rows, *rest)
        return (sum(shape[0] for shape in shapes), *rest)

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The original's tensor as transformers has it."""
        if self._leading_axis:
            return [tensor.squeeze(0)]
        if len(self.transformers) == 1:
            return [tensor]
        # Copies: parameters that share memory trouble whoever saves or partitions them.
        return [part.clone() for part in tensor.chunk(len(self.transformers))]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """The reverse of `split`."""
        if self._leading_axis:
            return tensors[0].unsqueeze(0)
        return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]


def correspondences(transformers_names: Iterable[str]) -> list[Correspondence]:
    """The key map of a model, given all its tensors' names. Raises ValueError for an unknown name."""
    groups: dict[str, list[str]] = {}
    for name in transformers_names:
        original = original_name(name)
        if original is None:
            raise ValueError(f"{name}: the original layout of Janus has no such tensor")
        groups.setdefault(original, []).append(name)
    return [Correspondence(original, _in_qkv_order(names)) for original, names in groups.items()]


def _in_qkv_order(names: Sequence[str]) -> tuple[str, ...]:
    """A model lists its modules in an order of its own; the stack is q, k, v."""
    if len(names) == 1:
        return tuple(names)
    return tuple(next(name for name in names if f".{part}_proj." in name) for part in "qkv")
