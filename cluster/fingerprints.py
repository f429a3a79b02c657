"""Fingerprints of the files that a run reads, to detect other files at the same paths."""

import hashlib
from pathlib import Path

from cluster.config import RunConfig
from policy.hub import is_hub_id
from policy.model import PolicyConfig

_PEEK = 1 << 20
"""Bytes read of either end of a file: enough to distinguish two trainings of one model, and quick for
shards of gigabytes."""


def fingerprints(config: RunConfig) -> dict[str, str]:
    """Key -> fingerprint: of the model's files, unless they are on the hub, and of the prompts."""
    found = {"train.prompts": fingerprint(Path(config.train.prompts))}
    if (reference := config.learner.reference_path) and not is_hub_id(reference):
        found["learner.reference_path"] = fingerprint(Path(reference))
    return policy_fingerprints(config.policy) | found


def policy_fingerprints(config: PolicyConfig) -> dict[str, str]:
    """Fingerprints of the model's files, unless they are on the hub, and of its templates."""
    found = {}
    if not is_hub_id(config.path):
        found["policy.path"] = fingerprint(Path(config.path))
    if config.templates:
        found["policy.templates"] = fingerprint(Path(config.templates))
    return found


def fingerprint(path: Path) -> str:
    """Hash of a file, or of the files of a folder: their names and sizes, and both ends of each. A
    missing one has no fingerprint: whoever reads it reports that better."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if not file.is_file():
            return ""
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as content:
            digest.update(content.read(_PEEK))
            content.seek(max(0, size - _PEEK))
            digest.update(content.read(_PEEK))
    return digest.hexdigest()[:16]
