"""Paths that a person gives: `~` is the home directory, a folder is tried before work that writes into
it, and a file is written whole or not at all."""

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


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file, or leave it as it was; makes its folder. Half a surrogate, which no file of UTF-8
    holds, becomes a question mark. Raises UserError if it cannot be written."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content.encode("utf-8", "replace") if isinstance(content, str) else content)
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise not_written(path, error) from None


def not_written(path: Path, error: OSError) -> UserError:
    """The error for a file that cannot be written: no room, no right, ..."""
    return UserError(f"{path}: cannot be written: {error.strerror or error}")


def check_writable(folder: Path) -> None:
    """Raises UserError unless files can be written there, which is tried; leaves nothing behind. Call
    it before work whose results go there."""
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
