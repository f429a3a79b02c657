import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.token_choice import choose_tokens, exponential_noise, stream_key, token_logps

keys = st.integers(0, 2**32 - 1)


def choice_of(logits, streams, position=0, temperature=1.0, **guided):
    streams = torch.as_tensor(streams)
    return choose_tokens(logits, streams, torch.full_like(streams, position), temperature, **guided)


@given(st.lists(keys, min_size=1, max_size=5), st.integers(0, 5000), st.integers(1, 300))
def test_noise_is_a_function_of_stream_position_and_token_alone(streams, position, vocabulary):
    where = torch.full((len(streams),), position)
    together = exponential_noise(torch.tensor(streams), where, vocabulary)
    for row, key in zip(together, streams, strict=True):
        alone = exponential_noise(torch.tensor([key]), torch.tensor([position]), vocabulary + 7)
        assert torch.equal(alone[0, :vocabulary], row)


def test_noise_is_what_it_always_was():
    """Saved runs go on from it."""
    found = exponential_noise(torch.tensor([0, 2**32 - 1]), torch.tensor([0, 575]), 4)
    expected = [[0.1524, 0.3162, 1.2017, 0.8300], [2.5344, 1.6530, 1.7882, 1.8644]]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-4)


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


def test_noise_is_standard_exponential_and_uncorrelated():
    streams = torch.arange(400) * 7919
    here, next_position = (exponential_noise(streams, torch.full((400,), p), 500) for p in (3, 4))
    x = here.double().flatten()
    assert x.min() > 0
    assert abs(x.mean() - 1) < 0.01
    assert abs(x.var() - 1) < 0.03
    for quantile in (0.001, 0.1, 0.5, 0.9, 0.999):
        assert abs((x < -np.log1p(-quantile)).double().mean() - quantile) < 0.003
    others = (next_position, here.roll(1, 0), here.roll(1, 1), here.roll(7, 1))
    for other in others:
        assert abs(np.corrcoef(x, other.double().flatten())[0, 1]) < 0.01
        assert abs(np.corrcoef(x.log(), other.double().flatten().log())[0, 1]) < 0.01


def test_the_winner_of_many_rows_is_each_token_equally_often():
    """Over streams and over positions: a weak hash shows here."""
    for streams, positions in (
        (torch.arange(60_000), torch.zeros(60_000, dtype=int)),
        (torch.full((60_000,), 12345), torch.arange(60_000)),
    ):
        winners = choose_tokens(torch.zeros(60_000, 30), streams, positions, 1.0).tokens
        counts = torch.bincount(winners, minlength=30).double()
        assert ((counts - 2000) ** 2 / 2000).sum() < 60  # chi pad_to_square, 29 degrees of freedom


@pytest.mark.parametrize("vocabulary", [4, 5000])
def test_tokens_are_drawn_with_the_probabilities_of_the_logits(vocabulary):
    logits = torch.full((vocabulary,), -40.0)
    likely = torch.tensor([0, 1, vocabulary // 2, vocabulary - 1])
    logits[likely] = torch.tensor([0.0, 1.0, 2.0, -1.0])
    rows = 40_000
    for temperature in (1.0, 0.5):
        streams = torch.arange(rows) * 31 + 5
        tokens = choice_of(logits.expand(rows, -1), streams, temperature=temperature).tokens
        shares = torch.bincount(tokens, minlength=vocabulary) / rows
        assert torch.allclose(shares, (logits / temperature).softmax(0), atol=0.01)


def test_temperature_zero_takes_the_likeliest():
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    tokens = choice_of(logits, torch.arange(50), temperature=0.0).tokens
    assert torch.equal(tokens, logits.argmax(1))


@given(
    st.integers(1, 4),
    st.sampled_from([1, 7, 255, 256, 3000, 40_000]),
    st.sampled_from([0.0, 0.6, 1.0]),
    st.sampled_from([1.0, 5.0]),
    keys,
)
def test_log_probabilities_are_those_of_the_formula(rows, vocabulary, temperature, guidance, seed):
    logits = torch.randn(2, rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 4
    cond, uncond = logits
    guided = {"unconditional": uncond, "guidance": guidance} if guidance != 1 else {}
    choice = choice_of(cond, range(rows), 3, temperature, **guided)
    target = uncond + guidance * (cond - uncond) if guided else cond
    scale = temperature or 1.0
    for found, of in ((choice.logps, cond), (choice.guided_logps, target)):
        wanted = (of / scale).log_softmax(1).gather(1, choice.tokens[:, None])[:, 0]
        assert torch.allclose(found, wanted, atol=3e-5)
    assert torch.equal(token_logps(target, choice.tokens, temperature), choice.guided_logps)
    if temperature == 0:
        assert torch.equal(choice.tokens, target.argmax(1))
