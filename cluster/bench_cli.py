"""`bicot bench ...`: the commands for benchmarks."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.terminal import TerminalConsole
from policy.paths import home

app = typer.Typer(
    help="Public benchmarks on any model. `bicot fetch NAME` gets the prompts of one.",
    no_args_is_help=True,
)
console = TerminalConsole()

Name = Annotated[str, typer.Argument(metavar="BENCHMARK", help="one of `bicot bench list`")]
Overrides = Annotated[
    list[str],
    typer.Argument(help="settings, e.g. actors.count=8 actors.num_gpus=1 judges.objects.num_gpus=0.5"),
]
Judge = Annotated[bool, typer.Option(help="ask the judges, about images that they have not judged yet")]
JudgeUrl = Annotated[
    str | None, typer.Option(help="OpenAI-compatible server of a judge that needs one, .../v1")
]
JudgeModel = Annotated[str | None, typer.Option(help="the judge's name on that server")]
JudgeKey = Annotated[
    str | None, typer.Option(help="environment variable that holds the API key of --judge-url")
]
Tasks = Annotated[
    str | None, typer.Option(help="only these rows of the table, with commas between them")
]
Limit = Annotated[int | None, typer.Option(min=1, help="only so many prompts, spread over the tasks")]
Data = Annotated[
    Path | None, typer.Option(help="folder with the prompt files; default: data/NAME", parser=home)
]
Published = Annotated[
    bool,
    typer.Option(
        "--published-rules", help="score to the letter as the published scripts do, faults and all"
    ),
]
_OF = "folder for images, replies and scores"


@app.command("list")
def list_():
    """List the benchmarks, and whether their prompts are here."""
    from cluster.commands.bench_list import list_benchmarks

    list_benchmarks(console)


@app.command()
def run(
    benchmark: Name,
    overrides: Overrides = [],  # noqa: B006 (typer copies it)
    policy: Annotated[
        str | None, typer.Option(help="draw with a Janus: folder, checkpoint or hub id")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="draw as this YAML of a run says: model, templates, sampling", parser=home),
    ] = None,
    cot: Annotated[bool, typer.Option(help="a Janus writes a semantic CoT first, or not")] = True,
    diffusers: Annotated[
        str | None, typer.Option(help="draw with a pipeline of diffusers: hub id or folder")
    ] = None,
    api: Annotated[
        str | None, typer.Option(help="draw with a server of OpenAI's images API, .../v1")
    ] = None,
    api_model: Annotated[str | None, typer.Option(help="the model's name on that server")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="environment variable that holds the API key of --api")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help=f"{_OF}; default: bench/BENCHMARK", parser=home)
    ] = None,
    judge: Judge = True,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_key_env: JudgeKey = None,
    tasks: Tasks = None,
    limit: Limit = None,
    seed: Annotated[int | None, typer.Option(help="decides every image; default 0")] = None,
    data: Data = None,
    published_rules: Published = False,
):
    """Draw a benchmark's prompts, have the images judged while others are drawn, and score them.

    Name the generator: --policy, --config, --diffusers or --api. A run that was stopped goes on when
    the command is given again: no image is drawn or judged twice."""
    from cluster.commands.bench import job_of
    from cluster.commands.bench import run as start
    from cluster.commands.bench_config import bench_config

    flags: dict[str, Any] = {} if cot else {"cot": False}
    if policy is not None:
        flags["policy"] = {"path": policy}
    if diffusers is not None:
        flags["diffusers"] = {"path": diffusers}
    if api is not None:
        named = {"url": api, "model": api_model, "api_key_env": api_key_env}
        flags["api"] = {key: value for key, value in named.items() if value is not None}
    if seed is not None:
        flags["seed"] = seed
    flags |= _prompts(tasks, limit, data)
    flags |= _judges(benchmark, judge_url, judge_model, judge_key_env)
    resolved = bench_config(benchmark, config, flags, overrides)
    job = job_of(resolved, out or Path("bench") / benchmark)
    start(job, console, judge=judge, published_rules=published_rules)


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a run; or images", parser=home)],
    overrides: Overrides = [],  # noqa: B006
    benchmark: Annotated[
        str | None, typer.Option(help="whose layout the images have, where DIR is no run")
    ] = None,
    out: Annotated[Path | None, typer.Option(help=f"{_OF}; default: DIR", parser=home)] = None,
    judge: Judge = True,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_key_env: JudgeKey = None,
    tasks: Tasks = None,
    limit: Limit = None,
    data: Data = None,
    published_rules: Published = False,
):
    """Score a run again, or images in the published layout: nothing is drawn. Images without a reply
    are judged first; --no-judge scores the replies that are there."""
    from cluster.commands.bench import benchmark_of, score_job
    from cluster.commands.bench import run as start

    flags = _prompts(tasks, limit, data)
    name = benchmark_of(folder, benchmark)
    flags |= _judges(name, judge_url, judge_model, judge_key_env)
    job = score_job(folder, benchmark, out, flags, overrides)
    start(job, console, judge=judge, published_rules=published_rules)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="runs", parser=home)],
    out: Annotated[
        Path, typer.Option(help="folder for compare.html and compare.csv", parser=home)
    ] = Path("."),
    anyway: Annotated[bool, typer.Option(help="show, marked, what cannot be compared")] = False,
    published_rules: Published = False,
    data: Data = None,
):
    """Put all models x all tasks into one table, and the images side by side, those that differ most
    first. Refuses results that cannot be compared."""
    from cluster.commands.bench import compare as start

    start(folders, out, console, anyway=anyway, published_rules=published_rules, data=data)


def _prompts(tasks: str | None, limit: int | None, data: Path | None) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    if tasks is not None:
        flags["tasks"] = [task.strip() for task in tasks.split(",")]
    if limit is not None:
        flags["limit"] = limit
    if data is not None:
        flags["data"] = str(data)
    return flags


def _judges(benchmark: str, url: str | None, model: str | None, key_env: str | None) -> dict[str, Any]:
    """The options of those judges of a benchmark that use a server."""
    from cluster.commands.bench import judges_with_server

    options = {"url": url, "model": model, "api_key_env": key_env}
    options = {name: value for name, value in options.items() if value is not None}
    if not options:
        return {}
    return {"judges": {name: {"options": options} for name in judges_with_server(benchmark)}}
