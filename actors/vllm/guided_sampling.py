"""How vLLM generates the tokens of paired rows: guidance, noise, log-probabilities.

vLLM samples each row on its own. Here a pair's two rows get one token: the choice is made on the
logits, and the logits are then set so that greedy sampling can only pick it. The log-probabilities of
the chosen tokens are kept in a journal, because vLLM would return those of one row alone.

vLLM prepares a step while the GPU still computes the last one. That overlap is lost as soon as anything
here waits for the GPU, so only `take` does: nothing else is read back, and what goes to the GPU goes
through pinned memory (`to_device`).

`PairedRow` travels with a request and says whose row it is. `PairSampler` chooses the tokens. vLLM has
two model runners (V1 on CPUs, V2 on GPUs) that ask for them through an interface each; the two classes
at the end find out which request is in which row, and leave the rest to the PairSampler.

R rows, N samples in the batch (a pair of rows is one), Vt text and Vi image vocabulary.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor import LogitsProcessor as LogitsProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from actors.token_choice import choose_tokens

Phase = Literal["cot", "image"]

_KEY = "paired_row"


class LockstepError(RuntimeError):
    """The two rows of a pair are not at the same token. Going on would draw wrong images without an
    error."""


@dataclass(frozen=True)
class PairedRow:
    """One row of a sample. A guided sample is a pair of them: "cond" and "uncond"."""

    sample: int
    """The sample's number within the call; both rows of a pair share it."""
    role: Literal["cond", "uncond", "alone"]
    phase: Phase
    key: int
    """The noise stream (`actors.token_choice.stream_key`)."""

    def extra_args(self) -> dict[str, "PairedRow"]:
        """As vLLM's `SamplingParams` takes it."""
        return {_KEY: self}


@dataclass(frozen=True)
class PhaseConfig:
    """What all rows of one call have in common."""

    phase: Phase
    temperature: float
    guidance: float
    """Weight of a pair's guidance; a single row has none."""
    max_tokens: int
    stop_id: int | None = None
    """The token that ends a row; None: a row ends at `max_tokens` only."""


def paired_row_of(params) -> PairedRow | None:
    """The PairedRow in a request's `SamplingParams`; None for vLLM's own warm-up requests."""
    return ((params and params.extra_args) or {}).get(_KEY)


def to_device(numbers: Sequence[int] | np.ndarray, device: torch.device) -> Tensor:
    """Whole numbers as int64, without waiting for the device. (A copy from ordinary memory waits for
    all that the device was given before.)"""
    host = torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type != "cpu")
    return host.to(device, non_blocking=True)


@dataclass(frozen=True)
class Layout:
    """Which rows of a batch belong to which sample. Kept as long as the rows stay the same."""

    samples: tuple[int, ...]  # [N]
    lead: np.ndarray  # int64 [N] the conditional row, or the single one
    partner: np.ndarray  # int64 [N] the unconditional row; empty without guidance
    keys: Tensor  # int64 [N]
    lead_rows: Tensor  # int64 [N], `lead` on the device
    partner_rows: Tensor

    @classmethod
    def of(
        cls, paired_rows: Sequence[PairedRow | None], config: PhaseConfig, device: torch.device
    ) -> "Layout":
        """`paired_rows` [R], None for a row that is not ours. Raises LockstepError if a partner is
        missing."""
        lead: dict[int, int] = {}
        partner: dict[int, int] = {}
        for row, paired_row in enumerate(paired_rows):
            if paired_row is None:
                continue
            if paired_row.phase != config.phase:
                raise LockstepError(
                    f"a row of the {paired_row.phase} phase in a batch of {config.phase} rows"
                )
            rows = partner if paired_row.role == "uncond" else lead
            if paired_row.sample in rows:
                raise LockstepError(f"sample {paired_row.sample} has two rows of one role")
            rows[paired_row.sample] = row
        paired = {
            s
            for s, row in lead.items()
            if (paired_row := paired_rows[row]) and paired_row.role == "cond"
        }
        if broken := sorted(paired ^ set(partner)):
            raise LockstepError(f"only one row of a pair is in the batch: samples {broken[:8]}")
        if paired and len(paired) != len(lead):
            raise LockstepError("guided and unguided samples in one batch")
        leads = np.array([*lead.values()], np.int64)
        pairs = np.array([partner[s] for s in lead] if paired else [], np.int64)
        return cls(
            samples=tuple(lead),
            lead=leads,
            partner=pairs,
            keys=to_device([paired_rows[row].key for row in leads], device),
            lead_rows=to_device(leads, device),
            partner_rows=to_device(pairs, device),
        )


@dataclass
class PhaseTokens:
    """The tokens of one sample in order, as their phase counts them, and their log-probabilities."""

    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    guided_logps: list[float] = field(default_factory=list)


class PairSampler:
    """Samples for one worker. `config` must be set before rows arrive; `take` empties the journal."""

    def __init__(self, text_vocabulary: int):
        self.config: PhaseConfig | None = None
        self._text_vocabulary = text_vocabulary
        self._journal: list[tuple[tuple[int, ...], Tensor, Tensor, Tensor]] = []

    def layout(self, paired_rows: Sequence[PairedRow | None], device: torch.device) -> Layout:
        if self.config is None:
            raise RuntimeError("rows arrived before the phase for them")
        return Layout.of(paired_rows, self.config, device)

    def draw(self, logits: Tensor, layout: Layout, positions: np.ndarray) -> None:
        """Choose every sample's next token and write the choice into the logits.

        logits: float32 [R, Vt + Vi]. positions: int [R], how many tokens each row has sampled before.
        """
        assert self.config is not None  # or there were no layout
        guided = len(layout.partner) > 0
        lead = positions[layout.lead]
        if guided and (late := np.flatnonzero(lead != positions[layout.partner])).size:
            names = [layout.samples[n] for n in late[:8]]
            raise LockstepError(f"the rows of a pair are at different tokens: samples {names}")
        first, own = self._span(logits)
        tokens, logps, guided_logps = choose_tokens(
            own.index_select(0, layout.lead_rows),
            layout.keys,
            to_device(lead, logits.device),
            self.config.temperature,
            unconditional=own.index_select(0, layout.partner_rows) if guided else None,
            guidance=self.config.guidance,
        )
        self._journal.append((layout.samples, tokens, logps, guided_logps))
        certain = torch.finfo(logits.dtype).max
        logits[layout.lead_rows, tokens + first] = certain
        if guided:
            logits[layout.partner_rows, tokens + first] = certain

    def take(self) -> dict[int, PhaseTokens]:
        """The tokens sampled since the last call, by sample."""
        if not self._journal:
            return {}
        steps, *columns = zip(*self._journal, strict=True)
        self._journal.clear()
        samples = [sample for step in steps for sample in step]
        sampled: dict[int, PhaseTokens] = defaultdict(PhaseTokens)
        # One copy from the device a column, not one a step.
        rows = zip(samples, *(torch.cat(column).tolist() for column in columns), strict=True)
        for sample, token, logp, guided in rows:
            entry = sampled[sample]
            entry.tokens.append(token)
            entry.logps.append(logp)
            entry.guided_logps.append(guided)
        return dict(sampled)

    def _span(self, logits: Tensor) -> tuple[int, Tensor]:
        """The phase's part of the joint vocabulary: its first id and its logits, [R, Vt] or [R, Vi]."""
        assert self.config is not None
        if self.config.phase == "cot":
            return 0, logits[:, : self._text_vocabulary]
        return self._text_vocabulary, logits[:, self._text_vocabulary :]


class PairProcessorV1(LogitsProcessorV1):
    def __init__(self, vllm_config, device, is_pin_memory):
        self.pair_sampler = PairSampler(vllm_config.model_config.hf_config.text_vocabulary)
        self._device = device
        self._rows: dict[int, tuple[PairedRow | None, list[int]]] = {}
        self._layout: Layout | None = None

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        self._layout = None
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, _, output in batch_update.added:
            self._rows[row] = (paired_row_of(params), output)  # vLLM appends to this very list
        for source, target, direction in batch_update.moved:
            moved, displaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if direction == MoveDirectionality.SWAP and displaced is not None:
                self._rows[source] = displaced

    def apply(self, logits: Tensor) -> Tensor:
        if not self._rows:
            return logits
        rows = [self._rows.get(n, (None, ())) for n in range(len(logits))]
        if self._layout is None:
            self._layout = self.pair_sampler.layout(
                [paired_row for paired_row, _ in rows], self._device
            )
        self.pair_sampler.draw(logits, self._layout, np.array([len(output) for _, output in rows]))
        return logits


class PairProcessorV2(LogitsProcessorV2):
    def __init__(self, vllm_config, req_states):
        self.pair_sampler = PairSampler(vllm_config.model_config.hf_config.text_vocabulary)
        self._states = req_states
        self._paired_rows: dict[int, PairedRow | None] = {}  # by slot
        self._layout: Layout | None = None  # of the rows in these slots; None: they are all vLLM's own
        self._slots: bytes | None = None

    def add_request(self, req_idx: int, sampling_params) -> bool:
        self._paired_rows[req_idx] = paired_row_of(sampling_params)
        self._slots = None
        return self._paired_rows[req_idx] is not None

    def apply(self, logits: Tensor, ctx) -> Tensor:
        slots = ctx.idx_mapping_np
        if slots.tobytes() != self._slots:
            paired_rows = [self._paired_rows.get(slot) for slot in slots.tolist()]
            self._layout = (
                self.pair_sampler.layout(paired_rows, logits.device) if any(paired_rows) else None
            )
            self._slots = slots.tobytes()
        if self._layout is not None:
            lengths = ctx.seq_lens_upper_bound_np[: len(slots)]  # exact without speculative decoding
            positions = lengths - self._states.prompt_len.np[slots]
            self.pair_sampler.draw(logits, self._layout, positions)
        return logits
