"""An expert of another cluster, behind its gateway, with a token and a narrow door."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest

from examples.shapes.experts import ObjectsExpert
from policy.prompts import parse_prompt, plain_prompt
from rewards.gateway import start_gateway
from rewards.remote import RemoteExpert, RemoteExpertError
from tests.rewards.asking_the_gateway import CIRCLE, CONFIG, ROW, encoded, form, metric
from tests.rewards.drawing import draw
from tests.rewards.experts_for_tests import Boxes

pytestmark = pytest.mark.serve

TOKEN = "correct horse battery staple"


def test_a_remote_expert_says_what_the_expert_says(http):
    prompts = [parse_prompt(json.loads(ROW)), plain_prompt("x"), parse_prompt(json.loads(ROW))]
    local, remote = ObjectsExpert(), RemoteExpert(str(http.base_url), "objects")
    assert remote.pass_threshold == local.pass_threshold
    assert remote.applies_to(prompts) == [True, False, True]
    assert remote.applies(prompts[0])
    images = [CIRCLE, draw(("blue", "circle", 2, 2))]
    found, wanted = remote.score(images, prompts[::2]), local.score(images, prompts[::2])
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-6)
    assert found.explanation == wanted.explanation
    boxed = RemoteExpert(str(http.base_url), "boxes").score([CIRCLE], prompts[:1])
    assert boxed.boxes == Boxes().score([CIRCLE], prompts[:1]).boxes


def test_a_remote_expert_makes_nothing_up(http):
    url, prompt = str(http.base_url), plain_prompt("x")
    with pytest.raises(RemoteExpertError, match=r"there is no expert nobody at .*; there are objects,"):
        RemoteExpert(url, "nobody")
    with pytest.raises(RemoteExpertError, match="gave no score for 'x': it does not apply"):
        RemoteExpert(url, "objects").score([CIRCLE], [prompt])
    with pytest.raises(RemoteExpertError, match="gave no score for 'x': expert broken failed 1 times"):
        RemoteExpert(url, "broken").score([CIRCLE], [prompt])
    with pytest.raises(RemoteExpertError, match=r"status 413: .*more than 10000 pixels"):
        RemoteExpert(url, "bright").score([np.zeros((101, 100, 3), np.uint8)], [prompt])
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with pytest.raises(RemoteExpertError, match="did not answer: ConnectError"):
            RemoteExpert(f"http://127.0.0.1:{port}", "bright", retries=1)


# --- other doors at the same address ---


@pytest.fixture
def narrow(http, monkeypatch):
    """The gateway once more, with a token, for one request at a time."""
    monkeypatch.setenv("BICOT_TEST_TOKEN", TOKEN)
    monkeypatch.setenv("BICOT_CLIENT_TOKEN", f"{TOKEN}\n")
    limits = {"token_env": "BICOT_TEST_TOKEN", "max_concurrent": 1}
    config = CONFIG.model_copy(update={"gateway": CONFIG.gateway.model_copy(update=limits)})
    yield start_gateway(config)
    start_gateway(CONFIG)


def test_a_token_and_a_narrow_door(narrow, monkeypatch):
    with httpx.Client(base_url=narrow, timeout=30) as stranger:
        assert stranger.get("/healthz").status_code == 200
        assert stranger.get("/readyz").status_code == 200
        for path in ("/v1/experts", "/metrics"):
            assert stranger.get(path).status_code == 401
        assert stranger.post("/v1/score", **form(encoded(CIRCLE))).status_code == 401
        scheme = stranger.get("/openapi.json").json()["components"]["securitySchemes"]
        assert scheme == {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
    with pytest.raises(RemoteExpertError, match="status 401"):
        RemoteExpert(narrow, "bright")

    # Eight clients at a door for one: refused for now (429), they try again, and lose nothing.
    experts = [RemoteExpert(narrow, "bright", "BICOT_CLIENT_TOKEN", retries=30) for _ in range(8)]
    greys = [np.full((4, 4, 3), 30 * n, np.uint8) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda e, g: e.score([g], [plain_prompt("x")]).values, experts, greys))
    np.testing.assert_allclose(np.ravel(values), [30 * n / 255 for n in range(8)], rtol=1e-6)
    headers = {"authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=narrow, headers=headers) as known:
        assert metric(known, "bicot_gateway_replies_total", status="429") > 0
    monkeypatch.delenv("BICOT_CLIENT_TOKEN")
    for variable in ("BICOT_CLIENT_TOKEN", "BICOT_TEST_TOKEN"):  # the second holds a digest by now
        with pytest.raises(RemoteExpertError, match=f"{variable} holds no token"):
            RemoteExpert(narrow, "bright", variable)


class Endless(BaseHTTPRequestHandler):
    """A reply that never ends."""

    sent = 0

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(2**20))
                Endless.sent += 1
        except OSError:
            pass  # the client has had enough

    def log_message(self, *_):
        pass


def test_a_reply_without_an_end_is_cut_off():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(RemoteExpertError, match="the reply is larger than 16777216 bytes"):
        RemoteExpert(f"http://127.0.0.1:{server.server_port}", "bright", retries=0)
    server.shutdown()
    assert Endless.sent < 64  # MiB: what was read, and what the system had buffered
