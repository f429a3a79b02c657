"""What all samplers of a Janus share: the two phases in order, and the record that comes of them."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from actors.noise import stream_key
from actors.sampler import HALF_LOADED, Sampler, SamplingConfig
from policy.errors import UserError
from policy.janus import Janus
from policy.records import Draw, Sample
from policy.weights import TensorSpec


@dataclass(frozen=True)
class Cots:
    """One semantic CoT an order, with its end token if it ended by itself."""

    ids: list[list[int]]
    logps: list[list[float]]


@dataclass(frozen=True)
class Images:
    """One image an order; log-probabilities of the conditional and of the guided distribution."""

    ids: Tensor  # int64 [B, Ti]
    logps: Tensor  # float32 [B, Ti]
    guided_logps: Tensor  # float32 [B, Ti]


class TwoPhaseSampler(Sampler):
    """Writes the CoTs, then draws the images. How each is done is the subclass's business."""

    def __init__(self, janus: Janus, config: SamplingConfig, run_seed: int):
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
        self.weights_version = HALF_LOADED
        self.replace(tensors)
        self.weights_version = version

    def draw(self, orders: Sequence[Draw]) -> list[Sample]:
        if self.weights_version == HALF_LOADED:
            raise RuntimeError("the last weights broke off half-way: load a whole version first")
        janus = self.janus
        cot_prompts = [janus.cot_prompt_ids(order.prompt.text) for order in orders]
        self._check_context(orders, cot_prompts, self.config.max_cot_tokens)
        cots = self.write_cots(cot_prompts, self._keys(orders, "cot"))
        texts = [janus.cot_text(ids) for ids in cots.ids]
        image_prompts = [
            janus.image_prompt_ids(order.prompt.text, text)
            for order, text in zip(orders, texts, strict=True)
        ]
        self._check_context(orders, image_prompts, janus.image_tokens)
        images = self.draw_images(image_prompts, self._keys(orders, "image"))
        pixels = janus.decode_images(images.ids)
        ids, logps, guided = (t.cpu().numpy() for t in (images.ids, images.logps, images.guided_logps))
        return [
            Sample(
                prompt_id=order.prompt.id,
                index=order.index,
                seed=self.run_seed,
                weights_version=self.weights_version,
                cot_prompt_ids=np.array(cot_prompts[n], np.int64),
                cot_ids=np.array(cots.ids[n], np.int64),
                cot_text=texts[n],
                image_prompt_ids=np.array(image_prompts[n], np.int64),
                image_ids=ids[n],
                cot_logps=np.array(cots.logps[n], np.float32),
                image_logps=logps[n],
                image_guided_logps=guided[n],
                image=pixels[n],
                finish_reason="stop" if cots.ids[n][-1] == janus.eos_id else "length",
            )
            for n, order in enumerate(orders)
        ]

    @abstractmethod
    def write_cots(self, prompts: list[list[int]], keys: list[int]) -> Cots:
        """Phase 1. `keys`: the noise stream of each prompt."""

    @abstractmethod
    def draw_images(self, prompts: list[list[int]], keys: list[int]) -> Images:
        """Phase 2, guided; where the images are to be decoded."""

    @abstractmethod
    def replace(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy tensors, checked already, over the parameters of these names."""

    def _keys(self, orders: Sequence[Draw], phase: str) -> list[int]:
        return [stream_key(self.run_seed, o.prompt.id, o.index, phase) for o in orders]

    def _check_context(self, orders: Sequence[Draw], prompts: list[list[int]], new: int) -> None:
        for order, ids in zip(orders, prompts, strict=True):
            if len(ids) + new > self.janus.max_positions:
                raise UserError(
                    f"prompt {order.prompt.text[:60]!r}: {len(ids)} prompt tokens and {new} new ones"
                    f" do not fit the model's context of {self.janus.max_positions}"
                )
