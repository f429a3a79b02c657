"""Default settings of judges."""

from collections.abc import Mapping
from typing import Any

VLM: Mapping[str, Any] = {
    "use": "evaluation.judges.vlm:VlmReplies",
    "options": {"url": "", "model": ""},  # the user must set them
    "batch_size": 8,  # as many as are asked at once, so that a failure loses little
    "timeout_s": 1800,  # of a batch: long replies, and up to eleven tries
}
"""A vision-language model on a server."""
