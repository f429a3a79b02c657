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

    `lengths` are the prompts' true lengths; what lies left of a row's prompt is neither attended to
    nor counted by its position ids.
    """

    def __init__(self, trunk: Trunk, lengths: Tensor, new_tokens: int):
        weight = trunk.llama.embed_tokens.weight
        rows, self.width = len(lengths), int(lengths.max())
        shape = (len(trunk.layers), rows, trunk.kv_heads, self.width + new_tokens, trunk.head_size)
        self.trunk = trunk
        self.keys, self.values = (weight.new_zeros(shape) for _ in range(2))
        self.starts = self.width - lengths  # [B] slot of each row's first token
        slots = torch.arange(self.width + new_tokens, device=weight.device)
        self.visible = slots[None] >= self.starts[:, None]  # bool [B, L]
        self.used = 0

    @torch.no_grad()
    def step(self, embedded: Tensor) -> Tensor:
        """Append T positions, [B, T, D]; returns the last position's normed hidden state, [B, D].

        The first call takes the whole left-padded prompts (T = width), later ones a token (T = 1).
        """
        new = embedded.shape[1]
        begin, end = self.used, self.used + new
        slots = torch.arange(begin, end, device=embedded.device)
        positions = (slots[None] - self.starts[:, None]).clamp(min=0)
        mask = self._mask(slots, end)
        rope = self.trunk.llama.rotary_emb(embedded, positions)
        hidden = embedded
        for index in range(len(self.trunk.layers)):
            hidden = self._layer(index, hidden, rope, mask, begin, end)
        self.used = end
        return self.trunk.llama.norm(hidden[:, -1])

    def _mask(self, slots: Tensor, end: int) -> Tensor:
        """bool [B, 1, T, end]: a slot sees the slots of its row up to itself. A padding slot sees
        itself only, so that softmax has something to sum; nobody reads the result."""
        columns = torch.arange(end, device=slots.device)
        causal = columns[None] <= slots[:, None]
        mask = self.visible[:, None, :end] & causal[None]
        if len(slots) > 1:
            mask = mask | (columns[None] == slots[:, None])[None]
        return mask[:, None]

    def _layer(self, index: int, x: Tensor, rope, mask: Tensor, begin: int, end: int) -> Tensor:
        trunk, layer = self.trunk, self.trunk.layers[index]
        rows, new, _ = x.shape
        size = trunk.head_size
        split = [trunk.heads, trunk.kv_heads, trunk.kv_heads]
        qkv = F.linear(layer.input_layernorm(x), trunk.qkv[index]).view(rows, new, -1, size)
        query, key, value = qkv.transpose(1, 2).split(split, 1)
        keys, values = self.keys[index], self.values[index]
        keys[:, :, begin:end] = _rotate(key, rope)
        values[:, :, begin:end] = value
        attended = F.scaled_dot_product_attention(
            _rotate(query, rope),
            keys[:, :, :end],
            values[:, :, :end],
            attn_mask=mask,
            enable_gqa=trunk.heads != trunk.kv_heads,
        )
        x = x + layer.self_attn.o_proj(attended.transpose(1, 2).reshape(rows, new, -1))
        gate, up = F.linear(layer.post_attention_layernorm(x), trunk.gate_up[index]).chunk(2, -1)
        return x + layer.mlp.down_proj(layer.mlp.act_fn(gate) * up)


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding on [B, heads, T, C]; rope: cos and sin, [B, T, C] each."""
    cos, sin = rope[0][:, None], rope[1][:, None]
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
