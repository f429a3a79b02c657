"""The experts over HTTP, for people and programs outside the training run.

| | |
|---|---|
| `POST /v1/score` | images and one prompt, as multipart form -> what every expert says |
| `GET /v1/experts` | the experts and how they are |
| `GET /healthz`, `GET /readyz` | the process is alive; all experts run |
| `GET /docs` | this interface, to read and to try |

Nothing that arrives is trusted: bodies are cut off at their limit while they are read, an image's
size is known before a pixel of it is decoded, and only PNG, JPEG and WebP are decoded at all.
"""

import asyncio
from typing import Annotated

import numpy as np
from fastapi import FastAPI, File, Form, HTTPException, UploadFile
from pydantic import BaseModel, Field
from ray import serve
from ray.serve.schema import ApplicationStatus

from policy.errors import UserError
from policy.records import Prompt
from rewards.config import RewardsConfig
from rewards.ensemble import ExpertFailed, ask, combine
from rewards.expert import Judgement
from rewards.intake import LimitBody, read_images, read_prompt
from rewards.serving import GATEWAY_APP, app_name
from rewards.startup import QUIET, start_serve, wait_until_running


class ExpertScore(BaseModel):
    """What one expert says of one image."""

    score: float | None = Field(description="null: the expert does not apply to the prompt, or failed")
    error: str | None = Field(description="why the expert failed; null: it did not")
    evidence: str = Field(description="what it saw, for people; may be empty")


class ImageScore(BaseModel):
    """One image's reward and its parts."""

    reward: float | None = Field(
        description="weighted mean of the experts that apply; null: none, or one that counts failed"
    )
    experts: dict[str, ExpertScore]


class ScoreReply(BaseModel):
    """One entry an image, in the order of the request."""

    prompt_id: str
    images: list[ImageScore]


class ExpertState(BaseModel):
    """One expert as it is configured, and as it is."""

    name: str
    use: str
    weight: float
    replicas: int
    running: int = Field(description="replicas that run now")
    status: str = Field(description='"RUNNING": it answers')


class State(BaseModel):
    status: str


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str


def expert_states(config: RewardsConfig) -> list[ExpertState]:
    """How Serve sees each expert now."""
    apps = serve.status().applications
    states = []
    for name, entry in config.experts.items():
        app = apps.get(app_name(name))
        deployments = app.deployments.values() if app else ()
        states.append(
            ExpertState(
                name=name,
                use=entry.use,
                weight=entry.weight,
                replicas=entry.replicas,
                running=sum(d.replica_states.get("RUNNING", 0) for d in deployments),
                status=app.status.value if app else ApplicationStatus.NOT_STARTED.value,
            )
        )
    return states


async def score_images(config: RewardsConfig, images: list[np.ndarray], prompt: Prompt) -> ScoreReply:
    """Ask every expert about every image. An expert that fails says so; it takes no other down."""
    prompts = [prompt] * len(images)

    async def call(name: str) -> Judgement:
        handle = await asyncio.to_thread(serve.get_app_handle, app_name(name))
        return await handle.score_images.remote(images, prompts)

    names = list(config.experts)
    calls = [ask(name, lambda name=name: call(name), config) for name in names]
    answers = dict(zip(names, await asyncio.gather(*calls, return_exceptions=True), strict=True))
    for answer in answers.values():
        if isinstance(answer, BaseException) and not isinstance(answer, ExpertFailed):
            raise answer
    rewards = _rewards(config, answers, len(images))
    return ScoreReply(
        prompt_id=prompt.id,
        images=[
            ImageScore(reward=reward, experts={name: _cell(a, n) for name, a in answers.items()})
            for n, reward in enumerate(rewards)
        ],
    )


def _rewards(
    config: RewardsConfig, answers: dict[str, Judgement | ExpertFailed], images: int
) -> list[float | None]:
    weighted = {name: a for name, a in answers.items() if config.experts[name].weight > 0}
    said = {name: a for name, a in weighted.items() if isinstance(a, Judgement)}
    # Whether an expert applies depends on the prompt, and all images here have the same one.
    if len(said) < len(weighted) or all(np.isnan(a.values).any() for a in said.values()):
        return [None] * images
    weights = {name: config.experts[name].weight for name in said}
    scores = combine([str(n) for n in range(images)], said, weights, dict.fromkeys(said, 0.0))
    return [float(reward) for reward in scores.rewards]


def _cell(answer: Judgement | ExpertFailed, n: int) -> ExpertScore:
    if isinstance(answer, ExpertFailed):
        return ExpertScore(score=None, error=str(answer), evidence="")
    value = float(answer.values[n])
    score = None if np.isnan(value) else value
    return ExpertScore(score=score, error=None, evidence=answer.evidence[n])


def build_app(config: RewardsConfig) -> FastAPI:
    """The interface itself; `config.gateway` must be set."""
    limits = config.gateway
    app = FastAPI(title="bicot experts", description="Vision experts judge images by their prompts.")
    app.add_middleware(LimitBody, max_bytes=int(limits.max_body_mb * 2**20))
    refusals = {
        413: {"model": Refusal, "description": "The body or the images are too large"},
        415: {"model": Refusal, "description": "A file is no PNG, JPEG or WebP image that can be read"},
    }

    @app.post("/v1/score", responses=refusals)
    async def score(
        image: Annotated[list[UploadFile], File(description="one or more PNG, JPEG or WebP files")],
        prompt: Annotated[str, Form(description="a sentence, or one row of a prompt file as JSON")],
    ) -> ScoreReply:
        """Score one or more images of one prompt.

        A plain sentence carries no objects, counts or relations: experts that need them, given in
        the JSON of a prompt row, do not apply to it.
        """
        parsed = read_prompt(prompt)
        files = [await file.read() for file in image]
        images = await asyncio.to_thread(read_images, files, limits.max_pixels)
        return await score_images(config, images, parsed)

    @app.get("/v1/experts")
    def experts() -> list[ExpertState]:
        """All experts, and how they are."""
        return expert_states(config)

    @app.get("/healthz")
    async def healthz() -> State:
        """The process is alive."""
        return State(status="alive")

    @app.get("/readyz", responses={503: {"model": Refusal, "description": "Not every expert runs"}})
    def readyz() -> State:
        """All experts run."""
        missing = [s.name for s in expert_states(config) if s.status != ApplicationStatus.RUNNING.value]
        if missing:
            raise HTTPException(503, f"not running: {', '.join(missing)}")
        return State(status="ready")

    return app


def start_gateway(config: RewardsConfig) -> str:
    """Open the door to experts that `deploy_experts` has started. Returns its URL once it answers.

    Raises UserError if no gateway is configured, if its address cannot be had, or if it fails to
    start; the experts run on.
    """
    if config.gateway is None:
        raise UserError("rewards.gateway is not set: there is no gateway to start")
    url = start_serve(config.gateway)
    door = serve.deployment(
        serve.ingress(lambda: build_app(config))(),
        name=GATEWAY_APP,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=64,
        graceful_shutdown_wait_loop_s=0.2,
    )
    target = serve.RunTarget(door.bind(), GATEWAY_APP, "/", QUIET)
    serve.run_many([target], wait_for_applications_running=False)
    wait_until_running({GATEWAY_APP: "the gateway"}, timeout_s=120)
    return url
