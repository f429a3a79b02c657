"""Experts as servers: every expert is one Ray Serve application with its own replicas.

Adding a replica, or another expert, touches no other process. Images reach an expert through the
object store: a caller hands over a reference, and nobody in between touches the pixels.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import ray
from ray import ObjectRef, serve
from ray.serve.handle import DeploymentHandle

from policy.errors import UserError
from policy.records import Prompt, Sample
from rewards.config import ExpertConfig, RewardsConfig, load_expert_class
from rewards.expert import Expert, Judgement
from rewards.startup import QUIET, start_serve, wait_until_running

T = TypeVar("T")
GATEWAY_APP = "gateway"
_EXPERT_PREFIX = "expert_"
_STARTS_TRIED = 2  # a constructor that failed is tried once more: a download may have broken off


def app_name(expert: str) -> str:
    """The name of an expert's Serve application."""
    return _EXPERT_PREFIX + expert


class ExpertReplica:
    """One expert in one process. It is built by the thread that asks it, and asked by no other, one
    request at a time; fetching images goes on meanwhile."""

    def __init__(self, name: str, config: ExpertConfig, timeout_s: float):
        self._name = name
        self._timeout_s = timeout_s
        self._busy_since: float | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="expert")
        self._expert = self._thread.submit(_build, config).result()

    async def score_samples(self, sample_refs: list[ObjectRef], prompts: list[Prompt]) -> Judgement:
        """Judge the samples behind a reference to a list of them, wrapped in a list of one so that
        the reference itself travels. Sample n is of prompt n."""
        samples: list[Sample] = await sample_refs[0]
        return await self.score_images([sample.image for sample in samples], prompts)

    async def score_images(self, images: list[np.ndarray], prompts: list[Prompt]) -> Judgement:
        """Judge N images; NaN and "" where the expert does not apply. Raises if a score is missing
        or not a finite number."""
        return await self._in_thread(lambda: judge(self._name, self._expert, images, prompts))

    async def applies(self, prompts: list[Prompt]) -> list[bool]:
        """Which prompts the expert has anything to say on."""
        return await self._in_thread(lambda: [self._expert.applies(prompt) for prompt in prompts])

    async def pass_mark(self) -> float:
        return self._expert.pass_mark

    def check_health(self) -> None:
        """Serve's question. An answer that takes longer than anyone waits for it blocks the replica:
        Serve replaces it."""
        since = self._busy_since
        if since is not None and time.monotonic() - since > self._timeout_s:
            raise RuntimeError(f"expert {self._name} has been stuck for over {self._timeout_s} s")

    async def _in_thread(self, work: Callable[[], T]) -> T:
        def timed() -> T:
            self._busy_since = time.monotonic()
            try:
                return work()
            finally:
                self._busy_since = None

        return await asyncio.get_running_loop().run_in_executor(self._thread, timed)


def _build(config: ExpertConfig) -> Expert:
    expert = load_expert_class(config.use)(**config.options)
    if torch := sys.modules.get("torch"):  # by itself it takes every core of the machine
        torch.set_num_threads(max(1, int(config.num_cpus)))
    return expert


def judge(
    name: str, expert: Expert, images: Sequence[np.ndarray], prompts: Sequence[Prompt]
) -> Judgement:
    """Ask an expert about the prompts it applies to, and nothing else; check what it says.

    Returns a judgement over all N, NaN and "" where it does not apply.
    """
    if len(images) != len(prompts):
        raise ValueError(f"expert {name} got {len(images)} images for {len(prompts)} prompts")
    asked = [n for n, prompt in enumerate(prompts) if expert.applies(prompt)]
    values = np.full(len(prompts), np.nan, np.float32)
    evidence = [""] * len(prompts)
    if asked:
        answer = expert.score([images[n] for n in asked], [prompts[n] for n in asked])
        given = np.asarray(answer.values, np.float32)
        lines = answer.evidence or ("",) * len(asked)
        if given.shape != (len(asked),) or len(lines) != len(asked):
            what = f"values of shape {given.shape} and {len(lines)} evidences"
            raise RuntimeError(f"expert {name} gave {what} for {len(asked)} images")
        for n, value, line in zip(asked, given, lines, strict=True):
            if not np.isfinite(value):
                raise RuntimeError(f"expert {name} gave {value} for prompt {prompts[n].text!r}")
            values[n], evidence[n] = value, line
    return Judgement(values, tuple(evidence))


def deploy_experts(config: RewardsConfig, timeout_s: float = 1800) -> dict[str, DeploymentHandle]:
    """Start all experts at once and wait until every replica of every one runs.

    Experts of an earlier call are replaced. Starts Serve where it is not running: without HTTP, or
    with it if a gateway is configured. Raises UserError if the gateway's address cannot be had,
    before anything starts; and, naming the expert, if one fails to start or is not there within
    `timeout_s`, after which none is left running.
    """
    start_serve(config.gateway)
    targets = [
        serve.RunTarget(_application(name, entry, config.timeout_s), app_name(name), None, QUIET)
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
    deployment = serve.deployment(
        ExpertReplica,
        name=name,
        num_replicas=entry.replicas,
        ray_actor_options={"num_cpus": entry.num_cpus, "num_gpus": entry.num_gpus},
        max_ongoing_requests=entry.max_ongoing_requests,
        max_constructor_retry_count=_STARTS_TRIED,
        graceful_shutdown_wait_loop_s=0.2,
    )
    return deployment.bind(name, entry, timeout_s)


def check_applicability(config: RewardsConfig, prompts: Sequence[Prompt]) -> None:
    """Ask the running experts once whether every prompt has one that applies and weighs something.

    Raises UserError naming the first prompt without: it could never be given a reward.
    """
    weighted = [name for name, entry in config.experts.items() if entry.weight > 0]
    handles = {name: serve.get_app_handle(app_name(name)) for name in weighted}
    replies = {name: handle.applies.remote(list(prompts)) for name, handle in handles.items()}
    columns = [reply.result(timeout_s=config.timeout_s) for reply in replies.values()]
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
    ours = [app for app in running if app == GATEWAY_APP or app.startswith(_EXPERT_PREFIX)]
    if len(ours) == len(running):
        serve.shutdown()
    else:
        for app in ours:
            serve.delete(app)
