"""Reads a growing file of lines: each read goes on where the last one ended."""

import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from policy.errors import UserError

PIECE = 2**20  # bytes that are read on at a time


class Piece(NamedTuple):
    lines: list[bytes]
    """Whole lines, without their ends."""
    more: bool
    """Whether there is more to read at once."""
    anew: bool
    """Whether the file was replaced or cut, so that it is read from its beginning."""


class FileTail:
    """One file. A line that is still being written waits for its end."""

    def __init__(self, path: Path, what: str):
        """`what`: for the message about a file that is not there."""
        self._path, self._what = path, what
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.offset = 0
        self._file_id: int | None = None
        self._last = b""  # the last line that was read, to recognise the file

    def read_on(self, most: int = PIECE) -> Piece:
        """Read whole lines, about `most` bytes in all. Raises UserError for a file that is not
        there."""
        try:
            with self._path.open("rb") as file:
                anew = not self._is_known(file)
                if anew:
                    self._begin_anew()
                self._file_id = _identity(file)
                file.seek(self.offset)
                piece = file.read(most)
                end = piece.rfind(b"\n") + 1
                if not end and len(piece) == most:  # a line longer than a piece
                    piece += file.readline()
                    end = len(piece) if piece.endswith(b"\n") else 0
                more = len(piece) == most or bool(file.read(1))
        except FileNotFoundError:
            raise UserError(f"{self._path}: no such {self._what} file") from None
        lines = piece[:end].split(b"\n")[:-1]
        if lines:
            self._last = lines[-1] + b"\n"
        self.offset += end
        return Piece(lines, more and end > 0, anew)

    def _is_known(self, file: BinaryIO) -> bool:
        """Whether what was read last still stands there."""
        if not self.offset:
            return True
        if _identity(file) != self._file_id:
            return False
        file.seek(self.offset - len(self._last))
        return file.read(len(self._last)) == self._last


def _identity(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_ino
