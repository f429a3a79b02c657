"""Draws images of many requests together; each image has a seed, a CoT and a listener of its own.

Seeds are those of `bicot generate`: image `index` of a request with seed S is the one that the command
draws with `--seed S`, whatever is drawn beside it. Its tokens do not depend on the batch, by the
sampler's own rule; and as each image is decoded alone, neither does a pixel.

Ti: image tokens of one image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from actors.config import ActorsConfig
from actors.rollout import make_sampler
from actors.sampler import Progress, TwoPhaseSampler
from actors.token_choice import stream_key
from evaluation.generators import as_png
from policy.errors import UserError
from policy.model import PolicyConfig, positions_needed
from policy.prompts import prompt_id
from studio.records import GeneratedImage, ImageTask, RequestError

Phase = Literal["cot", "image"]
Listener = Callable[[Phase, Sequence[int]], None]
"""Called after every token with the ids of one image's phase so far, in the thread of the model."""
_GRAY = 128


@dataclass(frozen=True)
class ImageTokens:
    """One image as tokens, not decoded yet."""

    ids: Tensor  # int64 [Ti]
    cot: str | None
    prompt_tokens: int
    cot_tokens: int


class ImageGenerator:
    """One model. `generate` draws one batch at a time; the rest may be called meanwhile."""

    def __init__(self, policy: PolicyConfig, actors: ActorsConfig):
        sampler = make_sampler(policy, actors, run_seed=0)
        if not isinstance(sampler, TwoPhaseSampler):
            raise UserError(f"actors.sampler: {type(sampler).__name__} has no two phases to serve")
        self._sampler = sampler
        self._janus = sampler.janus
        self.sampling = sampler.config
        self._device = next(self._janus.model.parameters()).device
        height, width, _ = self._pixels(torch.zeros(self._janus.image_tokens, dtype=torch.int64)).shape
        self.size = f"{width}x{height}"

    @property
    def image_tokens(self) -> int:
        return self._janus.image_tokens

    def cot_text(self, ids: Sequence[int]) -> str:
        return self._janus.cot_text(list(ids))

    def check(self, task: ImageTask) -> None:
        """Raises RequestError for a task that does not fit the model's context."""
        janus = self._janus
        if task.cot is True:
            need = positions_needed(janus, task.prompt, self.sampling.max_cot_tokens)
        else:
            need = len(self._image_prompt(task, task.cot or "")) + janus.image_tokens
        if need > janus.max_positions:
            raise self._too_long(need)

    @torch.no_grad()
    def generate(
        self, tasks: Sequence[ImageTask], listeners: Mapping[int, Listener]
    ) -> list[ImageTokens | RequestError]:
        """Draw tasks of the same settings, one result each. `listeners`: by the task's position. What a
        listener raises ends the batch."""
        (settings,) = {task.settings for task in tasks}
        self._sampler.config = self.sampling.model_copy(update=vars(settings))
        janus = self._janus
        thinking = [place for place, task in enumerate(tasks) if task.cot is True]
        prompts = {place: janus.cot_prompt_ids(tasks[place].prompt) for place in thinking}
        written: dict[int, list[int]] = {}
        if thinking:
            cots = self._sampler.generate_cots(
                list(prompts.values()),
                [_key(tasks[place], "cot") for place in thinking],
                _progress("cot", thinking, listeners),
            )
            written = dict(zip(thinking, cots.ids, strict=True))
        results: list[ImageTokens | RequestError] = []
        texts = [self._cot_of(task, written.get(place)) for place, task in enumerate(tasks)]
        image_prompts = [
            self._image_prompt(task, text or "") for task, text in zip(tasks, texts, strict=True)
        ]
        needs = [len(ids) + janus.image_tokens for ids in image_prompts]
        fit = [place for place, need in enumerate(needs) if need <= janus.max_positions]
        drawn: dict[int, Tensor] = {}
        if fit:
            images = self._sampler.generate_images(
                [image_prompts[place] for place in fit],
                [_key(tasks[place], "image") for place in fit],
                _progress("image", fit, listeners),
            )
            drawn = dict(zip(fit, images.ids, strict=True))
        for place, text in enumerate(texts):
            if place in drawn:
                read = len(prompts.get(place, image_prompts[place]))
                cot = None if text is None else text.strip()
                results.append(ImageTokens(drawn[place], cot, read, len(written.get(place, ()))))
            else:
                results.append(self._too_long(needs[place]))
        return results

    def finish(self, tokens: ImageTokens) -> GeneratedImage:
        """Decode an image alone, so that no rounding depends on what is decoded beside it."""
        return GeneratedImage(
            png=as_png(self._pixels(tokens.ids)),
            cot=tokens.cot,
            prompt_tokens=tokens.prompt_tokens,
            cot_tokens=tokens.cot_tokens,
            image_tokens=len(tokens.ids),
        )

    def so_far(self, ids: Sequence[int]) -> bytes:
        """The image of the first tokens, as PNG; gray where tokens are missing."""
        whole = [*ids, *[ids[-1]] * (self.image_tokens - len(ids))]
        pixels = self._pixels(torch.tensor(whole)).copy()
        rows = round(self.image_tokens**0.5)
        height, width = pixels.shape[0] // rows, pixels.shape[1] // rows
        row, column = divmod(len(ids), rows)
        pixels[row * height : (row + 1) * height, column * width :] = _GRAY
        pixels[(row + 1) * height :] = _GRAY
        return as_png(pixels)

    def _pixels(self, ids: Tensor) -> np.ndarray:
        """int64 [Ti] -> uint8 [H, W, 3]."""
        return self._janus.decode_images(ids[None].to(self._device))[0]

    def _cot_of(self, task: ImageTask, written: list[int] | None) -> str | None:
        if written is not None:
            return self.cot_text(written)
        return task.cot if isinstance(task.cot, str) else None

    def _image_prompt(self, task: ImageTask, cot: str) -> list[int]:
        if task.cot is False:
            return self._janus.plain_prompt_ids(task.prompt)
        return self._janus.image_prompt_ids(task.prompt, cot)

    def _too_long(self, need: int) -> RequestError:
        return RequestError(
            f"the prompt is too long: with its semantic CoT and the image it needs {need} tokens, and"
            f" the model's context has {self._janus.max_positions}",
            "prompt",
            code="context_length_exceeded",
        )


def _key(task: ImageTask, phase: Phase) -> int:
    return stream_key(task.seed, prompt_id(task.prompt), task.index, phase)


def _progress(
    phase: Phase, positions: Sequence[int], listeners: Mapping[int, Listener]
) -> Progress | None:
    """Passes each row of a batch to its listener; None if there is no listener."""
    listened = [(row, listeners[place]) for row, place in enumerate(positions) if place in listeners]
    if not listened:
        return None

    def on_progress(ids: Sequence[Sequence[int]]) -> None:
        for row, listen in listened:
            if ids[row]:
                listen(phase, ids[row])

    return on_progress
