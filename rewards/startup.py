"""Ray Serve itself: started once a cluster, with HTTP or without, and waited for."""

import errno
import logging
import socket
import time

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, LoggingConfig

from policy.errors import UserError
from rewards.config import GatewayConfig
from rewards.doors import token_digest

log = logging.getLogger(__name__)
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


def start_serve(gateway: GatewayConfig | None) -> str | None:
    """Start Serve on the cluster, where it is not running: with one HTTP proxy, on the head node, for
    a gateway, or with none. Returns the proxy's URL for a gateway.

    Raises UserError if the gateway's token or address cannot be had, before anything starts.
    """
    if gateway is not None:
        token_digest(gateway)
    running = _get_global_client(raise_if_no_controller_running=False) is not None
    if gateway is None:
        if not running:
            serve.start(proxy_location="Disabled", logging_config=QUIET)
        return None
    if not running:
        http = {"host": gateway.host, "port": usable_port(gateway)}
        serve.start(proxy_location="HeadOnly", http_options=http, logging_config=QUIET)
    return _url(gateway)


def _url(gateway: GatewayConfig) -> str:
    """The address that Serve has; raises UserError if it is not the one that is wanted."""
    there = _get_global_client().http_config
    if not serve.status().proxies:
        raise UserError("Ray Serve already runs on this cluster, without HTTP: stop it first")
    if there.host != gateway.host or gateway.port not in (0, there.port):
        raise UserError(
            f"Ray Serve already runs on this cluster, at {there.host}:{there.port}: stop it first, "
            "or set rewards.gateway to that address"
        )
    host = "127.0.0.1" if there.host == "0.0.0.0" else there.host
    return f"http://{host}:{there.port}"


def usable_port(gateway: GatewayConfig) -> int:
    """The port to listen on: the configured one, or a free one for 0. Raises UserError if this
    machine cannot listen there; leaves it free."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
        try:
            trial.bind((gateway.host, gateway.port))
        except OSError as error:
            where = f"port {gateway.port} on {gateway.host}"
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"{where} is in use; set rewards.gateway.port") from error
            raise UserError(f"cannot listen on {where}: {error.strerror or error}") from error
        return trial.getsockname()[1]


def wait_until_running(apps: dict[str, str], timeout_s: float, say_every_s: float = 40) -> None:
    """Wait for applications (by name, with what to call them). Raises UserError with the replica's
    own words if one fails; says now and then what it is waiting for."""
    start = said = time.monotonic()
    while True:
        status = serve.status().applications
        waiting = [app for app in apps if status[app].status != ApplicationStatus.RUNNING]
        for app in waiting:
            if status[app].status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                raise UserError(f"{apps[app]} did not start: {_reason(status[app])}")
        if not waiting:
            return
        now = time.monotonic()
        names, reason = ", ".join(apps[app] for app in waiting), _reason(status[waiting[0]])
        if now - start > timeout_s:
            raise UserError(f"{names} did not start within {timeout_s} s: {reason}")
        if now - said > say_every_s:
            said = now
            log.warning("waiting for %s: %s", names, reason)
        time.sleep(0.1)


def _reason(app: ApplicationStatusOverview) -> str:
    """The last line of what Serve knows: of a traceback, the exception."""
    messages = [d.message for d in app.deployments.values() if d.message] or [app.message]
    lines = messages[0].strip().splitlines()
    return lines[-1].strip() if lines else f"it is {app.status.value}"
