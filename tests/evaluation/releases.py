"""Published files of a test's own, in the place of those of a release."""

import hashlib
from dataclasses import replace
from pathlib import Path

from evaluation import data


def put(monkeypatch, folder: Path, data_name: str, files: dict[str, bytes]) -> Path:
    """Write files into a folder, and take them for the release's own. `files`: by path in the
    repository."""
    for path, content in files.items():
        (folder / path.rsplit("/", 1)[-1]).write_bytes(content)
    known = tuple(
        data.PublishedFile(path, len(content), hashlib.sha256(content).hexdigest())
        for path, content in files.items()
    )
    monkeypatch.setitem(data.RELEASES, data_name, replace(data.RELEASES[data_name], files=known))
    return folder
