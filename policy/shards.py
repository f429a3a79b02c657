"""A checkpoint's weight files, read tensor by tensor and written shard by shard.

Reading maps one file at a time into memory; writing streams, since a shard's header is known before
its tensors are. So a conversion never holds much more than one shard.
"""

import json
import pickle
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from policy.errors import UserError
from policy.weights import Manifest, TensorSpec, plan_buckets

# safetensors' names of types, and torch's.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_SAFETENSORS_NAMES = {torch_name: name for name, torch_name in _DTYPES.items()}

# In order of preference. A *.index.json names the shards of the checkpoint.
_WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


class Shards:
    """All tensors of a model directory by name. Headers are read at once, tensors when asked for."""

    def __init__(self, folder: Path):
        """Raises UserError if a file is missing, broken, or needs more than tensors to be read."""
        self.folder = folder
        self.specs: dict[str, TensorSpec] = {}
        self.file_of: dict[str, str] = {}
        self._open: tuple[str, object] = ("", None)
        for file in _weight_files(folder):
            for spec in self._headers(file):
                if spec.name in self.specs:
                    first = self.file_of[spec.name]
                    raise UserError(f"{folder}: both {first} and {file} hold the tensor {spec.name}")
                self.specs[spec.name] = spec
                self.file_of[spec.name] = file

    def read(self, name: str) -> Tensor:
        """One tensor. The file it lies in stays open until a tensor of another file is read."""
        tensors = self._tensors(self.file_of[name])
        return tensors[name].detach() if isinstance(tensors, dict) else tensors.get_tensor(name)

    def _headers(self, file: str) -> Iterator[TensorSpec]:
        tensors = self._tensors(file)
        for name in tensors.keys():  # noqa: SIM118 (a safetensors handle is no dict)
            if isinstance(tensors, dict):
                shape, dtype = tensors[name].shape, str(tensors[name].dtype).removeprefix("torch.")
            else:
                header = tensors.get_slice(name)
                shape, stored = header.get_shape(), header.get_dtype()
                dtype = _DTYPES.get(stored, stored)
            if dtype not in _SAFETENSORS_NAMES:
                raise UserError(f"{self.folder / file}: {name} is of a type not known here: {dtype}")
            yield TensorSpec(name, tuple(shape), dtype)

    def _tensors(self, file: str):
        """A dict of tensors for a .bin, else a safetensors handle: both mapped, not loaded."""
        if self._open[0] != file:
            self._open = ("", None)  # let go of one file before the next is mapped
            path = self.folder / file
            self._open = (file, _open_bin(path) if path.suffix == ".bin" else _open_safetensors(path))
        return self._open[1]


def _weight_files(folder: Path) -> list[str]:
    found = next((name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder}: holds no weights: none of {', '.join(_WEIGHT_FILES)}")
    if not found.endswith(".index.json"):
        return [found]
    index = folder / found
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of shards: {error!r}") from None
    kind = "safetensors" if "safetensors" in found else "bin"
    odd = [file for file in files if not re.fullmatch(rf"[\w-][\w.-]*\.{kind}", str(file))]
    if odd or not files:
        raise UserError(f"{index}: not names of .{kind} files beside it: {odd[:10]}")
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise UserError(f"{folder}: {_listed('of the shards are missing', missing)}")
    return files


def _open_safetensors(path: Path):
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated, or not a safetensors file: {error}") from None


def _open_bin(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds more than tensors, and unpickling that could run any code; it is not"
            " loaded. Ask for the model in safetensors, or convert it where you trust it"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: truncated, or not a PyTorch weights file: {reason}") from None
    is_tensors = isinstance(tensors, dict) and all(isinstance(t, Tensor) for t in tensors.values())
    if not is_tensors:
        raise UserError(f"{path}: not a plain mapping of names to tensors")
    return tensors


def _listed(what: str, names: Iterable[str]) -> str:
    """ "3 of the shards are missing: a, b, c": ten names at most."""
    names = list(names)
    more = ", ..." if len(names) > 10 else ""
    return f"{len(names)} {what}: {', '.join(names[:10])}{more}"


def write_shards(
    folder: Path, specs: list[TensorSpec], tensors: Iterable[Tensor], shard_bytes: int
) -> list[str]:
    """Write tensors, which come in the order of `specs`, as safetensors files of at most
    `shard_bytes` (but for a larger tensor), with an index if there are several. Returns their names."""
    manifest = plan_buckets(specs, shard_bytes)
    count = len(manifest)
    files = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    if count == 1:
        files = ["model.safetensors"]
    stream = iter(tensors)
    for file, shard in zip(files, manifest, strict=True):
        _write_shard(folder / file, shard, stream)
    if count > 1:
        _write_index(folder, files, manifest)
    return files


def _write_shard(path: Path, specs: tuple[TensorSpec, ...], stream: Iterator[Tensor]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        begin, end = end, end + spec.nbytes
        header[spec.name] = {
            "dtype": _SAFETENSORS_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for spec in specs:
            tensor = next(stream)
            found = (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            if found != (spec.shape, spec.dtype):
                raise ValueError(f"{spec.name}: {found}, where {spec} was planned")
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def _write_index(folder: Path, files: list[str], manifest: Manifest) -> None:
    shards = list(zip(files, manifest, strict=True))
    index = {
        "metadata": {"total_size": sum(spec.nbytes for _, shard in shards for spec in shard)},
        "weight_map": {spec.name: file for file, shard in shards for spec in shard},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
