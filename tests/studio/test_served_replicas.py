"""The model on two replicas: both work, they draw the same, and one goes on alone."""

import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from cluster.config import load_config
from studio.serve_model import start_model, stop_model
from tests.conftest import ROOT
from tests.studio.conftest import model_replicas

pytestmark = [pytest.mark.serve, pytest.mark.slow]

SETTINGS = ["serve.port=0", "serve.replicas=2", "actors.batch_size=4"]
DRAWN = re.compile(r'bicot_model_batch_images_sum\{replica="([^"]+)"\} ([\d.]+)')


@pytest.fixture(scope="module")
def http(local_ray):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        url = start_model(load_config(ROOT / "examples/shapes/train.yaml", SETTINGS))
    with httpx.Client(base_url=url, timeout=120) as client:
        yield client
    stop_model()


def drawn_by_replica(http: httpx.Client) -> dict[str, float]:
    return {name: float(count) for name, count in DRAWN.findall(http.get("/metrics").text)}


def draw(http: httpx.Client, number: int) -> httpx.Response:
    """Every third request has the same seed."""
    body = {"prompt": "two red circles", "n": 2, "seed": number % 3}
    return http.post("/v1/images/generations", json=body)


def test_two_replicas_share_the_work_and_draw_the_same(http):
    with ThreadPoolExecutor(8) as clients:
        replies = list(clients.map(lambda n: draw(http, n), range(24)))
    assert {reply.status_code for reply in replies} == {200}
    drawn = drawn_by_replica(http)
    assert len(drawn) == 2 and min(drawn.values()) > 0
    assert sum(drawn.values()) == 48
    images = Counter(reply.json()["data"][0]["b64_json"] for reply in replies)
    assert sorted(images.values()) == [8, 8, 8]


def test_one_replica_goes_on_alone_until_the_other_is_back(http):
    before = set(drawn_by_replica(http))
    model_replicas()[0].kill()
    with ThreadPoolExecutor(4) as clients:
        statuses = [reply.status_code for reply in clients.map(lambda n: draw(http, n), range(24))]
    assert set(statuses) <= {200, 503}
    assert statuses[-1] == 200  # by then Serve knows
    deadline = time.monotonic() + 120
    while len(now := drawn_by_replica(http)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(now) == 2 and len(before - set(now)) == 1
    assert draw(http, 0).status_code == 200
