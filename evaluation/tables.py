"""Strict reading of CSV files that others write: a fault is refused in one line that says where."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from policy.errors import UserError
from policy.jsonl import read_text


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, each with its last line. Raises UserError for one with more
    or fewer cells than the header has."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}:{reader.line_num}: not as many cells as the first line has")
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV: {error}") from None
