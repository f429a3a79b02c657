"""ASGI middleware for HTTP access: tokens, concurrency and size of bodies, checked on the bytes as they
come, before anything is parsed."""

import asyncio
import hashlib
import hmac
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from policy.errors import UserError
from rewards.config import HttpConfig
from rewards.http import DIGEST, read_secret

_MIN_TOKEN = 16  # characters
_OPEN = ("/healthz", "/readyz", "/docs", "/openapi.json")  # show nothing that is not public anyway


Refusal = Callable[[int, str, Mapping[str, str] | None], Response]
"""Makes the reply that refuses a request, from a status, the reason, and more headers."""


def detail(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    """A refusal in FastAPI's form."""
    return JSONResponse({"detail": reason}, status, headers)


def token_digest(gateway: HttpConfig) -> bytes | None:
    """SHA-256 of the token to ask for; None: no token is needed.

    From the first call on the environment variable holds "sha256:" and the digest in hex instead:
    processes that start later inherit it, experts among them. Raises UserError if the variable is not
    set, or holds no token.
    """
    if gateway.token_env is None:
        return None
    token = read_secret(gateway.token_env)
    if re.fullmatch(f"{DIGEST}[0-9a-f]{{64}}", token):
        return bytes.fromhex(token.removeprefix(DIGEST))
    if len(token) < _MIN_TOKEN:
        how = "is not set" if not token else f"is shorter than {_MIN_TOKEN} characters"
        raise UserError(
            f"{gateway.key}.token_env: the environment variable {gateway.token_env} {how}; set it, "
            f"for example: export {gateway.token_env}=$(openssl rand -hex 32)"
        )
    digest = hashlib.sha256(token.encode())
    os.environ[gateway.token_env] = DIGEST + digest.hexdigest()
    return digest.digest()


def digests() -> dict[str, str]:
    """The environment variables in which `token_digest` put a digest: for processes on nodes whose own
    environment may hold the token."""
    return {name: value for name, value in os.environ.items() if value.startswith(DIGEST)}


class RequireToken:
    """ASGI middleware: 401 without the right bearer token, except for health and description."""

    def __init__(self, app: ASGIApp, digest: bytes, refuse: Refusal = detail):
        self._app, self._digest, self._refuse = app, digest, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["path"] not in _OPEN
            and not self._knows(Headers(scope=scope))
        ):
            reply = self._refuse(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
            await reply(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        return hmac.compare_digest(digest, self._digest) and scheme.lower() == "bearer"


class LimitConcurrency:
    """ASGI middleware: of POST requests, `most` at once; others get 429 and may come back."""

    def __init__(self, app: ASGIApp, most: int, refuse: Refusal = detail):
        self._app, self._most, self._refuse, self._now = app, most, refuse, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._now >= self._most:
            reply = self._refuse(429, "too many requests at once", {"Retry-After": "1"})
            await reply(scope, receive, send)
            return
        self._now += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._now -= 1


class LimitBody:
    """ASGI middleware: a body over the limit gets 413, one that takes too long 408. What
    Content-Length claims is used only to refuse early; the bytes are counted as they come."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float, refuse: Refusal = detail):
        self._app, self._max_bytes, self._timeout_s, self._refuse = app, max_bytes, timeout_s, refuse
        self._reason = f"the request body is larger than {max_bytes} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        claimed = Headers(scope=scope).get("content-length", "")
        if claimed.isdecimal() and int(claimed) > self._max_bytes:
            await self._refuse(413, self._reason, None)(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        read, more = 0, True

        async def counted() -> Message:
            nonlocal read, more
            if not more:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body took longer than {self._timeout_s:g} s") from None
            read += len(message.get("body", b""))
            more = message.get("more_body", False)
            if read > self._max_bytes:
                raise HTTPException(413, self._reason)
            return message

        await self._app(scope, counted, send)


class CountReplies:
    """ASGI middleware: how many replies there were of each status."""

    def __init__(self, app: ASGIApp, counts: Counter[int]):
        self._app, self._counts = app, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counts[message["status"]] += 1
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)
