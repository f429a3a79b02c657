"""What tiny random models of published classes are made of: tokenizers, images, prompts."""

import string
from pathlib import Path

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BertTokenizer, CLIPImageProcessorPil, CLIPTokenizer, Qwen2Tokenizer

from policy.prompts import parse_prompt
from policy.records import Prompt
from rewards.expert import Expert

SIZE = 28  # of the tiny models' images, in pixels
PATCH = 14
EXACT = {"device": "cpu", "dtype": "float32"}


def images(count: int = 5, height: int = 40, width: int = 40) -> list[np.ndarray]:
    """Random ones, each of its own tint."""
    rng = np.random.default_rng(0)
    tints = rng.integers(0, 256, (count, 1, 1, 3))
    noise = rng.integers(0, 256, (count, height, width, 3))
    return list(((3 * tints + noise) // 4).astype(np.uint8))


def prompts() -> list[Prompt]:
    """Five of them, of different lengths, with phrases; two are the same."""
    phrases = (
        ["red dog"],
        ["red dog", "a big blue bench"],
        ["red dog"],
        ["dog"],
        ["blue bench", "dog"],
    )
    texts = ("a red dog", "a red dog on a big blue bench", "a red dog", "dog", "a blue bench and a dog")
    return [
        parse_prompt({"prompt": text, "task_type": "color", "attr_nouns": some})
        for text, some in zip(texts, phrases, strict=True)
    ]


def randomize(model: torch.nn.Module, seed: int = 0, scale: float = 0.15) -> torch.nn.Module:
    """Large enough weights that inputs make a difference to what comes out."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * scale)
    return model.eval()


def assert_batches_change_nothing(expert: Expert) -> np.ndarray:
    """All at once, one by one, and in the reverse order are the same; different images are not."""
    asked, shown = prompts(), images()
    together = expert.score(shown, asked)
    assert together.values.shape == (5,)
    assert np.isfinite(together.values).all() and len(together.explanation) == 5
    alone = [expert.score([i], [p]).values[0] for i, p in zip(shown, asked, strict=True)]
    np.testing.assert_allclose(alone, together.values, atol=1e-5, rtol=0)
    backwards = expert.score(shown[::-1], asked[::-1]).values[::-1]
    np.testing.assert_allclose(backwards, together.values, atol=1e-5, rtol=0)
    assert np.ptp(together.values) > 1e-4
    return together.values


def clip_tokenizer(folder: Path) -> int:
    """Letter by letter, as CLIP's falls back to. Returns the vocabulary's size."""
    letters = [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase)]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={w: n for n, w in enumerate(words)}, merges=[]).save_pretrained(folder)
    return len(words)


def bert_tokenizer(folder: Path, *more: str) -> int:
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    known = ("yes", "no", "a", "red", "blue", "big", "dog", "bench", "on", "and", "?")
    words = [*special, *known, *more]
    BertTokenizer(vocab={w: n for n, w in enumerate(words)}).save_pretrained(folder)
    return len(words)


def qwen_tokenizer(folder: Path, *special: str) -> int:
    """Byte by byte, but for the two answers."""
    merges = [("y", "e"), ("ye", "s"), ("n", "o")]
    words = [*sorted(ByteLevel.alphabet()), *(a + b for a, b in merges), "<|endoftext|>"]
    tokenizer = Qwen2Tokenizer(vocab={w: n for n, w in enumerate(words)}, merges=merges)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *special]}
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def clip_images(folder: Path) -> None:
    size = {"height": SIZE, "width": SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=size).save_pretrained(folder)


def assert_half_precision_is_close(make, *args, atol: float, **options) -> None:
    """An expert in bfloat16 says about what it says in float32, in float32 values."""
    exact = make(*args, **EXACT, **options).score(images(), prompts()).values
    half = make(*args, device="cpu", dtype="bfloat16", **options).score(images(), prompts()).values
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, exact, atol=atol, rtol=0)
