"""OpenAI's images API for a model that thinks before it draws.

| | |
|---|---|
| `POST /v1/images/generations` | a prompt -> images, all at once or as server-sent events |
| `GET /v1/models` | the one model that is served |
| `GET /metrics` | requests, images, batches and latencies of every replica, for Prometheus |
| `GET /healthz`, `GET /readyz` | the process is alive; the model runs |
| `GET /docs` | this interface, to read and to try |

Its middleware is that of the experts' gateway (rewards/middleware.py): a token, limits, and no body
parsed before its size is known.
"""

import asyncio
import time
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, Metric

from cluster.serve_config import ServeConfig
from rewards.middleware import CountReplies, LimitBody, LimitConcurrency, RequireToken
from rewards.responses import State
from rewards.schemas import parse_body
from studio import images_schemas as api
from studio.event_stream import EventStream, sse
from studio.image_events import to_event
from studio.model_client import Model
from studio.records import Event, ImageTask, ModelCard, RequestError

_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": api.Refused, "description": "A field is missing or wrong; it is named"},
    401: {"model": api.Refused, "description": "The bearer token is missing or wrong"},
    404: {"model": api.Refused, "description": "There is no such model"},
    408: {"model": api.Refused, "description": "The body took too long to arrive"},
    413: {"model": api.Refused, "description": "The body is too large"},
    415: {"model": api.Refused, "description": "The body is no JSON"},
    429: {"model": api.Refused, "description": "Too many images wait: again after Retry-After"},
    500: {"model": api.Refused, "description": "The model failed"},
    503: {"model": api.Refused, "description": "No replica answers, or not in time"},
}
_BODY = {
    "required": True,
    "content": {"application/json": {"schema": api.ImagesBody.model_json_schema()}},
}


class ImagesApi:
    """The endpoints."""

    def __init__(self, limits: ServeConfig, card: ModelCard, model: Model):
        self.replies: Counter[int] = Counter()
        self._limits, self._card, self._model = limits, card, model
        self._images = 0  # waiting, or being drawn

    async def generate(self, request: Request) -> Response:
        """Draw images of a prompt: a semantic CoT first, then the image from it."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a page of another site cannot send this without a preflight
            raise HTTPException(415, "send application/json")
        body = parse_body(api.ImagesBody, await request.body())
        body.check(self._card, self._limits.max_images)
        tasks = body.tasks(self._card)
        with self._place_for(tasks) as release:
            if body.stream:
                return await self._stream(tasks, body.partial_images or 0, release)
            try:
                async with asyncio.timeout(self._limits.timeout_s):
                    images = await self._model.generate(tasks)
            except TimeoutError:
                raise self._late() from None
            release()
        reply = api.ImagesReply(
            created=int(time.time()),
            data=[
                api.ImageData(b64_json=b64encode(i.png).decode(), revised_prompt=i.cot) for i in images
            ],
            size=self._card.size,
            usage=api.Usage.of(images),
            seed=tasks[0].seed,
        )
        return Response(reply.model_dump_json(), media_type="application/json")

    async def _stream(
        self, tasks: Sequence[ImageTask], partial_images: int, release: Callable[[], None]
    ) -> Response:
        events = self._model.stream(tasks, partial_images)
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await anext(events)  # a fault of the request becomes an HTTP status
        except TimeoutError:
            raise self._late() from None
        return EventStream(self._lines(tasks, events), release)

    async def _lines(
        self, tasks: Sequence[ImageTask], events: AsyncGenerator[list[Event], None]
    ) -> AsyncGenerator[bytes, None]:
        seed, size = tasks[0].seed, self._card.size
        deadline = asyncio.get_running_loop().time() + self._limits.timeout_s
        async with aclosing(events):
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        some = await anext(events)
                except StopAsyncIteration:
                    return
                except (TimeoutError, RequestError) as error:
                    why = error if isinstance(error, RequestError) else self._late()
                    yield sse("error", api.refused(why).model_dump())
                    return
                for event in some:
                    yield sse(*to_event(event, seed, size))

    async def models(self) -> api.ModelList:
        """The one model."""
        return api.ModelList(data=[self._listed()])

    async def model(self, name: str) -> api.Model:
        """The one model, by its name."""
        if name != self._card.name:
            message = f"the model {name[:100]!r} does not exist; there is {self._card.name!r}"
            raise RequestError(message, "model", 404, "model_not_found")
        return self._listed()

    async def metrics(self) -> Response:
        """What the replicas and this process counted since they started."""
        text = exposition(await self._model.metrics(), self.replies)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def healthz(self) -> State:
        """The process is alive."""
        return State(status="alive")

    async def readyz(self) -> State:
        """The model runs."""
        if not await self._model.running():
            raise HTTPException(503, "the model does not run")
        return State(status="ready")

    @contextmanager
    def _place_for(self, tasks: Sequence[ImageTask]) -> Iterator[Callable[[], None]]:
        """Reserves a place in the queue for each image until the yielded function is called, or
        something is raised. Raises RequestError if there are too few."""
        if self._images + len(tasks) > self._limits.max_waiting:
            raise RequestError("too many images wait: come back later", status=429, retry_after_s=1)
        self._images += len(tasks)
        held = [len(tasks)]

        def release() -> None:
            while held:
                self._images -= held.pop()

        try:
            yield release
        except BaseException:  # also a client that goes away
            release()
            raise

    def _late(self) -> RequestError:
        return RequestError(f"no image within {self._limits.timeout_s:g} s", status=503)

    def _listed(self) -> api.Model:
        return api.Model(id=self._card.name, created=self._card.created, size=self._card.size)


def exposition(metrics: Mapping[str, Sequence[Metric]], replies: Mapping[int, int]) -> bytes:
    """All replicas' counters, labelled with the replica's name, and replies by status, in Prometheus'
    format."""
    families: dict[str, Metric] = {}
    for replica, counted in metrics.items():
        for family in counted:
            whole = Metric(family.name, family.documentation, family.type)
            whole = families.setdefault(family.name, whole)
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    labels = sample.labels | {"replica": replica}
                    whole.add_sample(sample.name, labels, sample.value)
    reply_counts = CounterMetricFamily("bicot_images_api_replies", "by HTTP status", labels=("status",))
    for status, count in sorted(replies.items()):
        reply_counts.add_metric((str(status),), count)
    return generate_latest(_Collected([*families.values(), reply_counts]))


class _Collected:
    """The client library's collector interface for numbers that are collected already."""

    def __init__(self, families: Sequence[Metric]):
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def build_app(
    limits: ServeConfig, card: ModelCard, model: Model, digest: bytes | None = None
) -> FastAPI:
    """The whole application. `digest`: SHA-256 of the token to ask for."""
    images = ImagesApi(limits, card, model)
    app = FastAPI(title="bicot images", description="A model that thinks before it draws.")
    api.refuse_in_this_form(app)
    app.add_middleware(
        LimitBody,
        max_bytes=int(limits.max_body_mb * 2**20),
        timeout_s=limits.body_timeout_s,
        refuse=api.refuse,
    )
    app.add_middleware(LimitConcurrency, most=limits.max_concurrent, refuse=api.refuse)
    if digest is not None:
        app.add_middleware(RequireToken, digest=digest, refuse=api.refuse)
    app.add_middleware(CountReplies, counts=images.replies)  # added last: it sees every reply

    # The token is checked above; this puts it into the OpenAPI description.
    guarded = [Depends(HTTPBearer(auto_error=False))] if digest is not None else []
    app.post(
        "/v1/images/generations",
        response_model=api.ImagesReply,
        responses=_REFUSALS,
        dependencies=guarded,
        openapi_extra={"requestBody": _BODY},
    )(images.generate)
    app.get("/v1/models", dependencies=guarded)(images.models)
    app.get("/v1/models/{name:path}", dependencies=guarded)(images.model)
    app.get("/metrics", dependencies=guarded, response_class=Response)(images.metrics)
    app.get("/healthz")(images.healthz)
    app.get("/readyz", responses={503: _REFUSALS[503]})(images.readyz)
    return app
