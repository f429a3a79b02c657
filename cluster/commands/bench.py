"""`bicot bench`: draw a benchmark's prompts, have the images judged, score them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.commands.bench_checks import check_job, check_servers
from cluster.commands.bench_config import BenchRunConfig, bench_config
from cluster.commands.bench_show import bars, show, show_comparison
from cluster.placement import Role, check_room
from cluster.ray_session import existing_cluster, ray_session
from cluster.start_progress import StartProgress
from evaluation import pipeline
from evaluation.benchmark import (
    Benchmark,
    Item,
    benchmark_class,
    load_benchmark,
    some_of,
)
from evaluation.compare import as_csv, read_runs, tables
from evaluation.compare_page import write_page
from evaluation.config import BenchConfig, judges_of, merged
from evaluation.journal import read_record
from evaluation.pipeline import Pipeline
from evaluation.result import NAMES, score
from evaluation.run_folder import RunFolder, identity
from policy.errors import UserError
from policy.lock import run_lock
from policy.paths import check_writable, write_whole
from rewards.config import RewardsConfig
from rewards.serving import deploy_experts, shutdown_experts


@dataclass(frozen=True)
class Job:
    """The work to do in a folder. `generator` is recorded as the maker of its images; `images` is their
    folder, if not the run's."""

    config: BenchRunConfig
    out: Path
    generator: dict[str, Any]
    images: Path | None = None


def job_of(config: BenchRunConfig, out: Path) -> Job:
    """The job that draws, judges and scores."""
    return Job(config, out, config.generator())


def benchmark_of(folder: Path, named: str | None) -> str:
    """The benchmark whose images a folder holds, from its run's record or the name given. Raises
    UserError."""
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
    name = read_record(folder)["benchmark"]
    if named not in (None, name):
        raise UserError(f"{folder}: a run of {name}, not of {named}")
    return name


def judges_with_server(name: str) -> list[str]:
    """The judges of a benchmark that use a server. Raises UserError if there is none."""
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
    """The job that judges and scores the images of a run, or of any folder in the published layout.
    Raises UserError if the benchmark of that layout is not known."""
    name = benchmark_of(folder, benchmark)
    if not (folder / "bench.json").exists():
        config = bench_config(name, None, {"images": str(folder), **flags}, overrides)
        return Job(config, out or folder, config.generator(), folder)
    there = read_record(folder)
    foreign = there["images"]
    images = Path(foreign) if foreign else folder / "images"
    asked = {key: value for key, value in there["asked"].items() if value}
    changes = {j: {"options": e["options"], "use": e["use"]} for j, e in there["judges"].items()}
    tree = {"images": str(images), "seed": there["seed"], **asked}
    tree |= {} if out else {"judges": changes}
    config = bench_config(name, None, merged(tree, flags), overrides)
    same = out is None or out == folder
    return Job(config, out or folder, there["generator"], images if foreign or not same else None)


def run(
    job: Job, console: Console, *, judge: bool = True, published_rules: bool = False
) -> dict[str, Any] | None:
    """Draw and judge what is missing, and score it. Returns the result; None if nothing is judged."""
    config, out = job.config, job.out
    benchmark = load_benchmark(config.benchmark, config.data)
    items = some_of(benchmark.items, config.tasks, config.limit)
    judges = _judges(benchmark, config) if judge else None
    folder = RunFolder(out, benchmark, job.images)
    check_job(config, folder, items, judges)
    new = not (out / "bench.json").exists()
    if new:  # nothing is left behind
        check_servers(judges, config.ray)
    check_writable(out)
    entries = judges.model_dump(mode="json")["experts"] if judges else {}
    with run_lock(out):
        what = identity(benchmark, job.generator, config.seed, entries, job.images)
        folder.open(what, {"tasks": config.tasks, "limit": config.limit})
        if _left(folder, items, config, judges):
            if not new:
                check_servers(judges, config.ray)
            try:
                _draw_and_judge(config, folder, items, judges, console)
            except KeyboardInterrupt:
                message = f"stopped; what was drawn and judged is in {out}"
                console.print(
                    f"{message}, and the same command goes on from there",
                    highlight=False,
                    soft_wrap=True,
                )
                raise
        if not judge and not folder.by:
            console.print(
                f"{folder.images}: drawn, and not judged yet", highlight=False, soft_wrap=True
            )
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
    show_comparison(found, console)
    write_whole(out / "compare.csv", as_csv(found))
    write_page(found, out / "compare.html", data)
    console.print(f"{out / 'compare.html'}\n{out / 'compare.csv'}", highlight=False, soft_wrap=True)


def _judges(benchmark: Benchmark, config: BenchConfig) -> RewardsConfig | None:
    try:
        return judges_of(benchmark, config)
    except ValueError as error:
        raise UserError(f"judges: {str(error).splitlines()[0]}") from None


def _left(
    folder: RunFolder, items: Sequence[Item], config: BenchConfig, judges: RewardsConfig | None
) -> bool:
    """Whether there is anything to draw or to judge."""
    if config.generates and any(folder.missing(item) for item in items):
        return True
    return judges is not None and any(folder.unjudged(item, judges.experts) for item in items)


def _draw_and_judge(
    config: BenchRunConfig,
    folder: RunFolder,
    items: Sequence[Item],
    judges: RewardsConfig | None,
    console: Console,
) -> None:
    actors = config.actors
    draws = config.generates and any(folder.missing(item) for item in items)
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
            with StartProgress(console) as starting:
                if judges is not None:
                    starting.begin("starting judges")
                    deploy_experts(judges)
                if draws:
                    starting.begin("starting the workers that generate")
                    workers = pipeline.start_workers(config)
            with bars(console) as progress:
                Pipeline(folder, items, config, workers, judges, progress).run()
        finally:
            if existing_cluster(config.ray):  # our own cluster ends with this process
                shutdown_experts()
                pipeline.stop_workers(workers)
