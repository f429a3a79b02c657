"""Does the gateway stand its ground? `python -m benchmarks.gateway --clients 200 --seconds 60`.

A real gateway before the shapes experts, on the loopback address, with a token. Clients ask it as fast
as it lets them; one request in four is malformed on purpose. Looked for: no reply of 500 or more, every
malformed request refused as what it is, and processes that do not grow (resident sizes in the first
against the last third of the run, after a warm-up). Exit status 1 where one of these fails.
"""

import argparse
import asyncio
import json
import os
import pickle
import random
import secrets
import struct
import sys
import time
import zlib
from base64 import b64encode
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from io import BytesIO

import httpx
import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

from cluster.config import RayConfig, load_config
from cluster.ray_session import ray_session
from rewards.config import GatewayConfig
from rewards.gateway import start_gateway
from rewards.serving import deploy_experts

TOKEN_ENV = "BICOT_BENCHMARK_TOKEN"
MAX_BODY_MB = 1.0
PARTS = 6  # of the run, in the table of sizes
GROWTH = 1.05  # of a process's mean size, from the first to the last third
ROW = json.dumps({"prompt": "a red circle", "task_type": "color", "attr_nouns": ["red circle"]})


def encoded(kind: str, side: int = 96) -> bytes:
    out = BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(out, kind)
    return out.getvalue()


def bomb() -> bytes:
    """The header of an image of 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4)


def form(*files: bytes, prompt: str = ROW) -> dict:
    return {"files": [("image", ("x", data)) for data in files], "data": {"prompt": prompt}}


def as_json(*files: bytes) -> dict:
    return {"json": {"prompt": ROW, "images": [b64encode(data).decode() for data in files]}}


PNG, JPEG, WEBP = encoded("PNG"), encoded("JPEG"), encoded("WEBP")
GOOD = {"png": form(PNG), "jpeg, webp": form(JPEG, WEBP), "base64": as_json(PNG, JPEG)}
BAD = {
    "not an image": (415, form(b"hello")),
    "cut off": (415, form(PNG[: len(PNG) // 2])),
    "bomb": (413, form(bomb())),
    "large body": (413, {"content": bytes(2 * 2**20), "headers": {"content-type": "application/json"}}),
    "no base64": (422, {"json": {"prompt": "x", "images": ["!"]}}),
    "half a JSON": (422, {"content": b'{"a', "headers": {"content-type": "application/json"}}),
    "wrong prompt": (422, form(PNG, prompt='{"prompt": 3}')),
    "pickle": (415, {"content": pickle.dumps(1), "headers": {"content-type": "application/x-pickle"}}),
    "no token": (401, form(PNG) | {"headers": {"authorization": ""}}),
}


@dataclass
class StepMetrics:
    """What came back: statuses by kind of request, seconds of the good ones, and what is wrong."""

    statuses: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    seconds: list[float] = field(default_factory=list)
    wrong: Counter = field(default_factory=Counter)

    def note(self, kind: str, expected: int, status: int, took_s: float) -> None:
        self.statuses[kind][status] += 1
        if status == 200:
            self.seconds.append(took_s)
        if status not in (expected, 429):
            self.wrong[f"{kind}: {status} instead of {expected}"] += 1


async def client(http: httpx.AsyncClient, tally: StepMetrics, end: float, seed: int) -> None:
    """One request after another; it comes back later when it is told to."""
    chance = random.Random(seed)
    while time.monotonic() < end:
        if chance.random() < 0.25:
            kind = chance.choice(list(BAD))
            expected, request = BAD[kind]
        else:
            kind = chance.choice(list(GOOD))
            expected, request = 200, GOOD[kind]
        started = time.monotonic()
        try:
            reply = await http.post("/v1/score", **request)
        except httpx.TransportError as error:  # the server hung up on a body that it refused
            tally.statuses[kind][type(error).__name__] += 1
            if expected == 200:
                tally.wrong[f"{kind}: {type(error).__name__}"] += 1
            continue
        tally.note(kind, expected, reply.status_code, time.monotonic() - started)
        if reply.status_code == 429:
            await asyncio.sleep(float(reply.headers["retry-after"]) * (0.5 + chance.random()))


def sizes() -> dict[str, float]:
    """Resident MB of the processes of Serve, by name."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            title = process.cmdline()[0]
            if title.startswith(("ray::ServeReplica", "ray::ProxyActor", "ray::ServeController")):
                found[title.removeprefix("ray::").split(".")[0]] = process.memory_info().rss / 2**20
        except (psutil.Error, IndexError):
            continue  # it ended meanwhile
    return found


async def watch(sizes_over_time: dict[str, list[float]], end: float) -> None:
    while time.monotonic() < end:
        for name, megabytes in sizes().items():
            sizes_over_time[name].append(megabytes)
        await asyncio.sleep(1.0)


async def storm(url: str, token: str, clients: int, seconds: float) -> tuple[StepMetrics, dict]:
    tally = StepMetrics()
    grown: dict[str, list[float]] = defaultdict(list)
    end = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=120) as http:
        await asyncio.gather(
            watch(grown, end), *(client(http, tally, end, seed) for seed in range(clients))
        )
    return tally, grown


def report(tally: StepMetrics, grown: dict[str, list[float]], seconds: float, console: Console) -> bool:
    """Prints what was seen; whether all of it is as it should be."""
    table = Table("request", "replies", title="replies by status")
    for kind, statuses in tally.statuses.items():
        table.add_row(kind, ", ".join(f"{status}: {n}" for status, n in statuses.most_common()))
    console.print(table)
    p50, p95 = np.quantile(tally.seconds, [0.5, 0.95])
    console.print(
        f"scored {len(tally.seconds)} requests, {len(tally.seconds) / seconds:.1f} a second: "
        f"p50 {p50:.3f} s, p95 {p95:.3f} s, longest {max(tally.seconds):.3f} s"
    )
    names = [f"{n + 1}/{PARTS}" for n in range(PARTS)]
    table = Table("process", *names, "last third / first", title="resident MB over the run")
    flat = True
    for name, series in sorted(grown.items()):
        means = [float(np.mean(part)) for part in np.array_split(series, PARTS) if len(part)]
        third = max(1, len(series) // 3)
        growth = float(np.mean(series[-third:]) / np.mean(series[:third]))
        flat = flat and growth < GROWTH
        table.add_row(name.removeprefix("ServeReplica:"), *(f"{m:.1f}" for m in means), f"{growth:.3f}")
    console.print(table)
    for wrong, n in tally.wrong.items():
        console.print(f"[red]{n} times {wrong}[/red]")
    if not flat:
        console.print(f"[red]a process grew by more than {GROWTH - 1:.0%}[/red]")
    return flat and not tally.wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warmup", type=float, default=60, help="seconds that are not measured")
    args = parser.parse_args()
    console = Console(width=max(100, Console().width))
    token = os.environ[TOKEN_ENV] = secrets.token_hex(16)
    door = GatewayConfig(port=0, token_env=TOKEN_ENV, max_body_mb=MAX_BODY_MB)
    rewards = load_config("examples/shapes/train.yaml").rewards.model_copy(update={"gateway": door})
    with ray_session(RayConfig(dashboard=False), 2, console):
        deploy_experts(rewards)
        url = start_gateway(rewards)
        asyncio.run(storm(url, token, args.clients, args.warmup))
        tally, grown = asyncio.run(storm(url, token, args.clients, args.seconds))
    sys.exit(0 if report(tally, grown, args.seconds, console) else 1)


if __name__ == "__main__":
    main()
