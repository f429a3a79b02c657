"""What the gateway lets in: requests in two forms, images up to a size, prompts that parse."""

import binascii
import struct
import warnings
import zlib
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from policy.errors import UserError
from policy.jsonl import parse_object
from policy.prompts import named_prompt, parse_prompt, plain_row
from policy.records import Prompt

T = TypeVar("T", bound=BaseModel)
_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits a channel
# What Pillow's decoders raise on bytes that are no image of their kind.
_UNREADABLE: tuple[type[Exception], ...]
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError)
_UNREADABLE += (OverflowError, struct.error, zlib.error)

PromptField = Annotated[
    str | dict[str, Any], Field(description="a sentence, or one row of a prompt file")
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ScoreBody(_Body):
    """The JSON form of a request for scores."""

    prompt: PromptField
    images: list[str] = Field(min_length=1, description="PNG, JPEG or WebP files, in base64")
    experts: list[str] | None = Field(None, description="whom to ask; null: all")


class AppliesBody(_Body):
    """Prompts that somebody wants scores for."""

    prompts: list[PromptField] = Field(min_length=1, max_length=10_000)
    experts: list[str] | None = Field(None, description="whom to ask; null: all")


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
    """What is asked, however it came: image files, one prompt, the experts to ask (None: all)."""

    files: tuple[bytes, ...]
    prompt: Prompt
    experts: tuple[str, ...] | None


async def read_request(request: Request) -> ScoreRequest:
    """The body of a request for scores, as multipart form or as JSON. Raises FastAPI's 422 error with
    the name of the field at fault, or an HTTPException: 415 for another kind of body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _from_json(await request.body())
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await _from_form(request)
    raise HTTPException(415, "send multipart/form-data or application/json")


async def _from_form(request: Request) -> ScoreRequest:
    async with request.form() as form:
        files = form.getlist("image")
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


def _from_json(data: bytes) -> ScoreRequest:
    body = parse_body(ScoreBody, data)
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


def read_images(files: Sequence[bytes], max_pixels: int) -> list[np.ndarray]:
    """Files as RGB images, uint8 [H, W, 3] each, turned as their EXIF says; transparency is dropped.

    All headers are read, and all sizes added up, before the first pixel is decoded. Raises an
    HTTPException: 415 for what is no readable image, 413 for more than `max_pixels` together.
    """
    opened = [_open(n, data) for n, data in enumerate(files, 1)]
    if sum(image.width * image.height for image in opened) > max_pixels:
        raise HTTPException(413, f"the images have more than {max_pixels} pixels together")
    return [_decode(n, image) for n, image in enumerate(opened, 1)]


def _open(number: int, data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides
            image = Image.open(BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"image {number}: {error}") from error
    except _UNREADABLE as error:
        raise HTTPException(415, f"image {number} is no PNG, JPEG or WebP image") from error
    if image.mode not in _MODES:
        raise HTTPException(415, f"image {number} has mode {image.mode}; use 8 bits a channel")
    return image


def _decode(number: int, image: Image.Image) -> np.ndarray:
    try:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except _UNREADABLE as error:
        raise HTTPException(415, f"image {number} cannot be decoded: {error}") from error


def read_prompt(given: str | dict[str, Any], *where: str | int) -> Prompt:
    """A sentence, or one row of a prompt file, which a text that starts like JSON is read as. Raises
    FastAPI's 422 error with the name of the field at fault."""
    where = where or ("prompt",)
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
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return RequestValidationError([{**fault, "loc": (*where, *fault["loc"])} for fault in faults])
