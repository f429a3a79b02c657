"""What the gateway lets in: bodies up to a size, images up to a size, prompts that parse."""

import warnings
from io import BytesIO

import numpy as np
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from policy.prompts import parse_prompt, plain_prompt
from policy.records import Prompt

_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits a channel


class LimitBody:
    """ASGI middleware: a body over the limit gets 413. What Content-Length claims is used only to
    refuse early; the bytes are counted as they come."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app = app
        self._max_bytes = max_bytes
        self._refusal = f"the request body is larger than {max_bytes} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        claimed = dict(scope["headers"]).get(b"content-length", b"")
        if claimed.isdigit() and int(claimed) > self._max_bytes:
            await JSONResponse({"detail": self._refusal}, 413)(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise HTTPException(413, self._refusal)
            return message

        await self._app(scope, counted, send)


def read_images(files: list[bytes], max_pixels: int) -> list[np.ndarray]:
    """Files as RGB images, uint8 [H, W, 3] each; transparency is dropped.

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
    except (OSError, SyntaxError, ValueError) as error:
        raise HTTPException(415, f"image {number} is no PNG, JPEG or WebP image") from error
    if image.mode not in _MODES:
        raise HTTPException(415, f"image {number} has mode {image.mode}; use 8 bits a channel")
    return image


def _decode(number: int, image: Image.Image) -> np.ndarray:
    try:
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise HTTPException(415, f"image {number} cannot be decoded: {error}") from error


def read_prompt(text: str) -> Prompt:
    """A sentence, or, if it starts like JSON, one row of a prompt file. Raises FastAPI's 422 error
    with the name of the field at fault."""
    text = text.strip()
    if not text:
        raise _invalid("the prompt is empty")
    if not text.startswith(("{", "[")):
        return plain_prompt(text)
    try:
        row = from_json(text)
    except ValueError as error:
        raise _invalid(f"not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise _invalid("the JSON must be an object with the fields of a prompt row")
    try:
        return parse_prompt(row)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(
            [{**fault, "loc": ("body", "prompt", *fault["loc"])} for fault in faults]
        ) from error


def _invalid(message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "value_error", "loc": ("body", "prompt"), "msg": message}])
