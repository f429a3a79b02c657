"""The images API around a real model, in this process: no Ray."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest
from prometheus_client.core import Metric

from actors.config import ActorsConfig
from cluster.serve_config import ServeConfig
from policy.model import PolicyConfig
from studio.images_api import build_app
from studio.model_replica import ModelReplica
from studio.records import Event, GeneratedImage, ImageTask
from tests.conftest import SHAPES

POLICY = PolicyConfig(path=str(SHAPES / "checkpoint"), templates=str(SHAPES / "templates"))
ACTORS = ActorsConfig.model_validate(
    {"batch_size": 8, "sampling": {"guidance": 1.5, "max_cot_tokens": 32}}
)


class HereModel:
    """One replica, called as it is: what Ray Serve stands between in earnest."""

    def __init__(self, replica: ModelReplica):
        self.replica = replica

    async def generate(self, tasks: Sequence[ImageTask]) -> list[GeneratedImage]:
        return await self.replica.generate(tasks)

    async def stream(
        self, tasks: Sequence[ImageTask], partial_images: int
    ) -> AsyncGenerator[list[Event], None]:
        async for events in self.replica.stream(tasks, partial_images):
            yield events

    async def metrics(self) -> dict[str, list[Metric]]:
        return {"here": await self.replica.metrics()}

    async def running(self) -> bool:
        return True


@pytest.fixture(scope="session")
def replica() -> ModelReplica:
    """The model that the shapes world starts from. Its queue belongs to no event loop between tests."""
    return ModelReplica("shapes", POLICY, ACTORS)


@pytest.fixture
def http(replica):
    """Opens a client of an API with some limits, for the length of one event loop."""

    @asynccontextmanager
    async def open_client(**limits):
        card = await replica.card()
        app = build_app(ServeConfig(**limits), card, HereModel(replica))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://images") as client:
            yield client

    return open_client


@pytest.fixture
def ask(http):
    """One request after another; their replies."""

    def ask(*bodies: dict, **limits) -> list[httpx.Response]:
        async def all_of_them() -> list[httpx.Response]:
            async with http(**limits) as client:
                return [await client.post("/v1/images/generations", json=body) for body in bodies]

        return asyncio.run(all_of_them())

    return ask
