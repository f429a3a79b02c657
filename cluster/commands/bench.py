"""`bicot bench`: draw a benchmark's prompts, have the images judged, score them."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.commands.bench_show import bars, show, show_comparison
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
from evaluation.compare import as_csv, read_runs, tables, write_page
from evaluation.config import BenchConfig, judges_of, merged
from evaluation.data import write_whole
from evaluation.journal import read_record
from evaluation.pipeline import Pipeline
from evaluation.result import NAMES, score
from evaluation.run_folder import RunFolder, identity
from policy.errors import UserError
from policy.lock import run_lock
from policy.model import check_policy, countable_janus
from policy.paths import check_writable
from policy.prompts import plain_prompt
from rewards.config import ExpertConfig, RewardsConfig
from rewards.expert import check_experts
from rewards.experts.chat import authorization
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
    name = read_record(folder)["benchmark"]
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
    """Draw and judge what is missing, and score it. Returns the result; None if nobody has judged."""
    config, out = job.config, job.out
    benchmark = load_benchmark(config.benchmark, config.data)
    items = some_of(benchmark.items, config.tasks, config.limit)
    judges = _judges(benchmark, config) if judge else None
    folder = RunFolder(out, benchmark, job.images)
    _check(config, folder, items, judges)
    check_writable(out)
    entries = judges.model_dump(mode="json")["experts"] if judges else {}
    with run_lock(out):
        what = identity(benchmark, job.generator, config.seed, entries, job.images)
        folder.open(what, {"tasks": config.tasks, "limit": config.limit})
        if _left(folder, items, config, judges):
            _draw_and_judge(config, folder, items, judges, console)
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
    write_whole(out / "compare.csv", as_csv(found).encode("utf-8", "replace"))
    write_page(found, out / "compare.html", data)
    console.print(f"{out / 'compare.html'}\n{out / 'compare.csv'}", highlight=False, soft_wrap=True)


def _judges(benchmark: Benchmark, config: BenchConfig) -> RewardsConfig | None:
    try:
        return judges_of(benchmark, config)
    except ValueError as error:
        raise UserError(f"judges: {str(error).splitlines()[0]}") from None


def _check(
    config: BenchRunConfig, folder: RunFolder, items: Sequence[Item], judges: RewardsConfig | None
) -> None:
    """Before anything starts. Raises UserError."""
    if not items:
        raise UserError(f"{folder.benchmark.title}: no prompt is asked for")
    if not config.generates:
        _check_images(folder, items)
    if not config.generates and judges is None and not (folder.folder / "replies.jsonl").exists():
        raise UserError(f"{folder.folder}: no judge was asked yet: leave out --no-judge")
    if judges is not None:
        check_experts(judges, "judges")
        for name, entry in judges.experts.items():
            _check_server(name, entry, config.ray)
    if config.api is not None and not existing_cluster(config.ray):
        authorization(config.api.api_key_env)
    if config.policy is not None:
        _check_policy(config, items)


def _check_images(folder: RunFolder, items: Sequence[Item]) -> None:
    if not folder.images.is_dir():
        raise UserError(f"{folder.images}: no such folder of images")
    if not any((folder.images / path).exists() for i in items for path in folder.benchmark.files(i)):
        raise UserError(
            f"{folder.images}: none of the images is there; the first would be"
            f" {folder.benchmark.files(items[0])[0]}"
        )


def _check_server(name: str, entry: ExpertConfig, ray: RayConfig) -> None:
    """A judge that asks a server must know which."""
    if "url" not in entry.options:
        return
    if not entry.options["url"] or not entry.options.get("model"):
        raise UserError(
            f"the judge {name} is a vision-language model on a server: name both, as --judge-url"
            " http://HOST:8000/v1 --judge-model NAME"
        )
    if not existing_cluster(ray):  # whose nodes may have keys of their own
        authorization(entry.options.get("api_key_env"))


def _check_policy(config: BenchRunConfig, items: Sequence[Item]) -> None:
    assert config.policy is not None
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
        if folder.is_there(item, n)
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
            with bars(console) as progress:
                Pipeline(folder, items, config, workers, judges, progress).run()
        finally:
            if existing_cluster(config.ray):  # our own ends with us, all at once
                shutdown_experts()
                pipeline.stop_workers(workers)
