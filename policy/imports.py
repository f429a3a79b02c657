"""From "package.module:name", as a configuration writes it, to the object."""

from importlib import import_module
from typing import Any

from policy.errors import UserError


def load_named(name: str, key: str) -> Any:
    """What `name` names; `key` is where the configuration has it. Raises UserError with one line."""
    module, colon, attribute = name.partition(":")
    if not (colon and attribute.isidentifier() and all(map(str.isidentifier, module.split(".")))):
        raise UserError(f"{key}: {name!r} names nothing: write package.module:name")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, SyntaxError, AttributeError) as error:
        raise UserError(f"{key}: {name!r} cannot be loaded: {error}") from None
