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
        self.keys, self.values = (weight.new_zeros(shape) for _ in range(2))
        self.width = int(lengths.max())
        self.starts = self.width - lengths  # [B] slot of each row's first token
        slots = torch.arange(capacity, device=weight.device)
        unseen = (slots[None] < self.starts[:, None]) | (slots >= self.width)[None]
        self.bias = weight.new_zeros(len(lengths), 1, 1, capacity)  # added to the attention scores
        self.bias.masked_fill_(unseen[:, None, None], float("-inf"))
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
        decoder = cls(trunk, lengths, embedded.shape[1] + new_tokens)
        hidden = decoder.step(embedded)
        decoder.keep(rows)
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

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, int64 [B']: some, or some more than once."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.starts, self.bias = self.starts[rows], self.bias[rows]

    def _bias(self, slots: Tensor, end: int) -> Tensor:
        """[B, 1, T, end or L]: 0 where a slot sees another, else -inf. A slot sees its row's slots up
        to itself. A padding slot sees itself only, so that softmax has something to sum; nobody reads
        the result."""
        if len(slots) == 1:
            self.bias[..., slots] = 0.0
            # A CPU's batched product over part of a tensor takes three times as long as over the whole:
            # there the slots still to come are read too, and masked.
            return self.bias[..., :end] if self.bias.is_cuda else self.bias
        columns = torch.arange(end, device=slots.device)
        later = columns[None] > slots[:, None]
        itself = columns[None] == slots[:, None]
        bias = self.bias[..., :end].masked_fill(later, float("-inf"))
        return bias.masked_fill(itself, 0.0)

    def _layer(self, index: int, x: Tensor, rope, bias: Tensor, begin: int, end: int) -> Tensor:
        trunk, layer = self.trunk, self.trunk.layers[index]
        rows, new, _ = x.shape
        qkv = F.linear(layer.input_layernorm(x), trunk.qkv[index])
        qkv = qkv.view(rows, new, -1, trunk.head_size).transpose(1, 2)
        turned = _rotate(qkv[:, : trunk.heads + trunk.kv_heads], rope)  # queries and keys alike
        keys, values = self.keys[index], self.values[index]
        keys[:, :, begin:end] = turned[:, trunk.heads :]
        values[:, :, begin:end] = qkv[:, trunk.heads + trunk.kv_heads :]
        query = turned[:, : trunk.heads]
        if index + 1 == len(trunk.layers):  # nobody reads what the last layer says of earlier positions
            query, bias, x, new = query[:, :, -1:], bias[:, :, -1:], x[:, -1:], 1
        seen = bias.shape[-1]
        attended = _attend(query, keys[:, :, :seen], values[:, :, :seen], bias)
        x = x + layer.self_attn.o_proj(attended.transpose(1, 2).reshape(rows, new, -1))
        gate, up = F.linear(layer.post_attention_layernorm(x), trunk.gate_up[index]).chunk(2, -1)
        return x + layer.mlp.down_proj(layer.mlp.act_fn(gate) * up)


def _attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention of T new positions, [B, H, T, C], over the cache, [B, K, L, C] each."""
    groups = query.shape[1] // keys.shape[1]
    if query.shape[2] > 1 or query.is_cuda:
        return F.scaled_dot_product_attention(
            query, keys, values, attn_mask=bias, enable_gqa=groups > 1
        )
    # One position on a CPU: two batched products are faster than the fused kernel.
    query = query.unflatten(1, (-1, groups)).squeeze(3) * query.shape[-1] ** -0.5  # [B, K, H/K, C]
    scores = torch.matmul(query, keys.transpose(2, 3)).add_(bias)
    return torch.matmul(scores.softmax(-1), values).flatten(1, 2)[:, :, None]


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding on [B, heads, T, C]; rope: cos and sin, [B, 1, T, C] each."""
    cos, sin = rope
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
