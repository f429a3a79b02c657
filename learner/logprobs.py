"""Log-probabilities of a batch's tokens under a Janus: one teacher-forced pass for each CoT.

The trunk runs once over text sequences and once over image sequences. Each head sees only the positions
whose next token it predicts: no text logits on images, no image logits on text, none on padding.

Logits are by far the widest tensors of a step: 102,400 floats for one text position of Janus-Pro. So
they live for one chunk of positions only: backward computes a chunk's logits again instead of keeping
them. With a frozen head they are not even computed again: backward needs one vector a position, which
forward computes. Shapes: M positions, D hidden.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from learner.batch import Batch
from learner.kernels import use_kernels
from policy.model import PolicyModel, head_logits, trunk_of

Entropy = Literal["none", "measure", "learn"]


class TokenLogps(nn.Module):
    """Under ZeRO-3 this module is a leaf (`zero3_leaves`): the head's weights are gathered once for all
    chunks, forward and backward. Ranks may therefore have different numbers of chunks, which gathers
    chunk by chunk do not survive; and so the head's own hooks must not run."""

    def __init__(
        self,
        head: nn.Module,
        *,
        temperature: float,
        guidance: float | None,
        chunk: int,
        entropy: Entropy = "none",
    ):
        """`guidance`: weight of the guided distribution; None: it is not computed."""
        super().__init__()
        self.head = head
        self._temperature = temperature
        self._guidance = guidance
        self._chunk = chunk
        self._entropy = entropy

    @property
    def measures_entropy(self) -> bool:
        """Only in passes with gradients: nobody uses a reference's entropy."""
        return self._entropy != "none" and torch.is_grad_enabled()

    def forward(self, hidden: Tensor, ids: Tensor, unconditional: Tensor | None = None) -> Tensor:
        """[M, D], int64 [M] -> float32 [1, M]; with the unconditional row's hidden states, [M, D], also
        the guided distribution's. Then, if measured, the entropies of the last of these distributions:
        [1 to 3, M]."""
        inputs = [x for x in (hidden, ids, unconditional) if x is not None]
        of_chunk = partial(self._of_chunk, entropy=self.measures_entropy)
        # Without positions there is still one (empty) chunk, so that backward reaches the head on every
        # rank.
        chunks = zip(*(x.split(self._chunk) for x in inputs), strict=True)
        frozen = not any(p.requires_grad for p in self.head.parameters())
        if frozen and unconditional is None and self._entropy != "learn":
            return torch.cat([_OfFrozenHead.apply(*chunk, of_chunk) for chunk in chunks], 1)
        rows = [
            checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in chunks
        ]
        return torch.cat(rows, 1)

    def _of_chunk(
        self, hidden: Tensor, ids: Tensor, unconditional: Tensor | None = None, *, entropy: bool
    ) -> Tensor:
        logits = head_logits(self.head, hidden)
        rows = [_gather(self._scaled(logits), ids)]
        if unconditional is not None:
            away = head_logits(self.head, unconditional)
            assert self._guidance is not None
            logits = away + self._guidance * (logits - away)
            rows.append(_gather(self._scaled(logits), ids))
        if entropy:
            with torch.set_grad_enabled(self._entropy == "learn" and torch.is_grad_enabled()):
                rows.append(_entropy(self._scaled(logits)))
        return torch.stack(rows)

    def _scaled(self, logits: Tensor) -> Tensor:
        return logits if self._temperature == 1 else logits / self._temperature


def _gather(logits: Tensor, ids: Tensor) -> Tensor:
    # Fused: its backward allocates nothing as wide as the vocabulary but the gradient.
    return -F.cross_entropy(logits, ids, reduction="none")


def _entropy(logits: Tensor) -> Tensor:
    """[M, V] -> [M], in nats."""
    return logits.logsumexp(1) - (logits.softmax(1) * logits).sum(1)


class _OfFrozenHead(torch.autograd.Function):
    """A chunk's log-probabilities, and their gradients by the hidden states while the logits are there:
    a position's log-probability depends on its own hidden state alone. No gradient for entropies."""

    @staticmethod
    def forward(ctx, hidden: Tensor, ids: Tensor, of_chunk) -> Tensor:
        if not ctx.needs_input_grad[0]:
            return of_chunk(hidden, ids)
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            logps = of_chunk(hidden, ids)
            (slopes,) = torch.autograd.grad(logps[0].sum(), hidden)
        ctx.save_for_backward(slopes)
        return logps.detach()

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return (upstream[0, :, None] * slopes).to(slopes.dtype), None, None


class Logps(NamedTuple):
    """float32: `cot` [N, Lc] (0 on padding), `image` [N, Ti] of the conditional distribution; `guided`
    [N, Ti] of the guided one where it was asked for. Entropies, where they are measured, are those of
    the distribution that is trained. A tuple, because DeepSpeed's hooks look for tensors in tuples."""

    cot: Tensor
    image: Tensor
    guided: Tensor | None = None
    cot_entropy: Tensor | None = None
    image_entropy: Tensor | None = None


class JanusLogps(nn.Module):
    """A Janus as a module whose forward is what the learner needs, so that DeepSpeed can wrap it."""

    def __init__(
        self,
        janus: PolicyModel,
        *,
        temperature: float = 1.0,
        guidance: float | None = None,
        chunk_tokens: int = 512,
        kernels: str = "none",
        entropy: Entropy = "none",
    ):
        """`guidance`: the sampler's weight, to also compute the guided distribution; else None.
        `chunk_tokens`: positions whose logits exist at one time. `kernels`: the trunk's. `entropy`:
        whether entropies are computed too, and whether gradients go through them ("learn")."""
        super().__init__()
        # First, so that parameters keep the names they have in transformers, after "model.".
        self.model = janus.model
        options: dict[str, Any] = {
            "temperature": temperature or 1.0,
            "guidance": guidance,
            "chunk": chunk_tokens,
            "entropy": entropy,
        }
        self.text = TokenLogps(janus.text_head, **options)
        self.image = TokenLogps(janus.image_head, **options)
        self._janus = janus
        self._guided = guidance is not None
        use_kernels(janus.trunk, kernels)

    def zero3_leaves(self) -> list[nn.Module]:
        """Modules whose parameters ZeRO-3 must gather as a whole, and whose children it must not."""
        return [self.text, self.image, self.text.head, self.image.head]

    def checkpoint_layers(self) -> None:
        """Recompute each layer of the trunk in backward instead of keeping what is inside it."""
        trunk = trunk_of(self.model)
        trunk.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in trunk.layers:
            # transformers checkpoints in training mode alone. Only the layer is put into it: its
            # children stay in evaluation mode, so that no dropout makes the ratio differ from 1.
            layer.training = True

    def forward(self, batch: Batch) -> Logps:
        cot, cot_entropy = self._cot_logps(batch)
        prompts = [batch.image_prompt]
        if self._guided:
            prompts.append(self._unconditional(batch))
        conditional, *unconditional = (self._image_hidden(batch, p).flatten(0, 1) for p in prompts)
        rows = self.image(conditional, batch.image.flatten(), *unconditional)
        image, *others = (row.view_as(batch.image) for row in rows)
        image_entropy = others.pop() if self.image.measures_entropy else None
        guided = others.pop() if others else None
        return Logps(cot, image, guided, cot_entropy, image_entropy)

    def _cot_logps(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The log-probabilities [N, Lc], and if they are measured, the entropies."""
        ids = torch.cat([batch.cot_prompt, batch.cot], 1)
        mask = torch.cat([batch.cot_prompt_mask, batch.cot_mask], 1)
        hidden = self._hidden(self._janus.embed_text(ids), mask, start=batch.cot_prompt.shape[1])
        real = batch.cot_mask
        rows = self.text(hidden[real], batch.cot[real])
        logps, *entropy = (row.new_zeros(real.shape).masked_scatter(real, row) for row in rows)
        return logps, entropy[0] if entropy else None

    def _image_hidden(self, batch: Batch, prompt: Tensor) -> Tensor:
        embedded = torch.cat([self._janus.embed_text(prompt), self._janus.embed_image(batch.image)], 1)
        mask = torch.cat([batch.image_prompt_mask, torch.ones_like(batch.image, dtype=torch.bool)], 1)
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
        output = trunk_of(self.model)(
            inputs_embeds=_rows(embedded, order), use_cache=False
        ).last_hidden_state
        places = mask.cumsum(1)[:, start:] - 1  # padding has its last token's position
        return _rows(output, places - 1)


def _rows(vectors: Tensor, places: Tensor) -> Tensor:
    """[N, T, D] at places, int64 [N, K] -> [N, K, D]."""
    # By an index: a gather would keep the vectors for its gradient.
    return vectors[torch.arange(len(vectors), device=vectors.device)[:, None], places]
