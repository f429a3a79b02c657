"""Limits time and size of a request's head in the process that serves HTTP.

No application sees a request before its head is complete, so nothing in rewards/middleware.py can end
it. Ray Serve's proxy runs uvicorn, which waits for a head without a limit.
"""

import asyncio

from starlette.middleware import Middleware
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 10.0
HEAD_BYTES = 2**16
CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "rewards.proxy:limit_heads"}
"""Put into the environment of Serve's processes, it has the proxy call `limit_heads` before it
listens."""


def limit_heads() -> list[Middleware]:
    """Have uvicorn use `LimitedHead` in this process. Returns no middleware, which is what Serve calls
    it for."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{LimitedHead.__name__}"
    return []


class LimitedHead(HttpToolsProtocol):
    """HTTP/1.1; a connection that is late with the head of a request is closed, after a 408, and so is
    one whose head is too large, after a 431."""

    _late: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._late is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._late is None:  # not the connection's first
            self._await_head()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_bytes = 0
        late = b"408 Request Timeout"
        self._late = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, late)

    def _head_came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self, status: bytes) -> None:
        self._head_came()
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 %s\r\nconnection: close\r\n\r\n" % status)
            self.transport.close()
