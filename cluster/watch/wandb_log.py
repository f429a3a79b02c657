"""Copies a run's numbers and pictures to Weights & Biases."""

import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict

from policy.errors import UserError


class WandbConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    project: str
    """The project that the run is listed in."""
    entity: str | None = None
    """The team; None: the key's owner."""
    mode: Literal["online", "offline"] = "online"
    """offline: into the run directory, for `wandb sync` later. Else WANDB_API_KEY must be set."""


def check_wandb() -> None:
    """Raises UserError if the package is not installed."""
    if find_spec("wandb") is None:
        raise UserError("train.wandb: the package is missing: pip install 'bicot[wandb]'")


class WandbLog:
    """One run there is one run directory here, however often it is resumed. Repeated steps are logged
    again: charts are over `step`, not over the order of logging."""

    def __init__(self, config: WandbConfig, folder: Path, settings: Mapping[str, Any]):
        """Raises UserError if the service does not accept the run."""
        import wandb

        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                mode=config.mode,
                name=folder.name,
                id=_lasting_id(folder / "wandb_id.txt"),
                resume="allow",
                dir=folder,
                config=dict(settings),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise UserError(f"train.wandb: {error}") from None
        self._run.define_metric("*", step_metric="step")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self._run.log({"step": step, name: self._wandb.Image(image)})

    def close(self) -> None:
        self._run.finish()


def _lasting_id(file: Path) -> str:
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()
