"""The model on a real Ray Serve, asked by OpenAI's own client."""

import base64
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from openai import (
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
)
from ray import serve

from cluster.config import load_config
from policy.errors import UserError
from studio.serve_model import start_model, stop_model
from tests.conftest import ROOT
from tests.studio.conftest import model_replicas
from tests.studio.test_images_api import TWO, pixels

pytestmark = pytest.mark.serve

TOKEN = "correct horse battery staple"
TRAIN = ROOT / "examples/shapes/train.yaml"
SETTINGS = ["serve.port=0", "serve.token_env=BICOT_STUDIO_TOKEN", "actors.batch_size=8"]


@pytest.fixture(scope="module")
def url(local_ray):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("BICOT_STUDIO_TOKEN", TOKEN)
        yield start_model(load_config(TRAIN, SETTINGS))
    stop_model()
    assert serve.status().applications == {}


@pytest.fixture(scope="module")
def client(url):
    with OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0, timeout=60) as client:
        yield client


def test_images_come_as_openais_client_knows_them(client):
    images = client.images.generate(
        model="shapes", prompt=TWO, n=2, size="24x24", extra_body={"seed": 7}
    )
    assert images.size == "24x24"
    assert images.usage.output_tokens_details.image_tokens == 72
    assert [pixels(image.b64_json).shape for image in images.data] == [(24, 24, 3)] * 2
    assert all(image.revised_prompt for image in images.data)
    assert images.data[0].b64_json != images.data[1].b64_json
    again = client.images.generate(prompt=TWO, extra_body={"seed": 7})
    assert again.data == images.data[:1]


def test_an_image_is_that_of_the_model_alone(client, ask):
    """The replica behind Ray Serve, and one in this process."""
    (here,) = ask({"prompt": TWO, "seed": 7})
    there = client.images.generate(prompt=TWO, extra_body={"seed": 7})
    assert there.data[0].b64_json == here.json()["data"][0]["b64_json"]


def test_a_stream_comes_as_openais_client_knows_it(client):
    came = list(
        client.images.generate(prompt=TWO, stream=True, partial_images=2, extra_body={"seed": 7})
    )
    kinds = [event.type.removeprefix("image_generation.") for event in came]
    assert kinds[0] == "cot.delta"
    assert kinds[-4:] == ["cot.done", "partial_image", "partial_image", "completed"]
    cot = "".join(event.delta for event in came if event.type.endswith("delta"))
    assert cot.strip() == came[-1].revised_prompt
    whole, *_ = client.images.generate(prompt=TWO, extra_body={"seed": 7}).data
    assert came[-1].b64_json == whole.b64_json
    assert base64.b64decode(came[-2].b64_json) != base64.b64decode(whole.b64_json)
    assert came[-1].usage.output_tokens > 36


def test_refusals_come_as_openais_client_knows_them(client, url):
    with pytest.raises(BadRequestError) as size:
        client.images.generate(prompt=TWO, size="1024x1024")
    assert (size.value.param, size.value.type) == ("size", "invalid_request_error")
    with pytest.raises(BadRequestError) as long:
        client.images.generate(prompt="red " * 200, stream=True)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(NotFoundError):
        client.images.generate(prompt=TWO, model="dall-e-3")
    stranger = OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(AuthenticationError) as token:
        stranger.images.generate(prompt=TWO)
    assert token.value.code == "invalid_api_key"


def test_state(client, url):
    assert [model.id for model in client.models.list()] == ["shapes"]
    assert client.models.retrieve("shapes").owned_by == "bicot"
    assert httpx.get(f"{url}/healthz").json() == {"status": "alive"}
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
    assert httpx.get(f"{url}/metrics").status_code == 401
    assert httpx.get(f"{url}/docs").status_code == 200


def numbers(http: httpx.Client) -> dict[str, float]:
    """What the one replica counted."""
    lines = http.get("/metrics").text.splitlines()
    rows = (line.split() for line in lines if line.startswith("bicot_model_") and "le=" not in line)
    return {row[0].split("{")[0].removeprefix("bicot_model_"): float(row[1]) for row in rows}


def send(url: str, body: dict) -> socket.socket:
    """A request whose reply nobody reads; closing the socket is to hang up."""
    where, payload = urlsplit(url), json.dumps(body)
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nhost: {where.netloc}\r\n"
        f"authorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(payload)}\r\n\r\n"
    )
    connection = socket.create_connection((where.hostname, where.port), timeout=60)
    connection.sendall((head + payload).encode())
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_frees_his_place(url, stream):
    headers = {"authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
        before = numbers(http)
        bodies = [{"prompt": TWO, "n": 10, "seed": n, "stream": stream} for n in range(20)]
        connections = [send(url, body) for body in bodies]
        deadline = time.monotonic() + 60
        while numbers(http)["waiting_images"] < 100:
            assert time.monotonic() < deadline
        for connection in connections:
            connection.close()
        while (now := numbers(http))["held"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert now["held"] == now["waiting_images"] == 0
        left = now["cancelled_requests_total"] - before["cancelled_requests_total"]
        begun = now["batch_images_sum"] - before["batch_images_sum"]
        assert left > 0
        assert begun < 200  # images: the others were never drawn
        reply = http.post("/v1/images/generations", json={"prompt": TWO, "n": 2})
        assert reply.status_code == 200
        assert np.ptp(pixels(reply.json()["data"][0]["b64_json"])) > 0


def test_a_lost_replica_is_replaced_and_its_requests_hear_of_it(client, url):
    headers = {"authorization": f"Bearer {TOKEN}"}
    failed: list[InternalServerError] = []

    def ask() -> None:
        try:
            client.images.generate(prompt=TWO, n=10)
        except InternalServerError as error:
            failed.append(error)

    with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
        asking = [threading.Thread(target=ask) for _ in range(10)]
        for thread in asking:
            thread.start()
        while not numbers(http)["held"]:
            assert any(thread.is_alive() for thread in asking)
        (replica,) = model_replicas()
        replica.kill()
        for thread in asking:
            thread.join()
    assert failed
    assert {(error.status_code, error.type) for error in failed} == {(503, "server_error")}
    assert len(client.images.generate(prompt=TWO, timeout=120).data) == 1


def test_a_port_that_others_have_is_refused(url):
    with pytest.raises(UserError, match=r"already runs on this cluster.*or set serve to that address"):
        start_model(load_config(TRAIN, ["serve.port=1", *SETTINGS[1:]]))
