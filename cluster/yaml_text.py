"""YAML without surprises: one reader for files and overrides, and a writer that fits it.

YAML 1.1, as PyYAML reads it, reads `1e-1` as text, `2024_01`, `010` and `1:30` as other numbers, and
the last of two equal keys. Here numbers are those of JSON and YAML 1.2, and a repeated key is an error.
"""

import re
from typing import Any

import yaml
from yaml.composer import ComposerError

from policy.errors import UserError

_LEVELS = 50
_VALUES = 10_000

_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_NUMBERS = (
    (_INT, re.compile(r"[-+]?(0|[1-9][0-9]*)$"), "-+0123456789"),
    (_INT, re.compile(r"0x[0-9a-fA-F]+$"), "0"),
    (
        _FLOAT,
        re.compile(
            r"([-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
        ),
        "-+.0123456789",
    ),
)
_NOT_READ = (_INT, _FLOAT, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NOT_READ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines:
                fault = f"the key {key.value!r} stands there twice, first in line {lines[name]}"
                raise ComposerError(None, None, fault, key.start_mark)
            lines[name] = line
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes texts that either reader would not read as text."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Unicode line ends are escaped: otherwise they are read as line feeds or blanks.
        style = '"' if set(data) & set("\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)

for _tag, _pattern, _first in _NUMBERS:
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first))
_Loader.add_constructor(_INT, lambda loader, node: int(node.value, 16 if "x" in node.value else 10))
_Loader.add_constructor(_FLOAT, lambda loader, node: float(re.sub(r"\.(?=[iInN])", "", node.value)))


def read_yaml(text: str, where: str) -> Any:
    """Parse mappings, lists, texts, numbers, booleans and nulls; aliases are copied.

    Raises UserError that begins with `where` and, if there are several, the line.
    """
    line = ""
    try:
        return _plain(yaml.load(text, _Loader), [_VALUES], 0)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark and "\n" in text else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
    except RecursionError:
        problem = f"deeper than {_LEVELS} levels"
    except ValueError as error:
        problem = str(error).partition(";")[
            0
        ]  # Python's message on an integer of thousands of digits has more
    raise UserError(f"{where}{line}: not valid YAML: {problem}")


def write_yaml(tree: Any) -> str:
    """YAML that `read_yaml` reads as the same tree, in the order of its keys."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _plain(value: Any, left: list[int], level: int) -> Any:
    """A copy without shared parts, so that a change in one place changes no other. A limit on levels
    and values refuses cycles and nested aliases."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"more than {_VALUES} values")
    if level > _LEVELS:
        raise ValueError(f"deeper than {_LEVELS} levels, or a value that holds itself")
    if isinstance(value, dict):
        return {key: _plain(inner, left, level + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, left, level + 1) for inner in value]
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"a {type(value).__name__}, where text, a number, a list or keys are meant")
    return value
