"""The plain-PyTorch sampler: two phases, all rows in lockstep. The oracle for every other sampler.

Phase 1 writes the semantic CoT as text. Phase 2 draws the image tokens with classifier-free
guidance: each sample has a conditional and an unconditional row, and the token drawn from both goes
into both. Log-probabilities are of the conditional distribution over the full vocabulary at the
sampling temperature, which is what the learner trains; those of the guided one that was drawn from
travel beside them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.decoder import LockstepDecoder, Trunk
from actors.noise import draw_tokens, stream_key
from actors.sampler import Sampler, SamplingConfig
from policy.errors import UserError
from policy.janus import Janus
from policy.records import Draw, Sample


@dataclass(frozen=True)
class _Cots:
    prompt_ids: list[list[int]]
    ids: list[list[int]]
    logps: list[list[float]]
    ended: list[bool]


@dataclass(frozen=True)
class _Images:
    ids: Tensor  # int64 [B, Ti]
    logps: Tensor  # float32 [B, Ti]
    guided_logps: Tensor  # float32 [B, Ti]


class TorchSampler(Sampler):
    def __init__(self, janus: Janus, config: SamplingConfig, run_seed: int):
        self.janus = janus
        self.config = config
        self.run_seed = run_seed
        self.device = next(janus.model.parameters()).device
        self._trunk = Trunk(janus.model.model.language_model)

    @torch.no_grad()
    def load_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        parameters = dict(self.janus.model.named_parameters())
        named = list(tensors)
        wrong = [n for n, t in named if n not in parameters or parameters[n].shape != t.shape]
        if wrong:
            raise ValueError(f"weights that do not belong to this model: {wrong[:5]}")
        for name, tensor in named:
            parameters[name].copy_(tensor)
        self._trunk = Trunk(self.janus.model.model.language_model)
        self.weights_version = version

    @torch.no_grad()
    def draw(self, orders: Sequence[Draw]) -> list[Sample]:
        cots = self._write_cots(orders)
        texts = [self.janus.cot_text(ids) for ids in cots.ids]
        image_prompts = [
            self.janus.image_prompt_ids(order.prompt.text, text)
            for order, text in zip(orders, texts, strict=True)
        ]
        images = self._draw_images(orders, image_prompts)
        pixels = self.janus.decode_images(images.ids)
        ids, logps, guided = (t.cpu().numpy() for t in (images.ids, images.logps, images.guided_logps))
        return [
            Sample(
                prompt_id=order.prompt.id,
                index=order.index,
                seed=self.run_seed,
                weights_version=self.weights_version,
                cot_prompt_ids=_ids(cots.prompt_ids[n]),
                cot_ids=_ids(cots.ids[n]),
                cot_text=texts[n],
                image_prompt_ids=_ids(image_prompts[n]),
                image_ids=ids[n],
                cot_logps=torch.tensor(cots.logps[n]).numpy(),
                image_logps=logps[n],
                image_guided_logps=guided[n],
                image=pixels[n],
                finish_reason="stop" if cots.ended[n] else "length",
            )
            for n, order in enumerate(orders)
        ]

    # --- phase 1 ---

    def _write_cots(self, orders: Sequence[Draw]) -> _Cots:
        prompts = [self.janus.cot_prompt_ids(order.prompt.text) for order in orders]
        self._check_context(orders, prompts, self.config.max_cot_tokens)
        keys = self._keys(orders, "cot")
        decoder, hidden = self._read(prompts, self.config.max_cot_tokens)
        done = torch.zeros(len(orders), dtype=torch.bool, device=self.device)
        drawn, logps = [], []
        for position in range(self.config.max_cot_tokens):
            logits = self.janus.text_logits(hidden)
            tokens = draw_tokens(logits, keys, _at(keys, position), self.config.temperature)
            drawn.append(tokens)
            logps.append(self._logp(logits, tokens))
            done = done | (tokens == self.janus.eos_id)
            if done.all() or position + 1 == self.config.max_cot_tokens:
                break
            hidden = decoder.step(self.janus.embed_text(tokens[:, None]))
        rows = torch.stack(drawn, 1).tolist()
        ends = [r.index(self.janus.eos_id) + 1 if self.janus.eos_id in r else len(r) for r in rows]
        row_logps = torch.stack(logps, 1).tolist()
        return _Cots(
            prompt_ids=prompts,
            ids=[row[:end] for row, end in zip(rows, ends, strict=True)],
            logps=[row[:end] for row, end in zip(row_logps, ends, strict=True)],
            ended=[self.janus.eos_id in row for row in rows],
        )

    # --- phase 2 ---

    def _draw_images(self, orders: Sequence[Draw], prompts: list[list[int]]) -> _Images:
        count, length = len(orders), self.janus.image_tokens
        weight = self.config.guidance
        guided = weight != 1.0
        self._check_context(orders, prompts, length)
        keys = self._keys(orders, "image")
        rows = prompts + [self.janus.unconditional_ids(p) for p in prompts] if guided else prompts
        decoder, hidden = self._read(rows, length)
        ids, logps, guided_logps = [], [], []
        for position in range(length):
            logits = self.janus.image_logits(hidden)
            conditional = logits[:count]
            target = conditional
            if guided:
                unconditional = logits[count:]
                target = unconditional + weight * (conditional - unconditional)
            tokens = draw_tokens(target, keys, _at(keys, position), self.config.temperature)
            ids.append(tokens)
            logps.append(self._logp(conditional, tokens))
            guided_logps.append(self._logp(target, tokens) if guided else logps[-1])
            if position + 1 < length:
                both = tokens.repeat(2) if guided else tokens
                hidden = decoder.step(self.janus.embed_image(both[:, None]))
        return _Images(torch.stack(ids, 1), torch.stack(logps, 1), torch.stack(guided_logps, 1))

    # --- helpers ---

    def _logp(self, logits: Tensor, tokens: Tensor) -> Tensor:
        scaled = logits / (self.config.temperature or 1.0)
        return scaled.gather(1, tokens[:, None]).squeeze(1) - scaled.logsumexp(-1)

    def _keys(self, orders: Sequence[Draw], phase: str) -> Tensor:
        keys = [stream_key(self.run_seed, o.prompt.id, o.index, phase) for o in orders]
        return torch.tensor(keys, device=self.device)

    def _read(self, prompts: list[list[int]], new_tokens: int) -> tuple[LockstepDecoder, Tensor]:
        """A decoder that has read the prompts, each different one once; hidden states [B, D]."""
        numbers: dict[tuple[int, ...], int] = {}
        rows = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
        width = max(map(len, numbers))
        padded = [[self.janus.pad_id] * (width - len(prompt)) + [*prompt] for prompt in numbers]
        ids, lengths, index = (
            torch.tensor(x, device=self.device) for x in (padded, [*map(len, numbers)], rows)
        )
        embedded = self.janus.embed_text(ids)
        return LockstepDecoder.prefill(self._trunk, embedded, lengths, index, new_tokens)

    def _check_context(self, orders: Sequence[Draw], prompts: list[list[int]], new: int) -> None:
        for order, ids in zip(orders, prompts, strict=True):
            if len(ids) + new > self.janus.max_positions:
                raise UserError(
                    f"prompt {order.prompt.text[:60]!r}: {len(ids)} prompt tokens and {new} new ones"
                    f" do not fit the model's context of {self.janus.max_positions}"
                )


def _at(keys: Tensor, position: int) -> Tensor:
    return torch.full_like(keys, position)


def _ids(ids: list[int]):
    return torch.tensor(ids, dtype=torch.int64).numpy()
