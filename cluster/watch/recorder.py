"""Writes a run's records for people into one folder: numbers, pictures, CoTs."""

import errno
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray
from PIL.Image import Image
from ray.util.metrics import Gauge

from cluster.files import KeepGoing, Lines
from cluster.watch.best_worst import best_worst
from cluster.watch.best_worst import picture as show_extremes
from cluster.watch.curves import read_metrics
from cluster.watch.evaluation import Evaluation, ScoredSample, save_evaluation, save_images
from cluster.watch.plots import grid
from cluster.watch.wandb_log import WandbLog
from policy.paths import write_whole

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)
ROOM = 2**20  # free bytes below which no more pictures are written
GRID_LIMIT = 64  # prompts on the grid of an evaluation
COLUMNS = 8


class Recorder:
    """Writes `metrics.jsonl`, `tensorboard/` and `samples/` of a run directory, and Ray's gauges (with
    the run's name as their `run`) where Ray runs. Reports and leaves out what cannot be written: no
    method raises for it. Lines of `metrics.jsonl` wait until there is room.

    Each line of `metrics.jsonl` is one JSON object with a `step` and a `time`, the seconds since the
    run began; it is flushed before the method returns. In a folder that an earlier run left the
    recorder appends, `time` goes on from the last line, and a line that was cut off stays on a line of
    its own. A number that is not finite is null in JSON and a gap elsewhere.
    """

    def __init__(
        self,
        folder: Path,
        next_step: int | None = None,
        wandb: WandbLog | None = None,
        tell: Callable[[str], None] = log.warning,
    ):
        """`next_step`, on a resume, makes TensorBoard forget what was recorded from there on. `wandb`
        gets a copy; the caller closes it."""
        self.folder = Path(folder)
        self._wandb = wandb
        self._keep_going = KeepGoing(tell)
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        path = self.folder / "metrics.jsonl"
        earlier = read_metrics(path).lines if path.exists() else []
        self._began = time.monotonic() - max((line.get("time", 0.0) for line in earlier), default=0.0)
        self._lines = Lines(path, self._keep_going)
        self._board: SummaryWriter | None = None
        self._to_board(lambda board: None, purge_step=next_step)
        self._gauges: dict[str, Gauge] = {}

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the numbers of one step."""
        if clash := {"step", "time"} & metrics.keys():
            raise ValueError(f"a metric may not be named '{min(clash)}'")
        values = {name: float(value) for name, value in metrics.items()}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        line: dict[str, float | None] = {"step": step, "time": round(time.monotonic() - self._began, 3)}
        self._lines.add([line | {name: finite.get(name) for name in values}])

        def scalars(board: "SummaryWriter") -> None:
            for name, value in finite.items():
                board.add_scalar(name, value, step)

        self._to_board(scalars)
        for name, value in finite.items():
            self._gauge(name, value)
        if self._wandb:
            with self._keep_going("wandb"):
                self._wandb.numbers(step, finite)

    def samples(self, step: int, scored: Sequence[ScoredSample]) -> None:
        """Show a few samples of training, each with its prompt and scores."""
        with self._keep_going("samples/step_*.png"):
            captions = [f"{one.reward:.2f}  {one.prompt.text}" for one in scored]
            picture = grid([one.sample.image for one in scored], captions, COLUMNS)
            rows = [(one.prompt.text, one.sample.cot_text, one.reward) for one in scored]
            self._show("samples", picture, rows, step)
            picture.save(self.folder / "samples" / f"step_{step:06d}.png")
            save_samples(scored, self.folder / "samples" / f"step_{step:06d}")

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Record an evaluation: its means as a line, everything else as a folder of `samples/`. The
        grid shows the first sample of each of the first 64 prompts."""
        folder = self.folder / "samples" / f"eval_{step:06d}"
        self.step(step, evaluation.metrics())
        with self._keep_going("samples/eval_*"):
            save_evaluation(evaluation, folder)
        with self._keep_going("samples/eval_*/grid.png"):
            firsts = [scored[0] for scored in evaluation.by_prompt().values()][:GRID_LIMIT]
            captions = [f"{j.reward:.2f}  {j.prompt.text}" for j in firsts]
            picture = grid([j.sample.image for j in firsts], captions, COLUMNS)
            rows = [(j.prompt.text, j.sample.cot_text, j.reward) for j in firsts]
            self._show("evaluation", picture, rows, step)
            for expert in evaluation.experts:
                self._picture(
                    f"best_and_worst/{expert}", show_extremes(best_worst(evaluation, expert)), step
                )
            picture.save(folder / "grid.png")

    def close(self) -> None:
        self._lines.close()
        if self._board:
            self._to_board(lambda board: board.close())

    def _show(self, tag: str, picture: Image, rows: list[tuple[str, str, float]], step: int) -> None:
        self._picture(tag, picture, step)
        table = ["| prompt | semantic CoT | reward |", "|---|---|---|"]
        table += [f"| {_cell(text)} | {_cell(cot)} | {reward:.3f} |" for text, cot, reward in rows]
        self._to_board(lambda board: board.add_text(f"{tag}/cots", "\n".join(table), step))

    def _picture(self, tag: str, picture: Image, step: int) -> None:
        pixels = np.asarray(picture)
        self._to_board(lambda board: board.add_image(tag, pixels, step, dataformats="HWC"))
        if self._wandb:
            with self._keep_going("wandb"):
                self._wandb.picture(step, tag, picture)

    def _to_board(
        self, write: Callable[["SummaryWriter"], None], purge_step: int | None = None
    ) -> None:
        """Have TensorBoard's writer write. A full disk kills a writer's thread: the writer is dropped,
        and a new one is opened when there is room."""
        from torch.utils.tensorboard import SummaryWriter

        with self._keep_going("tensorboard/"):
            if shutil.disk_usage(self.folder).free < ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            try:
                if self._board is None:
                    folder = str(self.folder / "tensorboard")
                    self._board = SummaryWriter(folder, purge_step=purge_step)
                write(self._board)
                self._board.flush()
            except OSError:
                board, self._board = self._board, None
                with suppress(OSError):
                    if board:
                        board.close()
                raise

    def _gauge(self, name: str, value: float) -> None:
        if not ray.is_initialized():
            return
        valid = gauge_name(name)
        if valid not in self._gauges:
            self._gauges[valid] = Gauge(valid, f"{name} of a bicot run", tag_keys=("run",))
        self._gauges[valid].set(value, tags={"run": self.folder.name})


def save_samples(scored: Sequence[ScoredSample], folder: Path) -> None:
    """Write every image and, as the last thing, `samples.json` with everything else, in the form of an
    evaluation's rows."""
    rows = save_images(scored, folder)
    text = json.dumps({"scored": rows}, indent=1, ensure_ascii=False)
    write_whole(folder / "samples.json", text)


def gauge_name(name: str) -> str:
    """A metric's name among Ray's metrics: `eval/reward` is `bicot_eval_reward`."""
    return "bicot_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)


def _cell(text: str) -> str:
    """The text on one line; half a surrogate, which TensorBoard refuses, becomes a question mark."""
    return " ".join(text.replace("|", "\\|").split()).encode("utf-8", "replace").decode()
