"""The images API around a real model, and the page over runs, in this process: no Ray."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Page, expect, sync_playwright
from prometheus_client.core import Metric

from actors.config import ActorsConfig
from cluster.ledger import Entry
from cluster.serve_config import ServeConfig
from cluster.watch.evaluation import Evaluation, ScoredSample, save_evaluation
from policy.model import PolicyConfig
from policy.prompts import prompt_id
from policy.records import Box, Prompt, Sample
from studio.images_api import build_app
from studio.model_replica import ModelReplica
from studio.playground import Playground
from studio.records import Event, GeneratedImage, ImageTask
from studio.run_folders import RunFolders
from studio.web_app import build_page
from tests.conftest import SHAPES

CHROMIUM = Path("/usr/bin/chromium")
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


def model_replicas() -> list[psutil.Process]:
    """The processes that draw, of this process's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            if "".join(process.cmdline()[:1]).startswith("ray::ServeReplica:model"):
                found.append(process)
    return found


# --- the page -------------------------------------------------------------------------------------


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """An application on a free port of the loopback address, in a thread; its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until = time.monotonic() + 30
        while not server.started and time.monotonic() < until:
            time.sleep(0.02)
        assert server.started
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


class GrowingRun:
    """A run directory, written as a run writes it."""

    def __init__(self, folder: Path, steps: int = 10):
        self.folder = folder
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"name: {folder.name}\ntrain:\n  steps: {steps}\nseed: 0\n")

    def step(self, step: int, **values: float) -> None:
        """`reward_mean=0.5` is the metric reward/mean; `__` is one more `/`."""
        named = {name.replace("_", "/", 1).replace("__", "/"): v for name, v in values.items()}
        line = {"step": step, "time": float(step), "reward/mean": step / 100, **named}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def account(self, step: int, outcome: str, why: str = "") -> None:
        entry = Entry(step, step, "p", 0, 0, outcome, why=why)  # type: ignore[arg-type]
        with (self.folder / "ledger.jsonl").open("a") as file:
            file.write(json.dumps(vars(entry)) + "\n")

    def evaluate(self, step: int, *found: ScoredSample) -> Path:
        folder = self.folder / "samples" / f"eval_{step:06d}"
        save_evaluation(Evaluation(step, step, found), folder)
        return folder


def scored(
    text: str, reward: float, task: str = "color", cot: str = "a plan", index: int = 0, **scores
):
    """One sample of a flat gray, as light as its reward is high."""
    none, no_logps = np.zeros(0, np.int64), np.zeros(0, np.float32)
    image = np.full((24, 24, 3), int(255 * reward), np.uint8)
    prompt = Prompt(prompt_id(text), text, task)
    sample = Sample(prompt.id, index, 7, 1, none, none, cot, none, none, *[no_logps] * 3, image, "stop")
    boxes = {name: (Box("circle", 1.0, (0.25, 0.25, 0.75, 0.75)),) for name in scores}
    explanations = {name: f"{name} saw a circle" for name in scores}
    return ScoredSample(prompt, sample, reward, reward > 0.5, None, scores, explanations, boxes)


@pytest.fixture
def runs(tmp_path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def browser():
    """Of one module's tests: while it is open, this thread has an event loop that no other may join."""
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is not there")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A tab, in which nothing may go wrong unseen."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(20_000)
    expect.set_options(timeout=20_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    yield page
    page.close()
    assert not wrong


@pytest.fixture
def open_page(runs, page):
    """Opens a view of the page over `runs`; it is served until the test is over."""
    servers = []

    def open_view(view: str, *models: str) -> Page:
        server = serving(build_page(RunFolders(runs), Playground(models)))
        servers.append(server)
        page.goto(f"{server.__enter__()}/#/{view}")
        return page

    yield open_view
    page.goto("about:blank")  # asks no more
    for server in servers:
        server.__exit__(None, None, None)
