"""Files of JSON lines that a run goes on writing after it went back to a checkpoint."""

import json
import os
from pathlib import Path


def forget_after(path: Path, step: int) -> int:
    """Drop the lines of later steps, and one that was cut off in the middle. Returns how many went.
    The file is replaced as a whole or not at all."""
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if (at := _step(line)) is not None and at <= step]
    if len(kept) < len(lines):
        part = path.with_name(f"{path.name}.part")
        part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(part, path)
    return len(lines) - len(kept)


def _step(line: str) -> int | None:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
