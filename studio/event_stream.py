"""A reply of server-sent events."""

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


def sse(kind: str, data: Mapping[str, Any]) -> bytes:
    """One event."""
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


class EventStream(StreamingResponse):
    """Events as they come. `release` is called when they end, or the client goes away."""

    def __init__(self, lines: AsyncGenerator[bytes, None], release: Callable[[], None]):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self._lines, self._release = lines, release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._lines):
                await super().__call__(scope, receive, send)
        finally:
            self._release()
