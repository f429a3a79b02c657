import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaModel

from actors.kv_decoder import FusedLlama, LockstepDecoder


def llama_of(kv_heads: int = 4, layers: int = 3) -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
    )
    return LlamaModel(config).eval()


@pytest.mark.parametrize(("kv_heads", "new"), [(4, 5), (2, 5), (1, 5), (2, 150)])
def test_stepping_equals_transformers_own_forward(kv_heads, new):
    """Rows of different lengths, decoded in lockstep, against each row alone and unpadded."""
    llama = llama_of(kv_heads)
    lengths = [3, 11, 7, 1]
    rows = [torch.randint(0, 50, (length + new,)) for length in lengths]
    width = max(lengths)
    prompts = torch.full((4, width), 9)
    for padded, row, length in zip(prompts, rows, lengths, strict=True):
        padded[width - length :] = row[:length]
    generated = torch.stack([row[-new:] for row in rows])

    # Row b goes on from prompt spread[b], so a prompt may be read once for several rows.
    spread = [2, 0, 1, 1, 3, 0]
    generated = generated[[0, 1, 2, 3, 0, 1]]
    decoder, first = LockstepDecoder.prefill(
        FusedLlama(llama), llama.embed_tokens(prompts), torch.tensor(lengths), torch.tensor(spread), new
    )
    states = [first]
    states += [decoder.step(llama.embed_tokens(generated[:, i : i + 1])) for i in range(new)]
    stepped = torch.stack(states, 1)

    for state, which, tail in zip(stepped, spread, generated, strict=True):
        length = lengths[which]
        row = torch.cat([rows[which][:length], tail])
        with torch.no_grad():
            whole = llama(input_ids=row[None]).last_hidden_state[0, length - 1 :]
        assert torch.allclose(state, whole, atol=1e-5)


def test_rows_that_are_dropped_half_way_change_nothing_for_the_others():
    llama = llama_of()
    prompts, generated = torch.randint(0, 50, (5, 8)), torch.randint(0, 50, (5, 140))
    kept = torch.tensor([4, 1])

    def states(drop_at: int | None) -> torch.Tensor:
        decoder, _ = LockstepDecoder.prefill(
            FusedLlama(llama), llama.embed_tokens(prompts), torch.full((5,), 8), torch.arange(5), 140
        )
        found, tokens = [], generated
        for i in range(140):
            if i == drop_at:
                decoder.keep(kept)
                tokens = tokens[kept]
            state = decoder.step(llama.embed_tokens(tokens[:, i : i + 1]))
            found.append(state if len(state) == 2 else state[kept])
        return torch.stack(found)

    assert torch.allclose(states(70), states(None), atol=1e-5)


def test_the_model_and_its_joined_projections_are_in_memory_once():
    llama = llama_of()
    names = [name for name, _ in llama.named_parameters()]
    nbytes = sum(p.nbytes for p in llama.parameters())
    trunk = FusedLlama(llama)
    tensors = [*llama.parameters(), *trunk.qkv, *trunk.gate_up]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    assert sum(storages.values()) == nbytes
    assert [name for name, _ in llama.named_parameters()] == names
    with torch.no_grad():
        for layer in llama.layers:
            layer.self_attn.k_proj.weight.fill_(7.0)
    assert all((qkv[64:128] == 7.0).all() for qkv in trunk.qkv)


class PeakBytes(TorchDispatchMode):
    """The most memory that tensors made inside have held at one time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._seen:
                    self._seen.add(storage._cdata)
                    self._add(storage.nbytes())
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _add(self, nbytes: int) -> None:
        self.now += nbytes
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, nbytes: int) -> None:
        self._seen.discard(key)
        self.now -= nbytes


def test_the_cache_is_never_in_memory_twice():
    """With one prompt a row, as for images: spreading prompts over rows copies a layer at a time."""
    llama, batch, width, new = llama_of(layers=12), 24, 40, 80
    trunk, prompts = FusedLlama(llama), torch.randint(0, 50, (batch, width))
    cache = 2 * 12 * batch * 64 * (width + new) * 4  # keys and values of 12 layers, float32
    with PeakBytes() as used, torch.no_grad():
        embedded = llama.embed_tokens(prompts)
        lengths = torch.full((batch,), width)
        decoder, _ = LockstepDecoder.prefill(trunk, embedded, lengths, torch.arange(batch), new)
        for _ in range(new):
            decoder.step(embedded[:, :1])
    assert cache < used.peak < 1.5 * cache
