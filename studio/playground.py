"""Passes a page's requests for images on to `bicot serve-model`, and its events back: the browser talks
to one origin and never learns the model's token."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.responses import JSONResponse, Response

from policy.errors import UserError
from studio.event_stream import EventStream, sse

LONGEST_TEXT = 32_000
_ASK_S, _SILENCE_S, _WHOLE_S = 5.0, 600.0, 1800.0
_LARGEST = 512 * 2**20  # bytes of one reply
_PARTIAL_IMAGES = 6
_Text = Annotated[str, StringConstraints(max_length=LONGEST_TEXT)]


class GenerateRequest(BaseModel):
    """The body of the page's request for images. `cot`: a semantic CoT to draw from, or whether to
    write one."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: int = Field(0, ge=0)
    prompt: _Text
    cot: bool | _Text = True
    n: int = Field(1, ge=1, le=10)
    seed: int | None = Field(None, ge=0, lt=2**53)
    guidance: float | None = Field(None, ge=1, le=100)


class Playground:
    """The models that may be asked, by their URLs."""

    def __init__(self, urls: Sequence[str], token: str | None = None):
        """`token`: the bearer token of all of them. Raises UserError for an invalid URL."""
        self._urls = [_base(url) for url in urls]
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        limits = httpx.Timeout(_SILENCE_S, connect=_ASK_S)
        # The environment's proxy is not meant for a model on this machine.
        self._client = httpx.AsyncClient(headers=headers, timeout=limits, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """Each model's name and the size of its images, or why it does not answer."""
        return list(await asyncio.gather(*map(self._model, self._urls)))

    async def _model(self, url: str) -> dict[str, Any]:
        try:
            reply = await self._client.get(f"{url}/models", timeout=_ASK_S)
            reply.raise_for_status()
            listed = reply.json()["data"][0]
            return {"url": url, "name": str(listed["id"]), "size": str(listed.get("size", ""))}
        except httpx.HTTPStatusError as error:
            why = f"it answers with status {error.response.status_code}"
        except httpx.HTTPError as error:
            why = f"no answer: {type(error).__name__}"
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            why = "what answers there is no images API"
        return {"url": url, "name": url, "error": why}

    async def draw(self, request: GenerateRequest) -> Response:
        """The model's stream of events; or its refusal, with its status."""
        if request.model >= len(self._urls):
            return _refused(404, "there is no such model: start the page with --model URL")
        body = request.model_dump(exclude={"model"}, exclude_none=True)
        body |= {"stream": True, "partial_images": _PARTIAL_IMAGES}
        url = f"{self._urls[request.model]}/images/generations"
        async with AsyncExitStack() as stack:
            try:
                reply = await stack.enter_async_context(self._client.stream("POST", url, json=body))
                kind = reply.headers.get("content-type", "").partition(";")[0]
                if reply.status_code != 200 or kind != "text/event-stream":
                    return _refused(*await _reason(reply))
            except httpx.HTTPError as error:
                return _refused(502, f"the model does not answer: {type(error).__name__}")
            opened = stack.pop_all()
        return EventStream(_relayed(reply, opened), lambda: None)


async def _relayed(reply: httpx.Response, opened: AsyncExitStack) -> AsyncGenerator[bytes, None]:
    """Bytes as they come, until the model is done or the page goes away."""
    read = 0
    async with opened:
        try:
            async with asyncio.timeout(_WHOLE_S):
                async for piece in reply.aiter_bytes():
                    read += len(piece)
                    if read > _LARGEST:
                        yield _error_event("the model's answer is too long")
                        return
                    yield piece
        except (httpx.HTTPError, TimeoutError) as error:
            yield _error_event(f"the model's answer broke off: {type(error).__name__}")


def _error_event(message: str) -> bytes:
    return b"\n\n" + sse("error", {"error": {"message": message}})


async def _reason(reply: httpx.Response) -> tuple[int, str]:
    """Status and message of a reply that is no stream."""
    text = b""
    async for piece in reply.aiter_bytes():
        text += piece
        if len(text) > 2**16:
            break
    try:
        message = str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = "the model answers with something else than images"
    return (reply.status_code if reply.status_code >= 400 else 502), message


def _refused(status: int, message: str) -> Response:
    return JSONResponse({"detail": message[:1_000]}, status)


def _base(url: str) -> str:
    """The URL with the API's /v1 at its end, once."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UserError(f"--model {url}: no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise UserError(f"--model {url}: give a URL like http://127.0.0.1:8000")
    return url.rstrip("/").removesuffix("/v1") + "/v1"
