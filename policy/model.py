"""Janus as everybody here uses it: load it, embed tokens, read its two heads, decode its images.

The model speaks two vocabularies, text and image tokens, through one Llama trunk. Shapes: B rows, T
positions, D hidden, Vt text vocabulary, Vi image codebook, Ti image tokens of one image.

Both heads give float32, whatever type their weights have: in bfloat16 a logit of 16 is rounded by up to
0.06, and guidance 5 makes nine times that of it. So the last matrix product adds up in float32 and
stays there. Sampler and learner call the same function.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.janus.modeling_janus import JanusVQVAEHead

from policy.config import PolicyConfig
from policy.errors import UserError
from policy.hub import folder_here, is_hub_id, model_folder
from policy.janus_checkpoint import open_checkpoint, open_texts
from policy.prompts import Templates, load_templates, plain_conversation


def head_logits(head: nn.Linear | JanusVQVAEHead, hidden: Tensor) -> Tensor:
    """Logits of the text head (a linear layer) or of Janus's image head, float32.

    hidden: [..., D] -> [..., V].
    """
    if isinstance(head, JanusVQVAEHead):
        hidden = head.activation_fn(head.proj_out(hidden))
        head = head.vision_head
    if head.weight.dtype == torch.float32:
        few = hidden.dim() == 2 and len(hidden) < 16 and not hidden.is_cuda
        if few and head.bias is None and not torch.is_grad_enabled():
            # On a CPU a product with few rows is up to twice as fast the other way round.
            return torch.mm(head.weight, hidden.t()).t().contiguous()
        return F.linear(hidden, head.weight, head.bias)
    logits = _Product.apply(hidden.reshape(-1, hidden.shape[-1]), head.weight)
    if head.bias is not None:
        logits = logits + head.bias
    return logits.view(*hidden.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """hidden [M, D] times weight [V, D], transposed, in float32; gradients in the weights' own type."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        if hidden.is_cuda:  # the only device that adds up in a type wider than its inputs'
            return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        return hidden.float() @ weight.t().float()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)
        of_hidden = gradient @ weight if ctx.needs_input_grad[0] else None
        of_weight = gradient.t() @ hidden if ctx.needs_input_grad[1] else None
        return of_hidden, of_weight


class PolicyModel(Protocol):
    """What sampling and learning need of a family of models; Janus is the one there is.

    A sample is text, then image tokens, through one trunk with a head for each. Parameter names are
    those of `model`, in memory, on the wire and on disk.
    """

    @property
    def model(self) -> Any: ...
    @property
    def trunk(self) -> Any: ...
    @property
    def text_head(self) -> Any: ...
    @property
    def image_head(self) -> Any: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def image_tokens(self) -> int: ...
    @property
    def codebook_size(self) -> int: ...
    @property
    def image_side(self) -> int: ...
    @property
    def max_positions(self) -> int: ...

    def cot_prompt_ids(self, prompt: str) -> list[int]: ...
    def image_prompt_ids(self, prompt: str, cot: str) -> list[int]: ...
    def plain_prompt_ids(self, prompt: str) -> list[int]: ...
    def unconditional_ids(self, image_prompt_ids: list[int]) -> list[int]: ...
    def cot_ids(self, cot: str) -> list[int]: ...
    def cot_text(self, cot_ids: list[int]) -> str: ...
    def embed_text(self, ids: Tensor) -> Tensor: ...
    def embed_image(self, ids: Tensor) -> Tensor: ...
    def text_logits(self, hidden: Tensor) -> Tensor: ...
    def image_logits(self, hidden: Tensor) -> Tensor: ...
    def decode_images(self, ids: Tensor, batch: int = 8) -> np.ndarray: ...
    def encode_images(self, pixels: Tensor) -> Tensor: ...


def trunk_of(model: JanusForConditionalGeneration) -> Any:
    """The Llama of a Janus as transformers has it, with or without weights."""
    return model.model.language_model


def text_head_of(model: JanusForConditionalGeneration) -> Any:
    """The head over the text vocabulary."""
    return model.lm_head


def image_head_of(model: JanusForConditionalGeneration) -> Any:
    """The head over the image codebook."""
    return model.model.generation_head


@dataclass(frozen=True)
class Janus:
    """A model, its tokenizer and its prompt templates: a `PolicyModel`."""

    model: JanusForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    templates: Templates
    source: Path | None = None
    """The directory that it was loaded from, with more than this holds: a processor's settings, ..."""

    # --- parts ---

    @property
    def trunk(self) -> Any:
        return trunk_of(self.model)

    @property
    def text_head(self) -> Any:
        return text_head_of(self.model)

    @property
    def image_head(self) -> Any:
        return image_head_of(self.model)

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
    def codebook_size(self) -> int:
        """Vi: image token ids are below it."""
        return self.model.config.vq_config.num_embeddings

    @property
    def image_side(self) -> int:
        """Height and width of an image, in pixels: the encoder halves it between its levels."""
        vq = self.model.config.vq_config
        return vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1)

    @property
    def max_positions(self) -> int:
        return self.model.config.text_config.max_position_embeddings

    # --- prompts ---

    def cot_prompt_ids(self, prompt: str) -> list[int]:
        return self.tokenizer(self.templates.cot_conversation(prompt)).input_ids

    def image_prompt_ids(self, prompt: str, cot: str) -> list[int]:
        return self.tokenizer(self.templates.image_conversation(prompt, cot)).input_ids

    def plain_prompt_ids(self, prompt: str) -> list[int]:
        """For an image without a semantic CoT."""
        return self.tokenizer(plain_conversation(prompt)).input_ids

    def unconditional_ids(self, image_prompt_ids: list[int]) -> list[int]:
        """The row that guidance pushes away from: every token but the first and the last is padding,
        as in the published model's own sampling. It is as long as its conditional row."""
        return [image_prompt_ids[0], *[self.pad_id] * (len(image_prompt_ids) - 2), image_prompt_ids[-1]]

    def cot_ids(self, cot: str) -> list[int]:
        """The ids that the model would have written, with the end token. A space stands between
        "Assistant:" and the answer, as in the published model's own conversations."""
        return [*self.tokenizer(f" {cot.strip()}", add_special_tokens=False).input_ids, self.eos_id]

    def cot_text(self, cot_ids: list[int]) -> str:
        return self.tokenizer.decode(cot_ids, skip_special_tokens=True)

    # --- embeddings and heads ---

    def embed_text(self, ids: Tensor) -> Tensor:
        """int64 [B, T] -> [B, T, D]."""
        return self.model.get_input_embeddings()(ids)

    def embed_image(self, ids: Tensor) -> Tensor:
        """Image token ids, int64 [B, T] -> [B, T, D]."""
        return self.model.prepare_embeddings_for_image_generation(ids)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> float32 [..., Vt]."""
        return head_logits(self.text_head, hidden)

    def image_logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> float32 [..., Vi]."""
        return head_logits(self.image_head, hidden)

    @torch.no_grad()
    def decode_images(self, ids: Tensor, batch: int = 8) -> np.ndarray:
        """Image token ids, int64 [B, Ti] -> uint8 [B, H, W, 3], rounded (not cut) to whole levels."""
        pixels = torch.cat([self.model.decode_image_tokens(part) for part in ids.split(batch)])
        levels = (pixels.float().clamp(-1, 1) + 1) * 127.5
        return levels.round().to(torch.uint8).cpu().numpy()

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels in -1..1, float [B, 3, H, W] -> image token ids, int64 [B, Ti].

        By the angle between codes, as the published model: transformers' own `encode` compares
        vectors of any length and finds other ids.
        """
        vq = self.model.model.vqmodel
        found = F.normalize(vq.quant_conv(vq.encoder(pixels)), dim=1).flatten(2)
        codes = F.normalize(vq.quantize.embedding.weight, dim=1)
        return (codes @ found).argmax(1)


def load_janus(config: PolicyConfig, device: str = "cpu") -> Janus:
    """Load model and tokenizer, of either layout. Raises UserError if there is no complete Janus."""
    templates = load_templates(config.templates)
    folder = model_folder(config.path)
    checkpoint = open_checkpoint(folder)
    # The tensors are mapped, not copied, until they are in the model.
    model, report = JanusForConditionalGeneration.from_pretrained(
        None,
        config=checkpoint.config,
        state_dict=dict(checkpoint.transformers_tensors()),
        dtype=getattr(torch, config.dtype),
        output_loading_info=True,
    )
    wrong = [f"{kind} {sorted(map(str, names))[:5]}" for kind, names in report.items() if names]
    if wrong:
        raise UserError(f"{config.path}: the weights do not fit a Janus model: {'; '.join(wrong)}")
    return Janus(model.eval().to(device), checkpoint.tokenizer, templates, folder)


def meta_model(config: PolicyConfig) -> JanusForConditionalGeneration | None:
    """The model without weights (on the meta device), to look names and shapes up; None for a hub id,
    whose files may not be here yet."""
    if is_hub_id(config.path):
        return None
    checkpoint = open_checkpoint(model_folder(config.path))
    with torch.device("meta"):
        return JanusForConditionalGeneration(checkpoint.config)


def positions_needed(janus: PolicyModel, prompt: str, max_cot_tokens: int) -> int:
    """How much of the model's context the longer of the two phases needs, with the longest semantic CoT
    allowed."""
    cot = len(janus.cot_prompt_ids(prompt)) + max_cot_tokens
    image = len(janus.image_prompt_ids(prompt, "")) + max_cot_tokens + janus.image_tokens
    return max(cot, image)


def countable_janus(config: PolicyConfig) -> Janus | None:
    """Tokenizer, templates and shapes, to count with: its model has no weights (it is on the meta
    device). None for a hub id whose files are not here yet."""
    if (folder := folder_here(config.path)) is None:
        return None
    _, janus_config, tokenizer = open_texts(folder)
    with torch.device("meta"):
        model = JanusForConditionalGeneration(janus_config)
    return Janus(model, tokenizer, load_templates(config.templates))


def check_policy(config: PolicyConfig) -> None:
    """The cheap part of `load_janus`, for a driver that must refuse a bad path before it starts."""
    if not is_hub_id(config.path):
        open_checkpoint(model_folder(config.path))
    load_templates(config.templates)
