"""Loads published models into transformers' classes: whole, or refused with one line on what is
wrong."""

import json
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from policy.errors import UserError
from policy.shards import Shards
from rewards.experts.common import Device, Dtype, pick_device, pick_dtype

M = TypeVar("M", bound=PreTrainedModel)
T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """Device and dtype of a model."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def pick(cls, device: Device, dtype: Dtype, half: torch.dtype = torch.bfloat16) -> "Placement":
        """`half`: the half precision that "auto" means on a GPU."""
        where = pick_device(device)
        numbers = half if dtype == "auto" and where.type == "cuda" else pick_dtype(dtype, where)
        return cls(where, numbers)


def read_config(folder: Path, *model_types: str) -> dict[str, Any]:
    """A folder's config.json. Raises UserError if it is not of one of these types of model."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        found = config.get("model_type")
    except FileNotFoundError:
        raise UserError(f"{folder}: not a model directory: it has no config.json") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: not a model's config: {error}") from None
    if found not in model_types:
        wanted = " or ".join(map(repr, model_types))
        raise UserError(f"{folder}: a {found!r} checkpoint, where {wanted} is needed")
    return config


def load_model(model_class: type[M], folder: Path, place: Placement) -> M:
    """A model in transformers' layout. Raises UserError if a tensor of it is missing or misshapen."""
    Shards(folder)  # raises UserError for files that are missing, cut short or pickled
    return _build(model_class, folder, place, str(folder))


def build_model(
    model_class: type[M],
    config: PretrainedConfig,
    tensors: dict[str, Tensor],
    place: Placement,
    source: str,
) -> M:
    """A model from tensors named as transformers names them, read from `source`. Raises UserError if
    any is missing, misshapen or unknown."""
    return _build(model_class, None, place, source, strict=True, config=config, state_dict=tensors)


def _build(
    model_class: type[M],
    folder: Path | None,
    place: Placement,
    source: str,
    strict: bool = False,
    **kwargs,
) -> M:
    try:
        model, report = model_class.from_pretrained(
            folder,
            dtype=place.dtype,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # so that they are reported with the rest
            output_loading_info=True,
            **kwargs,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{source}: no {model_class.__name__} can be built from it: {reason}") from None
    # Checkpoints in transformers' own layout may hold leftovers that no class reads any more.
    kinds = ("missing_keys", "mismatched_keys", *(["unexpected_keys"] if strict else []))
    wrong = {
        kind.removesuffix("_keys"): sorted(map(_name, report[kind])) for kind in kinds if report[kind]
    }
    if wrong:
        faults = "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in wrong.items())
        raise UserError(f"{source}: the tensors do not fit a {model_class.__name__}: {faults}")
    return model.eval().requires_grad_(False).to(place.device)


def _name(key) -> str:
    """A key's name; that of a mismatched tensor with both shapes."""
    if isinstance(key, str):
        return key
    name, found, wanted = key
    return f"{name} {list(found)} instead of {list(wanted)}"


def listed(names: Sequence[str]) -> str:
    """Names as a list, ten at most."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def renamed(name: str, rules: Sequence[tuple[str, str]]) -> str | None:
    """The name that the first matching rule gives. A rule is a pattern of a whole name, and its
    replacement. None: no rule matches."""
    for pattern, template in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    return None


def split_qkv(name: str, tensor: Tensor, parts: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Splits a tensor of stacked queries, keys and values, with "qkv" in its name, into three; any
    other stays as it is."""
    if ".qkv." not in name:
        yield name, tensor
        return
    for part, rows in zip(parts, tensor.chunk(3), strict=True):
        yield name.replace(".qkv.", f".{part}."), rows.clone()


def read_tensors(file: Path, wrapper: str = "state_dict") -> dict[str, Tensor]:
    """All tensors of one file by name: safetensors, or a PyTorch file with them at the top or under
    `wrapper`. Raises UserError if it is broken, or holds what only unpickling code could read."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{file}: holds more than tensors, and unpickling that could run any code; it is not loaded"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{file}: truncated, or not a weights file: {reason}") from None
    if isinstance(found, dict):
        found = found.get(wrapper, found)
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise UserError(f"{file}: not a mapping of names to tensors, nor one under {wrapper!r}")
    return found


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Raises UserError if the folder holds no tokenizer; transformers would make up an empty one."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        raise UserError(f"{folder}: no tokenizer in it: neither tokenizer.json nor a vocabulary")
    return load_part(AutoTokenizer.from_pretrained, folder, "tokenizer")


def load_part(load: Callable[..., T], folder: Path, what: str) -> T:
    """A tokenizer, image processor or config that `load` makes of a folder, or UserError."""
    try:
        return load(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{folder}: no {what} in it that can be loaded: {reason}") from None


def token_id(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    """The id of a word that is one token. Raises UserError if the tokenizer splits it or lacks it."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise UserError(f"{tokenizer.name_or_path}: its tokenizer has no single token for {word!r}")
    return ids[0]
