"""A Janus with room for long prompts, and orders whose prompts are of many lengths."""

from pathlib import Path

import pytest
import torch

from examples.shapes.tiny_janus import build_janus, build_tokenizer
from policy.model import PolicyConfig
from policy.prompts import plain_prompt
from policy.records import SampleRequest

TEMPLATES = Path(__file__).parents[1] / "examples" / "shapes" / "templates"
WORDS = ["a", "red", "circle", "and", "two", "blue", "squares", "left", "of", "a", "green", "triangle"]


@pytest.fixture(scope="session")
def roomy_policy(tmp_path_factory) -> PolicyConfig:
    """Like `policy_config`, with a context of 448 and heads of a size that vLLM has on CPUs."""
    folder = tmp_path_factory.mktemp("roomy_janus")
    torch.manual_seed(1)
    tokenizer = build_tokenizer()
    janus = build_janus(tokenizer, hidden=128, layers=2)
    janus.config.text_config.max_position_embeddings = 448
    janus.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return PolicyConfig(path=str(folder), templates=str(TEMPLATES))


@pytest.fixture(scope="session")
def varied_orders() -> list[SampleRequest]:
    """64 orders: 32 prompts of 1 to 80 words, two samples each."""
    lengths = [1 + round(n * 79 / 31) for n in range(32)]
    texts = [" ".join(WORDS[(n + i) % len(WORDS)] for i in range(n)) for n in lengths]
    # Long and short ones mixed, as in a real batch.
    return [
        SampleRequest(plain_prompt(text), i)
        for text in texts[::2] + texts[1::2][::-1]
        for i in range(2)
    ]
