"""A Janus's tokenizer, read from tokenizer.json alone.

The published checkpoints name the class LlamaTokenizerFast over a byte-level BPE. Today that class
replaces the pre-tokenizer by its own, so that loading by name gives wrong ids without an error; and
it used to add the first token itself, which a plain load of tokenizer.json then lacks.
"""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from policy.errors import UserError

_LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Raises UserError if the folder has no readable tokenizer.json."""
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: it has no tokenizer.json")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        settings = folder / "tokenizer_config.json"
        said = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        adds_bos = said.get("add_bos_token", said.get("tokenizer_class") in _LLAMA_CLASSES)
    # tokenizers raises a bare Exception for a file that it cannot parse.
    except Exception as error:
        raise UserError(f"{folder}: its tokenizer cannot be read: {error}") from error
    if adds_bos and tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]:
        tokenizer.add_bos_token = True  # writes it into the post-processor
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save under a class name that every loader reads as tokenizer.json says."""
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    said = json.loads(settings.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only"):  # how it was loaded here, not what it is
        said.pop(key, None)
    said["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra := said.pop("extra_special_tokens", None), list):
        said["additional_special_tokens"] = extra  # the name that older releases know
    settings.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
