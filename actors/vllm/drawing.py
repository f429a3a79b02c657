"""How the tokens of a batch are drawn: guidance, noise, log-probabilities; for both vLLM runners.

vLLM samples each row for itself. Here a pair's two rows get one token: the choice is made on the
logits, and the logits are then set so that greedy sampling can only pick it. The log-probabilities of
the chosen tokens stay behind in a journal, because vLLM would return those of one row alone.

R rows, N samples in the batch (a pair of rows is one), Vt text and Vi image vocabulary.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from actors.noise import choose_tokens
from actors.vllm.lane import Lane, LockstepError, Plan


@dataclass(frozen=True)
class Layout:
    """Which rows of a batch belong to which sample."""

    samples: tuple[int, ...]  # [N]
    lead: tuple[int, ...]  # [N] the row that is conditional, or alone
    partner: tuple[int, ...]  # [N] the unconditional row, or nothing at all
    keys: Tensor  # int64 [N]
    lead_rows: Tensor  # int64 [N], `lead` on the device
    partner_rows: Tensor

    @classmethod
    def of(cls, lanes: Sequence[Lane | None], plan: Plan, device: torch.device) -> "Layout":
        """lanes: [R], None for a row that is not ours. Raises LockstepError if a partner is missing."""
        lead: dict[int, int] = {}
        partner: dict[int, int] = {}
        for row, lane in enumerate(lanes):
            if lane is None:
                continue
            if lane.phase != plan.phase:
                raise LockstepError(f"a row of the {lane.phase} phase in a batch of {plan.phase} rows")
            rows = partner if lane.role == "uncond" else lead
            if lane.sample in rows:
                raise LockstepError(f"sample {lane.sample} has two rows of one role")
            rows[lane.sample] = row
        paired = {s for s, row in lead.items() if lanes[row].role == "cond"}
        if broken := sorted(paired ^ set(partner)):
            raise LockstepError(f"only one row of a pair is in the batch: samples {broken[:8]}")
        if paired and len(paired) != len(lead):
            raise LockstepError("guided and unguided samples in one batch")
        samples = tuple(lead)
        pairs = tuple(partner[s] for s in samples) if paired else ()
        return cls(
            samples=samples,
            lead=tuple(lead.values()),
            partner=pairs,
            keys=torch.tensor([lanes[row].key for row in lead.values()], device=device),
            lead_rows=torch.tensor(tuple(lead.values()), dtype=torch.int64, device=device),
            partner_rows=torch.tensor(pairs, dtype=torch.int64, device=device),
        )


@dataclass
class Drawn:
    """The tokens of one sample in order, as their phase counts them, and their log-probabilities."""

    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    guided_logps: list[float] = field(default_factory=list)


class Drawer:
    """Draws for one worker. `plan` must be set before rows arrive; `take` empties the journal."""

    def __init__(self, text_vocabulary: int):
        self.plan: Plan | None = None
        self._text_vocabulary = text_vocabulary
        self._journal: list[tuple[tuple[int, ...], Tensor, Tensor, Tensor]] = []

    def layout(self, lanes: Sequence[Lane | None], device: torch.device) -> Layout:
        if self.plan is None:
            raise RuntimeError("rows arrived before the plan for them")
        return Layout.of(lanes, self.plan, device)

    def draw(self, logits: Tensor, layout: Layout, positions: Sequence[int]) -> None:
        """Choose every sample's next token and write the choice into the logits.

        logits: float32 [R, Vt + Vi]. positions: [R], how many tokens each row has drawn before.
        """
        lead = [int(positions[row]) for row in layout.lead]
        partner = [int(positions[row]) for row in layout.partner]
        if partner and lead != partner:
            late = [s for s, a, b in zip(layout.samples, lead, partner, strict=True) if a != b]
            raise LockstepError(f"the rows of a pair are at different tokens: samples {late[:8]}")
        first, own = self._span(logits)
        where = torch.tensor(lead, device=logits.device)
        tokens, logps, guided = choose_tokens(
            own.index_select(0, layout.lead_rows),
            layout.keys,
            where,
            self.plan.temperature,
            unconditional=own.index_select(0, layout.partner_rows) if partner else None,
            guidance=self.plan.guidance,
        )
        self._journal.append((layout.samples, tokens, logps, guided))
        certain = torch.finfo(logits.dtype).max
        logits[layout.lead_rows, tokens + first] = certain
        if partner:
            logits[layout.partner_rows, tokens + first] = certain

    def take(self) -> dict[int, Drawn]:
        """All that was drawn since the last call, by sample."""
        drawn: dict[int, Drawn] = defaultdict(Drawn)
        for samples, *columns in self._journal:
            rows = zip(samples, *(column.tolist() for column in columns), strict=True)
            for sample, token, logp, guided in rows:
                entry = drawn[sample]
                entry.tokens.append(token)
                entry.logps.append(logp)
                entry.guided_logps.append(guided)
        self._journal.clear()
        return dict(drawn)

    def _span(self, logits: Tensor) -> tuple[int, Tensor]:
        """The phase's part of the joint vocabulary: its first id and its logits, [R, Vt] or [R, Vi]."""
        if self.plan.phase == "cot":
            return 0, logits[:, : self._text_vocabulary]
        return self._text_vocabulary, logits[:, self._text_vocabulary :]
