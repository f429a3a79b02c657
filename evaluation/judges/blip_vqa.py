"""T2I-CompBench's judge of attributes: BLIP-VQA (Li et al., arXiv 2201.12086), used as in the
benchmark's scripts.

That differs from the expert `rewards.experts.vqa:BlipVqa` in four things: the token [ENC] replaces a
question's first one, as in training; pictures are squashed to 480 pixels; a question loses its capitals
and some signs, and is cut at 35 tokens; the numbers are float32.

A checkpoint converted at 384 pixels has fewer position embeddings, which are interpolated (bicubic):
scores are near the published ones, not equal to them.
"""

import re
from collections.abc import Sequence

import numpy as np
from transformers import BlipImageProcessorPil

from evaluation.benchmark import Ask, Reply
from evaluation.judges.base import Judge
from policy.errors import UserError
from policy.hub import revision_of
from rewards.experts.common import Device, Dtype
from rewards.experts.vqa import BlipVqa

_ENC = "[ENC]"
_MOST_TOKENS = 35
_MOST_WORDS = 50


def cleaned(question: str) -> str:
    """A question as BLIP was trained on it: lower case, without some signs."""
    words = re.sub(r'[.!"()*#:;~]', "", question.lower()).rstrip(" ").split(" ")
    return " ".join(words[:_MOST_WORDS])


class _PublishedBlip(BlipVqa):
    def __init__(
        self,
        path: str,
        device: Device,
        dtype: Dtype,
        batch_size: int,
        image_size: int,
        encoder_token: int,
    ):
        super().__init__(path, device, dtype, batch_size, question="{phrase}")
        # BLIP's own transform: both sides to one length, bicubic, CLIP's mean and deviation.
        self._image_processor = BlipImageProcessorPil(size={"height": image_size, "width": image_size})
        self._enc = self._tokenizer.get_vocab().get(_ENC, encoder_token)
        words = self._model.config.text_config.vocab_size
        if not 0 <= self._enc < words:
            raise UserError(
                f"{path}: the tokenizer has no {_ENC}, and encoder_token: {self._enc} is not one of the"
                f" model's {words} tokens: set it to the number of {_ENC}"
            )

    def _tokens(self, questions: list[str]) -> list[list[int]]:
        whole = [cleaned(question) for question in questions]
        rows = self._tokenizer(whole, truncation=True, max_length=_MOST_TOKENS).input_ids
        return [[self._enc, *row[1:]] for row in rows]


class BlipQuestions(Judge):
    """Asked {"questions": [...]}, it replies {"yes": [...]}: P(yes) / (P(yes) + P(no)) of the first
    token of an answer to each question.

    `encoder_token`: the number of [ENC], where the tokenizer does not know it by name.
    """

    def __init__(
        self,
        path: str = "Salesforce/blip-vqa-capfilt-large",
        device: Device = "auto",
        dtype: Dtype = "float32",
        batch_size: int = 32,
        image_size: int = 480,
        encoder_token: int = 30523,
    ):
        self._blip = _PublishedBlip(path, device, dtype, batch_size, image_size, encoder_token)
        self._identity = {"model": path, "revision": revision_of(path)}

    def identity(self) -> dict[str, str]:
        return self._identity

    def replies(self, images: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[Reply]:
        yes = self._blip.yes(images, [ask["questions"] for ask in asks])
        return [{"yes": some.tolist()} for some in yes]
