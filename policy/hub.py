"""Locates a model: a directory or a hub id, in one of two layouts."""

import hashlib
import os
import socket
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from policy.errors import UserError
from policy.jsonl import read_object

Layout = Literal["transformers", "original"]

_LAYOUT_OF_MODEL_TYPE: dict[str, Layout] = {"janus": "transformers", "multi_modality": "original"}
_TEXTS = ["*.json", "*.txt", "*.jinja", "README.md"]  # the last states the model's license
_WEIGHTS = ["*.safetensors"]
_PICKLED = ["pytorch_model*.bin"]


_MIB = 2**20


def is_hub_id(path: str) -> bool:
    """ "owner/name", where no such directory exists."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not os.path.exists(path)


def model_folder(path: str, weights: bool = True) -> Path:
    """The directory of a model; a hub id is downloaded, or found in the hub's cache. `weights=False`:
    only the files of the tokenizer, the processor and the config.

    Raises UserError if there is none.
    """
    if not is_hub_id(path):
        folder = os.path.expanduser(path)
        if not os.path.isdir(folder):  # unlike Path.is_dir, it takes any text
            where = "" if os.path.isabs(folder) else f" in {os.getcwd()} on {socket.gethostname()}"
            raise UserError(f"{path}: no such model directory{where}")
        return Path(folder)
    try:
        found = Path(snapshot_download(path, allow_patterns=_TEXTS + _WEIGHTS * weights))
        if weights and not any(found.glob("*.safetensors")):
            found = Path(snapshot_download(path, allow_patterns=_TEXTS + _WEIGHTS + _PICKLED))
    except _HUB_ERRORS as error:
        raise _unavailable(path, "directory", error) from None
    return found


def folder_here(path: str) -> Path | None:
    """The directory of a model without asking the hub, with weights or not; None for a hub id whose
    files are not in the hub's cache. Raises UserError for a directory that is not there."""
    if not is_hub_id(path):
        return model_folder(path)
    try:
        folder = Path(snapshot_download(path, allow_patterns=_TEXTS, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if (folder / "tokenizer.json").is_file() else None


def revision_of(path: str) -> str:
    """Identifies a model's weights: the commit of a model on the hub, the hash of a folder. Raises
    UserError if there is no such model."""
    folder = model_folder(path, weights=False)
    return folder.name if folder.parent.name == "snapshots" else folder_hash(folder)


def folder_hash(folder: Path) -> str:
    """Identifies a model without reading it whole: 12 hex digits of the names and sizes of its files,
    and of the first and last MiB of each."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(_MIB))
            content.seek(max(_MIB, size - _MIB))
            digest.update(content.read(_MIB))
    return digest.hexdigest()[:12]


def model_file(path: str) -> Path:
    """A weights file: a path here, or "owner/name/file", which is downloaded from the hub, or found
    in its cache. Raises UserError if there is none."""
    file = os.path.expanduser(path)
    if os.path.isfile(file):
        return Path(file)
    owner, *rest = path.split("/")
    if path.startswith((".", "/", "~")) or len(rest) < 2:
        raise UserError(f"{path}: no such file, and not the hub's owner/name/file either")
    try:
        return Path(hf_hub_download(f"{owner}/{rest[0]}", "/".join(rest[1:])))
    except _HUB_ERRORS as error:
        raise _unavailable(path, "file", error) from None


# The last two: a SOCKS proxy without the package for it, and a proxy of an unknown kind.
_HUB_ERRORS = (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OSError,
    ImportError,
    ValueError,
)


def _unavailable(path: str, what: str, error: Exception) -> UserError:
    reason = str(error).strip().split("\n")[0]
    return UserError(
        f"{path}: no such {what}, and it cannot be downloaded from the Hugging Face hub: {reason}"
    )


def read_config(folder: Path) -> tuple[Layout, dict[str, Any]]:
    """The layout that config.json declares, and what it says. Raises UserError if it is no Janus, or
    not one that can be trained: an adapter alone, or quantized weights."""
    file = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise _adapter(folder)
    if not file.is_file():
        raise UserError(f"{folder}: not a model directory: it has no config.json")
    config = read_object(file)
    kind = config.get("model_type")
    if kind not in _LAYOUT_OF_MODEL_TYPE:
        raise UserError(
            f"{folder}: a {kind!r} checkpoint, where a Janus ('janus' or 'multi_modality') is needed"
        )
    for part in (config, config.get("text_config"), config.get("language_config")):
        if isinstance(part, dict) and (settings := part.get("quantization_config")):
            method = settings.get("quant_method") if isinstance(settings, dict) else settings
            raise UserError(
                f"{folder}: quantized weights ({method}), which cannot be trained: give the checkpoint"
                " that they were made from, in float32, bfloat16 or float16"
            )
    return _LAYOUT_OF_MODEL_TYPE[kind], config


def _adapter(folder: Path) -> UserError:
    base = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
    return UserError(
        f"{folder}: a PEFT adapter of {base}, not a whole model: merge it, PeftModel.from_pretrained("
        "model, folder).merge_and_unload().save_pretrained(new), copy the tokenizer beside it, and give"
        " that folder; one that is merged already needs no adapter_config.json"
    )
