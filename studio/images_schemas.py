"""The schemas of OpenAI's images API: requests, replies and refusals.

OpenAI's fields without effect here (`user`, `quality`, ...) are accepted and ignored; one that asks for
what this model cannot do is refused, and so is an unknown one.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from policy.prompts import legible
from studio.records import GeneratedImage, ImageTask, ModelCard, RequestError, Settings

LONGEST_TEXT = 32_000  # characters, as OpenAI's

_Text = Annotated[str, StringConstraints(max_length=LONGEST_TEXT), AfterValidator(legible)]
_Ignored = Annotated[Any, Field(description="accepted, and not looked at")]


class ImagesBody(BaseModel):
    """A request for images."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: _Text = Field(description="what to draw")
    model: str | None = Field(None, description="the name in /v1/models")
    n: int | None = Field(1, ge=1, description="how many images")
    size: str | None = Field("auto", description='the model\'s own, "WIDTHxHEIGHT", or "auto"')
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: bool | None = Field(False, description="reply with server-sent events")
    partial_images: int | None = Field(
        0, ge=0, le=8, description="of a stream: how many images so far, before the last"
    )
    # --- beyond OpenAI's ---
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="the same seed and prompt, the same images"
    )
    cot: bool | _Text | None = Field(
        True, description="write a semantic CoT first; false: do not; a text: take this one"
    )
    guidance: float | None = Field(None, ge=1, le=100, description="classifier-free guidance weight")
    temperature: float | None = Field(None, ge=0, le=10, description="0: the likeliest tokens")
    # --- OpenAI's, without effect here ---
    user: _Ignored = None
    safety_identifier: _Ignored = None
    quality: _Ignored = None
    style: _Ignored = None
    moderation: _Ignored = None
    output_compression: _Ignored = None

    @model_validator(mode="after")
    def _partial_images_are_streamed(self):
        if self.partial_images and not self.stream:
            raise ValueError("partial_images needs stream: true")
        return self

    def check(self, card: ModelCard, max_images: int) -> None:
        """Raises RequestError for what this model cannot do."""
        if self.model is not None and self.model != card.name:
            raise RequestError(
                f"the model {self.model[:100]!r} does not exist; there is {card.name!r}",
                "model",
                404,
                "model_not_found",
            )
        if self.size not in (None, "auto", card.size):
            raise RequestError(f"this model draws images of {card.size} alone", "size")
        if self.n is not None and self.n > max_images:
            raise RequestError(f"n: at most {max_images} images a request", "n")

    def tasks(self, card: ModelCard) -> list[ImageTask]:
        """One task an image. A request without a seed gets a random one."""
        settings = Settings(
            card.guidance if self.guidance is None else self.guidance,
            card.temperature if self.temperature is None else self.temperature,
        )
        seed = secrets.randbits(48) if self.seed is None else self.seed
        cot = True if self.cot is None else self.cot
        return [ImageTask(self.prompt, cot, seed, index, settings) for index in range(self.n or 1)]


class TokenDetails(BaseModel):
    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Tokens read (the prompt, once an image) and drawn."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    output_tokens_details: TokenDetails
    total_tokens: int

    @classmethod
    def of(cls, images: Sequence[GeneratedImage]) -> "Usage":
        read = sum(image.prompt_tokens for image in images)
        text = sum(image.cot_tokens for image in images)
        drawn = sum(image.image_tokens for image in images)
        return cls(
            input_tokens=read,
            input_tokens_details=TokenDetails(text_tokens=read, image_tokens=0),
            output_tokens=text + drawn,
            output_tokens_details=TokenDetails(text_tokens=text, image_tokens=drawn),
            total_tokens=read + text + drawn,
        )


class ImageData(BaseModel):
    b64_json: str
    revised_prompt: str | None = Field(description="the semantic CoT; null: there was none")


class ImagesReply(BaseModel):
    created: int
    data: list[ImageData]
    background: str = "opaque"
    output_format: str = "png"
    size: str
    usage: Usage
    seed: int = Field(description="which draws these images again")


class Model(BaseModel):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "bicot"
    size: str = Field(description='of its images, "WIDTHxHEIGHT"')


class ModelList(BaseModel):
    object: str = "list"
    data: list[Model]


class Fault(BaseModel):
    message: str
    type: str
    param: str | None = Field(description="the field at fault")
    code: str | None


class Refused(BaseModel):
    """Why there is no image."""

    error: Fault


_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


def refused(error: RequestError) -> Refused:
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    code = error.code or _CODES.get(error.status)
    fault = Fault(message=error.message, type=kind, param=error.param, code=code)
    return Refused(error=fault)


def refuse(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    """A refusal in OpenAI's form."""
    return JSONResponse(refused(RequestError(reason, status=status)).model_dump(), status, headers)


def refuse_in_this_form(app: FastAPI) -> None:
    """Errors raised by an application's endpoints become refusals in OpenAI's form."""

    async def request_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else None
        return JSONResponse(refused(error).model_dump(), error.status, headers)

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return refuse(error.status_code, str(error.detail), error.headers)

    async def wrong_field(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        faults = error.errors()
        field = faults[0]["loc"][1:2]
        param = str(*field) or None
        # A field that may have several types has a fault for each; the last one is the clearest.
        last = [fault for fault in faults if fault["loc"][1:2] == field][-1]
        reason = last["msg"].removeprefix("Value error, ")
        message = f"{param}: {reason}" if param else reason
        return await request_error(request, RequestError(message, param))

    app.exception_handler(RequestError)(request_error)
    app.exception_handler(HTTPException)(http_error)
    app.exception_handler(RequestValidationError)(wrong_field)
