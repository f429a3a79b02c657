"""Loads the object that a configuration names as "package.module:name"."""

import traceback
from difflib import SequenceMatcher, get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from policy.errors import UserError, in_one_line


def split_name(name: str) -> tuple[str, str] | None:
    """Module and attribute of "package.module:name"; None for anything else."""
    module, colon, attribute = name.partition(":")
    if colon and attribute.isidentifier() and all(map(str.isidentifier, module.split("."))):
        return module, attribute
    return None


def load_module(name: str, key: str) -> ModuleType:
    """A user's module, which `key` of the configuration names. Raises UserError with one line: which
    module is missing, or where its code fails."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"{key}: there is no module {error.name!r} on the Python path") from error
        raise UserError(f"{key}: {name} needs a module that is missing: {error.name}") from error
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"{key}: {name} cannot be imported: {with_place(error)}") from error


def load_named(name: str, key: str) -> Any:
    """What `name` names; `key` is where the configuration has it. Raises UserError with one line."""
    parts = split_name(name)
    if parts is None:
        raise UserError(f"{key}: {name!r} names nothing: write package.module:name")
    module = load_module(parts[0], f"{key}: {name!r} cannot be loaded")
    if not hasattr(module, parts[1]):
        raise UserError(
            f"{key}: {name!r} cannot be loaded: {parts[0]} has no {parts[1]}"
            f"{did_you_mean(parts[1], [n for n in vars(module) if not n.startswith('_')])}"
        )
    return getattr(module, parts[1])


def did_you_mean(name: str, known: list[str]) -> str:
    """A hint that ends a message, with two names if both are as near; "" where none is near."""
    near = get_close_matches(name, known, n=2, cutoff=0.5)
    ratios = [SequenceMatcher(None, one, name).ratio() for one in near]
    near = [one for one, ratio in zip(near, ratios, strict=True) if ratio == max(ratios)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def with_place(error: BaseException) -> str:
    """An exception of a user's code as one line, which begins with the file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    file, line = (frames[-1].filename, frames[-1].lineno) if frames else ("", None)
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno
    place = f"{Path(file).name}:{line}: " if file and not file.startswith("<") else ""
    return place + in_one_line(error)
