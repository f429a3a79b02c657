"""Does the gateway withstand attacks? `python -m benchmarks.gateway --clients 60 --seconds 60`.

A real gateway before the shapes experts, on the loopback address, with a token. Honest clients send
requests as fast as it lets them: first alone, then beside a third as many attackers, who send malformed
requests, or small and costly ones, and beside connections that never send a whole head. It checks that
no reply is 500 or more, that every attack is refused with the right status, that honest requests' p95
is at most twice that without attackers, and that processes do not grow (resident sizes in the first
against the last third of the attack, after a warm-up). Exit status 1 if a check fails.
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
SLOWER = 2.0  # honest requests' p95 under attack, over that without
SLOW_HEADS = 20  # connections at once
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


def scans(count: int) -> bytes:
    """A JPEG of 4096 x 4096 pixels with `count` scans."""
    out = BytesIO()
    Image.new("L", (4096, 4096), 128).save(out, "JPEG", progressive=True)
    scan = out.getvalue()[out.getvalue().rfind(b"\xff\xda") : -2]
    return out.getvalue()[:-2] + scan * count + b"\xff\xd9"


def thin() -> bytes:
    out = BytesIO()
    Image.new("L", (20_000, 1)).save(out, "PNG")
    return out.getvalue()


def form(*files: bytes, prompt: str = ROW) -> dict:
    return {"files": [("image", ("x", data)) for data in files], "data": {"prompt": prompt}}


def as_json(*files: bytes) -> dict:
    return {"json": {"prompt": ROW, "images": [b64encode(data).decode() for data in files]}}


def raw(content: bytes, kind: str = "application/json") -> dict:
    return {"content": content, "headers": {"content-type": kind}}


PNG, JPEG, WEBP = encoded("PNG"), encoded("JPEG"), encoded("WEBP")
TINY = encoded("PNG", side=1)
GOOD = {"png": form(PNG), "jpeg, webp": form(JPEG, WEBP), "base64": as_json(PNG, JPEG)}
BAD = {
    "not an image": (415, form(b"hello")),
    "cut off": (415, form(PNG[: len(PNG) // 2])),
    "bomb": (413, form(bomb())),
    "large body": (413, raw(bytes(2 * 2**20))),
    "no base64": (422, {"json": {"prompt": "x", "images": ["!"]}}),
    "half a JSON": (422, raw(b'{"a')),
    "wrong prompt": (422, form(PNG, prompt='{"prompt": 3}')),
    "pickle": (415, raw(pickle.dumps(1), "application/x-pickle")),
    "no token": (401, form(PNG) | {"headers": {"authorization": ""}}),
    "no form": (400, raw(b"hello", "multipart/form-data; boundary=x")),
    "800 scans": (413, form(scans(800))),
    "200,000 comments": (413, form(JPEG[:2] + b"\xff\xfe\x00\x02" * 200_000 + JPEG[2:])),
    "stray bytes": (413, form(JPEG[:3] + bytes(900_000))),
    "70,000 chunks": (413, form(PNG[:33] + PNG[-12:-8] + b"teXt" + bytes(4) + bytes(12 * 70_000))),
    "900 files": (413, form(*[TINY] * 900)),
    "5,000 images": (413, as_json(*[TINY] * 5000)),
    "400,000 numbers": (422, raw(b'{"prompt": "x", "images": [3' + b",3" * 400_000 + b"]}")),
    "20,000 x 1": (413, form(thin())),
    "long prompt": (422, form(PNG, prompt="x" * 500_000)),
}


@dataclass
class StepMetrics:
    """Results: statuses by kind of request, seconds of the good ones, and wrong replies."""

    statuses: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    seconds: list[float] = field(default_factory=list)
    wrong: Counter = field(default_factory=Counter)

    def note(self, kind: str, expected: int, status: int, took_s: float) -> None:
        self.statuses[kind][status] += 1
        if status == 200:
            self.seconds.append(took_s)
        if status not in (expected, 429):
            self.wrong[f"{kind}: {status} instead of {expected}"] += 1


async def client(
    http: httpx.AsyncClient, tally: StepMetrics, end: float, seed: int, attacks: bool
) -> None:
    """Sends one request after another; waits when the server asks it to retry later."""
    chance = random.Random(seed)
    while time.monotonic() < end:
        kind = chance.choice(list(BAD if attacks else GOOD))
        expected, request = BAD[kind] if attacks else (200, GOOD[kind])
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


async def slow_head(url: str, tally: StepMetrics, end: float) -> None:
    """Opens a connection that begins a request and never ends it; opens another when it is closed."""
    host, _, port = url.removeprefix("http://").partition(":")
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/score HTTP/1.1\r\nhost: x\r\n")
        status = (await reader.read(64))[9:12].decode()
        tally.note("slow head", 408, int(status or 0), 0)
        writer.close()


def sizes() -> dict[str, float]:
    """Resident MB of the processes of Serve, by name."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            command = process.cmdline()
            title = command[0].removeprefix("ray::").split(".")[0]
            if "rewards.images" in command:
                title = f"decoder {process.pid}"
            elif not title.startswith(("ServeReplica", "ProxyActor", "ServeController")):
                continue
            found[title] = process.memory_info().rss / 2**20
        except (psutil.Error, IndexError):
            continue  # the process ended meanwhile
    return found


async def watch(sizes_over_time: dict[str, list[float]], end: float) -> None:
    while time.monotonic() < end:
        for name, megabytes in sizes().items():
            sizes_over_time[name].append(megabytes)
        await asyncio.sleep(1.0)


async def storm(
    url: str, token: str, clients: int, seconds: float, attackers: int = 0
) -> tuple[StepMetrics, dict]:
    tally = StepMetrics()
    grown: dict[str, list[float]] = defaultdict(list)
    end = time.monotonic() + seconds
    headers = {"authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=120) as http:
        await asyncio.gather(
            watch(grown, end),
            *(client(http, tally, end, seed, seed >= clients) for seed in range(clients + attackers)),
            *(slow_head(url, tally, end) for _ in range(SLOW_HEADS if attackers else 0)),
        )
    return tally, grown


def report(
    alone: StepMetrics, tally: StepMetrics, grown: dict[str, list[float]], console: Console
) -> bool:
    """Prints the results. Returns whether all checks pass."""
    table = Table("request", "replies", title="replies by status")
    for kind, statuses in tally.statuses.items():
        table.add_row(kind, ", ".join(f"{status}: {n}" for status, n in statuses.most_common()))
    console.print(table)
    tails = []
    for name, some in (("alone", alone), ("under attack", tally)):
        p50, p95 = np.quantile(some.seconds, [0.5, 0.95])
        tails.append(p95)
        console.print(
            f"honest clients {name}: {len(some.seconds)} requests scored, p50 {p50:.3f} s,"
            f" p95 {p95:.3f} s, longest {max(some.seconds):.3f} s"
        )
    slower = tails[1] / tails[0]
    console.print(f"p95 under attack over p95 alone: {slower:.2f}")
    flat = stays_flat(grown, console)
    for wrong, n in (alone.wrong + tally.wrong).items():
        console.print(f"[red]{n} times {wrong}[/red]")
    if slower > SLOWER:
        console.print(f"[red]honest clients' p95 is {slower:.2f} times that without attackers[/red]")
    return flat and slower <= SLOWER and not (tally.wrong | alone.wrong)


def stays_flat(grown: dict[str, list[float]], console: Console) -> bool:
    """Prints the processes' sizes over the run. Returns whether none grew."""
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
    if not flat:
        console.print(f"[red]a process grew by more than {GROWTH - 1:.0%}[/red]")
    return flat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=60)
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
        attackers = args.clients // 3
        asyncio.run(storm(url, token, args.clients, args.warmup, attackers))
        alone, _ = asyncio.run(storm(url, token, args.clients, args.seconds))
        tally, grown = asyncio.run(storm(url, token, args.clients, args.seconds, attackers))
    sys.exit(0 if report(alone, tally, grown, console) else 1)


if __name__ == "__main__":
    main()
