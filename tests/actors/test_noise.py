import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.noise import draw_tokens, gumbel_noise, stream_key

keys = st.integers(0, 2**32 - 1)


@given(st.lists(keys, min_size=1, max_size=5), st.integers(0, 5000), st.integers(1, 300))
def test_noise_is_a_function_of_stream_position_and_token_alone(streams, position, vocabulary):
    together = gumbel_noise(torch.tensor(streams), torch.full((len(streams),), position), vocabulary)
    for row, key in zip(together, streams, strict=True):
        alone = gumbel_noise(torch.tensor([key]), torch.tensor([position]), vocabulary + 7)
        assert torch.equal(alone[0, :vocabulary], row)


def test_streams_differ_by_seed_prompt_index_and_phase():
    names = [
        (0, "a", 0, "cot"),
        (1, "a", 0, "cot"),
        (0, "b", 0, "cot"),
        (0, "a", 1, "cot"),
        (0, "a", 0, "image"),
    ]
    found = [stream_key(*name) for name in names]
    assert len(set(found)) == len(names)
    assert found == [stream_key(*name) for name in names]


def test_noise_is_standard_gumbel_and_uncorrelated():
    streams = torch.arange(400) * 7919
    here, next_position = (gumbel_noise(streams, torch.full((400,), p), 500) for p in (3, 4))
    x = here.double().flatten()
    assert abs(x.mean() - np.euler_gamma) < 0.01
    assert abs(x.var() - np.pi**2 / 6) < 0.02
    for other in (next_position, here.roll(1, 0), here.roll(1, 1)):
        assert abs(np.corrcoef(x, other.double().flatten())[0, 1]) < 0.01


def test_tokens_are_drawn_with_the_probabilities_of_the_logits():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    rows = 40_000
    for temperature in (1.0, 0.5):
        tokens = draw_tokens(
            logits.expand(rows, 4),
            torch.arange(rows) * 31 + 5,
            torch.zeros(rows, dtype=int),
            temperature,
        )
        shares = torch.bincount(tokens, minlength=4) / rows
        assert torch.allclose(shares, (logits / temperature).softmax(0), atol=0.01)


def test_temperature_zero_takes_the_likeliest():
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    tokens = draw_tokens(logits, torch.arange(50), torch.zeros(50, dtype=int), 0.0)
    assert torch.equal(tokens, logits.argmax(1))
