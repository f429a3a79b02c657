"""Janus as everybody here uses it: load it, embed tokens, read its two heads, decode its images.

The model speaks two vocabularies, text and image tokens, through one Llama trunk. Shapes: B rows, T
positions, D hidden, Vt text vocabulary, Vi image codebook, Ti image tokens of one image.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, JanusConfig, JanusForConditionalGeneration

from policy.errors import UserError
from policy.templates import BEGIN_OF_IMAGE, Templates, load_templates

Dtype = Literal["float32", "bfloat16", "float16"]


class PolicyConfig(BaseModel):
    """Which model is trained, and how it is prompted."""

    model_config = ConfigDict(extra="forbid")

    path: str
    """A directory with a Janus in transformers layout, or a hub id."""
    templates: str | None = None
    """Folder with system.txt, semantic_cot.txt and image.txt; None: the ones in policy/templates."""
    dtype: Dtype = "float32"


@dataclass(frozen=True)
class Janus:
    """A model, its tokenizer and its prompt templates: all that sampling and learning need."""

    model: JanusForConditionalGeneration
    tokenizer: object
    templates: Templates

    # --- vocabulary ---

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def image_tokens(self) -> int:
        """Ti: how many tokens an image has; all images have the same number."""
        return self.model.config.vq_config.num_patches**2

    @property
    def max_positions(self) -> int:
        return self.model.config.text_config.max_position_embeddings

    # --- prompts ---

    def cot_prompt_ids(self, prompt: str) -> list[int]:
        return self.tokenizer(self.templates.cot_conversation(prompt)).input_ids

    def image_prompt_ids(self, prompt: str, cot: str) -> list[int]:
        return self.tokenizer(self.templates.image_conversation(prompt, cot)).input_ids

    def unconditional_ids(self, image_prompt_ids: list[int]) -> list[int]:
        """The row that guidance pushes away from: every token but the first and the last is padding,
        as in the published model's own sampling. It is as long as its conditional row."""
        return [image_prompt_ids[0], *[self.pad_id] * (len(image_prompt_ids) - 2), image_prompt_ids[-1]]

    def cot_text(self, cot_ids: list[int]) -> str:
        return self.tokenizer.decode(cot_ids, skip_special_tokens=True).strip()

    # --- embeddings and heads ---

    def embed_text(self, ids: Tensor) -> Tensor:
        """int64 [B, T] -> [B, T, D]."""
        return self.model.get_input_embeddings()(ids)

    def embed_image(self, ids: Tensor) -> Tensor:
        """Image token ids, int64 [B, T] -> [B, T, D]."""
        return self.model.prepare_embeddings_for_image_generation(ids)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> float32 [..., Vt]."""
        return self.model.lm_head(hidden).float()

    def image_logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> float32 [..., Vi]."""
        return self.model.model.generation_head(hidden).float()

    @torch.no_grad()
    def decode_images(self, ids: Tensor, batch: int = 64) -> np.ndarray:
        """Image token ids, int64 [B, Ti] -> uint8 [B, H, W, 3], rounded (not cut) to whole levels."""
        pixels = torch.cat([self.model.decode_image_tokens(part) for part in ids.split(batch)])
        levels = (pixels.float().clamp(-1, 1) + 1) * 127.5
        return levels.round().to(torch.uint8).cpu().numpy()


def load_janus(config: PolicyConfig, device: str = "cpu") -> Janus:
    """Load model and tokenizer. Raises UserError if the place holds no complete Janus."""
    _check_directory(config.path)
    templates = load_templates(config.templates)
    try:
        model, report = JanusForConditionalGeneration.from_pretrained(
            config.path, dtype=getattr(torch, config.dtype), output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(config.path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{config.path}: cannot be loaded as a Janus model: {error}") from error
    wrong = [f"{kind} {sorted(map(str, keys))[:5]}" for kind, keys in report.items() if keys]
    if wrong:
        raise UserError(f"{config.path}: the weights do not fit a Janus model: {'; '.join(wrong)}")
    if BEGIN_OF_IMAGE not in tokenizer.get_vocab():
        raise UserError(f"{config.path}: the tokenizer has no {BEGIN_OF_IMAGE} token")
    return Janus(model.eval().to(device), tokenizer, templates)


def empty_janus(config: PolicyConfig) -> JanusForConditionalGeneration | None:
    """The model without weights (on the meta device), to look names and shapes up; None for a hub id,
    whose configuration is not here yet."""
    if not Path(config.path).exists():
        return None
    _check_directory(config.path)
    with torch.device("meta"):
        return JanusForConditionalGeneration(JanusConfig.from_pretrained(config.path))


def check_policy(config: PolicyConfig) -> None:
    """The cheap part of `load_janus`, for a driver that must refuse a bad path before it starts."""
    _check_directory(config.path)
    load_templates(config.templates)


def _check_directory(path: str) -> None:
    """A hub id passes (transformers will say if it cannot be had); a folder must hold a Janus."""
    folder = Path(path)
    if not folder.exists():
        looks_like_hub_id = path.count("/") == 1 and not path.startswith((".", "/", "~"))
        if looks_like_hub_id:
            return
        raise UserError(f"{path}: no such model directory")
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{path}: not a model directory: it has no config.json")
    try:
        kind = json.loads(file.read_text()).get("model_type")
    except (json.JSONDecodeError, AttributeError) as error:
        raise UserError(f"{file}: not a model's config: {error}") from None
    if kind != "janus":
        raise UserError(f"{path}: a {kind!r} checkpoint, where a 'janus' one is needed")
