"""Loads the object that a configuration names as "package.module:name"."""

from importlib import import_module
from typing import Any

from policy.errors import UserError


def split_name(name: str) -> tuple[str, str] | None:
    """Module and attribute of "package.module:name"; None for anything else."""
    module, colon, attribute = name.partition(":")
    if colon and attribute.isidentifier() and all(map(str.isidentifier, module.split("."))):
        return module, attribute
    return None


def load_named(name: str, key: str) -> Any:
    """What `name` names; `key` is where the configuration has it. Raises UserError with one line."""
    parts = split_name(name)
    if parts is None:
        raise UserError(f"{key}: {name!r} names nothing: write package.module:name")
    try:
        return getattr(import_module(parts[0]), parts[1])
    except (ImportError, SyntaxError, AttributeError) as error:
        raise UserError(f"{key}: {name!r} cannot be loaded: {error}") from None
