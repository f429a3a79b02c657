"""Where a model is: a directory or a hub id, in one of two layouts."""

import json
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from policy.errors import UserError

Layout = Literal["transformers", "original"]

_LAYOUT_OF_MODEL_TYPE: dict[str, Layout] = {"janus": "transformers", "multi_modality": "original"}
_BASICS = ["*.json", "*.safetensors"]
_PICKLED = ["pytorch_model*.bin"]


def is_hub_id(path: str) -> bool:
    """ "owner/name", where no such directory exists."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).exists()


def model_folder(path: str) -> Path:
    """The directory of a model; a hub id is downloaded, or found in the hub's cache.

    Raises UserError if there is none.
    """
    if not is_hub_id(path):
        folder = Path(path)
        if not folder.is_dir():
            raise UserError(f"{path}: no such model directory")
        return folder
    try:
        folder = Path(snapshot_download(path, allow_patterns=_BASICS))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(path, allow_patterns=_BASICS + _PICKLED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path}: no such directory, and it cannot be had from the Hugging Face hub: {reason}"
        ) from None
    return folder


def read_config(folder: Path) -> tuple[Layout, dict[str, Any]]:
    """The layout that config.json declares, and what it says. Raises UserError if it is no Janus."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder}: not a model directory: it has no config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: not a model's config: {error}") from None
    if kind not in _LAYOUT_OF_MODEL_TYPE:
        raise UserError(
            f"{folder}: a {kind!r} checkpoint, where a Janus ('janus' or 'multi_modality') is needed"
        )
    return _LAYOUT_OF_MODEL_TYPE[kind], config
