"""Output in a terminal or a log, without the control characters of texts from elsewhere.

Prompts, CoTs, experts' texts and the records of a run may hold anything, and a terminal obeys escape
sequences: they move the cursor, hide lines or fill the clipboard.
"""

import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# C0 except tab and line feed, DEL, C1, marks that change the direction of text, and lone surrogates,
# which no output can encode.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with its control characters written out, as \\x1b."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Patient:
    """A stream that drops text when the disk is full: a log must not end a run."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _no_room_is_fine():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _no_room_is_fine():
            self._stream.flush()


@contextmanager
def _no_room_is_fine() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def forget_unwritten() -> None:
    """Call it at the very end: text that cannot be written must not change the exit status."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class TerminalConsole(Console):
    """A console whose text is `visible`; its own colours and bars stay. A full disk does not stop
    it."""

    @property
    def file(self) -> IO[str]:
        return cast(IO[str], _Patient(super().file))

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        return _visible_segments(super().render(renderable, options))


def _visible_segments(segments: Iterable[Segment]) -> Iterator[Segment]:
    for segment in segments:
        yield segment if segment.control else Segment(visible(segment.text), segment.style)


class LogFormatter(logging.Formatter):
    """Log lines whose text is `visible`."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def guard_terminal() -> None:
    """Make warnings of all modules, and uncaught tracebacks, `visible` from here on."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    sys.excepthook = _show_traceback


def _show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))
