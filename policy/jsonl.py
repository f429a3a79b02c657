"""Strict reading of JSON that others write: a fault is refused in one line that says where.

A line ends at "\\n" alone: `str.splitlines` would also cut at U+2028 and the like, which may stand
inside a string. A byte order mark before the first line is skipped. Faults that `json` accepts in
silence, or raises other errors for, are refused too: a key twice, half a surrogate, thousands of
brackets.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from policy.errors import UserError


def read_bytes(path: Path, what: str = "file") -> bytes:
    """A file without its byte order mark. Raises UserError for one that cannot be read."""
    try:
        return path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from None


def read_text(path: Path, what: str = "file") -> str:
    """A file of UTF-8 text. Raises UserError for one that is not."""
    return _decoded(read_bytes(path, what), str(path))


def read_lines(path: Path, what: str = "file") -> list[bytes]:
    """The lines of a file. The last one has no end if the file was cut off there."""
    lines = read_bytes(path, what).split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


def read_rows(path: Path, what: str = "file") -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with the number of its line; blank lines have none.

    Raises UserError for the first line that is no object.
    """
    for number, line in enumerate(read_lines(path, what), 1):
        if line.strip():
            yield number, parse_object(line, f"{path}:{number}")


def read_object(path: Path) -> dict[str, Any]:
    """A file that is one JSON object. Raises UserError."""
    return parse_object(read_bytes(path), str(path))


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """One JSON object. Raises UserError that begins with `where`."""
    decoded = _decoded(text, where)
    try:
        value = json.loads(decoded, object_pairs_hook=_no_key_twice)
        if "\\u" in decoded:  # the one way for half a surrogate to come in
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(f"{where}: not valid JSON: {error.msg} at {line}column {error.colno}") from None
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: half of a surrogate pair, \\ud800 to \\udfff, is no letter"
        ) from None
    except RecursionError:
        raise UserError(f"{where}: not valid JSON here: too many brackets inside each other") from None
    except ValueError as error:  # a key twice; an integer of thousands of digits
        raise UserError(f"{where}: not valid JSON here: {str(error).partition(';')[0]}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: this must be a JSON object, not {type(value).__name__}")
    return value


def _decoded(text: bytes, where: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text: {error.reason} at byte {error.start + 1}") from None


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return row
