"""Experts as servers: every expert is one Ray Serve application with its own replicas.

Adding a replica, or another expert, touches no other process. Images reach an expert through the
object store: a caller hands over a reference, and nobody in between touches the pixels.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray
from ray import ObjectRef, serve
from ray.serve.handle import DeploymentHandle

from policy.errors import UserError
from policy.records import Prompt, Sample
from rewards.asking import ask_expert, spread
from rewards.batching import Batcher
from rewards.config import AutoscaleConfig, ExpertConfig, RewardsConfig
from rewards.expert import Expert, Judgement
from rewards.loading import constructor_options, load_expert_class
from rewards.meter import Meter, ReplicaStats
from rewards.startup import QUIET, start_serve, wait_until_running

T = TypeVar("T")
GATEWAY_APP = "gateway"
EXPERT_PREFIX = "expert_"
_STARTS_TRIED = 2  # a constructor that failed is tried once more: a download may have broken off


def app_name(expert: str) -> str:
    """The name of an expert's Serve application."""
    return EXPERT_PREFIX + expert


@dataclass(frozen=True)
class Answer:
    """A judgement, and the score from which its expert counts a sample as right."""

    judgement: Judgement
    pass_mark: float


class ExpertReplica:
    """One expert in one process. It is built by the thread that asks it, and asked by no other, one
    batch at a time; fetching images goes on meanwhile."""

    def __init__(self, name: str, config: ExpertConfig, timeout_s: float):
        self._name = name
        self._timeout_s = timeout_s
        self._busy_since: float | None = None
        self._meter = Meter()
        self._batcher = Batcher(self._ask, config.batch_size, config.batch_wait_s)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="expert")
        self._expert = self._thread.submit(_build, config).result()

    async def score_samples(self, sample_refs: list[ObjectRef], prompts: list[Prompt]) -> Answer:
        """Judge the samples behind a reference to a list of them, wrapped in a list of one so that
        the reference itself travels. Sample n is of prompt n."""
        samples: list[Sample] = await sample_refs[0]
        return await self._answer([sample.image for sample in samples], prompts)

    async def score_images(self, image_refs: list[ObjectRef], prompts: list[Prompt]) -> Answer:
        """Judge the N images behind a reference to a list of them, wrapped in a list of one."""
        return await self._answer(await image_refs[0], prompts)

    async def applies(self, prompts: list[Prompt]) -> list[bool]:
        """Which prompts the expert has anything to say on."""
        return await self._in_thread(lambda: list(self._expert.applies_to(prompts)))

    async def stats(self) -> ReplicaStats:
        replica = serve.get_replica_context().replica_id.unique_id
        return self._meter.stats(replica, self._expert.pass_mark)

    def check_health(self) -> None:
        """Serve's question. An answer that takes longer than anyone waits for it blocks the replica:
        Serve replaces it."""
        since = self._busy_since
        if since is not None and time.monotonic() - since > self._timeout_s:
            raise RuntimeError(f"expert {self._name} has been stuck for over {self._timeout_s} s")

    async def _answer(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Answer:
        """NaN and "" where the expert does not apply. Raises if a score is missing or not finite."""
        if len(images) != len(prompts):
            raise ValueError(f"expert {self._name} got {len(images)} images, {len(prompts)} prompts")
        with self._meter.request() as counted:
            applies = await self.applies(prompts)
            asked = np.flatnonzero(applies)
            counted.images = len(asked)
            said = None
            if len(asked):
                said = await self._batcher.judge(
                    [images[n] for n in asked], [prompts[n] for n in asked]
                )
            return Answer(spread(said, applies), self._expert.pass_mark)

    async def _ask(self, images: list[np.ndarray], prompts: list[Prompt]) -> Judgement:
        return await self._in_thread(lambda: ask_expert(self._name, self._expert, images, prompts))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        def timed() -> T:
            self._busy_since = time.monotonic()
            try:
                return work()
            finally:
                self._busy_since = None

        return await asyncio.get_running_loop().run_in_executor(self._thread, timed)


def _build(config: ExpertConfig) -> Expert:
    expert = load_expert_class(config.use)(**constructor_options(config))
    if torch := sys.modules.get("torch"):  # by itself it takes every core of the machine
        torch.set_num_threads(max(1, int(config.num_cpus)))
    return expert


def deploy_experts(config: RewardsConfig, timeout_s: float = 1800) -> dict[str, DeploymentHandle]:
    """Start all experts at once and wait until every replica of every one runs.

    Experts of an earlier call are replaced. Starts Serve where it is not running: without HTTP, or
    with it if a gateway is configured. Raises UserError if the gateway's address cannot be had,
    before anything starts; and, naming the expert, if one fails to start or is not there within
    `timeout_s`, after which none is left running.
    """
    start_serve(config.gateway)
    targets = [
        serve.RunTarget(
            _application(name, entry, config.timeout_of(name)),
            app_name(name),
            route_prefix=None,
            logging_config=QUIET,
            external_scaler_enabled=entry.autoscale is None,  # lets `bicot scale` change the number
        )
        for name, entry in config.experts.items()
    ]
    serve.run_many(targets, wait_for_applications_running=False)
    try:
        wait_until_running({app_name(name): f"expert {name}" for name in config.experts}, timeout_s)
    except UserError:
        shutdown_experts()
        raise
    return {name: serve.get_app_handle(app_name(name)) for name in config.experts}


def _application(name: str, entry: ExpertConfig, timeout_s: float) -> serve.Application:
    reserved: dict[str, Any] = {"num_cpus": entry.num_cpus, "num_gpus": entry.num_gpus}
    reserved |= {"resources": entry.resources} if entry.resources else {}
    reserved |= {"runtime_env": entry.runtime_env} if entry.runtime_env else {}
    scale = _autoscaling(entry.autoscale) if entry.autoscale else None
    deployment = serve.deployment(
        ExpertReplica,
        name=name,
        ray_actor_options=reserved,
        max_ongoing_requests=entry.max_ongoing_requests,
        max_constructor_retry_count=_STARTS_TRIED,
        graceful_shutdown_wait_loop_s=0.2,
        **({"autoscaling_config": scale} if scale else {"num_replicas": entry.replicas}),
    )
    return deployment.bind(name, entry, timeout_s)


def _autoscaling(bounds: AutoscaleConfig) -> dict[str, Any]:
    """Ray Serve's settings. It looks at the queue over a while, which must not be longer than what it
    is to react to."""
    look_back_s = min(30.0, max(1.0, bounds.up_after_s))
    return {
        "min_replicas": bounds.min,
        "max_replicas": bounds.max,
        "target_ongoing_requests": bounds.target_queue,
        "upscale_delay_s": bounds.up_after_s,
        "downscale_delay_s": bounds.down_after_s,
        "look_back_period_s": look_back_s,
        "metrics_interval_s": look_back_s / 5,
    }


def check_applicability(config: RewardsConfig, prompts: Sequence[Prompt]) -> None:
    """Ask the running experts once whether every prompt has one that applies and weighs something.

    Raises UserError naming the first prompt without: it could never be given a reward.
    """
    weighted = [name for name, entry in config.experts.items() if entry.weight > 0]
    handles = {name: serve.get_app_handle(app_name(name)) for name in weighted}
    replies = {name: handle.applies.remote(list(prompts)) for name, handle in handles.items()}
    columns = [r.result(timeout_s=config.timeout_of(name)) for name, r in replies.items()]
    for prompt, *answers in zip(prompts, *columns, strict=True):
        if not any(answers):
            raise UserError(
                f"no expert with a weight above 0 applies to prompt {prompt.id} ({prompt.text!r}, "
                f"task_type {prompt.task_type}); asked: {', '.join(weighted)}"
            )


def shutdown_experts() -> None:
    """Stop all experts and the gateway. Serve itself stops too, unless it runs anything else."""
    if not ray.is_initialized():  # asking Serve would start a Ray of its own
        return
    running = list(serve.status().applications)
    ours = [app for app in running if app == GATEWAY_APP or app.startswith(EXPERT_PREFIX)]
    if len(ours) == len(running):
        serve.shutdown()
    else:
        for app in ours:
            serve.delete(app)
