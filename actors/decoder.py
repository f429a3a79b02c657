"""One Llama trunk, decoded step by step in a preallocated key/value cache.

transformers' generation grows its cache by copying it at every token, and pays Python for features
that lockstep sampling never uses. Here the cache is allocated once, projections that read the same
input are one matrix product, and all rows advance together. A test holds it to transformers' own
forward.

Shapes: B rows, T new positions, L cache length, H query heads, K key/value heads, C head size, D
hidden.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class Trunk:
    """The weights of a Llama trunk, laid out for decoding. Make a new one when weights change."""

    def __init__(self, llama: torch.nn.Module):
        config = llama.config
        self.llama = llama
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.layers = llama.layers
        self.qkv = [
            torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight])
            for a in (layer.self_attn for layer in llama.layers)
        ]
        self.gate_up = [
            torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]) for layer in llama.layers
        ]


class LockstepDecoder:
    """B sequences of different lengths that end at the same cache slot (left-padded).

    What lies left of a row's prompt is neither attended to nor counted by its position ids.
    """

    def __init__(self, trunk: Trunk, lengths: Tensor, capacity: int):
        """`lengths`: the prompts' true lengths, int64 [B]; `capacity`: L, prompt slots included."""
        weight = trunk.llama.embed_tokens.weight
        self.trunk = trunk
        shape = (len(trunk.layers), len(lengths), trunk.kv_heads, capacity, trunk.head_size)
        # Slots are written before they are read, so they need no zeros.
        self.keys, self.values = (weight.new_empty(shape) for _ in range(2))
        self.starts = int(lengths.max()) - lengths  # [B] slot of each row's first token
        slots = torch.arange(capacity, device=weight.device)
        hidden = (slots[None] < self.starts[:, None])[:, None, None]
        self.bias = weight.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))  # [B, 1, 1, L]
        self.used = 0

    @classmethod
    def prefill(
        cls, trunk: Trunk, embedded: Tensor, lengths: Tensor, rows: Tensor, new_tokens: int
    ) -> tuple["LockstepDecoder", Tensor]:
        """Read left-padded prompts, [U, T, D] of true `lengths` [U], and spread them: row b of the
        decoder goes on from prompt `rows[b]`, int64 [B]. So equal prompts (the group of one prompt,
        unconditional rows of one length) are read once.

        Returns the decoder and the last position's normed hidden states, [B, D].
        """
        width = embedded.shape[1]
        once = cls(trunk, lengths, width)
        hidden = once.step(embedded)
        decoder = cls(trunk, lengths[rows], width + new_tokens)
        decoder.keys[:, :, :, :width] = once.keys[:, rows]
        decoder.values[:, :, :, :width] = once.values[:, rows]
        decoder.used = width
        return decoder, hidden[rows]

    @torch.no_grad()
    def step(self, embedded: Tensor) -> Tensor:
        """Append T positions, [B, T, D]; returns the last position's normed hidden state, [B, D]."""
        new = embedded.shape[1]
        begin, end = self.used, self.used + new
        slots = torch.arange(begin, end, device=embedded.device)
        positions = (slots[None] - self.starts[:, None]).clamp(min=0)
        bias = self._bias(slots, end)
        cos, sin = self.trunk.llama.rotary_emb(embedded, positions)
        rope = cos[:, None], sin[:, None]
        hidden = embedded
        for index in range(len(self.trunk.layers)):
            hidden = self._layer(index, hidden, rope, bias, begin, end)
        self.used = end
        return self.trunk.llama.norm(hidden[:, -1])

    def _bias(self, slots: Tensor, end: int) -> Tensor:
        """Added to the attention scores, [B, 1, T, end]: 0 where a slot sees another, else -inf. A slot
        sees its row's slots up to itself. A padding slot sees itself only, so that softmax has
        something to sum; nobody reads the result."""
        bias = self.bias[..., :end]
        if len(slots) == 1:
            return bias
        columns = torch.arange(end, device=slots.device)
        later = columns[None] > slots[:, None]
        itself = columns[None] == slots[:, None]
        return bias.masked_fill(later, float("-inf")).masked_fill(itself, 0.0)

    def _layer(self, index: int, x: Tensor, rope, bias: Tensor, begin: int, end: int) -> Tensor:
        trunk, layer = self.trunk, self.trunk.layers[index]
        rows, new, _ = x.shape
        qkv = F.linear(layer.input_layernorm(x), trunk.qkv[index])
        qkv = qkv.view(rows, new, -1, trunk.head_size).transpose(1, 2)
        turned = _rotate(qkv[:, : trunk.heads + trunk.kv_heads], rope)  # queries and keys alike
        keys, values = self.keys[index], self.values[index]
        keys[:, :, begin:end] = turned[:, trunk.heads :]
        values[:, :, begin:end] = qkv[:, trunk.heads + trunk.kv_heads :]
        attended = F.scaled_dot_product_attention(
            turned[:, : trunk.heads],
            keys[:, :, :end],
            values[:, :, :end],
            attn_mask=bias,
            enable_gqa=trunk.heads != trunk.kv_heads,
        )
        x = x + layer.self_attn.o_proj(attended.transpose(1, 2).reshape(rows, new, -1))
        gate, up = F.linear(layer.post_attention_layernorm(x), trunk.gate_up[index]).chunk(2, -1)
        return x + layer.mlp.down_proj(layer.mlp.act_fn(gate) * up)


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding on [B, heads, T, C]; rope: cos and sin, [B, 1, T, C] each."""
    cos, sin = rope
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
