"""The command `bicot estimate`: memory, time and cost of a run, before anything is loaded or
started."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.config import load_config
from cluster.estimate.gpu_memory import memory_table, model_shapes, needs, published_bytes
from cluster.estimate.hardware import FACTORS, Efficiency, gpu_named, read_figures
from cluster.estimate.speed import SpeedModel
from cluster.estimate.split import Split, gpus_of, splits
from cluster.estimate.step_times import Times
from cluster.estimate.workload import lengths_of

ERROR = 0.15
"""The smallest error to expect of the predictions: the tolerance that they were tested with."""
SHOWN = 4
"""The most splits in the table beside the configured one."""


def step_table(model: SpeedModel, times: Times) -> Table:
    """Seconds of each role, and their parts."""
    config = model.config
    where = model.gpu.name if gpus_of(config) else "one core a process"
    staleness = config.train.max_staleness
    table = Table(
        title=f"a step of {model.samples} images, seconds ({where}, max_staleness {staleness})"
    )
    table.add_column("role")
    table.add_column("on", overflow="fold")
    table.add_column("s", justify="right")
    table.add_column("made of", overflow="fold")
    actors, learner = config.actors, config.learner
    table.add_row(
        "generate", _on(actors.count, actors), _seconds(times.generate_s), _generating(model, times)
    )
    experts = config.rewards.experts.values()
    on_gpus = sum(e.most_replicas * e.num_gpus for e in experts)
    on = f"{on_gpus:g} GPU" if on_gpus else "CPU"
    table.add_row("score", on, _seconds(times.score_s), _listed(times.score))
    passes = f"{model.passes} passes over {model.sample_tokens} tokens a sample: "
    ranks = (
        f"{learner.ranks} x {learner.num_gpus:g} GPU" if learner.num_gpus else f"{learner.ranks} cores"
    )
    table.add_row("learn", ranks, _seconds(times.learn_s), passes + _listed(times.learn))
    way = f"the object store; {_seconds(times.pull)} more to pull" if times.pull else "broadcast"
    way = f"{published_bytes(model.model, config) / 1e9:.3g} GB by {way}"
    table.add_row("publish", "", _seconds(times.publish), way)
    table.add_section()
    bottleneck = f"[bold]bottleneck: {times.bottleneck}[/bold]"
    table.add_row("period", "", f"[bold]{times.period_s:.2f}[/bold]", bottleneck)
    return table


def _on(count: int, role) -> str:
    return (
        f"{count} x {role.num_gpus:g} GPU" if role.num_gpus else f"{count} CPU core{'s' * (count > 1)}"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds >= 0.1 else f"{seconds:.3f}"


def _generating(model: SpeedModel, times: Times) -> str:
    batches, config = model.batches(), model.config
    first = batches[0] * config.train.group_size
    rows = first * (2 if config.actors.sampling.guidance != 1 else 1)
    cached = model.lengths.image_prompt + model.image_tokens / 2
    step = 1e3 * model.decode_step_s(rows, cached, model.image_head)
    rounds = -(-len(batches) // config.actors.count)
    again = f", {rounds} rounds" if rounds > 1 else ""
    heading = f"{model.kind}, {first} samples at once{again}, {step:.1f} ms a token: "
    return heading + _listed(times.generate)


def _listed(parts) -> str:
    known = [
        f"{name} {_seconds(seconds)}" for name, seconds in parts.items() if seconds and seconds > 0.0005
    ]
    unknown = [f"{name} not known" for name, seconds in parts.items() if seconds is None]
    return ", ".join(known + unknown)


def cost_lines(model: SpeedModel, times: Times, price: float | None) -> Iterator[str]:
    """Images a GPU-second, hours and money."""
    config, gpus = model.config, gpus_of(model.config)
    a_second = model.samples / times.period_s
    hours = config.train.steps * times.period_s / 3600
    if gpus:
        yield f"{a_second / gpus:.2f} images/GPU-s on {gpus} GPU{'s' * (gpus > 1)}"
    else:
        yield f"{a_second:.1f} images/s"
    took = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    money = f", {hours * gpus * price:,.0f} at {price:g} a GPU-hour" if price is not None else ""
    cost = f": {hours * gpus:.1f} GPU-hours{money}" if gpus else ""
    yield f"{took} for {config.train.steps} steps, evaluations not counted{cost}"
    figures = model.efficiency
    named = ", ".join(f"{name} {value:g}" for name, value in figures.measured.items())
    what = f"measured: {named}; the rest is assumed" if named else "every factor is assumed"
    yield f"a prediction: {what} (docs/performance.md has all {len(FACTORS)} factors)"


def split_table(model: SpeedModel, found: list[Split], gpus: int) -> Table:
    """The fastest splits, and the configured one where it is one of them."""
    config = model.config
    table = Table(title=f"{gpus} GPUs split over the roles, the fastest first")
    for column in ("rollouts", "ranks", "experts", "generate", "score", "learn", "period"):
        table.add_column(column, justify="right")
    table.add_column("images/GPU-s", justify="right")
    table.add_column("")
    shown = [s for n, s in enumerate(found) if (n < SHOWN and s.fits) or is_configured(s, config)]
    for split in shown or found[:SHOWN]:
        times = split.times
        seconds = times.generate_s + times.pull, times.score_s, times.learn_s, times.period_s
        remarks = [] if split.fits else ["[red]does not fit[/red]"]
        remarks += ["as configured"] if is_configured(split, config) else []
        table.add_row(
            *map(str, (split.rollouts, split.ranks, split.experts)),
            *(f"{each:.1f}" for each in seconds),
            f"{model.samples / times.period_s / gpus:.2f}",
            ", ".join(remarks),
        )
    return table


def is_configured(split: Split, config) -> bool:
    return not split.overrides(config)


def split_line(model: SpeedModel, found: list[Split], gpus: int) -> str:
    """The overrides of the best split, and whether the gain is larger than the error."""
    if not found:
        return f"no split of {gpus} GPU{'s' * (gpus != 1)}: every role with GPUs wants one of its own"
    best = found[0]
    if not best.fits:
        return f"no split of {gpus} GPUs fits their memory"
    overrides = " ".join(best.overrides(model.config))
    if not overrides:
        return f"the configured split is the best of {gpus} GPUs"
    configured = [s for s in found if is_configured(s, model.config) and s.fits]
    if not configured:
        return f"the best of {gpus} GPUs: {overrides}"
    gain = configured[0].times.period_s / best.times.period_s - 1
    error = f", within the model's error of {ERROR:.0%}" if gain <= ERROR else ""
    return f"the best of {gpus} GPUs: {overrides}\n  {gain:.0%} more images than as configured{error}"


@dataclass(frozen=True)
class Question:
    """The command's options; None: the configuration's value, the type's or an assumed one."""

    gpu: str
    gpus: int | None = None
    gpu_gb: float | None = None
    price: float | None = None
    cot_tokens: int | None = None
    figures: Path | None = None


def show_estimate(path: Path, overrides: Sequence[str], asked: Question, console: Console) -> bool:
    """Print the estimate. Returns whether every process fits its GPU."""
    config = load_config(path, overrides)
    shapes, gpu = model_shapes(config.policy), gpu_named(asked.gpu)
    gib = asked.gpu_gb or gpu.gib
    needed = needs(config, shapes)
    console.print(memory_table(config, needed, gib))
    efficiency = read_figures(asked.figures) if asked.figures else Efficiency()
    lengths = lengths_of(config, asked.cot_tokens)
    model = SpeedModel(config, shapes, gpu, efficiency, lengths)
    times = model.times()
    console.print(step_table(model, times))
    for line in cost_lines(model, times, asked.price):
        console.print(line, highlight=False, soft_wrap=True)
    gpus = asked.gpus or gpus_of(config)
    if gpus:
        found = splits(model, gpus, gib)
        if found:
            console.print(split_table(model, found, gpus))
        console.print(split_line(model, found, gpus), highlight=False, soft_wrap=True)
    return all(need.fits(gib) for need in needed)
