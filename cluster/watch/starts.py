"""How a run was started: the command, this program's version and commit; `starts.jsonl` has a line for
every start, and a resumed run has several."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from policy.errors import UserError
from policy.jsonl import read_rows

FILE = "starts.jsonl"
_GIT_LIMIT_S = 10.0


@dataclass(frozen=True)
class Start:
    """`commit` is "" if the program is in no git checkout, and ends in "+" if its files differ from the
    commit's."""

    time: str
    command: str
    version: str
    commit: str


def note_start(folder: Path) -> None:
    """Add a line to a run directory."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    start = Start(now, command(sys.argv), _version(), commit(Path(__file__).parents[2]))
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(start)) + "\n")


def read_starts(folder: Path) -> list[Start]:
    """The starts, first to last; none of a run that an earlier version of this program made. Raises
    UserError for a file that is not what `note_start` writes."""
    path = folder / FILE
    if not path.exists():
        return []
    names = ("time", "command", "version", "commit")
    starts = []
    for line, row in read_rows(path):
        if not all(isinstance(row.get(name), str) for name in names):
            raise UserError(f"{path}:{line}: no start of a run: {', '.join(names)} must be texts")
        starts.append(Start(*(row[name] for name in names)))
    return starts


def command(argv: Sequence[str]) -> str:
    """The command in a shell's syntax; `python -m cluster` is `bicot`. Invalid text becomes question
    marks."""
    program = Path(argv[0]).name
    joined = shlex.join(["bicot" if program == "__main__.py" else program, *argv[1:]])
    return joined.encode("utf-8", "replace").decode()


def commit(folder: Path) -> str:
    """The commit of the git checkout whose root is this folder."""
    if not (folder / ".git").exists():
        return ""
    found = _git(folder, "rev-parse", "--short=12", "HEAD")
    changed = found and _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{found}+" if changed else found


def _git(folder: Path, *arguments: str) -> str:
    """Git's output; "" if it is not installed, or fails."""
    ask = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=_GIT_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version() -> str:
    try:
        return version("bicot")
    except PackageNotFoundError:  # run from a folder, not installed
        return ""
