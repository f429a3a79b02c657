"""Calls Ray Serve's controller with a time limit: a stopped process never answers.

Everything that bicot uses of Ray Serve beyond its public interface is here.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

import ray
from ray import serve
from ray.exceptions import GetTimeoutError
from ray.serve._private.common import DeploymentID  # names a deployment to the controller
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client  # shows whether Serve runs, without starting it
from ray.serve.schema import ServeStatus

from policy.errors import UserError

T = TypeVar("T")
LIMIT_S = 120.0


def within_limit(call: Callable[[], T]) -> T:
    """What `call` returns or raises; most of Ray Serve's calls wait for the controller without a limit.
    Raises UserError if it takes longer than LIMIT_S."""
    came: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            came.append(call())
        except BaseException as error:  # raised again below, in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)  # one that hangs must not keep the program
    thread.start()
    thread.join(LIMIT_S)
    if failed:
        raise failed[0]
    if not came:
        raise _silent()
    return came[0]


def _silent() -> UserError:
    return UserError(f"Ray Serve's controller does not answer within {LIMIT_S:g} s")


def is_running() -> bool:
    """Whether Serve runs on this cluster."""
    return within_limit(lambda: _get_global_client(raise_if_no_controller_running=False)) is not None


def status() -> ServeStatus:
    """The status of Serve, which must be running."""
    return within_limit(serve.status)


def http_options() -> HTTPOptions:
    """Where Serve, which must be running, listens."""
    return within_limit(_get_global_client).http_config


def set_replicas(app: str, deployment: str, count: int) -> bool:
    """Change how many replicas an application should have, without deploying it anew. False if it
    scales by itself, and nothing was changed."""
    controller = within_limit(_get_global_client)._controller
    change = controller.update_deployment_replicas
    try:
        if not ray.get(controller.get_external_scaler_enabled.remote(app), timeout=LIMIT_S):
            return False
        ray.get(change.remote(DeploymentID(deployment, app), count), timeout=LIMIT_S)
    except GetTimeoutError:
        raise _silent() from None
    return True
