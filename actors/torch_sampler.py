"""The plain-PyTorch sampler: two phases, all rows in lockstep. The reference for every other sampler.

Phase 1 writes the semantic CoT as text. Phase 2 generates the image tokens with classifier-free
guidance: each sample has a conditional and an unconditional row, and the token sampled from both goes
into both. Log-probabilities are of the conditional distribution over the full vocabulary at the
sampling temperature, which is what the learner trains; those of the guided one that was sampled from
travel beside them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from actors.kv_decoder import FusedLlama, LockstepDecoder
from actors.sampler import Cots, Images, Progress, SamplingConfig, TwoPhaseSampler
from actors.token_choice import Choice, choose_tokens
from policy.model import PolicyModel


class TorchSampler(TwoPhaseSampler):
    def __init__(self, janus: PolicyModel, config: SamplingConfig, run_seed: int):
        super().__init__(janus, config, run_seed)
        self.device = next(janus.model.parameters()).device
        self._trunk = FusedLlama(janus.trunk)

    @torch.no_grad()
    def load_parameters(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        parameters = dict(self.janus.model.named_parameters())
        for name, tensor in tensors:
            parameters[name].copy_(tensor)

    @torch.no_grad()
    def generate_cots(
        self, prompts: list[list[int]], keys: list[int], on_progress: Progress | None = None
    ) -> Cots:
        eos, temperature = self.janus.eos_id, self.config.temperature
        streams = torch.tensor(keys, device=self.device)
        decoder, hidden = self._read(prompts, self.config.max_cot_tokens)
        ids: list[list[int]] = [[] for _ in prompts]
        logps: list[list[float]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        rows = list(range(len(prompts)))  # the CoT that each row of the decoder writes
        for position in range(self.config.max_cot_tokens):
            logits = self.janus.text_logits(hidden)
            tokens, drawn, _ = choose_tokens(logits, streams, _at(streams, position), temperature)
            for row, token, logp in zip(rows, tokens.tolist(), drawn.tolist(), strict=True):
                if not ended[row]:
                    ids[row].append(token)
                    logps[row].append(logp)
                    ended[row] = token == eos
            if on_progress is not None:
                on_progress(ids)
            unfinished = [place for place, row in enumerate(rows) if not ended[row]]
            if not unfinished or position + 1 == self.config.max_cot_tokens:
                break
            if len(unfinished) <= len(rows) // 2:  # CoTs differ in length: drop finished rows
                places = torch.tensor(unfinished, device=self.device)
                decoder.keep(places)
                tokens, streams = tokens[places], streams[places]
                rows = [rows[place] for place in unfinished]
            hidden = decoder.step(self.janus.embed_text(tokens[:, None]))
        return Cots(ids=ids, logps=logps)

    @torch.no_grad()
    def generate_images(
        self, prompts: list[list[int]], keys: list[int], on_progress: Progress | None = None
    ) -> Images:
        count, length = len(prompts), self.janus.image_tokens
        weight, temperature = self.config.guidance, self.config.temperature
        guided = weight != 1.0
        streams = torch.tensor(keys, device=self.device)
        rows = prompts + [self.janus.unconditional_ids(p) for p in prompts] if guided else prompts
        decoder, hidden = self._read(rows, length)
        choices: list[Choice] = []
        so_far: list[list[int]] = [[] for _ in prompts]
        for position in range(length):
            logits = self.janus.image_logits(hidden)
            unconditional = logits[count:] if guided else None
            choices.append(
                choose_tokens(
                    logits[:count],
                    streams,
                    _at(streams, position),
                    temperature,
                    unconditional=unconditional,
                    guidance=weight,
                )
            )
            if on_progress is not None:
                for ids, token in zip(so_far, choices[-1].tokens.tolist(), strict=True):
                    ids.append(token)
                on_progress(so_far)
            if position + 1 < length:
                embedded = self.janus.embed_image(choices[-1].tokens[:, None])
                hidden = decoder.step(embedded.repeat(2, 1, 1) if guided else embedded)
        return Images(*(torch.stack(column, 1) for column in zip(*choices, strict=True)))

    def _read(self, prompts: list[list[int]], new_tokens: int) -> tuple[LockstepDecoder, Tensor]:
        """A decoder that has read the prompts (equal ones once), and their hidden states [B, D]."""
        numbers: dict[tuple[int, ...], int] = {}
        rows = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
        width = max(map(len, numbers))
        padded = [[self.janus.pad_id] * (width - len(prompt)) + [*prompt] for prompt in numbers]
        ids, lengths, index = (
            torch.tensor(x, device=self.device) for x in (padded, [*map(len, numbers)], rows)
        )
        embedded = self.janus.embed_text(ids)
        return LockstepDecoder.prefill(self._trunk, embedded, lengths, index, new_tokens)


def _at(streams: Tensor, position: int) -> Tensor:
    return torch.full_like(streams, position)
