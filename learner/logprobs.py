"""Log-probabilities of a batch's tokens under a Janus: one teacher-forced pass for each CoT.

The trunk runs once over text sequences and once over image sequences. Each head sees only the positions
whose next token it predicts: no text logits on images, no image logits on text.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from learner.batch import Batch
from policy.janus import Janus


class Logps(NamedTuple):
    """float32: `cot` [N, Lc], `image` [N, Ti] of the conditional distribution; `guided` [N, Ti] of the
    guided one where it was asked for. A tuple, because DeepSpeed's hooks look for tensors in tuples."""

    cot: Tensor
    image: Tensor
    guided: Tensor | None = None


class JanusLogps(nn.Module):
    """A Janus as a module whose forward is what the learner needs, so that DeepSpeed can wrap it."""

    def __init__(self, janus: Janus, *, temperature: float = 1.0, guidance: float | None = None):
        """`guidance`: the sampler's weight, to also compute the guided distribution; else None."""
        super().__init__()
        self.model = janus.model  # registers the parameters
        self._janus = janus
        self._temperature = temperature or 1.0
        self._guidance = guidance

    def forward(self, batch: Batch) -> Logps:
        cot = self._cot_logps(batch)
        conditional = self._image_logits(batch, batch.image_prompt)
        image = self._gather(conditional, batch.image)
        if self._guidance is None:
            return Logps(cot, image)
        unconditional = self._image_logits(batch, self._unconditional(batch))
        target = unconditional + self._guidance * (conditional - unconditional)
        return Logps(cot, image, self._gather(target, batch.image))

    def _cot_logps(self, batch: Batch) -> Tensor:
        ids = torch.cat([batch.cot_prompt, batch.cot], 1)
        mask = torch.cat([batch.cot_prompt_mask, batch.cot_mask], 1)
        hidden = self._hidden(self._janus.embed_text(ids), mask, start=batch.cot_prompt.shape[1])
        return self._gather(self._janus.text_logits(hidden), batch.cot)

    def _image_logits(self, batch: Batch, prompt: Tensor) -> Tensor:
        embedded = torch.cat([self._janus.embed_text(prompt), self._janus.embed_image(batch.image)], 1)
        mask = torch.cat([batch.image_prompt_mask, torch.ones_like(batch.image, dtype=bool)], 1)
        return self._janus.image_logits(self._hidden(embedded, mask, start=prompt.shape[1]))

    def _unconditional(self, batch: Batch) -> Tensor:
        """As `Janus.unconditional_ids`: all but each row's first and last token is padding."""
        keep = torch.zeros_like(batch.image_prompt_mask)
        keep[:, -1] = True
        first = batch.image_prompt_mask.int().argmax(1)
        keep[torch.arange(len(batch)), first] = True
        return torch.where(keep, batch.image_prompt, self._janus.pad_id)

    def _hidden(self, embedded: Tensor, mask: Tensor, start: int) -> Tensor:
        """Hidden states that predict the tokens from column `start` on."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = self.model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=False,
        )
        return output.last_hidden_state[:, start - 1 : -1]

    def _gather(self, logits: Tensor, ids: Tensor) -> Tensor:
        scaled = logits / self._temperature
        return scaled.gather(2, ids[..., None]).squeeze(2) - scaled.logsumexp(-1)
