"""What a client that streams hears of one image: the semantic CoT as it is written, then the image."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from studio.generation import ImageGenerator, Phase
from studio.records import CotDelta, CotDone, Event, PartialImage

_HALF_A_LETTER = "\ufffd"


class ImageStream:
    """A listener (studio/generation.py) that says events. It is called in the thread that draws, so
    what takes longer, the images so far, is done by `decoder`."""

    def __init__(
        self,
        index: int,
        partial_images: int,
        generator: ImageGenerator,
        decoder: Executor,
        say: Callable[[Event], None],
    ):
        """`partial_images`: how many images so far are said, at even distances."""
        self._index, self._generator, self._decoder, self._say = index, generator, decoder, say
        parts, tokens = partial_images + 1, generator.image_tokens
        self._marks = sorted({tokens * n // parts for n in range(1, parts)} - {0})
        self._number = 0
        self._cot_ids: list[int] = []
        self._told = ""
        self._closed = False

    def close(self) -> None:
        """Nobody listens any more."""
        self._closed = True

    def __call__(self, phase: Phase, ids: Sequence[int]) -> None:
        if self._closed:
            return
        if phase == "cot":
            if len(ids) > len(self._cot_ids):
                self._cot_ids = list(ids)
                self._tell_more(self._generator.cot_text(self._cot_ids).rstrip(_HALF_A_LETTER))
            return
        if self._cot_ids:
            self._end_cot()
        while self._marks and len(ids) >= self._marks[0]:
            first = self._marks.pop(0)
            self._decoder.submit(self._show, list(ids[:first]), self._number)
            self._number += 1

    def _tell_more(self, text: str) -> None:
        """Some tokenizers change the text before a token that follows: what was said is said."""
        if text.startswith(self._told) and text != self._told:
            self._say(CotDelta(self._index, text[len(self._told) :]))
            self._told = text

    def _end_cot(self) -> None:
        text = self._generator.cot_text(self._cot_ids)
        self._tell_more(text)
        self._say(CotDone(self._index, text.strip()))
        self._cot_ids = []

    def _show(self, ids: list[int], number: int) -> None:
        if not self._closed:
            self._say(PartialImage(self._index, number, self._generator.so_far(ids)))
