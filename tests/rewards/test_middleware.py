"""The gateway's doors around an app that only says how much it read."""

import asyncio
import hashlib
import os
from collections import Counter

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import ValidationError

from policy.errors import UserError
from rewards.config import GatewayConfig, RewardsConfig
from rewards.expert import check_experts
from rewards.middleware import (
    CountReplies,
    LimitBody,
    LimitConcurrency,
    RequireToken,
    digests,
    token_digest,
)
from rewards.serving import start_serve

TOKEN = "correct horse battery staple"


def app_behind(door, **options) -> FastAPI:
    app = FastAPI()
    app.add_middleware(door, **options)

    @app.post("/read")
    async def read(request: Request) -> int:
        return len(await request.body())

    @app.get("/healthz")
    async def healthz() -> int:
        return 0

    return app


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


async def slowly(pause_s: float):
    for _ in range(5):
        await asyncio.sleep(pause_s)
        yield b"x"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearer wrong", 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer {TOKEN} ", 200),
        (f"bearer {TOKEN}", 200),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Bearer {TOKEN}x", 401),
    ],
)
def test_only_the_token_opens(header, status):
    async def post():
        app = app_behind(RequireToken, digest=hashlib.sha256(TOKEN.encode()).digest())
        async with client(app) as http:
            headers = {"authorization": header} if header else {}
            health = await http.get("/healthz")
            return await http.post("/read", content=b"abc", headers=headers), health

    reply, health = asyncio.run(post())
    assert reply.status_code == status
    assert health.status_code == 200
    if status == 401:
        assert reply.headers["www-authenticate"] == "Bearer"


def test_more_requests_than_are_served_at_once_get_a_429_and_retry_after():
    async def post():
        counts: Counter[int] = Counter()
        app = app_behind(LimitConcurrency, most=2)
        app.add_middleware(CountReplies, counts=counts)
        async with client(app) as http:
            slow = [asyncio.create_task(http.post("/read", content=slowly(0.01))) for _ in range(2)]
            await asyncio.sleep(0.02)
            refused = await http.post("/read", content=b"abc")
            health = await http.get("/healthz")
            served = [r.status_code for r in await asyncio.gather(*slow)]
            after = await http.post("/read", content=b"abc")
        return refused, health.status_code, served, after.json(), counts

    refused, health, served, after, counts = asyncio.run(post())
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert (health, served, after) == (200, [200, 200], 3)
    assert counts == {200: 4, 429: 1}


def test_a_body_that_drips_is_cut_off():
    async def post(timeout_s):
        app = app_behind(LimitBody, max_bytes=100, timeout_s=timeout_s)
        async with client(app) as http:
            return await http.post("/read", content=slowly(0.03))

    assert asyncio.run(post(0.05)).status_code == 408
    assert asyncio.run(post(60)).json() == 5


# --- the token ---


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "gateway.example.org"])
def test_an_open_address_needs_a_token(host):
    with pytest.raises(ValidationError, match="can be reached from other machines: set token_env"):
        GatewayConfig(host=host)
    assert not GatewayConfig(host=host, token_env="SECRET").is_local


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_none(host):
    assert GatewayConfig(host=host).is_local
    assert token_digest(GatewayConfig(host=host)) is None


def test_processes_inherit_the_digest_of_the_token_and_not_the_token(monkeypatch):
    monkeypatch.setenv("BICOT_TOKEN", f"{TOKEN}\n")
    gateway = GatewayConfig(token_env="BICOT_TOKEN")
    digest = hashlib.sha256(TOKEN.encode())
    assert [token_digest(gateway), token_digest(gateway)] == [digest.digest()] * 2
    assert os.environ["BICOT_TOKEN"] == f"sha256:{digest.hexdigest()}"
    assert digests() == {"BICOT_TOKEN": f"sha256:{digest.hexdigest()}"}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "is not set"),
        ("", "is not set"),
        ("abc", "shorter"),
        ("sésame, ouvre-toi, sésame", "printable ASCII"),
        ("open sesame,\nopen sesame", "printable ASCII"),
        ("sha256:" + "0" * 8, "shorter"),
    ],
)
def test_a_token_that_is_none_is_found_before_anything_starts(monkeypatch, value, why):
    monkeypatch.delenv("BICOT_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("BICOT_TOKEN", value)
    gateway = GatewayConfig(host="0.0.0.0", token_env="BICOT_TOKEN")
    experts = {"count": {"use": "examples.shapes.experts:CountExpert"}}
    config = RewardsConfig(experts=experts, gateway=gateway)
    for refuses in (lambda: check_experts(config), lambda: start_serve(gateway)):
        with pytest.raises(UserError, match=f"variable BICOT_TOKEN .*{why}"):
            refuses()
