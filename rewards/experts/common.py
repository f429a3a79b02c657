"""Helpers of the published experts: device and dtype, batches, images and texts as inputs, and the last
hidden states of rows of text and image embeddings.

The prompts of vision-language models are files in templates/, or a user's own.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from policy.errors import UserError
from policy.jsonl import read_text
from rewards.expert import check_sides

T = TypeVar("T")
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def pick_device(device: Device = "auto") -> torch.device:
    """ "auto": the GPU, if this process has one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def pick_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """ "auto": half precision on a GPU, where it is twice as fast; else float32."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, dtype)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` in order, at most `size` at a time."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


_FOLDER = Path(__file__).parent / "templates"
PROMPT = "{prompt}"
IMAGE = "<image>"


def read_template(path: str | None, default: str, *placeholders: str) -> str:
    """A template as it stands in its file; `path` None: the default one of this name.

    Raises UserError if there is no such file, or if it lacks a placeholder.
    """
    file = Path(os.path.expanduser(path)) if path else _FOLDER / default
    text = read_text(file, "template")
    for placeholder in placeholders:
        if text.count(placeholder) != 1:
            raise UserError(f"{file}: the template must contain {placeholder} once")
    return text


def split_at_image(template: str) -> tuple[str, str]:
    """The text before the image, and the text after it."""
    head, _, tail = template.partition(IMAGE)
    return head, tail


def pictures(images: Sequence[np.ndarray]) -> list[Image.Image]:
    """uint8 [H, W, 3] each -> RGB pictures. Raises RuntimeError for one that is long and thin."""
    check_sides(images)
    return [Image.fromarray(np.ascontiguousarray(image)) for image in images]


def pad_to_square(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    """The image in the middle of the smallest square that holds it, on a ground of one colour."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    ground = Image.new("RGB", (side, side), fill)
    ground.paste(image, ((side - width) // 2, (side - height) // 2))
    return ground


def last_hidden(language_model: nn.Module, rows: Sequence[Tensor]) -> Tensor:
    """The hidden state [N, D] at the end of each of N rows of embeddings, [T, D] each.

    Shorter rows are padded behind their end. There is no mask: a position attends only to earlier ones,
    so each row is read as it would be alone.
    """
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    embedded = pad_sequence(list(rows), batch_first=True)
    hidden = language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    return hidden[torch.arange(len(rows), device=hidden.device), lengths - 1]


def yes_share(logits: Tensor, yes: int, no: int) -> Tensor:
    """P(yes) / (P(yes) + P(no)) for logits [N, V]: float32 [N]. All other words cancel out."""
    return torch.sigmoid((logits[:, yes] - logits[:, no]).float())
