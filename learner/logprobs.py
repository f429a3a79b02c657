"""Log-probabilities of a batch's tokens under a Janus: one teacher-forced pass for each CoT.

The trunk runs once over text sequences and once over image sequences. Each head sees only the positions
whose next token it predicts: no text logits on images, no image logits on text, none on padding.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from learner.batch import Batch
from learner.kernels import use_kernels
from learner.token_logps import TokenLogps
from policy.janus import Janus


class Logps(NamedTuple):
    """float32: `cot` [N, Lc] (0 on padding), `image` [N, Ti] of the conditional distribution; `guided`
    [N, Ti] of the guided one where it was asked for. A tuple, because DeepSpeed's hooks look for
    tensors in tuples."""

    cot: Tensor
    image: Tensor
    guided: Tensor | None = None


class JanusLogps(nn.Module):
    """A Janus as a module whose forward is what the learner needs, so that DeepSpeed can wrap it."""

    def __init__(
        self,
        janus: Janus,
        *,
        temperature: float = 1.0,
        guidance: float | None = None,
        chunk_tokens: int = 512,
        kernels: str = "none",
    ):
        """`guidance`: the sampler's weight, to also compute the guided distribution; else None.
        `chunk_tokens`: positions whose logits exist at one time. `kernels`: the trunk's."""
        super().__init__()
        # First, so that parameters keep the names they have in transformers, after "model.".
        self.model = janus.model
        options = {"temperature": temperature or 1.0, "guidance": guidance, "chunk": chunk_tokens}
        self.text = TokenLogps(janus.model.lm_head, **options)
        self.image = TokenLogps(janus.model.model.generation_head, **options)
        self._janus = janus
        self._guided = guidance is not None
        use_kernels(janus.model.model.language_model, kernels)

    def zero3_leaves(self) -> list[nn.Module]:
        """Modules whose parameters ZeRO-3 must gather as a whole, and whose children it must not."""
        return [self.text, self.image, self.text.head, self.image.head]

    def checkpoint_layers(self) -> None:
        """Recompute each layer of the trunk in backward instead of keeping what is inside it."""
        trunk = self.model.model.language_model
        trunk.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in trunk.layers:
            # transformers checkpoints in training mode alone. Only the layer is told so: its children
            # stay in evaluation mode, so that no dropout makes the ratio differ from 1.
            layer.training = True

    def forward(self, batch: Batch) -> Logps:
        cot = self._cot_logps(batch)
        prompts = [batch.image_prompt]
        if self._guided:
            prompts.append(self._unconditional(batch))
        conditional, *unconditional = (self._image_hidden(batch, p).flatten(0, 1) for p in prompts)
        image = self.image(conditional, batch.image.flatten(), *unconditional)
        return Logps(cot, *(logps.view_as(batch.image) for logps in image))

    def _cot_logps(self, batch: Batch) -> Tensor:
        ids = torch.cat([batch.cot_prompt, batch.cot], 1)
        mask = torch.cat([batch.cot_prompt_mask, batch.cot_mask], 1)
        hidden = self._hidden(self._janus.embed_text(ids), mask, start=batch.cot_prompt.shape[1])
        real = batch.cot_mask
        logps = self.text(hidden[real], batch.cot[real])
        return logps.new_zeros(real.shape).masked_scatter(real, logps)

    def _image_hidden(self, batch: Batch, prompt: Tensor) -> Tensor:
        embedded = torch.cat([self._janus.embed_text(prompt), self._janus.embed_image(batch.image)], 1)
        mask = torch.cat([batch.image_prompt_mask, torch.ones_like(batch.image, dtype=bool)], 1)
        return self._hidden(embedded, mask, start=prompt.shape[1])

    def _unconditional(self, batch: Batch) -> Tensor:
        """As `Janus.unconditional_ids`: all but each row's first and last token is padding."""
        keep = torch.zeros_like(batch.image_prompt_mask)
        keep[:, -1] = True
        first = batch.image_prompt_mask.int().argmax(1)
        keep[torch.arange(len(batch)), first] = True
        return torch.where(keep, batch.image_prompt, self._janus.pad_id)

    def _hidden(self, embedded: Tensor, mask: Tensor, start: int) -> Tensor:
        """Hidden states that predict the tokens from column `start` on.

        The trunk gets every row without gaps, from position 0 on, and all padding behind it, where
        causal attention never looks. So it needs no mask, and a GPU takes its flash kernel.
        """
        longest = int(mask.sum(1).max())
        order = (~mask).int().argsort(dim=1, stable=True)[:, :longest]
        output = self.model.model.language_model(
            inputs_embeds=_rows(embedded, order), use_cache=False
        ).last_hidden_state
        places = mask.cumsum(1)[:, start:] - 1  # padding has its last token's
        return _rows(output, places - 1)


def _rows(vectors: Tensor, places: Tensor) -> Tensor:
    """[N, T, D] at places, int64 [N, K] -> [N, K, D]."""
    # By an index: for its gradient, a gather keeps the vectors.
    return vectors[torch.arange(len(vectors), device=vectors.device)[:, None], places]
