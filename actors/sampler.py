"""The interface of samplers: requests become samples, with weights that can be replaced.

`TwoPhaseSampler` is what all samplers of a Janus share: the two phases in order, and the record made of
them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from actors.config import SamplingConfig
from actors.token_choice import stream_key
from policy.errors import UserError
from policy.model import PolicyModel
from policy.records import Sample, SampleRequest
from policy.weights import TensorSpec

INVALID_VERSION = -1


class Sampler(ABC):
    """Generates semantic CoTs and images. Two rules bind every implementation, each with a test:

    - no sample depends on its batch-mates;
    - tokens are a pure function of (run seed, prompt id, sample index, phase, position) and weights.
    """

    weights_version: int = 0
    """INVALID_VERSION: a load broke off in the middle, and nothing may be generated until the next."""

    @abstractmethod
    def generate(self, requests: Sequence[SampleRequest], *, think: bool = True) -> list[Sample]:
        """Generate one sample a request, in the requests' order. `think=False` draws the prompt as it
        stands, without a semantic CoT, as the published model does."""

    @abstractmethod
    def load_weights(
        self,
        version: int,
        tensors: Iterable[tuple[str, Tensor]],
        specs: Sequence[TensorSpec] | None = None,
    ) -> None:
        """Replace the named parameters (transformers' names) in place.

        Names and shapes are checked before the first is replaced: by `specs`, which announce the
        tensors, so that each is freed as soon as it is loaded; without them all are held. Raises
        ValueError for tensors that are not the model's. If `tensors` breaks off, its error passes, and
        the sampler refuses to generate until it has loaded a version whole.
        """


@dataclass(frozen=True)
class Cots:
    """One semantic CoT a request, with its end token if it ended by itself."""

    ids: list[list[int]]
    logps: list[list[float]]


@dataclass(frozen=True)
class Images:
    """One image a request; log-probabilities of the conditional and of the guided distribution."""

    ids: Tensor  # int64 [B, Ti]
    logps: Tensor  # float32 [B, Ti]
    guided_logps: Tensor  # float32 [B, Ti]


Progress = Callable[[Sequence[Sequence[int]]], None]
"""Called after every token with the ids of every row so far, in the order of the prompts. The lists
grow afterwards: copy them to keep them. What it raises ends the phase."""


class TwoPhaseSampler(Sampler):
    """Writes the CoTs, then the images; subclasses implement the two phases."""

    def __init__(self, janus: PolicyModel, config: SamplingConfig, run_seed: int):
        self.janus = janus
        self.config = config
        self.run_seed = run_seed
        self.shapes = {name: tuple(p.shape) for name, p in janus.model.named_parameters()}

    def load_weights(
        self,
        version: int,
        tensors: Iterable[tuple[str, Tensor]],
        specs: Sequence[TensorSpec] | None = None,
    ) -> None:
        if specs is None:
            tensors = list(tensors)
            specs = [TensorSpec.of(name, tensor) for name, tensor in tensors]
        wrong = [s.name for s in specs if self.shapes.get(s.name) != s.shape]
        if wrong:
            raise ValueError(f"weights that do not belong to this model: {wrong[:5]}")
        self.weights_version = INVALID_VERSION
        self.load_parameters(tensors)
        self.weights_version = version

    def generate(self, requests: Sequence[SampleRequest], *, think: bool = True) -> list[Sample]:
        if self.weights_version == INVALID_VERSION:
            raise RuntimeError("the last weights broke off half-way: load a whole version first")
        janus = self.janus
        prompts = [request.prompt.text for request in requests]
        if think:
            cot_prompts = [janus.cot_prompt_ids(prompt) for prompt in prompts]
            self._check_context(requests, cot_prompts, self.config.max_cot_tokens)
            cots = self.generate_cots(cot_prompts, self._keys(requests, "cot"))
            texts = [janus.cot_text(ids) for ids in cots.ids]
            image_prompts = [janus.image_prompt_ids(p, t) for p, t in zip(prompts, texts, strict=True)]
        else:
            nothing: list[list] = [[] for _ in prompts]
            cot_prompts, cots, texts = nothing, Cots(nothing, nothing), [""] * len(prompts)
            image_prompts = [janus.plain_prompt_ids(prompt) for prompt in prompts]
        self._check_context(requests, image_prompts, janus.image_tokens)
        images = self.generate_images(image_prompts, self._keys(requests, "image"))
        pixels = janus.decode_images(images.ids)
        ids, logps, guided = (t.cpu().numpy() for t in (images.ids, images.logps, images.guided_logps))
        return [
            Sample(
                prompt_id=request.prompt.id,
                index=request.index,
                seed=self.run_seed,
                weights_version=self.weights_version,
                cot_prompt_ids=np.array(cot_prompts[n], np.int64),
                cot_ids=np.array(cots.ids[n], np.int64),
                cot_text=texts[n].strip(),
                image_prompt_ids=np.array(image_prompts[n], np.int64),
                image_ids=ids[n],
                cot_logps=np.array(cots.logps[n], np.float32),
                image_logps=logps[n],
                image_guided_logps=guided[n],
                image=pixels[n],
                finish_reason=_finish_reason(cots.ids[n], janus.eos_id),
            )
            for n, request in enumerate(requests)
        ]

    @abstractmethod
    def generate_cots(
        self, prompts: list[list[int]], keys: list[int], on_progress: Progress | None = None
    ) -> Cots:
        """Phase 1. `keys`: the noise stream of each prompt."""

    @abstractmethod
    def generate_images(
        self, prompts: list[list[int]], keys: list[int], on_progress: Progress | None = None
    ) -> Images:
        """Phase 2, guided; on the device that decodes the images."""

    @abstractmethod
    def load_parameters(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy tensors, which are checked already, into the parameters of these names."""

    def _keys(self, requests: Sequence[SampleRequest], phase: str) -> list[int]:
        return [stream_key(self.run_seed, o.prompt.id, o.index, phase) for o in requests]

    def _check_context(
        self, requests: Sequence[SampleRequest], prompts: list[list[int]], new: int
    ) -> None:
        for request, ids in zip(requests, prompts, strict=True):
            if len(ids) + new > self.janus.max_positions:
                raise UserError(
                    f"prompt {request.prompt.text[:60]!r}: {len(ids)} prompt tokens and {new} new ones"
                    f" do not fit the model's context of {self.janus.max_positions}"
                )


def _finish_reason(cot_ids: list[int], eos_id: int) -> str:
    if not cot_ids:
        return "none"
    return "stop" if cot_ids[-1] == eos_id else "length"
