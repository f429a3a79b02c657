"""`bicot bench list`: the benchmarks, without importing the models' libraries."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from evaluation.benchmark import BENCHMARKS, Benchmark, benchmark_class
from evaluation.data import RELEASES


def list_benchmarks(console: Console) -> None:
    """Print the benchmarks, and whether their prompts are here."""
    table = Table(box=box.SIMPLE)
    table.add_column("benchmark", no_wrap=True)
    table.add_column("title")
    table.add_column("images a prompt", justify="right")
    table.add_column("judges")
    table.add_column("prompts", no_wrap=True)
    for name in BENCHMARKS:
        found = benchmark_class(name)
        there = "here" if has_prompts(found) else f"fetch {found.data_name}"
        table.add_row(name, found.title, str(found.images_per_prompt), ", ".join(found.judges), there)
    console.print(table)
    console.print("`bicot fetch NAME` gets prompts that are not here.", highlight=False)


def has_prompts(benchmark: type[Benchmark]) -> bool:
    """Whether its files are where `bicot fetch` puts them, or come with this program."""
    release = RELEASES.get(benchmark.data_name)
    folder = Path("data") / benchmark.data_name
    return release is None or all((folder / file.name).is_file() for file in release.files)
