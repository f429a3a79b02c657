import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from actors.decoder import LockstepDecoder, Trunk


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_stepping_equals_transformers_own_forward(kv_heads):
    """Rows of different lengths, decoded in lockstep, against each row alone and unpadded."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=64,
    )
    llama = LlamaModel(config).eval()
    lengths = [3, 11, 7, 1]
    new = 5
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
        Trunk(llama), llama.embed_tokens(prompts), torch.tensor(lengths), torch.tensor(spread), new
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
