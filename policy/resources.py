"""Which of a Ray cluster's nodes a role may run on: settings that all roles have alike."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field


def _plain(value: str) -> str:
    """Ray would take `!a` or `in(a, b)` for a condition; who tells what is missing looks for values."""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?", value):
        raise ValueError("a label's value is letters, digits, '-', '_' and '.'")
    return value


CustomResources = dict[str, Annotated[float, Field(gt=0)]]
"""By name: what only some nodes have, and how much of it each process takes."""

Labels = dict[str, Annotated[str, AfterValidator(_plain)]]
"""By key: what a node's label must be. Ray itself gives nodes some, as ray.io/accelerator-type."""
