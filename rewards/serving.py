"""Experts as servers: every expert is one Ray Serve application with its own replicas.

Adding a replica, or another expert, touches no other process. Images reach an expert through the
object store: a caller hands over a reference, and nobody in between touches the pixels.
"""

from collections.abc import Sequence
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from policy.errors import UserError
from policy.records import Prompt
from rewards.config import AutoscaleConfig, ExpertConfig, RewardsConfig
from rewards.replica import ExpertReplica
from rewards.startup import QUIET, start_serve, wait_until_running

GATEWAY_APP = "gateway"
EXPERT_PREFIX = "expert_"
_STARTS_TRIED = 2  # a constructor that failed is tried once more: a download may have broken off


def app_name(expert: str) -> str:
    """The name of an expert's Serve application."""
    return EXPERT_PREFIX + expert


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
    reserved |= {"label_selector": entry.labels} if entry.labels else {}
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
