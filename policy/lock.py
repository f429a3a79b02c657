"""The lock of a run directory: one run at a time."""

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from policy.errors import UserError


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds the directory's lock. Raises UserError, naming the holder, if another run has it. The lock
    goes with the process, however it ends; its file goes when it ends well."""
    new = not folder.parent.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the directory, which may be put aside for a new one.
    path = _path(folder)
    with _held(path, folder) as file:
        with suppress(OSError):  # no room to say who holds it
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            if _is_at(path, file):
                path.unlink()
            if new:
                with suppress(OSError):  # not empty: there is a run in it now
                    folder.parent.rmdir()


def lock_holder(folder: Path) -> tuple[int, str] | None:
    """The process and the machine that the directory's lock names; None if there is none, or it names
    nobody. The process may have been killed."""
    try:
        text = _path(folder).read_text(errors="replace")
    except OSError:
        return None
    match = re.fullmatch(r"process ([0-9]{1,9}) on (\S+)", text.strip())
    return (int(match[1]), match[2]) if match else None


def _path(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


def _held(path: Path, folder: Path) -> FileIO:
    while True:
        file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode("utf-8", "replace").strip() or "another process"
            file.close()
            raise UserError(
                f"{folder}: {holder} is at work there; give this one another name=... or folder"
            ) from None
        # The last holder may have removed the file between our opening and locking it.
        if _is_at(path, file):
            return file
        file.close()


def _is_at(path: Path, file: FileIO) -> bool:
    """Whether the path still leads to this file: it may be gone, or another file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
