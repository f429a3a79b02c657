"""Which model, and how it is prompted. Reading a configuration needs no torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from policy.paths import UserPath

Dtype = Literal["float32", "bfloat16", "float16"]


class PolicyConfig(BaseModel):
    """Which model is trained, and how it is prompted."""

    model_config = ConfigDict(extra="forbid")

    path: UserPath
    """A directory or a hub id, of a Janus in transformers layout or in the original one."""
    templates: UserPath | None = None
    """Folder with system.txt, semantic_cot.txt and image.txt; None: the ones in policy/templates."""
    dtype: Dtype = "float32"
    """The type of the weights, when sampling and when training."""
