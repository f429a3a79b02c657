"""A head of a request that does not come, over real connections."""

import socket
import threading
import time

import httpx
import pytest
import uvicorn

from rewards import proxy
from rewards.proxy import LimitedHead

pytestmark = pytest.mark.unit


async def says_hello(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setattr(proxy, "HEAD_TIMEOUT_S", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(says_hello, http=LimitedHead, lifespan="off", log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()
        server.should_exit = True
        thread.join()


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    connection.settimeout(60)
    return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: "])
def test_a_head_that_does_not_come_ends_the_connection(address, sent):
    with socket.create_connection(address) as connection:
        connection.sendall(sent)
        assert answer(connection).startswith(b"HTTP/1.1 408 Request Timeout\r\n")


def test_a_head_without_an_end_ends_the_connection(address):
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * (proxy.HEAD_BYTES + 1))
        assert answer(connection).startswith(b"HTTP/1.1 431 ")


def test_a_body_may_take_longer_than_a_head(address):
    def slowly():
        for _ in range(3):
            time.sleep(0.3)
            yield b"x"

    url = f"http://{address[0]}:{address[1]}"
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.post("/", content=slowly()).text == "hello"
        assert client.post("/", content=bytes(2**20)).text == "hello"
