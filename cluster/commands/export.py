"""`bicot export`: the model of a run's newest checkpoint, with a card, here and on the hub."""

import shutil
from pathlib import Path

from rich.console import Console

from cluster.checkpoint import Checkpoint, newest
from cluster.commands.model_card import write_card
from policy.convert import KEPT, appearing, convert_into
from policy.errors import UserError
from policy.hub import Layout
from policy.publish import Repository

_STATE = {"state.json", "zero_to_fp32.py", "zero_to_torch.py"}
"""Files of a checkpoint that are no part of the model."""


def export(
    folder: Path,
    target: Path,
    layout: Layout,
    console: Console,
    *,
    card: bool = False,
    push: str | None = None,
    public: bool = False,
) -> None:
    """Write the model into `target`, with `card` a model card too, and upload it to the hub's
    repository `push`. Raises UserError, with nothing written, if there is no checkpoint, `target` holds
    anything, or the hub refuses; an upload that breaks off leaves `target` whole."""

    def tell(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    checkpoint = newest(folder / "checkpoints", tell)
    if checkpoint is None:
        raise UserError(f"{folder}: no checkpoint to export")
    step = checkpoint.state.step
    with appearing(target) as part:
        repository = Repository(push, public=public) if push else None
        if layout == "original":
            convert_into(part, str(checkpoint.folder), layout)
        else:
            _copy_model(checkpoint, part)
        if card:
            write_card(folder, part, step, layout, push or target.name, tell)
    tell(f"{target}: the model after step {step}")
    if repository:
        repository.upload(target, f"{folder.resolve().name}, step {step}")
        tell(f"{repository.url}: uploaded")


def _copy_model(checkpoint: Checkpoint, part: Path) -> None:
    for file in checkpoint.folder.iterdir():
        if file.is_file() and file.name not in _STATE:
            shutil.copy2(file, part / file.name)
    if (checkpoint.folder / KEPT).is_dir():
        shutil.copytree(checkpoint.folder / KEPT, part / KEPT)
