"""The environment's proxy, which nothing on this machine is asked through."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from policy.errors import UserError
from rewards.http import http_client

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def port():
    with HTTPServer(("127.0.0.1", 0), Hello) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(params=["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def proxy(request, monkeypatch):
    """Where nobody listens, or what takes a package that is not there."""
    for name in PROXIES:
        monkeypatch.setenv(name, request.param)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost", "0.0.0.0"])
def test_no_proxy_comes_between_us_and_this_machine(port, proxy, host):
    with http_client(f"http://{host}:{port}/v1") as client:
        assert client.get(f"http://{host}:{port}/v1").status_code == 204


@pytest.mark.parametrize("url", ["http://[::1]:80", "http://[::ffff:127.0.0.1]", "http://a.localhost"])
def test_other_names_of_this_machine(proxy, url):
    assert not http_client(url)._mounts


def test_a_proxy_that_cannot_be_used_is_refused_with_the_server_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "socksio", None)
    for proxy in ("socks5://127.0.0.1:9", "ftp://127.0.0.1:9"):
        monkeypatch.setenv("all_proxy", proxy)
        with pytest.raises(UserError, match=r"http://far\.example: the environment's proxy"):
            http_client("http://far.example")
    with pytest.raises(UserError, match="not an address"):
        http_client("http://far.example:port")
