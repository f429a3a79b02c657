"""Generators of a benchmark's images: this project's samplers, a pipeline of diffusers, or a server
with OpenAI's images API.

All are deterministic: an image is a function of seed, prompt and index, so a killed run goes on as if
it had not been. (A server gets such a seed; whether it uses it is up to the server.)
"""

import base64
import hashlib
import io
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from fastapi import HTTPException
from PIL import Image

from actors.config import ActorsConfig
from actors.rollout import make_sampler
from evaluation.benchmark import Item
from evaluation.config import ApiConfig, BenchConfig, DiffusersConfig
from policy.config import PolicyConfig
from policy.errors import UserError, in_one_line
from policy.prompts import prompt_id
from policy.records import Prompt, SampleRequest
from rewards.experts.chat import asked_pause_s, authorization
from rewards.http import http_client, request
from rewards.images import read_images

_MAX_PIXELS = 4096 * 4096
_MAX_BYTES = 64 * 2**20
_REFUSED = (400, 422, 451)  # statuses that refuse this prompt alone


@dataclass(frozen=True)
class Drawn:
    """One image, uint8 [H, W, 3], and the semantic CoT that it was drawn from, if there was one."""

    image: np.ndarray = field(repr=False)
    cot: str | None = None


class Generator(ABC):
    """Draws prompts. Made once in each worker."""

    @abstractmethod
    def draw(self, images: Sequence[tuple[Item, int]]) -> list[Drawn | str]:
        """Images of items, each by its index among those of its item; in place of a refused one the
        reason."""


def make_generator(config: BenchConfig) -> Generator:
    """The generator that a configuration names."""
    if config.policy is not None:
        return PolicyGenerator(config.policy, config.actors, config.seed, config.cot)
    if config.diffusers is not None:
        return DiffusersGenerator(config.diffusers, config.actors, config.seed)
    assert config.api is not None
    return ApiGenerator(config.api, config.seed)


def image_seed(seed: int, item: Item, index: int) -> int:
    """A seed of its own for every image, 0 .. 2^31 - 1: the same for the same text, wherever it is in
    the file."""
    digest = hashlib.sha256(f"{seed}\n{index}\n{item.text}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


class PolicyGenerator(Generator):
    """A Janus of this project, with its semantic CoT or without."""

    def __init__(self, policy: PolicyConfig, actors: ActorsConfig, seed: int, think: bool):
        self._sampler = make_sampler(policy, actors, seed)
        self._batch_size = actors.batch_size
        self._think = think

    def draw(self, images: Sequence[tuple[Item, int]]) -> list[Drawn | str]:
        requests = [
            SampleRequest(Prompt(prompt_id(item.text), item.text, item.task), n) for item, n in images
        ]
        drawn: list[Drawn | str] = []
        for begin in range(0, len(requests), self._batch_size):
            some = self._sampler.generate(requests[begin : begin + self._batch_size], think=self._think)
            drawn += [Drawn(s.image, s.cot_text if self._think else None) for s in some]
        return drawn


class DiffusersGenerator(Generator):
    """Any text-to-image pipeline of diffusers, by its name on the hub or its folder."""

    def __init__(self, config: DiffusersConfig, actors: ActorsConfig, seed: int):
        try:
            import torch
            from diffusers import DiffusionPipeline
        except ImportError as error:
            raise UserError(
                f"diffusers is not installed here ({error.name}): pip install 'bicot[diffusers]'"
            ) from None
        self._torch = torch
        self._device = "cuda" if actors.num_gpus > 0 else "cpu"
        try:
            self._pipeline = DiffusionPipeline.from_pretrained(
                config.path,
                dtype=getattr(torch, config.dtype),
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError) as error:
            raise UserError(f"{config.path}: no pipeline of diffusers: {in_one_line(error)}") from None
        self._pipeline.to(self._device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._options = dict(config.options)
        self._batch_size = config.batch_size
        self._seed = seed

    def draw(self, images: Sequence[tuple[Item, int]]) -> list[Drawn | str]:
        drawn: list[Drawn | str] = []
        for begin in range(0, len(images), self._batch_size):
            some = images[begin : begin + self._batch_size]
            # On the CPU, so that the noise is the same on any device.
            noise = [
                self._torch.Generator("cpu").manual_seed(image_seed(self._seed, item, n))
                for item, n in some
            ]
            pictures = self._pipeline(
                [item.text for item, _ in some], generator=noise, **self._options
            ).images
            drawn += [Drawn(np.asarray(picture.convert("RGB"))) for picture in pictures]
        return drawn


class ApiGenerator(Generator):
    """A server with OpenAI's `POST /images/generations`."""

    def __init__(self, config: ApiConfig, seed: int):
        self._config = config
        self._seed = seed
        self._url = config.url.rstrip("/") + "/images/generations"
        self._client = http_client(
            config.url, timeout=config.timeout_s, headers=authorization(config.api_key_env)
        )

    def draw(self, images: Sequence[tuple[Item, int]]) -> list[Drawn | str]:
        with ThreadPoolExecutor(self._config.concurrent) as pool:
            asked = [pool.submit(self._one, item, n) for item, n in images]
            return [one.result() for one in asked]

    def _one(self, item: Item, index: int) -> Drawn | str:
        body: dict[str, Any] = {"model": self._config.model, "prompt": item.text, "n": 1}
        body |= {"response_format": "b64_json", **self._config.options}
        if self._config.send_seed:
            body["seed"] = image_seed(self._seed, item, index)
        pause = 1.0
        for last in [False] * self._config.retries + [True]:
            try:
                response, reply = request(
                    self._client, "POST", self._url, max_bytes=_MAX_BYTES, json=body
                )
            except httpx.TransportError as error:
                fault = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    return self._read(reply)
                fault = (
                    f"{response.status_code}: {' '.join(reply.decode(errors='replace').split())[:300]}"
                )
                if response.status_code in _REFUSED:
                    return fault
                if last or (response.status_code != 429 and response.status_code < 500):
                    break
                pause = min(60.0, asked_pause_s(response.headers.get("retry-after"), pause))
            if not last:
                time.sleep(pause)
                pause *= 2
        raise UserError(f"{self._url}: prompt {item.key}: {fault}")

    def _read(self, reply: bytes) -> Drawn:
        try:
            first = json.loads(reply)["data"][0]
            data = base64.b64decode(first["b64_json"], validate=True)
            return Drawn(read_images([data], _MAX_PIXELS)[0], first.get("revised_prompt"))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(f"{self._url}: not a reply of an images API: {error!r}") from None
        except HTTPException as error:
            raise UserError(f"{self._url}: {error.detail}") from None


class GeneratorWorker:
    """A generator in a process of its own; make it a Ray actor."""

    def __init__(self, config: BenchConfig):
        self._generator = make_generator(config)

    def ready(self) -> bool:
        return True

    def draw(self, images: Sequence[tuple[Item, int]]) -> list[Drawn | str]:
        return self._generator.draw(images)


def as_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()
