"""The `bicot` command."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from cluster import bench_cli
from cluster.terminal import TerminalConsole, forget_unwritten, guard_terminal
from policy.errors import UserError, in_one_line
from policy.paths import home

app = typer.Typer(
    help="Reinforcement learning for text-to-image models that think before they draw.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench_cli.app, name="bench")
console = TerminalConsole()


ConfigFile = Annotated[Path, typer.Argument(help="a run's YAML file, e.g. examples/shapes/train.yaml")]
Overrides = Annotated[list[str], typer.Argument(help="overrides, e.g. learner.lr=1e-4 seed=1")]
Policy = Annotated[
    str | None, typer.Option(help="model directory to use instead of the configured one")
]

RunFolder = Annotated[Path, typer.Argument(help="a run directory, finished or not", parser=home)]
Target = Annotated[
    Path, typer.Argument(metavar="DST", help="a new directory, or an empty one", parser=home)
]
Address = Annotated[
    str, typer.Option(envvar="RAY_ADDRESS", help="the Ray cluster; auto: this machine's")
]


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006 (typer copies it)
    dry_run: Annotated[
        bool, typer.Option(help="print the resolved config and the placement; stop")
    ] = False,
):
    """Train with BiCoT-GRPO and write runs/NAME/."""
    from cluster.config import dump_config, load_config
    from cluster.placement import placement_table, roles
    from cluster.ray_session import check_kept, print_store_size
    from cluster.validate import validate_run
    from policy.paths import check_writable

    resolved = load_config(config, overrides)
    check_kept(Path(resolved.runs_dir))
    check_writable(resolved.folder)
    if dry_run:
        inputs = validate_run(resolved)
        console.print(dump_config(resolved), highlight=False, soft_wrap=True, markup=False)
        console.print(placement_table(roles(resolved)))
        print_store_size(resolved.ray, inputs.store_need(resolved), console)
        return
    from cluster.train import train as run

    _to_its_end(lambda: run(resolved, console), resolved.folder)


@app.command()
def sft(
    config: Annotated[Path, typer.Argument(help="a YAML file, e.g. examples/shapes/sft.yaml")],
    overrides: Overrides = [],  # noqa: B006
    dry_run: Annotated[
        bool, typer.Option(help="print the resolved config and the placement; stop")
    ] = False,
):
    """Fine-tune on worked examples, prompt, semantic CoT and image, and write runs/NAME/."""
    from cluster.config import dump_config
    from cluster.placement import placement_table
    from cluster.ray_session import check_kept
    from cluster.sft import sft as run
    from cluster.sft import validate_sft
    from cluster.sft_config import load_sft_config
    from policy.paths import check_writable

    resolved = load_sft_config(config, overrides)
    check_kept(Path(resolved.runs_dir))
    check_writable(resolved.folder)
    if dry_run:
        _, examples, heldout = validate_sft(resolved)
        console.print(dump_config(resolved), highlight=False, soft_wrap=True, markup=False)
        console.print(placement_table([resolved.role]))
        console.print(f"{len(examples)} examples, {len(heldout)} held out", highlight=False)
        return
    _to_its_end(lambda: run(resolved, console), resolved.folder)


def _to_its_end(run: Callable[[], object], folder: Path) -> None:
    """Run something that may be stopped: exit status 75 means that the same command goes on."""
    from cluster.recovery import EXIT_STATUS, Stopped

    try:
        run()
    except Stopped as stopped:
        console.print(
            f"stopped after step {stopped.step}; what was recorded is in {folder},"
            " and the same command goes on from there",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(EXIT_STATUS) from None
    except KeyboardInterrupt:
        console.print(f"stopped; what was recorded is in {folder}", highlight=False)
        raise


@app.command()
def evaluate(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006
    policy: Policy = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for evaluation.json, PNGs and grid.png", parser=home)
    ] = None,
):
    """Generate for the held-out prompts and let the experts score: a table, JSON and a grid."""
    from cluster.commands.sampling import evaluate as run
    from cluster.config import load_config

    run(load_config(config, with_policy(overrides, policy)), out, console)


@app.command()
def generate(
    config: ConfigFile,
    prompts: Annotated[
        list[str], typer.Argument(help="sentences, or one file of prompts (.txt, .jsonl)")
    ],
    policy: Policy = None,
    out: Annotated[Path, typer.Option(help="folder for CoTs, PNGs and the grid", parser=home)] = Path(
        "generated"
    ),
    samples: Annotated[int, typer.Option(min=1, help="images a prompt")] = 4,
    seed: Annotated[int | None, typer.Option(help="instead of the configured one")] = None,
):
    """Think, then draw: semantic CoTs and images for prompts. Needs no experts and no Ray. Given again,
    the same command draws what is missing."""
    from cluster.commands.generate import generate as run
    from cluster.config import load_config

    overrides = [f"seed={seed}"] if seed is not None else []
    run(load_config(config, with_policy(overrides, policy)), prompts, out, samples, console)


@app.command("serve-experts")
def serve_experts(config: ConfigFile, overrides: Overrides = []):  # noqa: B006
    """Run the experts alone behind their HTTP gateway, until Ctrl-C."""
    from cluster.commands.sampling import serve_experts as run
    from cluster.config import load_config

    run(load_config(config, overrides), console)


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def serve():
    """The old name of `serve-experts`."""
    raise UserError("bicot serve is now bicot serve-experts; bicot serve-model serves the model")


@app.command()
def experts(address: Address = "auto"):
    """Show the experts of the running job: replicas, queue, latency, images a second, failures."""
    from cluster.commands.experts import show_experts

    show_experts(address, console)


@app.command()
def scale(
    expert: Annotated[str, typer.Argument(help="its name in the configuration")],
    replicas: Annotated[int, typer.Argument(min=1, help="how many processes should answer for it")],
    address: Address = "auto",
):
    """Change how many replicas an expert of the running job has, while the job goes on."""
    from cluster.commands.experts import scale as run

    run(expert, replicas, address, console)


@app.command()
def estimate(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006
    gpu: Annotated[
        str, typer.Option(help="type of GPU: h100, h200, h800, a100-80, l40s, ...")
    ] = "h100",
    gpus: Annotated[
        int | None, typer.Option(min=1, help="how many to split over the roles; default: as configured")
    ] = None,
    gpu_gb: Annotated[
        float | None, typer.Option(min=1, help="memory of one GPU, in GiB; default: the type's")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="of a GPU-hour")] = None,
    cot_tokens: Annotated[int | None, typer.Option(min=1, help="mean length of a semantic CoT")] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="measured figures, JSON lines; else they are assumed", parser=home),
    ] = None,
):
    """Estimate memory, seconds a step, hours and the best split of GPUs. Loads and starts nothing; exit
    status 1 where a process does not fit its GPU."""
    from cluster.estimate.tables import Question, show_estimate

    question = Question(gpu, gpus, gpu_gb, price, cot_tokens, figures)
    if not show_estimate(config, overrides, question, console):
        raise typer.Exit(1)


@app.command()
def report(run: RunFolder):
    """Write report.html of a run directory again."""
    from cluster.watch.report import write_report

    console.print(str(write_report(run)), highlight=False, soft_wrap=True)


@app.command()
def compare(
    one: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_DIR", help="a run, or a result of `bicot bench`", parser=home),
    ],
    other: Annotated[Path, typer.Argument(metavar="RUN_OR_DIR", help="another", parser=home)],
    out: Annotated[Path, typer.Option(help="the HTML file to write", parser=home)] = Path(
        "compare.html"
    ),
    anyway: Annotated[
        bool, typer.Option(help="show, marked, results of benchmarks that cannot be compared")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="folder with a benchmark's prompt files", parser=home)
    ] = None,
):
    """Compare two runs, by their last evaluations, or two results of `bicot bench`: scores with
    intervals, and the pictures of the prompts on which they differ most."""
    from cluster.commands.compare import compare as write

    write(one, other, out, console, anyway=anyway, data=data)


@app.command()
def status(run: RunFolder):
    """Show where a run stands: step, pace, rewards, what was lost, the newest checkpoint."""
    from cluster.commands.runs import show_status

    show_status(run, console)


@app.command()
def ledger(run: RunFolder):
    """Show what became of every group of samples; exit status 1 if that does not add up."""
    from cluster.commands.runs import show_ledger

    if not show_ledger(run, console):
        raise typer.Exit(1)


@app.command()
def export(
    run: RunFolder,
    target: Target,
    to: Annotated[
        Literal["transformers", "original"], typer.Option(help="the layout to write")
    ] = "transformers",
    card: Annotated[
        bool, typer.Option("--card", help="a model card, README.md, with results and pictures")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="upload it to the Hugging Face hub; HF_TOKEN signs in"),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="a repository that --push makes is for everybody to see")
    ] = False,
):
    """Write the model of a run's newest checkpoint."""
    from cluster.commands.export import export as write

    write(run, target, to, console, card=card, push=push, public=public)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="a model directory or a hub id")],
    target: Target,
    to: Annotated[Literal["transformers", "original"], typer.Option(help="the layout to write")],
    shard_gb: Annotated[float, typer.Option(min=0.001, help="size of one weights file, at most")] = 4,
):
    """Write a Janus in the other layout: transformers', or the published checkpoints' own."""
    from policy.convert import convert as run

    done = run(source, target, to, shard_bytes=int(shard_gb * 1e9))
    size = f"{done.tensors} tensors, {done.nbytes / 1e9:.2f} GB in {len(done.files)} file(s)"
    console.print(f"{done.folder}: {size}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def fetch(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="t2i_r1: T2I-R1's prompts and wording; or a benchmark: its prompts, and what else"
            " is read of its files",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="folder for them; data/NAME if not given")] = None,
):
    """Get published prompts: those that the recipes for Janus-Pro read, or a benchmark's."""
    from cluster.commands.fetch import fetch as run

    run(what, out.expanduser() if out else None, console)


def with_policy(overrides: list[str], policy: str | None) -> list[str]:
    # Quoted, or YAML might not read the path as text.
    return (
        [*overrides, f"policy.path={json.dumps(policy, ensure_ascii=False)}"] if policy else overrides
    )


def main() -> None:
    """Exit status 2 for an error that the user can correct, 1 for a fault of the program."""
    guard_terminal()
    find_modules_here()
    try:
        app()
    except UserError as error:
        # One from a worker comes wrapped in that worker's traceback.
        _end(in_one_line(error))
    except OSError as error:  # a file or folder that cannot be read or written
        if error.filename is None:
            raise
        _end(f"{error.filename}: {error.strerror}")
    finally:
        forget_unwritten()


def _end(message: object) -> NoReturn:
    console.print(f"error: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(2)


def find_modules_here() -> None:
    """Import modules that a configuration names (experts, CoT checkers) from the working directory too:
    behind all others, so that a `rewards.py` there hides none of this program's own."""
    here = str(Path.cwd())
    if Path(__file__).parents[1] != Path.cwd():  # else it is this program's own folder
        sys.path[:] = [folder for folder in sys.path if folder not in ("", here)]
    if here not in sys.path:
        sys.path.append(here)


if __name__ == "__main__":
    main()
