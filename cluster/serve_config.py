"""The settings that `bicot serve-model` adds to a run's.

Needs no torch, so that the process that serves HTTP starts without it."""

from typing import ClassVar

from pydantic import Field, model_validator

from rewards.config import AutoscaleConfig, HttpConfig


class ServeConfig(HttpConfig):
    """The model behind an images API (`bicot serve-model`). A replica's resources, sampling and batch
    size are set under `actors`."""

    key: ClassVar[str] = "serve"

    model_name: str | None = Field(None, pattern=r"^[A-Za-z0-9._/-]+$", max_length=200)
    """The model's name in requests; None: the run's name."""
    max_body_mb: float = Field(1, gt=0)
    """Largest request body, in MiB."""
    max_concurrent: int = Field(256, ge=1)
    """Requests that are handled at once; further ones get status 429."""
    max_images: int = Field(10, ge=1)
    """Most images of one request."""
    max_waiting: int = Field(256, ge=1)
    """Most images that wait or are being drawn, of all requests together; a request beyond that gets
    status 429."""
    timeout_s: float = Field(600, gt=0)
    """How long a request may take, waiting included."""
    replicas: int = Field(1, ge=1)
    """How many processes draw, each with a model of its own."""
    autoscale: AutoscaleConfig | None = None
    """Instead of `replicas`: bounds between which Ray Serve chooses."""

    @model_validator(mode="after")
    def _one_way_to_scale(self):
        if self.autoscale and "replicas" in self.model_fields_set and self.replicas != 1:
            raise ValueError("set replicas or autoscale, not both")
        if self.max_waiting < self.max_images:
            raise ValueError(
                f"max_waiting ({self.max_waiting}) is less than max_images ({self.max_images}):"
                " the largest request could never be drawn"
            )
        return self

    @property
    def most_replicas(self) -> int:
        return self.autoscale.max if self.autoscale else self.replicas

    @property
    def fewest_replicas(self) -> int:
        return self.autoscale.min if self.autoscale else self.replicas
