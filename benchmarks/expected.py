"""Predicts the step time of Janus-Pro-7B on 8 GPUs, and what would make it faster, by the speed model.

    python -m benchmarks.expected

Nothing here is measured: cluster/estimate/speed.py computes it from shapes, data sheets and the factors
of cluster/estimate/hardware.py. Only the published run is a fact (38 s a step on 8 x H800, from the 16
to 18 hours that T2I-R1's authors give for 1600 steps of 128 images); the model is compared with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.config import RunConfig, load_config
from cluster.estimate.gpu_memory import model_shapes
from cluster.estimate.hardware import GPUS, Efficiency
from cluster.estimate.speed import SpeedModel
from cluster.estimate.split import Split, splits
from cluster.estimate.step_times import Times

RECIPE = Path(__file__).parents[1] / "examples" / "janus_pro" / "train.yaml"
ON = 8
OLD_BATCHES = [5, 5, 5, 1]
"""Groups of each batch when batches were cut by samples."""
SYNCHRONIZE_S = 4.7e-3
"""Assumed wait of a vLLM decoding step that reads its token on the host."""
ONE_BY_ONE_S = 0.05
"""Assumed seconds of an expert that takes one image at a time."""


@dataclass(frozen=True)
class Case:
    name: str
    model: SpeedModel
    times: Times
    can_be_split: bool = True

    @property
    def images_gpu_s(self) -> float:
        return self.model.samples / self.times.period_s / ON

    def best(self) -> Split | None:
        return splits(self.model, ON, self.model.gpu.gib)[0] if self.can_be_split else None


def on_every_gpu(*more: str) -> RunConfig:
    """The recipe with a rollout, a rank and all experts on each GPU, in turns."""
    replicas = [f"rewards.experts.{name}.replicas={ON}" for name in ("preference", "detector", "vqa")]
    turns = [f"actors.count={ON}", f"learner.ranks={ON}", "train.max_staleness=0"]
    return load_config(RECIPE, [*turns, *replicas, *more])


def published() -> Case:
    """T2I-R1's own code: transformers' loop on the weights that are trained, one prompt at a time,
    experts one image at a time."""
    config = on_every_gpu("actors.batch_size=8")
    slow = {f"expert_s.{name}": ONE_BY_ONE_S for name in config.rewards.experts}
    model = SpeedModel(
        config, model_shapes(config.policy), GPUS["h800"], Efficiency(slow), sampler="plain"
    )
    return Case("published (8 x H800)", model, replace(model.times(), publish=0.0), False)


def today(images: int = 128) -> SpeedModel:
    config = load_config(RECIPE, [f"train.groups_per_step={images // 8}"])
    return SpeedModel(config, model_shapes(config.policy), GPUS["h100"])


def steps_so_far() -> list[Case]:
    """The earlier state, and the gain expected of each fix."""
    now = today()
    waiting = replace(now, efficiency=Efficiency({"synchronize_s.vllm": SYNCHRONIZE_S}))
    return [
        published(),
        Case(
            "batches of 5, 5, 5, 1 groups; a synchronisation a token",
            waiting,
            waiting.times(OLD_BATCHES),
            False,
        ),
        Case("batches of 6, 5, 5", waiting, waiting.times()),
        Case("and no synchronisation", now, now.times()),
    ]


def ideas() -> Iterator[Case]:
    """Possible next changes, each beside today's recipe."""
    now = today()
    graphed = now.efficiency.replaced(launch_s_a_layer__torch=0.0)
    for name, model in {
        "today's recipe": now,
        "torch sampler": replace(now, sampler="torch"),
        "torch sampler in CUDA graphs": replace(now, sampler="torch", efficiency=graphed),
        "cache in fp8": replace(now, cache_width=1),
        "weights in fp8": replace(now, weight_width=1),
        "cache and weights in fp8": replace(now, cache_width=1, weight_width=1),
    }.items():
        yield Case(name, model, model.times())
    for images in (128, 256, 512):
        config = on_every_gpu(f"train.groups_per_step={images // 8}", "actors.batch_size=64")
        shared = replace(now, config=config)
        yield Case(f"all GPUs in turns, {images} images", shared, shared.times(), False)
        if images > 128:
            more = today(images)
            yield Case(f"GPUs of their own, {images} images", more, more.times())


def table(title: str, cases: list[Case]) -> Table:
    shown = Table(title=title)
    shown.add_column("")
    for column in ("generate s", "period s", "images/GPU-s", "best split", "images/GPU-s"):
        shown.add_column(column, justify="right")
    for case in cases:
        best = case.best()
        split = f"{best.rollouts} + {best.ranks} + {best.experts}" if best else ""
        then = f"{case.model.samples / best.times.period_s / ON:.2f}" if best else ""
        times = f"{case.times.generate_s:.1f}", f"{case.times.period_s:.1f}"
        shown.add_row(case.name, *times, f"{case.images_gpu_s:.2f}", split, then)
    return shown


def main() -> None:
    console = Console()
    console.print(table("so far: 8 x H100, 128 images a step, max_staleness 1", steps_so_far()))
    console.print(table("what could come next (split: rollouts + ranks + experts)", list(ideas())))


if __name__ == "__main__":
    main()
