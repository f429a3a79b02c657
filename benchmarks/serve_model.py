"""Does the images API hold up under load? `python -m benchmarks.serve_model --clients 64 --seconds 60`.

The shapes model behind its API, on the loopback address, with a token. Clients send requests as fast as
they are answered; one request in four is malformed. Then all of them hang up at once. It checks that no
reply is 500 or more, that every malformed request is refused with the right status, that processes do
not grow (resident sizes in the first against the last third, after a warm-up), that images are drawn at
90 % at least of the sampler's own pace in batches of the same size, and that the queue is empty once no
client waits. Exit status 1 if a check fails.

The sampler's own pace is measured in this process, right before and right after; the model has one core
in either case.
"""

import argparse
import asyncio
import os
import random
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import count

import httpx
import numpy as np
import torch
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from actors.rollout import make_sampler
from benchmarks.gateway import StepMetrics, stays_flat, watch
from cluster.config import RunConfig, load_config
from cluster.ray_session import ray_session
from policy.prompts import read_prompts
from policy.records import Group, Prompt
from studio.serve_model import start_model

TOKEN_ENV = "BICOT_BENCHMARK_TOKEN"
PATH = "/v1/images/generations"
IMAGES = 4  # a request
SHARE = 0.9  # of the sampler's own pace
OWN_S = 10.0  # how long that is measured, twice
MALFORMED = 0.25
EMPTY_S = 5.0  # after which the queue must be empty


def body(**fields) -> dict:
    return {"json": {"prompt": "a red circle", **fields}}


def raw(content: bytes, kind: str = "application/json") -> dict:
    return {"content": content, "headers": {"content-type": kind}}


BAD = {
    "no prompt": (400, {"json": {"n": 1}}),
    "blank prompt": (400, body(prompt=" \n")),
    "prompt is a list": (400, body(prompt=["a"] * 10_000)),
    "prompt too long for the context": (400, body(prompt="red " * 5_000)),
    "prompt too long": (400, body(prompt="x" * 100_000)),
    "own CoT too long for the context": (400, body(cot="red " * 5_000)),
    "own CoT is a number": (400, body(cot=3)),
    "n is 0": (400, body(n=0)),
    "n is 10^30": (400, body(n=10**30)),
    "n is text": (400, body(n="2")),
    "another size": (400, body(size="1024x1024")),
    "a URL back": (400, body(response_format="url")),
    "guidance is infinite": (400, raw(b'{"prompt": "x", "guidance": 1e999}')),
    "seed is huge": (400, body(seed=10**40)),
    "partial images, no stream": (400, body(partial_images=2)),
    "a stream that is none": (400, body(stream="yes")),
    "unknown field": (400, body(steps=50)),
    "another model": (404, body(model="dall-e-3")),
    "half a JSON": (400, raw(b'{"prompt": "a')),
    "half a surrogate": (400, raw(b'{"prompt": "\\ud800"}')),
    "100,000 brackets": (400, raw(b"[" * 100_000)),
    "a form": (415, raw(b"prompt=x", "application/x-www-form-urlencoded")),
    "large body": (413, raw(bytes(2 * 2**20))),
    "no token": (401, body() | {"headers": {"authorization": ""}}),
}


async def client(
    http: httpx.AsyncClient, tally: StepMetrics, prompts: Sequence[Prompt], end: float, seed: int
) -> None:
    """Sends one request after another; waits when the server asks it to retry later."""
    chance = random.Random(seed)
    while time.monotonic() < end:
        kind, expected = "good", 200
        sent = body(prompt=chance.choice(prompts).text, n=IMAGES, seed=chance.getrandbits(32))
        if chance.random() < MALFORMED:
            kind = chance.choice(list(BAD))
            expected, sent = BAD[kind]
        started = time.monotonic()
        try:
            reply = await http.post(PATH, **sent)
        except httpx.TransportError as error:  # the server hung up on a body that it refused
            tally.statuses[kind][type(error).__name__] += 1
            if expected != 413:
                tally.wrong[f"{kind}: {type(error).__name__}"] += 1
            continue
        tally.note(kind, expected, reply.status_code, time.monotonic() - started)
        if reply.status_code == 429:
            await asyncio.sleep(float(reply.headers["retry-after"]) * (0.5 + chance.random()))


async def storm(
    http: httpx.AsyncClient, prompts: Sequence[Prompt], clients: int, seconds: float
) -> tuple[StepMetrics, dict[str, list[float]], float]:
    """The replies, the processes' sizes, and images a second."""
    tally, grown = StepMetrics(), defaultdict[str, list[float]](list)
    began = time.monotonic()
    end, first = began + seconds, await drawn(http)
    askers = (client(http, tally, prompts, end, seed) for seed in range(clients))
    storming = asyncio.gather(watch(grown, end), *askers)
    await asyncio.sleep(seconds)
    pace = (await drawn(http) - first) / (time.monotonic() - began)
    await storming
    return tally, grown, pace


async def drawn(http: httpx.AsyncClient, name: str = "bicot_model_images_total") -> float:
    """A number of /metrics, of all replicas together."""
    families = text_string_to_metric_families((await http.get("/metrics")).text)
    return sum(s.value for family in families for s in family.samples if s.name == name)


async def hang_up(http: httpx.AsyncClient, clients: int, batch_size: int, console: Console) -> bool:
    """All clients send a request at once and go away. Returns whether their places are free soon
    after."""
    before, batch = await drawn(http), batch_size
    asking = [asyncio.create_task(http.post(PATH, **body(n=IMAGES, seed=n))) for n in range(clients)]
    await asyncio.sleep(0.3)
    for request in asking:
        request.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    await asyncio.sleep(EMPTY_S)
    held = await drawn(http, "bicot_model_held")
    waiting = await drawn(http, "bicot_model_waiting_images")
    images = await drawn(http) - before
    reply = await http.post(PATH, **body(n=IMAGES))
    console.print(
        f"{clients} clients of {IMAGES} images hung up: {images:.0f} of {clients * IMAGES} images were"
        f" decoded; {EMPTY_S:g} s later {held:.0f} requests were held and {waiting:.0f} images waited;"
        f" the next request got {reply.status_code}"
    )
    return held == waiting == 0 and images <= 2 * batch and reply.status_code == 200


def own_pace(config: RunConfig, prompts: Sequence[Prompt]) -> float:
    """Images a second of the sampler alone, in batches of the same kind."""
    torch.set_num_threads(1)
    sampler, size = make_sampler(config.policy, config.actors, config.seed), config.actors.batch_size
    chance, done, began = random.Random(0), 0, 0.0
    for batch in count():
        if batch == 1:  # the first one warms up
            began = time.monotonic()
        if began and time.monotonic() - began > OWN_S:
            return done / (time.monotonic() - began)
        groups = [Group(chance.choice(prompts), IMAGES, first=batch) for _ in range(-(-size // IMAGES))]
        sampler.generate([request for group in groups for request in group][:size])
        done += size if batch else 0
    raise AssertionError("there is no last batch")


def report(
    tally: StepMetrics,
    grown: dict[str, list[float]],
    pace: float,
    own: Sequence[float],
    console: Console,
) -> bool:
    """Prints the results. Returns whether all checks pass."""
    table = Table("request", "replies", title="replies by status")
    for kind, statuses in sorted(tally.statuses.items()):
        table.add_row(kind, ", ".join(f"{status}: {n}" for status, n in statuses.most_common()))
    console.print(table)
    p50, p95 = np.quantile(tally.seconds, [0.5, 0.95])
    share = pace / float(np.mean(own))
    console.print(
        f"{len(tally.seconds)} good requests of {IMAGES} images, p50 {p50:.2f} s, p95 {p95:.2f} s;"
        f" {pace:.1f} images/s; the sampler alone {own[0]:.1f} before and {own[1]:.1f} after:"
        f" {share:.2f} of it; load average {os.getloadavg()[0]:.1f}"
    )
    flat = stays_flat(grown, console)
    for wrong, n in tally.wrong.items():
        console.print(f"[red]{n} times {wrong}[/red]")
    if share < SHARE:
        console.print(f"[red]images come at {share:.2f} of the sampler's own pace[/red]")
    return flat and share >= SHARE and not tally.wrong


async def ask(
    url: str, token: str, config: RunConfig, prompts: Sequence[Prompt], args, console: Console
) -> tuple[StepMetrics, dict[str, list[float]], float, bool]:
    headers = {"authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=120) as http:
        await storm(http, prompts, args.clients, args.warmup)
        seen = await storm(http, prompts, args.clients, args.seconds)
        return *seen, await hang_up(http, args.clients, config.actors.batch_size, console)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warmup", type=float, default=30, help="seconds that are not measured")
    args = parser.parse_args()
    console = Console(width=max(100, Console().width))
    token = os.environ[TOKEN_ENV] = secrets.token_hex(16)
    overrides = [
        "serve.port=0",
        f"serve.token_env={TOKEN_ENV}",
        f"serve.max_waiting={args.clients * IMAGES}",
        "ray.dashboard=false",
        "actors.num_cpus=1",
    ]
    config = load_config("examples/shapes/train.yaml", overrides)
    prompts = read_prompts(config.evaluate.prompts)
    own = [own_pace(config, prompts)]
    with ray_session(config.ray, 2, console):
        url = start_model(config)
        tally, grown, pace, freed = asyncio.run(ask(url, token, config, prompts, args, console))
    own.append(own_pace(config, prompts))
    sys.exit(0 if report(tally, grown, pace, own, console) and freed else 1)


if __name__ == "__main__":
    main()
