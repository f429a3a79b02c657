"""Wait until Ray has COUNT nodes: roles are spread over the nodes there are, without late ones.

    RAY_ADDRESS=... python -m cluster.slurm.wait_for_nodes COUNT [SECONDS]

Exit status 1 if they are not all there in time (default: 300 s).
"""

import logging
import os
import sys
import time

import ray

from cluster.ray_session import check_answers
from policy.errors import UserError


def alive_nodes() -> list[str]:
    """Addresses of Ray's nodes; none while the head does not answer yet."""
    try:
        if not ray.is_initialized():
            check_answers(os.environ["RAY_ADDRESS"])
            ray.init(logging_level=logging.CRITICAL, log_to_driver=False)
    except (ConnectionError, UserError):
        return []
    return sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])


def main(count: int, limit_s: float = 300) -> None:
    deadline = time.monotonic() + limit_s
    while len(there := alive_nodes()) < count:
        if time.monotonic() > deadline:
            sys.exit(f"error: of {count} Ray nodes {len(there)} are there: {', '.join(there) or '-'}")
        time.sleep(0.5)
    print(f"Ray nodes: {', '.join(there)}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
