"""The experts over HTTP, for people and programs outside the training run.

| | |
|---|---|
| `POST /v1/score` | images and one prompt, as multipart form or JSON -> every expert's score |
| `POST /v1/applies` | prompts -> which experts apply to them |
| `GET /v1/experts` | the experts and their state |
| `GET /metrics` | requests, images, failures and latencies of every replica, for Prometheus |
| `GET /healthz`, `GET /readyz` | the process is alive; all experts run |
| `GET /docs` | this interface, to read and to try |

Requests are not trusted: they need a token, and heads and bodies are cut off at their limit while they
are read (rewards/middleware.py); an image's size is known before a pixel of it is decoded, and only
PNG, JPEG and WebP are decoded at all (rewards/images.py), in processes that are killed at a deadline
(rewards/decoding.py).
"""

import asyncio
from collections import Counter

import ray
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import HTTPBearer
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from policy.errors import UserError
from rewards import controller
from rewards.client import ExpertClient
from rewards.config import RewardsConfig
from rewards.decoding import ImageDecoder
from rewards.middleware import CountReplies, LimitBody, LimitConcurrency, RequireToken, token_digest
from rewards.responses import AppliesReply, ExpertState, Refusal, ScoreReply, State, score_reply
from rewards.schemas import (
    FORM_SCHEMA,
    AppliesBody,
    ScoreBody,
    invalid,
    parse_body,
    read_prompt,
    read_request,
)
from rewards.serving import GATEWAY_APP, QUIET, start_serve, wait_until_running
from rewards.status import ExpertStatus, expert_statuses, exposition

_REFUSALS = {
    400: {"model": Refusal, "description": "The form is malformed, or has too many parts"},
    401: {"model": Refusal, "description": "The bearer token is missing or wrong"},
    408: {"model": Refusal, "description": "The body took too long to arrive"},
    413: {
        "model": Refusal,
        "description": "The body is too large; the images are too many, too large, or too much work",
    },
    415: {"model": Refusal, "description": "The body, or a file in it, is of no kind that can be read"},
    422: {"description": "A field is missing or wrong; it is named"},
    429: {"model": Refusal, "description": "Too many requests at once: try again after Retry-After"},
}
_NO_ANSWER = {503: {"model": Refusal, "description": "An expert gave no answer"}}
_NOT_READY = {503: {"model": Refusal, "description": "Not every expert runs"}}
_SCORE_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": FORM_SCHEMA},
        "application/json": {"schema": ScoreBody.model_json_schema()},
    },
}
_APPLIES_BODY = {
    "required": True,
    "content": {"application/json": {"schema": AppliesBody.model_json_schema()}},
}


def expert_states(config: RewardsConfig, *, ask: bool = True) -> list[ExpertState]:
    """The state of each configured expert in Serve now; with `ask`, the replicas give its pass
    threshold too."""
    found = {status.name: status for status in expert_statuses(ask=ask)}
    absent = ExpertStatus("", ApplicationStatus.NOT_STARTED.value, {}, ())
    states = []
    for name, entry in config.experts.items():
        status = found.get(name, absent)
        marks = [stats.pass_threshold for stats in status.stats]
        states.append(
            ExpertState(
                name=name,
                use=entry.use,
                weight=entry.weight,
                pass_threshold=marks[0] if marks else None,
                replicas=entry.autoscale.min if entry.autoscale else entry.replicas,
                running=status.running,
                status=status.status,
            )
        )
    return states


def _names(config: RewardsConfig, asked: tuple[str, ...] | list[str] | None) -> list[str]:
    """The experts to score with, each once. Raises FastAPI's 422 error for one that is not
    configured."""
    if unknown := [name for name in asked or () if name not in config.experts]:
        raise invalid(f"no such expert: {unknown[0]}; there are {', '.join(config.experts)}", "experts")
    return list(config.experts) if asked is None else list(dict.fromkeys(asked))


class Gateway:
    """The endpoints."""

    def __init__(self, config: RewardsConfig):
        """`config.gateway` must be set."""
        assert config.gateway is not None
        self.replies: Counter[int] = Counter()
        self._config, self._limits = config, config.gateway
        self._client = ExpertClient(config)
        self._decoder = ImageDecoder(config.gateway)

    async def score(self, request: Request) -> ScoreReply:
        """Score one or more images of one prompt.

        A plain sentence carries no objects, counts or relations: experts that need them, given in
        the JSON of a prompt row, do not apply to it.
        """
        asked = await read_request(request, self._limits.max_images)
        names = _names(self._config, asked.experts)
        images = await self._decoder.read(asked.files)
        shared = await asyncio.to_thread(ray.put, images)
        results = await self._client.score_images([shared], [asked.prompt] * len(images), names)
        return score_reply(self._config, asked.prompt.id, results, len(images))

    async def applies(self, request: Request) -> AppliesReply:
        """Which experts apply to which prompts."""
        asked = parse_body(AppliesBody, await request.body())
        prompts = [read_prompt(given, "prompts", n) for n, given in enumerate(asked.prompts)]
        names = _names(self._config, asked.experts)
        try:
            columns = await self._client.applies(prompts, names)
        except (RayError, RayServeException, TimeoutError) as error:
            raise HTTPException(503, f"an expert gave no answer: {type(error).__name__}") from error
        return AppliesReply(experts=columns)

    def experts(self) -> list[ExpertState]:
        """All experts and their state."""
        return expert_states(self._config)

    def metrics(self) -> Response:
        """Every replica's counters since it started, in Prometheus' text format."""
        mine = [status for status in expert_statuses() if status.name in self._config.experts]
        text = exposition(mine, self.replies)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def healthz(self) -> State:
        """The process is alive."""
        return State(status="alive")

    def readyz(self) -> State:
        """All experts run."""
        running = ApplicationStatus.RUNNING.value
        states = expert_states(self._config, ask=False)
        if missing := [state.name for state in states if state.status != running]:
            raise HTTPException(503, f"not running: {', '.join(missing)}")
        return State(status="ready")


def build_app(config: RewardsConfig, digest: bytes | None = None) -> FastAPI:
    """The whole application; `config.gateway` must be set. `digest`: SHA-256 of the token to ask
    for."""
    limits = config.gateway
    assert limits is not None
    gateway = Gateway(config)
    app = FastAPI(title="bicot experts", description="Vision experts score images by their prompts.")
    app.add_middleware(
        LimitBody, max_bytes=int(limits.max_body_mb * 2**20), timeout_s=limits.body_timeout_s
    )
    app.add_middleware(LimitConcurrency, most=limits.max_concurrent)
    if digest is not None:
        app.add_middleware(RequireToken, digest=digest)
    app.add_middleware(CountReplies, counts=gateway.replies)  # added last: it sees every reply

    # The token is checked above; this puts it into the OpenAPI description.
    guarded = [Depends(HTTPBearer(auto_error=False))] if digest is not None else []
    app.post(
        "/v1/score",
        responses=_REFUSALS,
        dependencies=guarded,
        openapi_extra={"requestBody": _SCORE_BODY},
    )(gateway.score)
    app.post(
        "/v1/applies",
        responses={status: _REFUSALS[status] for status in (401, 408, 413, 422, 429)} | _NO_ANSWER,
        dependencies=guarded,
        openapi_extra={"requestBody": _APPLIES_BODY},
    )(gateway.applies)
    app.get("/v1/experts", dependencies=guarded)(gateway.experts)
    app.get("/metrics", dependencies=guarded, response_class=Response)(gateway.metrics)
    app.get("/healthz")(gateway.healthz)
    app.get("/readyz", responses=_NOT_READY)(gateway.readyz)
    return app


def start_gateway(config: RewardsConfig) -> str:
    """Start the gateway of experts that `deploy_experts` has started. Returns its URL once it answers.

    Raises UserError if no gateway is configured, if its token is not set, if its address cannot be
    bound, or if it fails to start; the experts run on.
    """
    if config.gateway is None:
        raise UserError("rewards.gateway is not set: there is no gateway to start")
    digest = token_digest(config.gateway)
    url = start_serve(config.gateway)
    assert url is not None  # a gateway is configured
    deployment = serve.deployment(
        serve.ingress(lambda: build_app(config, digest))(),
        name=GATEWAY_APP,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=100_000,  # the gateway itself turns requests away
        graceful_shutdown_wait_loop_s=0.2,
    )
    target = serve.RunTarget(deployment.bind(), GATEWAY_APP, "/", QUIET)
    controller.within_limit(lambda: serve.run_many([target], wait_for_applications_running=False))
    wait_until_running({GATEWAY_APP: "the gateway"}, timeout_s=120)
    return url
