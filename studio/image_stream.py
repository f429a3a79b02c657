"""The events of one image for a client that streams: the semantic CoT as it is written, then the
image."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from studio.generation import ImageGenerator, Phase
from studio.records import CotDelta, CotDone, Event, PartialImage

_HALF_A_LETTER = "\ufffd"


class ImageStream:
    """A listener (studio/generation.py) that passes events to `emit`. It is called in the thread that
    draws, so `decoder` does what takes longer: partial images."""

    def __init__(
        self,
        index: int,
        partial_images: int,
        generator: ImageGenerator,
        decoder: Executor,
        emit: Callable[[Event], None],
    ):
        """`partial_images`: how many partial images are sent, evenly spaced."""
        self._index, self._generator, self._decoder, self._emit = index, generator, decoder, emit
        parts, tokens = partial_images + 1, generator.image_tokens
        self._marks = sorted({tokens * n // parts for n in range(1, parts)} - {0})
        self._number = 0
        self._cot_ids: list[int] = []
        self._sent = ""
        self._closed = False

    def close(self) -> None:
        """Send nothing more."""
        self._closed = True

    def __call__(self, phase: Phase, ids: Sequence[int]) -> None:
        if self._closed:
            return
        if phase == "cot":
            if len(ids) > len(self._cot_ids):
                self._cot_ids = list(ids)
                self._send_text(self._generator.cot_text(self._cot_ids).rstrip(_HALF_A_LETTER))
            return
        if self._cot_ids:
            self._end_cot()
        while self._marks and len(ids) >= self._marks[0]:
            first = self._marks.pop(0)
            self._decoder.submit(self._show, list(ids[:first]), self._number)
            self._number += 1

    def _send_text(self, text: str) -> None:
        """Sends the text that is new. Some tokenizers change earlier text when a token follows; text
        that was sent stays as it is."""
        if text.startswith(self._sent) and text != self._sent:
            self._emit(CotDelta(self._index, text[len(self._sent) :]))
            self._sent = text

    def _end_cot(self) -> None:
        text = self._generator.cot_text(self._cot_ids)
        self._send_text(text)
        self._emit(CotDone(self._index, text.strip()))
        self._cot_ids = []

    def _show(self, ids: list[int], number: int) -> None:
        if not self._closed:
            self._emit(PartialImage(self._index, number, self._generator.so_far(ids)))
