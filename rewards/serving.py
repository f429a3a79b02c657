"""Serves experts: every expert is one Ray Serve application with its own replicas.

Adding a replica, or another expert, touches no other process. Images reach an expert through the object
store: a caller passes a reference, and the pixels never pass through another process. Ray Serve itself
is started once a cluster, with or without HTTP.
"""

import errno
import logging
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, LoggingConfig

from policy.errors import UserError
from policy.records import Prompt
from policy.starting import report
from rewards import controller
from rewards.config import AutoscaleConfig, ExpertConfig, HttpConfig, RewardsConfig
from rewards.middleware import token_digest
from rewards.replica import ExpertReplica

log = logging.getLogger(__name__)
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


def start_serve(gateway: HttpConfig | None) -> str | None:
    """Start Serve on the cluster if it is not running: for a gateway with one HTTP proxy, on the head
    node, else without HTTP. Returns the proxy's URL for a gateway.

    Raises UserError if the gateway's token is not set or its address cannot be bound, before anything
    starts.
    """
    if gateway is not None:
        token_digest(gateway)
    running = controller.is_running()
    if gateway is None:
        if not running:
            controller.within_limit(
                lambda: serve.start(proxy_location="Disabled", logging_config=QUIET)
            )
        return None
    if not running:
        http = {"host": gateway.host, "port": usable_port(gateway)}
        controller.within_limit(
            lambda: serve.start(proxy_location="HeadOnly", http_options=http, logging_config=QUIET)
        )
    return _url(gateway)


def _url(gateway: HttpConfig) -> str:
    """The address at which Serve listens; raises UserError if it is not the configured one."""
    there = controller.http_options()
    if not controller.status().proxies:
        raise UserError("Ray Serve already runs on this cluster, without HTTP: stop it first")
    if there.host != gateway.host or gateway.port not in (0, there.port):
        raise UserError(
            f"Ray Serve already runs on this cluster, at {there.host}:{there.port}: stop it first, "
            f"or set {gateway.key} to that address"
        )
    host = "127.0.0.1" if there.host == "0.0.0.0" else there.host
    return f"http://{host}:{there.port}"


def usable_port(gateway: HttpConfig) -> int:
    """The port to listen on: the configured one, or a free one for 0. Raises UserError if this
    machine cannot listen there; leaves it free."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
        try:
            trial.bind((gateway.host, gateway.port))
        except OSError as error:
            where = f"port {gateway.port} on {gateway.host}"
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"{where} is in use; set {gateway.key}.port") from error
            raise UserError(f"cannot listen on {where}: {error.strerror or error}") from error
        return trial.getsockname()[1]


def wait_until_running(apps: dict[str, str], timeout_s: float, say_every_s: float = 40) -> None:
    """Wait for applications (name -> what to call it in messages). Raises UserError with the replica's
    own message if one fails; reports progress, and logs now and then which ones it waits for."""
    start = logged_at = time.monotonic()
    while True:
        status = controller.status().applications
        waiting = [app for app in apps if status[app].status != ApplicationStatus.RUNNING]
        short = {app: name.removeprefix("expert ") for app, name in apps.items()}
        report([short[app] for app in apps if app not in waiting], [short[app] for app in waiting])
        for app in waiting:
            if status[app].status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                raise UserError(f"{apps[app]} did not start: {_reason(status[app])}")
        if not waiting:
            return
        now = time.monotonic()
        names, reason = ", ".join(apps[app] for app in waiting), _reason(status[waiting[0]])
        if now - start > timeout_s:
            raise UserError(f"{names} did not start within {timeout_s} s: {reason}")
        if now - logged_at > say_every_s:
            logged_at = now
            log.warning("waiting for %s: %s", names, reason)
        time.sleep(0.1)


def _reason(app: ApplicationStatusOverview) -> str:
    """The last line of Serve's message: the exception of a traceback; of a UserError the message
    alone."""
    messages = [d.message for d in app.deployments.values() if d.message] or [app.message]
    lines = messages[0].strip().splitlines()
    last = lines[-1].strip() if lines else f"it is {app.status.value}"
    return last.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")


GATEWAY_APP = "gateway"
EXPERT_PREFIX = "expert_"
_STARTS_TRIED = 2  # a constructor that failed is tried once more: a download may have broken off


def app_name(expert: str) -> str:
    """The name of an expert's Serve application."""
    return EXPERT_PREFIX + expert


def deploy_experts(config: RewardsConfig, timeout_s: float = 1800) -> dict[str, DeploymentHandle]:
    """Start all experts at once and wait until every replica of every one runs.

    Experts of an earlier call are replaced. Starts Serve where it is not running: without HTTP, or with
    it if a gateway is configured. Raises UserError if the gateway's address cannot be bound, before
    anything starts; and, naming the expert, if one fails to start or is not ready within `timeout_s`,
    after which none is left running.
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
    controller.within_limit(lambda: serve.run_many(targets, wait_for_applications_running=False))
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
    scale = autoscaling(entry.autoscale) if entry.autoscale else None
    check_s = min(10.0, max(2.0, timeout_s / 12))
    deployment = serve.deployment(
        ExpertReplica,
        name=name,
        ray_actor_options=reserved,
        max_ongoing_requests=entry.max_ongoing_requests,
        max_constructor_retry_count=_STARTS_TRIED,
        graceful_shutdown_wait_loop_s=0.2,
        # Three checks in a row without an answer, and Serve starts another replica: a process that is
        # stopped costs one timeout of a request.
        health_check_period_s=check_s,
        health_check_timeout_s=check_s,
        **({"autoscaling_config": scale} if scale else {"num_replicas": entry.replicas}),
    )
    return deployment.bind(name, entry, timeout_s)


def autoscaling(bounds: AutoscaleConfig) -> dict[str, Any]:
    """Ray Serve's autoscaling settings. It averages the queue over a period, which must not be longer
    than the delays."""
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
    """Ask the running experts once whether every prompt has one that applies and has a weight above 0.

    Raises UserError naming the first prompt without one: it could never get a reward.
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
    shutdown_apps(lambda app: app == GATEWAY_APP or app.startswith(EXPERT_PREFIX))


def shutdown_apps(of: Callable[[str], bool]) -> None:
    """Stop the applications whose names `of` accepts, and Serve with the last one."""
    if not ray.is_initialized() or not controller.is_running():
        return
    running = list(controller.status().applications)
    ours = [app for app in running if of(app)]
    if len(ours) == len(running):
        controller.within_limit(serve.shutdown)
    else:
        for app in ours:
            controller.within_limit(partial(serve.delete, app))
