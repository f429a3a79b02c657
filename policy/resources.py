"""Settings of every role: which of a Ray cluster's nodes it may run on."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field


def _plain(value: str) -> str:
    """Refuses Ray's conditions, `!a` or `in(a, b)`: messages about missing nodes look for values."""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?", value):
        raise ValueError("a label's value is letters, digits, '-', '_' and '.'")
    return value


CustomResources = dict[str, Annotated[float, Field(gt=0)]]
"""Name of a resource that only some nodes have -> how much of it each process takes."""

Labels = dict[str, Annotated[str, AfterValidator(_plain)]]
"""Key -> what the node's label must be. Ray itself sets some, as ray.io/accelerator-type."""
