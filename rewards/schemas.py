"""The gateway's requests: in two forms, with prompts that parse, and image files (rewards/images.py).

Checking a list ends at its first fault, and too many faults are not listed: millions fit into one
body."""

import binascii
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from starlette.datastructures import UploadFile

from policy.errors import UserError
from policy.jsonl import parse_object
from policy.prompts import named_prompt, parse_prompt, plain_row
from policy.records import Prompt
from rewards.images import read_images as read_images

T = TypeVar("T", bound=BaseModel)
_MOST_FAULTS = 100  # that a reply lists one by one
_LARGEST_PROMPT = 2**16  # characters, of its JSON if it is a row

PromptField = Annotated[
    str | dict[str, Any], Field(description="a sentence, or one row of a prompt file")
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ScoreBody(_Body):
    """The JSON form of a request for scores."""

    prompt: PromptField
    images: list[str] = Field(
        min_length=1, fail_fast=True, description="PNG, JPEG or WebP files, in base64"
    )
    experts: list[str] | None = Field(None, fail_fast=True, description="whom to ask; null: all")


class AppliesBody(_Body):
    """The JSON form of a request for the experts that apply to prompts."""

    prompts: list[PromptField] = Field(min_length=1, max_length=10_000, fail_fast=True)
    experts: list[str] | None = Field(None, fail_fast=True, description="whom to ask; null: all")


FORM_SCHEMA = {
    "type": "object",
    "required": ["image", "prompt"],
    "properties": {
        "image": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "one or more PNG, JPEG or WebP files",
        },
        "prompt": {
            "type": "string",
            "description": "a sentence, or one row of a prompt file as JSON",
        },
        "experts": {
            "type": "array",
            "items": {"type": "string"},
            "description": "whom to ask; absent: all",
        },
    },
}


@dataclass(frozen=True)
class ScoreRequest:
    """A request for scores, from either form: image files, one prompt, and the experts (None: all)."""

    files: tuple[bytes, ...]
    prompt: Prompt
    experts: tuple[str, ...] | None


async def read_request(request: Request, max_images: int) -> ScoreRequest:
    """The body of a request for scores, as multipart form or as JSON. Raises FastAPI's 422 error with
    the name of the field at fault, or an HTTPException: 400 for an invalid form, 413 for more than
    `max_images`, 415 for another kind of body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _from_json(await request.body(), max_images)
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await _from_form(request, max_images)
    raise HTTPException(415, "send multipart/form-data or application/json")


async def _from_form(request: Request, max_images: int) -> ScoreRequest:
    async with request.form(max_files=max(1000, max_images)) as form:
        files = form.getlist("image")
        _check_number(files, max_images)
        if not files or not all(isinstance(file, UploadFile) for file in files):
            raise invalid("one file or more is needed", "image")
        texts = {name: form.getlist(name) for name in ("prompt", "experts")}
        for name, given in texts.items():
            if not all(isinstance(text, str) for text in given):
                raise invalid("this is text, not a file", name)
        if len(texts["prompt"]) != 1:
            raise invalid("one prompt is needed", "prompt")
        return ScoreRequest(
            tuple([await file.read() for file in files]),
            read_prompt(texts["prompt"][0]),
            tuple(texts["experts"]) or None,
        )


def _check_number(files: Sequence, max_images: int) -> None:
    if len(files) > max_images:
        raise HTTPException(413, f"there are more than {max_images} images")


def _from_json(data: bytes, max_images: int) -> ScoreRequest:
    body = parse_body(ScoreBody, data)
    _check_number(body.images, max_images)
    files = []
    for n, text in enumerate(body.images):
        try:
            files.append(b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            raise invalid(f"not valid base64: {error}", "images", n) from error
    experts = None if body.experts is None else tuple(body.experts)
    return ScoreRequest(tuple(files), read_prompt(body.prompt), experts)


def parse_body(model: type[T], data: bytes) -> T:
    """A JSON body. Raises FastAPI's 422 error."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise _faults(error, "body") from error


def read_prompt(given: str | dict[str, Any], *where: str | int) -> Prompt:
    """A sentence, or one row of a prompt file, which a text that starts like JSON is read as. Raises
    FastAPI's 422 error with the name of the field at fault."""
    where = where or ("prompt",)
    if len(given if isinstance(given, str) else to_json(given)) > _LARGEST_PROMPT:
        raise invalid(f"the prompt is longer than {_LARGEST_PROMPT} characters", *where)
    if isinstance(given, str):
        given = given.strip()
        try:
            if not given.startswith(("{", "[")):
                return named_prompt(plain_row(given), "prompt")
            given = parse_object(given.encode("utf-8", "surrogatepass"), "prompt")
        except UserError as error:
            raise invalid(str(error), *where) from error
    try:
        return parse_prompt(given)
    except ValidationError as error:
        raise _faults(error, "body", *where) from error


def invalid(message: str, *where: str | int) -> RequestValidationError:
    """FastAPI's 422 error about one field of the body."""
    return RequestValidationError([{"type": "value_error", "loc": ("body", *where), "msg": message}])


def _faults(error: ValidationError, *where: str | int) -> RequestValidationError:
    if error.error_count() > _MOST_FAULTS:
        return invalid(f"more than {_MOST_FAULTS} faults", *where[1:])
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return RequestValidationError([{**fault, "loc": (*where, *fault["loc"])} for fault in faults])
