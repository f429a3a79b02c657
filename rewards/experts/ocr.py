"""Does the image show the words that the prompt quotes? RapidOCR reads it (PP-OCR models, which come
with its package).

The score is 1 - d / n: d is the Levenshtein distance between what is read and what is quoted, n the
length of the longer one; letter case, white space and Unicode's compatibility forms aside. So extra
words cost as much as missing ones.
"""

# ruff: noqa: RUF001 (marks that look alike)

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from policy.errors import UserError
from policy.records import Box, Prompt
from rewards.expert import Expert, ExpertScores

_WORD = r"[^\W\u2e80-\uffef]"  # East Asian scripts write no space before a quotation
# A straight mark behind a digit is inches. An apostrophe inside or behind a word neither opens nor
# closes a quotation, nor do those of "rock 'n' roll".
_QUOTATION = re.compile(
    r'(?<!\d)"([^"]+)"|[“”]([^“”]+)[“”]|„([^„“”]+)[“”]|«([^«»]+)»|»([^«»]+)[«»]|‹([^‹›]+)›|›([^‹›]+)‹'
    r"|「([^「」]+)」|『([^『』]+)』|＂([^＂]+)＂|〝([^〝〞〟]+)[〞〟]|‚([^‚\u2018\u2019]+)[\u2018\u2019]"
    rf"|(?<!{_WORD})'(?!\s|(?<=\w\s')[nN]'\s\w)((?:[^']|(?<=\w)'(?=\w))+)(?<!\s)'(?!{_WORD})"
    rf"|(?<!{_WORD})\u2018((?:[^\u2018\u2019]|(?<=\w)\u2019(?=\w))+)\u2019(?!{_WORD})"
)
_LONGEST_SIDE = 2000  # RapidOCR reduces what is larger


def quoted(text: str) -> tuple[str, ...]:
    """The texts between quotation marks, "...", '...' or those of another script, in order."""
    found = (next(filter(None, match.groups())).strip(" \\") for match in _QUOTATION.finditer(text))
    return tuple(part for part in found if _letters(part))


def _letters(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


class Ocr(Expert):
    """Compares all text in an image, from the top left on, with all text that its prompt quotes."""

    pass_threshold = 0.9

    def __init__(self, threads: int = 1, min_confidence: float = 0.5):
        """`threads`: how many CPU threads read; `min_confidence` from which a line counts as read."""
        try:
            import onnxruntime  # noqa: F401 (RapidOCR's engine, which is no dependency of it)
            from rapidfuzz.distance import Levenshtein
            from rapidocr import RapidOCR
        except ImportError as error:
            raise UserError(
                f"rewards.experts.ocr:Ocr needs {error.name}: pip install 'bicot[ocr]'"
            ) from error
        self._similarity = Levenshtein.normalized_similarity
        self._engine = RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.text_score": min_confidence,
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def applies(self, prompt: Prompt) -> bool:
        return bool(quoted(prompt.text))

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        boxes = [self._read(image) for image in images]
        read = [" ".join(box.label for box in some) for some in boxes]
        wanted = [" ".join(quoted(prompt.text)) for prompt in prompts]
        values = [self._similarity(_letters(a), _letters(b)) for a, b in zip(read, wanted, strict=True)]
        lines = tuple(f"read: {text}" if text else "nothing to read" for text in read)
        return ExpertScores(np.array(values, np.float32), lines, tuple(boxes))

    def _read(self, image: np.ndarray) -> tuple[Box, ...]:
        picture = Image.fromarray(np.ascontiguousarray(image))
        picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        width, height = picture.size
        # RapidOCR fails on a narrow strip, or enlarges it to gigabytes: white padding makes it four to
        # one.
        least = max(32, width // 4, height // 4)
        ground = Image.new("RGB", (max(width, least), max(height, least)), "white")
        ground.paste(picture)
        found: Any = self._engine(np.ascontiguousarray(np.asarray(ground)[..., ::-1]))  # it reads BGR
        if found.boxes is None:
            return ()
        corners = np.clip(np.asarray(found.boxes) / (width, height), 0, 1)  # [N, 4 corners, x and y]
        around = np.concatenate([corners.min(1), corners.max(1)], 1).tolist()
        return tuple(
            Box(text, float(sure), tuple(xyxy))
            for text, sure, xyxy in zip(found.txts, found.scores, around, strict=True)
        )
