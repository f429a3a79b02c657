"""A Ray head as an operator starts one, `ray start --head --block`, for the length of a test."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.commands import environment, wait_for
from tests.conftest import ROOT

SCRIPTS = Path(sys.executable).parent
"""Where `ray` and `bicot` lie."""


@dataclass(frozen=True)
class Head:
    address: str
    """host:port, as a driver connects to it."""
    dashboard: str
    """Its URL, which jobs are submitted to."""
    metrics: str
    """The URL that Prometheus would read."""
    environment: dict[str, str]
    """For commands that talk to it: they find it and may sign in."""

    def ray(self, *arguments: object, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        command = [SCRIPTS / "ray", *map(str, arguments)]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout
        )


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def path_to_this_python() -> dict[str, str]:
    """A job's `python` is the one that the cluster's PATH finds."""
    return {"PATH": f"{SCRIPTS}:{os.environ['PATH']}"}


@contextmanager
def ray_head(resources: str) -> Iterator[Head]:
    """A head with a token, ports and a folder of its own; gone at the end, whatever happened.

    `resources` is JSON, as `ray start` takes it.
    """
    gcs, dashboard, listen, grpc, env_agent, metrics, client = free_ports(7)
    folder = Path(tempfile.mkdtemp(prefix="bicot_", dir="/tmp"))  # Ray's sockets want short paths
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    url = f"http://127.0.0.1:{dashboard}"
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_API_SERVER_ADDRESS": url}
    head = Head(
        address=f"127.0.0.1:{gcs}",
        dashboard=url,
        metrics=f"http://127.0.0.1:{metrics}",
        environment=environment() | path_to_this_python() | own,
    )
    command = [SCRIPTS / "ray", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--temp-dir={folder}", "--num-cpus=8", f"--resources={resources}"]
    command += [
        "--object-store-memory=200000000",
        '--system-config={"metrics_report_interval_ms":1000}',
    ]
    command += [f"--port={gcs}"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={listen}"]
    command += [f"--dashboard-agent-grpc-port={grpc}", f"--runtime-env-agent-port={env_agent}"]
    command += [f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}"]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=head.environment
            | {"OMP_NUM_THREADS": "1", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:

        def is_up() -> bool:
            assert process.poll() is None, log.read_text()
            return head.ray("job", "list").returncode == 0

        wait_for(is_up, "the head", say=log.read_text)
        yield head
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)
