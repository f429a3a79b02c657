"""Access control of the page: this machine's browser; from elsewhere, clients with the token.

A person gives the token once, as `?token=` or in a form, and gets a cookie that is valid until the
server stops; programs send it as a bearer token.
"""

import hashlib
import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rewards.middleware import detail

COOKIE = "bicot_studio"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_OPEN = ("/healthz", "/static/style.css")
_LONGEST_FORM = 4_096
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Door:
    """ASGI middleware. `digest`: SHA-256 of the token to ask for. Without one only requests to this
    machine by its loopback names are let in, so that no page of another site, whatever address its name
    resolves to, reads anything (DNS rebinding)."""

    def __init__(self, app: ASGIApp, digest: bytes | None, login: Path):
        self._app, self._digest, self._login = app, digest, login
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                more = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
                message["headers"] = [*message["headers"], *(h for h in more if h[0] not in there)]
            await send(message)

        reply = await self._refusal(Request(scope, receive), scope)
        await (reply or self._app)(scope, receive, with_headers)

    async def _refusal(self, request: Request, scope: Scope) -> Response | None:
        """The reply to a request that is not let in; None: it is let in."""
        headers = request.headers
        if request.method not in ("GET", "HEAD") and not _from_here(headers):
            return detail(403, "a page of another site may not do this")
        if self._digest is None:
            host = headers.get("host", "")
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            return None if name in _LOOPBACK else detail(403, "ask for it as 127.0.0.1 or localhost")
        if request.url.path == "/login" and request.method == "POST":
            return await self._log_in(request)
        if request.method == "GET" and (token := request.query_params.get("token")) is not None:
            rest = [
                (k, v) for k, v in parse_qsl(scope["query_string"].decode("latin-1")) if k != "token"
            ]
            where = quote("/" + request.url.path.lstrip("/\\"))
            return self._welcome(token, where + (f"?{urlencode(rest)}" if rest else ""))
        if request.url.path in _OPEN or self._knows(headers):
            return None
        if request.url.path.startswith("/api/"):
            return detail(401, "a token is needed", {"WWW-Authenticate": "Bearer"})
        return HTMLResponse(self._login.read_text(), 401)

    async def _log_in(self, request: Request) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > _LONGEST_FORM:
                return detail(413, "the form is too large")
        token = parse_qs(body.decode("latin-1")).get("token", [""])[0]
        return self._welcome(token, "/")

    def _welcome(self, token: str, where: str) -> Response:
        if not self._is_token(token):
            return HTMLResponse(self._login.read_text(), 401)
        reply = RedirectResponse(where, 303)
        reply.set_cookie(COOKIE, self._session, httponly=True, samesite="lax")
        return reply

    def _knows(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(token.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self._session.encode())

    def _is_token(self, token: str) -> bool:
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        return hmac.compare_digest(digest, self._digest or b"")


def _from_here(headers: Headers) -> bool:
    """Whether the request comes from the page itself, by the browser's headers; programs send none."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")
