"""Converts a Janus from one layout to the other, tensor by tensor: `bicot convert`.

Nothing is lost: what the transformers layout has no place for (unused tensors, the config's wording,
the settings beside it) is kept in its folder `original/`, and converting back restores it.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import transformers
from torch import Tensor

from policy import janus_config
from policy.errors import UserError
from policy.hub import Layout, model_folder, read_config
from policy.janus_checkpoint import ModelCheckpoint, open_checkpoint, original_shapes, save_tokenizer
from policy.janus_layout import UNUSED_BY_TRANSFORMERS
from policy.jsonl import read_object
from policy.shards import Shards, write_shards
from policy.weights import TensorSpec

KEPT = "original"
_SIDE_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",  # which older releases of transformers read beside the tokenizer
)
SHARD_BYTES = 4 * 10**9


@dataclass(frozen=True)
class Converted:
    folder: Path
    tensors: int
    nbytes: int
    files: tuple[str, ...]


def convert(source: str, target: Path, to: Layout, shard_bytes: int = SHARD_BYTES) -> Converted:
    """Write the model at `source`, a directory or hub id, to `target` in layout `to`.

    Everything is checked before anything is written, and `target` appears whole or not at all.
    Raises UserError if the source is no complete Janus, or is in that layout already.
    """
    with appearing(target) as part:
        return replace(convert_into(part, source, to, shard_bytes), folder=target)


def convert_into(folder: Path, source: str, to: Layout, shard_bytes: int = SHARD_BYTES) -> Converted:
    """`convert` into a folder that is there and `appearing`."""
    checkpoint = open_checkpoint(model_folder(source))
    if checkpoint.layout == to:
        raise UserError(f"{source}: is in the {to} layout already")
    write = _write_transformers if to == "transformers" else _write_original
    return write(checkpoint, folder, shard_bytes)


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` in the end, or is removed if anything fails.

    Raises UserError if `target` cannot be written, or holds anything.
    """
    part = target.with_name(target.name + ".part")
    try:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise UserError(f"{target}: is there already; give a new directory, or an empty one")
        part.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{part}: is there already, perhaps from a broken run; remove it") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from None
    try:
        yield part
        part.rename(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_transformers(source: ModelCheckpoint, part: Path, shard_bytes: int) -> Converted:
    found = source.shards.specs
    specs = [
        TensorSpec(name, source.shapes[name], found[pair.original].dtype)
        for pair in source.correspondences()
        for name in pair.transformers
    ]
    tensors = (tensor for _, tensor in source.transformers_tensors())
    files = write_shards(part, specs, tensors, shard_bytes)

    _keep_original(source.folder, source.shards, part, shard_bytes)
    source.config.dtype = _dtype(specs)
    source.config.save_pretrained(part)
    save_tokenizer(source.tokenizer, part)
    return Converted(part, len(specs), sum(spec.nbytes for spec in specs), tuple(files))


def _keep_original(source: Path, shards: Shards, target: Path, shard_bytes: int) -> None:
    """Keep what the transformers layout has no place for, from a folder in the original layout."""
    found = shards.specs
    unused = [name for name in found if UNUSED_BY_TRANSFORMERS.fullmatch(name)]
    kept = target / KEPT
    kept.mkdir()
    if unused:
        write_shards(kept, [found[n] for n in unused], map(shards.read, unused), shard_bytes)
    for name in ("config.json", *_SIDE_FILES):
        _copy(source / name, kept)


def keep_side_files(source: Path, target: Path) -> None:
    """Copy the files beside the weights of `source` to `target`, a model trained from it in the
    transformers layout; files that are there already stay."""
    layout, _ = read_config(source)
    if layout == "original":
        _keep_original(source, Shards(source), target, SHARD_BYTES)
        return
    for name in _SIDE_FILES:
        if not (target / name).exists():
            _copy(source / name, target)
    if (source / KEPT).is_dir():
        shutil.copytree(source / KEPT, target / KEPT)


def _write_original(source: ModelCheckpoint, part: Path, shard_bytes: int) -> Converted:
    kept = source.folder / KEPT
    unused = Shards(kept) if any(kept.glob("*.safetensors")) else None
    shapes = original_shapes(source.shapes)
    pairs = source.correspondences()
    specs = []
    for pair in pairs:
        dtypes = {source.shards.specs[name].dtype for name in pair.transformers}
        if len(dtypes) > 1:
            raise UserError(
                f"{source.folder}: {', '.join(pair.transformers)} differ in type, and the original"
                f" layout stacks them: {', '.join(sorted(dtypes))}"
            )
        specs.append(TensorSpec(pair.original, shapes[pair.original], dtypes.pop()))
    _check_kept(kept, unused)
    extra = list(unused.specs.values()) if unused else []

    def tensors() -> Iterator[Tensor]:
        for pair in pairs:
            yield pair.join([source.shards.read(name) for name in pair.transformers])
        for spec in extra:
            assert unused is not None
            yield unused.read(spec.name)

    files = write_shards(part, [*specs, *extra], tensors(), shard_bytes)
    config = _original_config(source, _dtype(specs))
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in _SIDE_FILES:
        _copy(kept / name, part)
    save_tokenizer(source.tokenizer, part)
    nbytes = sum(spec.nbytes for spec in [*specs, *extra])
    return Converted(part, len(specs) + len(extra), nbytes, tuple(files))


def _original_config(source: ModelCheckpoint, dtype: str) -> dict:
    """The original config if it still describes this model, else a new one.

    Without a version transformers takes the tokenizer beside it for a broken one of Mistral's."""
    config = janus_config.to_original(source.config, dtype)
    version = {"transformers_version": transformers.__version__}
    once = source.folder / KEPT / "config.json"
    if not once.is_file():
        return config | version
    kept = read_object(once)
    text = source.config.text_config
    tokens = janus_config.TokenIds(
        text.bos_token_id, text.eos_token_id, text.pad_token_id, source.config.image_token_id
    )
    same_model = janus_config.to_original(janus_config.to_transformers(kept, tokens), dtype)
    return kept if same_model == config else config | version


def _check_kept(kept: Path, unused: Shards | None) -> None:
    odd = [n for n in (unused.specs if unused else ()) if not UNUSED_BY_TRANSFORMERS.fullmatch(n)]
    if odd:
        raise UserError(f"{kept}: {len(odd)} tensors that do not belong there: {', '.join(odd[:10])}")


def _dtype(specs: list[TensorSpec]) -> str:
    """The type of most of the model, by size: a few tensors may have another type."""
    sizes: dict[str, int] = {}
    for spec in specs:
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def _copy(file: Path, folder: Path) -> None:
    if file.is_file():
        shutil.copyfile(file, folder / file.name)
