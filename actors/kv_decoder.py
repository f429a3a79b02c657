"""Decodes one Llama trunk step by step, with a key/value cache of its own.

transformers' generation copies its cache at every token, and pays Python for features that lockstep
sampling never uses. Here projections that read the same input are one matrix product, all rows advance
together, and the cache is allocated once. A test compares it with transformers' own forward.

Shapes: B rows, T new positions, L cache length, H query heads, K key/value heads, C head size, D
hidden."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaModel, LlamaRMSNorm

CPU_STRIDE = 64
"""A CPU reads the cache up to a multiple of this. MKL's batched products take time to set up for every
new shape, more than it takes to read some slots that are masked."""


class FusedLlama:
    """A Llama trunk whose projections that read the same input share one matrix.

    The model's own parameters become views into these matrices: that costs no memory, and weights that
    are copied into the model by name change the matrices too.
    """

    def __init__(self, llama: LlamaModel):
        config = llama.config
        self.llama = llama
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.layers = llama.layers
        attentions, mlps = ([getattr(x, n) for x in llama.layers] for n in ("self_attn", "mlp"))
        self.qkv = [_fused(a.q_proj, a.k_proj, a.v_proj) for a in attentions]
        self.gate_up = [_fused(m.gate_proj, m.up_proj) for m in mlps]


@torch.no_grad()
def _fused(*linears: nn.Linear) -> Tensor:
    """The layers' weights as one matrix; the layers' own weights become views of it."""
    whole = torch.cat([linear.weight for linear in linears])
    for linear, part in zip(linears, whole.split([len(x.weight) for x in linears]), strict=True):
        linear.weight.data = part
    return whole


class LockstepDecoder:
    """B sequences of different lengths that end at the same cache slot (left-padded).

    Padding left of a row's prompt is neither attended to nor counted by its position ids.
    """

    def __init__(self, trunk: FusedLlama, lengths: Tensor):
        """`lengths`: the prompts' true lengths, int64 [B]. The cache has room for the prompts alone."""
        weight = trunk.llama.embed_tokens.weight
        self.trunk = trunk
        width = int(lengths.max())
        shape = (len(lengths), trunk.kv_heads, width, trunk.head_size)
        self._keys, self._values = ([weight.new_empty(shape) for _ in trunk.layers] for _ in range(2))
        self._starts = width - lengths  # [B] slot of each row's first token
        slots = torch.arange(width, device=weight.device)
        self._bias = weight.new_zeros(len(lengths), 1, 1, width)  # added to the attention scores
        self._bias.masked_fill_((slots[None] < self._starts[:, None])[:, None, None], float("-inf"))
        self.used = 0

    @classmethod
    def prefill(
        cls, trunk: FusedLlama, embedded: Tensor, lengths: Tensor, rows: Tensor, new_tokens: int
    ) -> tuple["LockstepDecoder", Tensor]:
        """Read left-padded prompts, [U, T, D] of true `lengths` [U], and spread them: row b of the
        decoder goes on from prompt `rows[b]`, int64 [B]. So equal prompts (the group of one prompt,
        unconditional rows of one length) are read once.

        Returns the decoder and the last position's normed hidden states, [B, D].
        """
        decoder = cls(trunk, lengths)
        hidden = decoder.step(embedded)
        decoder._resize(rows, decoder.used + new_tokens)
        return decoder, hidden[rows]

    @torch.no_grad()
    def step(self, embedded: Tensor) -> Tensor:
        """Append T positions, [B, T, D]; returns the last position's normed hidden state, [B, D]."""
        new = embedded.shape[1]
        begin, end = self.used, self.used + new
        slots = torch.arange(begin, end, device=embedded.device)
        positions = (slots[None] - self._starts[:, None]).clamp(min=0)
        bias = self._attention_bias(slots, end)
        cos, sin = self.trunk.llama.rotary_emb(embedded, positions)
        rope = cos[:, None], sin[:, None]
        hidden = embedded
        for index in range(len(self.trunk.layers)):
            hidden = self._layer(index, hidden, rope, bias, begin, end)
        self.used = end
        return _norm(self.trunk.llama.norm, hidden[:, -1])

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, int64 [B']: some, or some more than once."""
        self._resize(rows, self._bias.shape[-1])

    def _resize(self, rows: Tensor, room: int) -> None:
        """Keep these rows, in a cache of `room` slots. One layer is copied at a time, so that no more
        than one layer is held twice."""
        for cache in (self._keys, self._values):
            for index, old in enumerate(cache):
                cache[index] = old.new_empty(len(rows), old.shape[1], room, old.shape[3])
                cache[index][:, :, : self.used] = old[rows, :, : self.used]
                cache[index][:, :, self.used :] = (
                    0.0  # masked slots must still hold numbers: 0 * nan is nan
                )
        self._starts = self._starts[rows]
        self._bias = F.pad(self._bias[rows], (0, room - self._bias.shape[-1]), value=float("-inf"))

    def _attention_bias(self, slots: Tensor, end: int) -> Tensor:
        """[B, 1, T, seen]: 0 where a slot sees another, else -inf. A slot sees its row's slots up to
        itself. A padding slot sees itself only, so that softmax has something to sum; nobody reads
        the result."""
        if len(slots) == 1:
            self._bias[..., end - 1] = 0.0
            return self._bias[..., : end if self._bias.is_cuda else -(-end // CPU_STRIDE) * CPU_STRIDE]
        columns = torch.arange(end, device=slots.device)
        later = columns[None] > slots[:, None]
        itself = columns[None] == slots[:, None]
        bias = self._bias[..., :end].masked_fill(later, float("-inf"))
        return bias.masked_fill(itself, 0.0)

    def _layer(self, index: int, x: Tensor, rope, bias: Tensor, begin: int, end: int) -> Tensor:
        trunk, layer = self.trunk, self.trunk.layers[index]
        rows, new, _ = x.shape
        qkv = F.linear(_norm(layer.input_layernorm, x), trunk.qkv[index])
        qkv = qkv.view(rows, new, -1, trunk.head_size).transpose(1, 2)
        turned = _rotate(qkv[:, : trunk.heads + trunk.kv_heads], rope)  # queries and keys alike
        keys, values = self._keys[index], self._values[index]
        keys[:, :, begin:end] = turned[:, trunk.heads :]
        values[:, :, begin:end] = qkv[:, trunk.heads + trunk.kv_heads :]
        query = turned[:, : trunk.heads]
        if index + 1 == len(trunk.layers):  # nobody reads the last layer's output at earlier positions
            query, bias, x, new = query[:, :, -1:], bias[:, :, -1:], x[:, -1:], 1
        seen = bias.shape[-1]
        attended = _attend(query, keys[:, :, :seen], values[:, :, :seen], bias)
        attended = attended.transpose(1, 2).reshape(rows, new, -1)
        x = _add_product(x, attended, layer.self_attn.o_proj.weight)
        gate, up = F.linear(_norm(layer.post_attention_layernorm, x), trunk.gate_up[index]).chunk(2, -1)
        return _add_product(x, layer.mlp.act_fn(gate) * up, layer.mlp.down_proj.weight)


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


def _add_product(x: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """x + inputs @ weight.T, by one kernel."""
    return torch.addmm(x.flatten(0, 1), inputs.flatten(0, 1), weight.t()).view_as(x)


def _norm(norm: LlamaRMSNorm, x: Tensor) -> Tensor:
    """RMSNorm. In float32 by the fused kernel; in other types as transformers rounds it."""
    if x.dtype != torch.float32:
        return norm(x)
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding on [B, heads, T, C]; rope: cos and sin, [B, 1, T, C] each, whose two
    halves are alike."""
    cos, sin = rope
    first, second = x.chunk(2, -1)
    turned = x * cos
    half = sin[..., : sin.shape[-1] // 2]
    turned[..., : half.shape[-1]].addcmul_(second, half, value=-1)
    turned[..., half.shape[-1] :].addcmul_(first, half)
    return turned
