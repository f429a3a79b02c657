"""Serves the model on Ray Serve: its replicas as one application, the images API as another."""

import threading
from typing import Any

from ray import serve
from rich.console import Console

from actors.rollout import choose_sampler
from cluster.commands.fetch import check_fetched
from cluster.config import RunConfig
from cluster.placement import Role, check_room
from cluster.ray_session import existing_cluster, ray_session
from policy.errors import UserError
from policy.model import check_policy
from rewards import controller
from rewards.middleware import token_digest
from rewards.serving import (
    GATEWAY_APP,
    QUIET,
    autoscaling,
    shutdown_apps,
    start_serve,
    usable_port,
    wait_until_running,
)
from studio.images_api import build_app
from studio.model_client import MODEL_APP, ModelClient
from studio.model_replica import ModelReplica
from studio.records import ModelCard

API_APP = "images_api"
_API_CPUS = 0.1
_MORE_CALLS = 16  # that a replica answers beside requests for images: its state, its metrics
_STARTS_TRIED = 2  # a constructor that failed is tried once more: a download may have broken off


def serve_model(config: RunConfig, console: Console) -> None:
    """Serve a policy as it is, until Ctrl-C."""
    check_fetched(config.policy.templates)
    check_policy(config.policy)
    if not existing_cluster(config.ray):  # there the replicas' machines may hold what this one does not
        choose_sampler(config.actors)
        token_digest(config.serve)
        usable_port(config.serve)
    cpus = config.serve.most_replicas * config.actors.num_cpus + _API_CPUS
    with ray_session(config.ray, cpus, console):
        try:
            with console.status("starting the model"):
                url = start_model(config)
            console.print(
                f"the model answers at {url}/v1  ({url}/docs); Ctrl-C stops it",
                highlight=False,
                soft_wrap=True,
            )
            threading.Event().wait()
        finally:
            if existing_cluster(config.ray):  # our own ends with us, all at once
                stop_model()


def start_model(config: RunConfig) -> str:
    """Start the replicas, then the API. Returns its URL once it answers.

    Raises UserError if its token is not set, if its address cannot be bound, if there is no room, or if
    something fails to start, after which nothing is left running.
    """
    digest = token_digest(config.serve)
    actors, fewest = config.actors, config.serve.fewest_replicas
    role = Role("model", fewest, actors.num_cpus, actors.num_gpus, "", actors.resources, actors.labels)
    check_room(config.ray, [role])
    url = start_serve(config.serve)
    assert url is not None  # the API has an HTTP address
    if GATEWAY_APP in controller.status().applications:
        raise UserError(
            "the gateway of experts has this cluster's HTTP address: stop it, or serve the model on"
            " another cluster"
        )
    try:
        _run(_model(config), MODEL_APP, None)
        wait_until_running({MODEL_APP: "the model"}, actors.load_timeout_s)
        reply = serve.get_app_handle(MODEL_APP).card.remote()
        card: ModelCard = reply.result(timeout_s=controller.LIMIT_S)
        limits = config.serve  # all that the API's process is to load of a configuration
        deployment = serve.deployment(
            serve.ingress(lambda: build_app(limits, card, ModelClient(), digest))(),
            name=API_APP,
            ray_actor_options={"num_cpus": _API_CPUS},
            max_ongoing_requests=100_000,  # the API itself turns requests away
            graceful_shutdown_wait_loop_s=0.2,
        )
        _run(deployment.bind(), API_APP, "/")
        wait_until_running({API_APP: "the images API"}, timeout_s=120)
    except UserError:
        stop_model()
        raise
    return url


def stop_model() -> None:
    """Stop the model and its API. Serve itself stops too, unless it runs anything else."""
    shutdown_apps({MODEL_APP, API_APP}.__contains__)


def _model(config: RunConfig) -> serve.Application:
    actors, served = config.actors, config.serve
    reserved: dict[str, Any] = {"num_cpus": actors.num_cpus, "num_gpus": actors.num_gpus}
    reserved |= {"resources": actors.resources} if actors.resources else {}
    reserved |= {"label_selector": actors.labels} if actors.labels else {}
    scale = autoscaling(served.autoscale) if served.autoscale else None
    deployment = serve.deployment(
        ModelReplica,
        name="model",
        ray_actor_options=reserved,
        # No more ever wait: the API turns them away.
        max_ongoing_requests=served.max_waiting + _MORE_CALLS,
        max_constructor_retry_count=_STARTS_TRIED,
        graceful_shutdown_wait_loop_s=0.2,
        **({"autoscaling_config": scale} if scale else {"num_replicas": served.replicas}),
    )
    return deployment.bind(served.model_name or config.name, config.policy, actors)


def _run(application: serve.Application, name: str, route: str | None) -> None:
    target = serve.RunTarget(application, name, route, QUIET)
    controller.within_limit(lambda: serve.run_many([target], wait_for_applications_running=False))
