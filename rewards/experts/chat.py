"""Asks an OpenAI-compatible server questions about images, and tries again where that helps."""

import base64
import io
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx
import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from policy.errors import UserError
from rewards.http import http_client, read_secret, request

_FIRST_PAUSE_S = 0.5  # doubles with every try
_LONGEST_PAUSE_S = 30.0
_MOST_BYTES = 2**20  # of a reply


class Token(BaseModel):
    token: str
    logprob: float


class Position(Token):
    top_logprobs: list[Token] = []


class Logprobs(BaseModel):
    content: list[Position] | None = None


class Message(BaseModel):
    content: str | None = None


class Choice(BaseModel):
    """The server's answer: its text and, if requested and returned, the log-probabilities of its
    tokens."""

    message: Message
    logprobs: Logprobs | None = None
    model: str | None = None
    """The model that answered, as the server names it."""


class _Reply(BaseModel):
    choices: list[Choice] = Field(min_length=1)
    model: str | None = None


class ChatError(Exception):
    """The server gave no usable answer; `status` is its HTTP status, if there was one."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class Chat:
    """A server and a model on it. Threads may share one."""

    def __init__(self, url: str, model: str, api_key_env: str | None, timeout_s: float, retries: int):
        """`url` usually ends in /v1. The key is read from the environment variable of this name."""
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url}: not an address: it starts with http:// or https://")
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._retries = retries
        self._client = http_client(url, timeout=timeout_s, headers=authorization(api_key_env))

    def ask(self, image: np.ndarray, question: str, **parameters) -> Choice:
        """The answer on an image, uint8 [H, W, 3]: `answer` with one user turn, the image before the
        question."""
        return self.answer([user_turn(question, [image])], **parameters)

    def answer(self, messages: Sequence[dict[str, Any]], **parameters: Any) -> Choice:
        """The next message of a conversation. `parameters` go into the request as they are.

        A server that is busy (429), fails (5xx), or cannot be reached in time is asked again, after
        the pause that it asks for. Raises ChatError in the end.
        """
        body = {"model": self._model, "messages": list(messages), **parameters}
        for number in range(1 + self._retries):
            pause = min(_FIRST_PAUSE_S * 2**number, _LONGEST_PAUSE_S)
            try:
                response, reply = request(
                    self._client, "POST", self._url, max_bytes=_MOST_BYTES, json=body
                )
            except httpx.TransportError as error:
                failure = ChatError(f"{self._url}: {type(error).__name__}: {error}")
            else:
                if response.is_success:
                    return self._read(reply)
                message = " ".join(reply.decode(errors="replace").split())[:300]
                failure = ChatError(
                    f"{self._url}: {response.status_code}: {message}", response.status_code
                )
                if response.status_code != 429 and response.status_code < 500:
                    raise failure
                pause = asked_pause_s(response.headers.get("retry-after"), pause)
            if number < self._retries:
                if pause > _LONGEST_PAUSE_S:
                    raise ChatError(f"{failure}; it asks for a pause of {pause:.0f} s", failure.status)
                time.sleep(pause)
        raise ChatError(f"{failure} ({1 + self._retries} tries)", failure.status)

    def _read(self, content: bytes) -> Choice:
        try:
            reply = _Reply.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ChatError(f"{self._url}: not a chat completion: {where}: {first['msg']}") from None
        return reply.choices[0].model_copy(update={"model": reply.model})


def authorization(variable: str | None) -> dict[str, str]:
    """The header with the key in an environment variable. Raises UserError if that is not set."""
    if variable is None:
        return {}
    if not (key := read_secret(variable)):
        raise UserError(f"the environment variable {variable}, for the API key, is not set")
    return {"Authorization": f"Bearer {key}"}


def asked_pause_s(header: str | None, otherwise: float) -> float:
    """Seconds that a Retry-After header asks for, as a number or as a date; `otherwise` if neither."""
    if header is None:
        return otherwise
    try:
        seconds = float(header)
    except ValueError:
        try:
            when = parsedate_to_datetime(header)
        except ValueError:
            return otherwise
        seconds = (when.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else otherwise


Format = Literal["png", "jpeg"]


def user_turn(
    text: str, images: Sequence[np.ndarray], image_first: bool = True, kind: Format = "png"
) -> dict[str, Any]:
    """A user's message: a text, and images uint8 [H, W, 3] before or after it."""
    pictures = [{"type": "image_url", "image_url": {"url": data_url(image, kind)}} for image in images]
    question = [{"type": "text", "text": text}]
    return {"role": "user", "content": pictures + question if image_first else question + pictures}


def data_url(image: np.ndarray, kind: Format = "png") -> str:
    """uint8 [H, W, 3] inside a URL: lossless as a PNG, or as a JPEG of quality 95."""
    options = {"compress_level": 1} if kind == "png" else {"quality": 95}
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format=kind.upper(), **options)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()
