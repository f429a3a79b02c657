"""A Janus on disk in either layout: its tokenizer, its config as transformers has it, and its tensors.

A checkpoint is whole or refused: every tensor that its config asks for must be there in its shape, and
none that the model does not know.

The tokenizer is read from tokenizer.json alone. The published checkpoints name the class
LlamaTokenizerFast over a byte-level BPE. Today that class replaces the pre-tokenizer by its own, so
that loading by name gives wrong ids without an error; and it used to add the first token itself, which
a plain load of tokenizer.json then lacks.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerFast

from policy import janus_config
from policy.errors import UserError
from policy.hub import Layout, read_config
from policy.janus_layout import UNUSED_BY_TRANSFORMERS, Correspondence, correspondences
from policy.jsonl import read_object
from policy.prompts import BEGIN_OF_IMAGE
from policy.shards import Shards
from policy.weights import TensorSpec

_LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
_SPECIAL = ("bos_token", "eos_token", "pad_token")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Raises UserError if the folder has no readable tokenizer.json."""
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: it has no tokenizer.json")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        settings = folder / "tokenizer_config.json"
        settings_row = read_object(settings) if settings.is_file() else {}
        by_class = settings_row.get("tokenizer_class", _LLAMA_CLASSES[0]) in _LLAMA_CLASSES
        adds_bos = settings_row.get("add_bos_token", by_class)
    # tokenizers raises a bare Exception for a file that it cannot parse.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder}: its tokenizer cannot be read: {reason}") from error
    _find_special_tokens(folder, tokenizer)
    if adds_bos and tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]:
        tokenizer.add_bos_token = True  # writes it into the post-processor
    return tokenizer


def _find_special_tokens(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Sampling and learning use the ids of four tokens: a CoT without an end token never ends. Those
    that tokenizer_config.json leaves out are read from config.json, but only as special tokens: what
    stands there may be a default of Llama's.

    Raises UserError for one that is nowhere.
    """
    raw = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    named = {**raw, **(raw.get("text_config") or raw.get("language_config") or {})}
    special = [n for n, token in tokenizer.added_tokens_decoder.items() if token.special]
    for name in _SPECIAL:
        if getattr(tokenizer, name) is None and (token_id := named.get(f"{name}_id")) in special:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token_id))
        if getattr(tokenizer, name) is None:
            raise UserError(
                f"{folder}: it has no {name}: neither tokenizer_config.json has {name}, nor config.json"
                f" a {name}_id that is one of the special tokens of tokenizer.json"
            )
    if tokenizer.get_vocab().get(BEGIN_OF_IMAGE) not in tokenizer.added_tokens_decoder:
        raise UserError(f"{folder}: the tokenizer has no token {BEGIN_OF_IMAGE}")


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save under a class name that every loader reads as tokenizer.json says."""
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    settings_row = json.loads(settings.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only"):  # how it was loaded here, not what it is
        settings_row.pop(key, None)
    settings_row["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra := settings_row.pop("extra_special_tokens", None), list):
        settings_row["additional_special_tokens"] = extra  # the name that older releases know
    settings.write_text(json.dumps(settings_row, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelCheckpoint:
    folder: Path
    layout: Layout
    config: JanusConfig
    tokenizer: PreTrainedTokenizerFast
    shards: Shards
    shapes: Shapes
    """The shape of every tensor of the model, by its name in transformers."""

    def correspondences(self) -> list[Correspondence]:
        """Sorted by file, so that each file is opened once."""
        files = self.shards.file_of
        if self.layout == "original":
            return sorted(correspondences(self.shapes), key=lambda c: files[c.original])
        return sorted(correspondences(self.shapes), key=lambda c: files[c.transformers[0]])

    def transformers_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors as transformers names them, one read at a time."""
        if self.layout == "transformers":
            for name in sorted(self.shapes, key=lambda n: self.shards.file_of[n]):
                yield name, self.shards.read(name)
            return
        for pair in self.correspondences():
            yield from zip(pair.transformers, pair.split(self.shards.read(pair.original)), strict=True)


def open_checkpoint(folder: Path) -> ModelCheckpoint:
    """Read everything but the tensors. Raises UserError, once, with all that is wrong with them."""
    layout, config, tokenizer = open_texts(folder)
    shards = Shards(folder)
    shapes = model_shapes(config)
    wanted = shapes if layout == "transformers" else original_shapes(shapes)
    found = shards.specs
    if layout == "original":
        found = {n: spec for n, spec in found.items() if not UNUSED_BY_TRANSFORMERS.fullmatch(n)}
    _check_tensors(folder, found, wanted)
    return ModelCheckpoint(folder, layout, config, tokenizer, shards, shapes)


def open_texts(folder: Path) -> tuple[Layout, JanusConfig, PreTrainedTokenizerFast]:
    """A checkpoint without its weights, whose files need not be there. Raises UserError."""
    layout, raw = read_config(folder)
    tokenizer = load_tokenizer(folder)
    config = _config(folder, layout, raw, tokenizer)
    rows = config.text_config.vocab_size
    for name in _SPECIAL:
        if (token_id := getattr(tokenizer, f"{name}_id")) >= rows:
            token = getattr(tokenizer, name)
            raise UserError(
                f"{folder}: its {name} {token!r} is not in tokenizer.json: its id would be {token_id},"
                f" and the model knows {rows} tokens"
            )
    return layout, config, tokenizer


def model_shapes(config: JanusConfig) -> Shapes:
    """What a model of this config holds. Nothing is allocated."""
    try:
        with torch.device("meta"):
            model = JanusForConditionalGeneration(config)
    except (ValueError, TypeError, ZeroDivisionError, AssertionError, RuntimeError) as error:
        raise UserError(f"config.json: no Janus can be built from it: {error}") from None
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def original_shapes(shapes: Shapes) -> Shapes:
    return {
        pair.original: pair.original_shape([shapes[name] for name in pair.transformers])
        for pair in correspondences(shapes)
    }


def _config(folder: Path, layout: Layout, raw: dict, tokenizer: PreTrainedTokenizerFast) -> JanusConfig:
    if layout == "original":
        image = tokenizer.get_vocab().get("<image_placeholder>")
        ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, image)
        return janus_config.to_transformers(raw, janus_config.TokenIds(*ids))
    try:
        config = JanusConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise UserError(f"{folder / 'config.json'}: not a Janus's config: {error}") from None
    config.tie_word_embeddings = False  # absent it means True, which no Janus is
    return config


def _check_tensors(folder: Path, found: dict[str, TensorSpec], wanted: Shapes) -> None:
    unknown = [name for name in found if name not in wanted]
    missing = [name for name in wanted if name not in found]
    misshapen = [
        f"{name} {list(found[name].shape)} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    wrong = [
        f"{len(names)} {kind}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        for kind, names in (("missing", missing), ("misshapen", misshapen), ("unknown", unknown))
        if names
    ]
    if wrong:
        raise UserError(f"{folder}: the tensors do not fit its config: {'; '.join(wrong)}")
