"""`bicot bench`: draw a benchmark's prompts, have the images judged, score them."""

from collections.abc import Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cluster.config import RayConfig, load_config, validated
from cluster.placement import Role, check_room
from cluster.ray_session import existing_cluster, ray_session
from cluster.validate import too_long
from evaluation import pipeline
from evaluation.benchmark import (
    Benchmark,
    Item,
    benchmark_class,
    load_benchmark,
    some_of,
)
from evaluation.compare import as_csv, number, read_runs, tables, write_page
from evaluation.config import BenchConfig, judges_of, merged
from evaluation.data import write_whole
from evaluation.pipeline import Pipeline
from evaluation.result import NAMES, score
from evaluation.run_folder import RunFolder, identity
from policy.errors import UserError
from policy.jsonl import read_object
from policy.lock import run_lock
from policy.model import check_policy, countable_janus
from policy.paths import check_writable
from policy.prompts import plain_prompt
from rewards.config import RewardsConfig
from rewards.expert import check_experts
from rewards.serving import deploy_experts, shutdown_experts


class BenchRunConfig(BenchConfig):
    ray: RayConfig = RayConfig()
    """Which Ray cluster, and how long to wait for it."""


def bench_config(
    name: str, config: Path | None, flags: dict[str, Any], overrides: Sequence[str]
) -> BenchRunConfig:
    """What a command line asks for: the benchmark's own defaults, the model and sampling of a run's
    configuration file, options, and overrides, in this order."""
    tree: dict[str, Any] = deepcopy(dict(benchmark_class(name).defaults))
    if config is not None:
        run = load_config(config).model_dump(mode="json", exclude_unset=True)
        shared = ("policy", "actors", "seed", "ray")
        tree = merged(tree, {key: run[key] for key in shared if key in run})
    source = flags.keys() & {"policy", "diffusers", "api", "images"}
    if source and "policy" not in source:
        tree.pop("policy", None)
    tree = merged(tree, {"benchmark": name, **flags})
    if "path" not in (tree.get("policy") or {"path": ""}):
        tree.pop("policy")  # the templates of nothing
    return validated(BenchRunConfig, tree, "command line", overrides)


@dataclass(frozen=True)
class Job:
    """What is to be done in a folder. `generator` is what its images are recorded as made by; `images`
    where they lie, if not in it."""

    config: BenchRunConfig
    out: Path
    generator: dict[str, Any]
    images: Path | None = None


def job_of(config: BenchRunConfig, out: Path) -> Job:
    """To draw, judge and score."""
    return Job(config, out, config.generator())


def benchmark_of(folder: Path, named: str | None) -> str:
    """Whose images a folder holds: what its run says, or what a person says. Raises UserError."""
    path = folder / "bench.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not path.exists():
        if named is None:
            raise UserError(
                f"{folder}: no run of a benchmark (there is no bench.json): name the one whose layout"
                " the images have, by --benchmark"
            )
        return named
    name = read_object(path).get("benchmark")
    if not isinstance(name, str):
        raise UserError(f"{path}: not the record of a run")
    if named not in (None, name):
        raise UserError(f"{folder}: a run of {name}, not of {named}")
    return name


def judges_with_server(name: str) -> list[str]:
    """The judges of a benchmark that ask a server. Raises UserError if there is none."""
    judges = benchmark_class(name).judges
    found = [judge for judge, entry in judges.items() if "url" in entry.get("options", {})]
    if not found:
        raise UserError(f"{name}: none of its judges ({', '.join(judges)}) is asked over HTTP")
    return found


def score_job(
    folder: Path,
    benchmark: str | None,
    out: Path | None,
    flags: dict[str, Any],
    overrides: Sequence[str],
) -> Job:
    """To judge and score the images of a run, or of any folder in the published layout. Raises
    UserError if it cannot be said whose layout that is."""
    name = benchmark_of(folder, benchmark)
    if not (folder / "bench.json").exists():
        config = bench_config(name, None, {"images": str(folder), **flags}, overrides)
        return Job(config, out or folder, config.generator(), folder)
    there = read_object(folder / "bench.json")
    foreign = there.get("images")
    images = Path(foreign) if foreign else folder / "images"
    asked = {key: value for key, value in (there.get("asked") or {}).items() if value}
    changes = {j: {"options": e["options"], "use": e["use"]} for j, e in there["judges"].items()}
    tree = {"images": str(images), "seed": there.get("seed", 0), **asked}
    tree |= {} if out else {"judges": changes}
    config = bench_config(name, None, merged(tree, flags), overrides)
    same = out is None or out == folder
    return Job(config, out or folder, there["generator"], images if foreign or not same else None)


def run(
    job: Job, console: Console, *, judge: bool = True, published_rules: bool = False
) -> dict[str, Any] | None:
    """Draw and judge what is missing, and score it. Returns the result; None if nobody has judged."""
    config, out = job.config, job.out
    benchmark = load_benchmark(config.benchmark, config.data)
    items = some_of(benchmark.items, config.tasks, config.limit)
    every = _judges(benchmark, config)
    judges = every if judge else None
    _check(config, benchmark, items, judges)
    check_writable(out)
    folder = RunFolder(out, benchmark, job.images)
    entries = every.model_dump(mode="json")["experts"] if every else {}
    with run_lock(out):
        what = identity(benchmark, job.generator, config.seed, entries, job.images)
        folder.open(what, {"tasks": config.tasks, "limit": config.limit})
        if _left(folder, items, config, judges):
            _draw_and_judge(config, folder, items, judges, console)
        if not judge and not folder.by:
            console.print(f"{folder.images}: drawn, not judged", highlight=False, soft_wrap=True)
            return None
        result = score(folder, items, published_rules=published_rules)
    show(result, console)
    console.print(str(out / NAMES[published_rules]), highlight=False, soft_wrap=True)
    return result


def compare(
    folders: Sequence[Path],
    out: Path,
    console: Console,
    *,
    anyway: bool,
    published_rules: bool,
    data: Path | None,
) -> None:
    """Write compare.html and compare.csv into `out`, and print the tables."""
    found = tables(read_runs(folders, published_rules=published_rules), anyway=anyway)
    check_writable(out)
    for one in found:
        table = Table(title=one.title, caption="; ".join(one.differing) or None)
        table.add_column("task")
        for each in one.runs:
            table.add_column(each.label, justify="right", overflow="fold")
        for task, scores in one.scores.items():
            table.add_row(task, *(number(score, one.unit) for score in scores))
        console.print(table)
        for each in one.runs:
            for note in each.result["notes"]:
                told = f"{each.label}: {note}"
                console.print(told, highlight=False, markup=False, soft_wrap=True)
    write_whole(out / "compare.csv", as_csv(found).encode("utf-8", "replace"))
    write_page(found, out / "compare.html", data)
    console.print(f"{out / 'compare.html'}\n{out / 'compare.csv'}", highlight=False, soft_wrap=True)


def _judges(benchmark: Benchmark, config: BenchConfig) -> RewardsConfig | None:
    try:
        return judges_of(benchmark, config)
    except ValueError as error:
        raise UserError(f"judges: {str(error).splitlines()[0]}") from None


def _check(
    config: BenchRunConfig, benchmark: Benchmark, items: Sequence[Item], judges: RewardsConfig | None
) -> None:
    """Before anything starts. Raises UserError."""
    if not items:
        raise UserError(f"{benchmark.title}: no prompt is asked for")
    if config.images is not None and not Path(config.images).is_dir():
        raise UserError(f"{config.images}: no such folder of images")
    if judges is not None:
        check_experts(judges)
    if config.policy is None:
        return
    check_policy(config.policy)
    templates = config.policy.templates
    if config.cot and templates and not (Path(templates) / "semantic_cot.txt").exists():
        raise UserError(
            f"{templates}: no semantic_cot.txt, the text that asks for a semantic CoT: put one there,"
            " or draw without one by --no-cot"
        )
    janus = countable_janus(config.policy)
    most = config.actors.sampling.max_cot_tokens if config.cot else 0
    for item in items:
        if why := too_long(plain_prompt(item.text), janus, most):
            raise UserError(f"prompt {item.key}: {why}")


def _left(
    folder: RunFolder, items: Sequence[Item], config: BenchConfig, judges: RewardsConfig | None
) -> bool:
    """Whether there is anything to draw or to judge."""
    count = folder.benchmark.images_per_prompt
    if config.generates and not all(folder.is_drawn(item) for item in items):
        return True
    return judges is not None and any(
        folder.reply(item, n, judge) is None
        for item in items
        for judge in folder.benchmark.asks(item)
        for n in range(count)
    )


def _draw_and_judge(
    config: BenchRunConfig,
    folder: RunFolder,
    items: Sequence[Item],
    judges: RewardsConfig | None,
    console: Console,
) -> None:
    actors = config.actors
    draws = config.generates and not all(folder.is_drawn(item) for item in items)
    roles = [
        Role("generator", actors.count, actors.num_cpus, actors.num_gpus, "", actors.resources)
        for _ in range(draws)
    ]
    for name, entry in (judges.experts if judges else {}).items():
        count, custom = entry.fewest_replicas, entry.resources
        role = Role(f"judge {name}", count, entry.num_cpus, entry.num_gpus, "", custom, entry.labels)
        roles.append(role)
    with ray_session(config.ray, sum(role.count * role.cpus for role in roles), console):
        workers = []
        try:
            check_room(config.ray, roles)
            with console.status("starting judges") as status:
                if judges is not None:
                    deploy_experts(judges)
                if draws:
                    status.update("starting the workers that generate")
                    workers = pipeline.start_workers(config)
            with _bars(console) as progress:
                Pipeline(folder, items, config, workers, judges, progress).run()
        finally:
            if existing_cluster(config.ray):  # our own ends with us, all at once
                shutdown_experts()
                pipeline.stop_workers(workers)


@contextmanager
def _bars(console: Console):
    """Two bars, with the time that is left; where there is no terminal, a line now and then."""
    name = TextColumn("{task.description}")
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    told = {"drawn": 0}

    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        drawing, judging = bars.add_task("drawn", total=None), bars.add_task("judged", total=None)

        def tell(now: pipeline.Progress) -> None:
            bars.update(drawing, completed=now.drawn, total=now.to_draw, visible=now.to_draw > 0)
            bars.update(judging, completed=now.judged, total=now.to_judge, visible=now.to_judge > 0)
            tenth = 10 * (now.drawn + now.judged) // max(1, now.to_draw + now.to_judge)
            if not console.is_terminal and tenth > told["drawn"]:
                told["drawn"] = tenth
                console.print(
                    f"drawn {now.drawn} of {now.to_draw} images, judged {now.judged} of {now.to_judge}",
                    highlight=False,
                )

        yield pipeline.Progress(tell=tell)


def show(result: dict[str, Any], console: Console) -> None:
    """The result as a table, with what it does not say."""
    asked = result["asked"]
    table = Table(title=f"{result['title']}, {asked['prompts']} of {asked['of']} prompts")
    table.add_column("task")
    table.add_column("score", justify="right")
    for task, value in result["tasks"].items():
        table.add_row(task, number(value, result["unit"]))
    table.add_section()
    table.add_row("overall", number(result["overall"], result["unit"]), style="bold")
    for name, value in result["further"].items():
        table.add_row(name, number(value, result["unit"]), style="dim")
    console.print(table)
    for note in result["notes"]:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
