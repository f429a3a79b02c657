"""What vision-language experts share: rows of text and image embeddings, and the end of each."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


def last_hidden(language_model: nn.Module, rows: Sequence[Tensor]) -> Tensor:
    """The hidden state [N, D] at the end of each of N rows of embeddings, [T, D] each.

    Shorter rows are padded behind their end. There is no mask: a position sees only what stands before
    it, so each row is read as it would be alone.
    """
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    embedded = pad_sequence(list(rows), batch_first=True)
    hidden = language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    return hidden[torch.arange(len(rows), device=hidden.device), lengths - 1]


def yes_share(logits: Tensor, yes: int, no: int) -> Tensor:
    """P(yes) / (P(yes) + P(no)) for logits [N, V]: float32 [N]. All other words cancel out."""
    return torch.sigmoid((logits[:, yes] - logits[:, no]).float())
