"""One run to a run directory."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from policy.errors import UserError


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Holds the directory's lock. Raises UserError, naming the holder, if another run has it. The lock
    goes with the process, however it ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the directory, which may be put aside for a new one.
    with (folder.parent / f".{folder.name}.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"{folder}: {holder} is at work there; give this run another name=..."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
