"""Ray during a command: an existing cluster, or a new one that ends with the command."""

import json
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.job_config import JobConfig
from rich.console import Console

from cluster.config import RayConfig
from cluster.estimate.store_memory import MB, StoreNeed, asked_of_cluster, machine_mb, store_size
from policy.errors import UserError, in_one_line
from rewards.middleware import digests
from rewards.proxy import CALLBACK

WORKER_ENV = {
    # One thread a process: on a shared machine more threads only slow each other down.
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    **CALLBACK,
}


@contextmanager
def ray_session(
    config: RayConfig, cpus: float, console: Console, need: StoreNeed | None = None
) -> Iterator[None]:
    """Connect, or start a cluster that has at least `cpus` (a logical number: a laptop with fewer cores
    than roles shares them) and an object store for `need`; warns if that is more than the machine has.
    SIGTERM ends the command like Ctrl-C, so that nothing is left behind."""
    need = need or StoreNeed()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # An error that nobody fetches belongs to a batch that was given to another worker.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    address = existing_cluster(config)
    options = {
        "runtime_env": {"env_vars": WORKER_ENV | digests()},
        "job_config": OwnModulesFirst(),
        "logging_level": logging.ERROR,  # hides Ray's warning that it needs a token; printed below
        "log_to_driver": bool(os.environ.get("BICOT_WORKER_LOGS")),
    }
    if address:
        check_answers(address)
        options["address"] = address
    else:
        store_mb, message, small = store_size(config, need, machine_mb())
        if small:
            warn(console, message)
        options |= {
            "address": "local",
            "num_cpus": max(os.cpu_count() or 1, math.ceil(cpus)),
            "include_dashboard": config.dashboard,
            "object_store_memory": store_mb * MB,
        }
    with console.status("starting Ray"):
        context = start_ray(address, options, config.start_timeout_s)
    if address:
        message, small = asked_of_cluster(need, address, largest_store_mb())
        if small:
            warn(console, message)
    if context.dashboard_url:
        console.print(f"Ray dashboard: http://{context.dashboard_url}", highlight=False)
        if not address:
            console.print("  to sign in: ray get-auth-token", highlight=False)
    previous = signal.signal(signal.SIGTERM, _interrupt)  # after Ray, which sets its own handler
    try:
        yield
    finally:
        leave_ray()
        signal.signal(signal.SIGTERM, previous)


def leave_ray() -> None:
    """Disconnect. Serve notes each answer in a thread of its own, which may come after this: with no
    connection left it would print a traceback of something that nobody waits for."""
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    ray.shutdown()


def start_ray(address: str | None, options: Mapping[str, Any], timeout_s: float) -> Any:
    """Connect, or start a cluster, and return Ray's context; a node that is slow to start is started
    again until `timeout_s` is over. Raises UserError with Ray's message, and the settings that it may
    depend on."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return ray.init(**options)
        except (ConnectionError, AuthenticationError) as error:
            raise not_let_in(address, error) from None
        except Exception as error:  # Ray has no exception type for these
            ray.shutdown()
            if "timed out during startup" in str(error) and time.monotonic() < deadline:
                continue
            raise UserError(f"Ray does not start: {why_not(address, error)}") from error


def why_not(address: str | None, error: Exception) -> str:
    """Ray's reason, and the variable or key that a person can change."""
    reason = in_one_line(error)
    if address and isinstance(error, ValueError):
        return (
            f"{address!r} is no address of a cluster's head: set ray.address or RAY_ADDRESS to"
            " host:port (usually port 6379), or to auto; an http:// address is for `ray job submit`"
        )
    if "AF_UNIX" in reason:
        return (
            f"{reason}: the path of the temporary directory is too long: set RAY_TMPDIR to a short one"
        )
    if isinstance(error, OSError):
        return f"{reason}: Ray writes below RAY_TMPDIR, else TMPDIR, else /tmp, and below HOME"
    return reason


class OwnModulesFirst(JobConfig):
    """Has Ray's workers import from this program's own folder first. By default the working directory
    comes first, where a `rewards.py` would hide this program's."""

    def _serialize(self) -> str:
        if self._py_driver_sys_path:  # Ray puts the last entry before the others
            self._py_driver_sys_path.append(str(Path(__file__).parents[1]))
        return super()._serialize()


def largest_store_mb() -> int:
    """The largest object store of the connected cluster's nodes."""
    sizes = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    return int(max(sizes, default=0) / MB)


def print_store_size(config: RayConfig, need: StoreNeed, console: Console) -> None:
    """Print how large the object store will be, or must be, without connecting."""
    if address := existing_cluster(config):
        message, small = asked_of_cluster(need, address)
    else:
        _, message, small = store_size(config, need, machine_mb())
    if small:
        warn(console, message)
    else:
        console.print(message, highlight=False, soft_wrap=True)


def warn(console: Console, message: str) -> None:
    console.print(f"warning: {message}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def existing_cluster(config: RayConfig) -> str | None:
    """The address of the cluster to join; None: the command starts its own."""
    return config.address or os.environ.get("RAY_ADDRESS")


def check_answers(address: str) -> None:
    """Raises UserError if nobody listens at a host:port; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not (colon and port.isdecimal()):
        return  # "auto", or another form that Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}") from None


def not_let_in(address: str | None, error: Exception) -> UserError:
    return UserError(
        f"no Ray cluster lets us in at {address}: {error}; one with a token wants RAY_AUTH_MODE=token"
        " and its RAY_AUTH_TOKEN"
    )


def check_kept(folder: Path) -> None:
    """Raises UserError for a folder whose files would be lost: one inside the copy of the working
    directory in which Ray runs a submitted job."""
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))  # as Ray names it
    if submitted.get("runtime_env", {}).get("working_dir") and not folder.is_absolute():
        raise UserError(
            f"runs_dir: {folder} would lie in Ray's copy of the working directory, which Ray deletes:"
            " set runs_dir to an absolute path, on a volume that outlives the node"
        )


def _interrupt(signum, frame):
    raise KeyboardInterrupt
