"""Paths that a person writes: `~` is the home directory, and a folder to write into is tried first."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from policy.errors import UserError

UserPath = Annotated[str, AfterValidator(os.path.expanduser)]


def home(path: str) -> Path:
    """With the home directory for `~`, which a shell leaves as it is in `--out=~/x`."""
    return Path(os.path.expanduser(path))


def check_writable(folder: Path) -> None:
    """Raises UserError unless files can be written there, which is tried; leaves nothing behind. Before
    work begins whose results are to lie there."""
    made: list[Path] = []
    try:
        for part in (*reversed(folder.parents), folder):
            if not part.is_dir():
                part.mkdir()
                made.append(part)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{folder}: cannot be written: {reason}") from None
    finally:
        for part in reversed(made):
            with suppress(OSError):  # another run has begun there meanwhile
                part.rmdir()
