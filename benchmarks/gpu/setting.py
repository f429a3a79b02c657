"""The models and lengths to measure with: random weights in a published model's shapes, and prompts as
long as a real run's. Nothing is downloaded, and little is written to disk.
"""

import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerFast

from actors.token_choice import stream_key
from examples.shapes.tiny_janus import build_janus, build_tokenizer
from policy.errors import UserError
from policy.model import Janus, PolicyConfig
from policy.prompts import load_templates, plain_prompt
from policy.records import Sample, SampleRequest

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda:0" if ON_GPU else "cpu"
GROUP = 8
WORDS = "a red circle and two blue squares left of a green triangle and three white stars"
EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPES_TEMPLATES = str(EXAMPLES / "shapes" / "templates")


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens. `image_prompt` holds the prompt and the CoT."""

    cot_prompt: int = 125
    cot: int = 70
    image_prompt: int = 93

    @property
    def words(self) -> int:
        """Words of the image prompt without the CoT."""
        return self.image_prompt - self.cot


@dataclass(frozen=True)
class Setting:
    model: str
    """Janus-Pro-7B, Janus-Pro-1B or tiny."""
    layers: int | None
    """Layers of the trunk; None: all, or for the learner as many as fit."""
    pairs: tuple[int, ...]
    eager: bool
    trace: Path | None
    """Folder for tables of kernels."""
    scratch: Path
    """Folder for models on disk; the cases of a part share it."""
    lengths: Lengths = Lengths()
    guidance: float = 5.0

    @classmethod
    def of(cls, o: Namespace) -> "Setting":
        return cls(
            model="tiny" if o.tiny else o.model,
            layers=o.layers,
            pairs=tuple(o.pairs or ((2, 4) if o.tiny else (8, 24, 48))),
            eager=o.eager,
            trace=o.out.with_suffix(".logs") if o.trace else None,
            scratch=o.scratch,
            lengths=Lengths(10, 6, 14) if o.tiny else Lengths(),
        )

    @property
    def tiny(self) -> bool:
        return self.model == "tiny"

    @property
    def dtype(self) -> str:
        return "bfloat16" if ON_GPU else "float32"

    @property
    def templates(self) -> str | None:
        return SHAPES_TEMPLATES if self.tiny else None  # the tiny model's context is short

    # --- models ---

    def config(self, layers: int | None = None) -> JanusConfig:
        """The model's config, with another number of layers if given."""
        if self.tiny:
            with torch.device("meta"):
                config = build_janus(build_tokenizer(), hidden=128, layers=2).config
        else:
            config = JanusConfig.from_json_file(EXAMPLES / "janus_pro" / f"{self.model}.json")
        config.text_config.num_hidden_layers = (
            layers or self.layers or config.text_config.num_hidden_layers
        )
        return config

    def build(self, layers: int | None = None) -> Janus:
        """The model in memory, on the device. Raises UserError for a published model without a GPU."""
        if not (self.tiny or ON_GPU):
            raise UserError(f"{self.model} is measured on a GPU, and torch sees none here: add --tiny")
        config, before = self.config(layers), torch.get_default_dtype()
        torch.manual_seed(0)
        torch.set_default_dtype(getattr(torch, self.dtype))
        try:
            with torch.device(DEVICE):
                model = JanusForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(before)
        tokenizer = made_up_tokenizer(config.text_config.vocab_size)
        return Janus(model.eval(), tokenizer, load_templates(self.templates))

    def on_disk(self, layers: int) -> PolicyConfig:
        """The same model as a folder; written once."""
        folder = self.scratch / f"{self.model}-{layers}"
        if not folder.exists():
            janus = self.build(layers)
            half = folder.with_suffix(".half")
            janus.model.save_pretrained(half)
            janus.tokenizer.save_pretrained(half)
            half.rename(folder)
        return PolicyConfig(path=str(folder), templates=self.templates, dtype=self.dtype)

    # --- what is drawn and learned from ---

    def cot_prompts(self, count: int) -> list[list[int]]:
        """Prompts as ids; the samples of a group have one prompt."""
        rng = np.random.default_rng(1)
        groups = [_row(rng, self.lengths.cot_prompt) for _ in range(0, count, GROUP)]
        return [groups[n // GROUP] for n in range(count)]

    def image_prompts(self, count: int, more: int = 0) -> list[list[int]]:
        """Prompts as ids; each sample has its own CoT, about as long as the others'. `more`: extra
        tokens."""
        rng = np.random.default_rng(2)
        cots = self._cot_lengths(rng, count)
        return [_row(rng, self.lengths.words + n + more) for n in cots]

    def keys(self, count: int, phase: str) -> list[int]:
        return [stream_key(0, f"p{n // GROUP}", n % GROUP, phase) for n in range(count)]

    def orders(self, count: int) -> list[SampleRequest]:
        """Requests with prompts as text. With the made-up tokenizer a CoT has as many tokens in the
        image's prompt as when it was drawn."""
        text = " ".join(WORDS.split()[: max(2, self.lengths.words - 7)])
        return [SampleRequest(plain_prompt(f"{text} {n // GROUP}"), n % GROUP) for n in range(count)]

    def scored_samples(self, groups: int) -> tuple[list[list[Sample]], np.ndarray]:
        """Groups in a real run's lengths, with random ids and log-probabilities; and advantages."""
        rng, config = np.random.default_rng(3), self.config()
        made = [self._group(rng, str(n), config) for n in range(groups)]
        return made, np.tile(np.linspace(-1, 1, GROUP, dtype=np.float32), (groups, 1))

    def _group(self, rng: np.random.Generator, name: str, config: JanusConfig) -> list[Sample]:
        head = np.array(_row(rng, self.lengths.cot_prompt))
        image = np.full(config.vq_config.num_patches**2, -9.0, np.float32)
        return [
            Sample(
                prompt_id=name,
                index=n,
                seed=0,
                weights_version=0,
                cot_prompt_ids=head,
                cot_ids=rng.integers(7, 40, length),
                cot_text="",
                image_prompt_ids=np.array(_row(rng, self.lengths.words + length)),
                image_ids=rng.integers(0, config.vq_config.num_embeddings, len(image)),
                cot_logps=np.full(length, -4.0, np.float32),
                image_logps=image,
                image_guided_logps=image,
                image=np.zeros((1, 1, 3), np.uint8),
                finish_reason="stop",
            )
            for n, length in enumerate(self._cot_lengths(rng, GROUP))
        ]

    def _cot_lengths(self, rng: np.random.Generator, count: int) -> list[int]:
        spread = self.lengths.cot // 4
        return (self.lengths.cot + rng.integers(-spread, spread + 1, count)).tolist()


def with_short_images(janus: Janus, tokens: int) -> Janus:
    """The same model, whose images end after `tokens` tokens, to time single steps."""

    class ShortImages(Janus):
        image_tokens = tokens

    return ShortImages(**vars(janus))


def made_up_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer with a word for every id: a CoT of random ids becomes as many words, and these as
    many ids again."""
    small = build_tokenizer()
    described = json.loads(small.backend_tokenizer.to_str())
    known = described["model"]["vocab"]
    known |= {f"w{n}": n for n in range(len(known), vocabulary)}
    names = ("pad_token", "bos_token", "eos_token", "unk_token")
    special = {name: getattr(small, name) for name in names}
    tokenizer = Tokenizer.from_str(json.dumps(described))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )


def shapes_policy(dtype: str) -> PolicyConfig:
    """The shapes world's trained model, small enough for every machine."""
    return PolicyConfig(
        path=str(EXAMPLES / "shapes" / "checkpoint"), templates=SHAPES_TEMPLATES, dtype=dtype
    )


def _row(rng: np.random.Generator, length: int) -> list[int]:
    """A prompt: words between the first token and <begin_of_image>."""
    return [1, *rng.integers(7, 40, length - 2).tolist(), 4]
