"""docs/configuration.md: every key of a run's configuration, from the models that check it.

    python -m cluster.config_docs > docs/configuration.md

A key's meaning is the string literal under its field; type, bounds and default come from the JSON
schema that pydantic makes of the model.
"""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cluster.config import RunConfig
from cluster.sft_config import SftConfig

INTRODUCTION = """\
# Configuration

<!-- Written by `python -m cluster.config_docs > docs/configuration.md`; a test holds it to the code -->

A run is configured by one YAML file. Each key below can be given there, nested, or on the command line
as `key=value`, e.g. `learner.lr=1e-4`. An unknown key, or a value that does not fit, is an error before
anything starts. `bicot train CONFIG --dry-run` prints a run's whole configuration, with its defaults.

In keys, `NAME` is a name of your choice. `None` in a meaning is YAML's `null`. A key without a default
is required wherever the mapping that it belongs to is given.
"""
OF_SFT = """\

# `bicot sft`

`bicot sft CONFIG` ([sft.md](sft.md)) has these keys; `policy`, `ray`, and all other keys of `learner`,
are as above.
"""
WORDS = {
    "boolean": "true or false",
    "integer": "integer",
    "null": "null",
    "number": "number",
    "object": "mapping",
    "string": "text",
}
BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def page() -> str:
    """The whole page, as Markdown."""
    known = list(models())
    own = [(key, model) for key, model in models(SftConfig) if (key, model) not in known]
    parts = [_section(key or "The run", key, model) for key, model in known]
    titles = {"": "A run of sft", "learner": "learner of sft"}
    more = [_section(titles.get(key, key), key, model, own=True) for key, model in own]
    return "\n".join([INTRODUCTION, *parts]) + "\n".join([OF_SFT, *more])


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the string literal under it, in one line, inherited fields included. A field without one
    is left out."""
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if issubclass(one, BaseModel) and one is not BaseModel:
            found |= _own_meanings(one)
    return found


def _own_meanings(model: type[BaseModel]) -> dict[str, str]:
    found: dict[str, str] = {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(tree, ast.ClassDef)
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[field.target.id] = " ".join(below.value.value.split())
    return found


def models(
    model: type[BaseModel] = RunConfig, prefix: str = ""
) -> Iterator[tuple[str, type[BaseModel]]]:
    """Each model with its key ("" for the first), outer before inner."""
    yield prefix, model
    for name, field in model.model_fields.items():
        if inner := _inner_model(field.annotation):
            yield from models(inner, f"{prefix}.{name}{_free(field)}".lstrip("."))


def _section(title: str, key: str, model: type[BaseModel], own: bool = False) -> str:
    """`own`: without the keys inherited from the learner of `bicot train`."""
    text = inspect.cleandoc(model.__dict__["__doc__"] or "")
    head = f"## {title}\n\n" + (f"{text}\n\n" if text else "")
    names = list(model.__annotations__ if own and key else model.model_fields)
    rows = "".join(_rows(key, model, [name for name in names if name in model.model_fields]))
    return f"{head}| key | type | default | meaning |\n|---|---|---|---|\n{rows}"


def _rows(prefix: str, model: type[BaseModel], names: Sequence[str]) -> Iterator[str]:
    schema = model.model_json_schema()
    texts = meanings(model)
    for name in names:
        field = model.model_fields[name]
        key = f"{prefix}.{name}".lstrip(".")
        kind = _kind(schema["properties"][name], key + _free(field))
        cells = (f"`{key}`", kind, _default(field), texts.get(name, ""))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _kind(schema: dict[str, Any], key: str) -> str:
    """A JSON schema in words; `key` is where a model inside it is described."""
    if "anyOf" in schema:
        return " or ".join(_kind(one, key) for one in schema["anyOf"])
    if "$ref" in schema:
        return f"[mapping](#{key.replace('.', '').lower()})"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        many = schema.get("prefixItems")
        return (
            ", ".join(_kind(one, key) for one in many)
            if many
            else f"list of {_kind(schema['items'], key)}"
        )
    patterns: dict[str, Any] = schema.get("patternProperties", {})
    values, *_ = [*patterns.values(), schema.get("additionalProperties")]
    if isinstance(values, dict):
        return f"mapping of NAME to {_kind(values, key)}"
    bounds = [f" {sign} {schema[word]:g}" for word, sign in BOUNDS.items() if word in schema]
    return WORDS[schema["type"]] + ",".join(bounds) if "type" in schema else "anything"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "the loss's"
    value = field.default
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None or isinstance(value, bool | list | tuple | dict):
        return f"`{json.dumps(value)}`"
    return f"`{value:.12g}`" if isinstance(value, float) else f"`{value}`"


def _free(field: FieldInfo) -> str:
    """The placeholder in a key for the names that the user chooses in a mapping."""
    return ".NAME" if get_origin(field.annotation) is dict else ""


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The first model in an annotation: `X`, `X | None`, `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _inner_model(part))), None)


if __name__ == "__main__":
    print(page(), end="")
