"""`bicot fetch`: downloads the published files of a benchmark or, for `t2i_r1`, the prompt set and the
wording that T2I-R1 published, as files for a run.

They come from public repositories, at one commit each. Only their addresses and hashes are here.
T2I-R1's system prompt is a literal in the source of the published trainer, which is parsed and never
run.
"""

import ast
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from evaluation.data import RELEASES, PublishedFile, Release, fetched
from policy.errors import UserError
from policy.paths import write_whole
from policy.prompts import prompt_id

NAME = "t2i_r1"
FOLDER = Path("data") / NAME
WRITTEN = ("train.jsonl", "heldout.jsonl", "templates")
HELD_OUT = 0.03
"""Share of each task type's prompts that is held out."""


T2I_R1 = Release(
    "CaraJ7/T2I-R1",
    "2d9d4d1af4119953b3a8541f914f85481d7e1e76",
    "Apache-2.0",
    (
        PublishedFile(
            "data/geneval_and_t2i_data_final.json",
            1_228_443,
            "96b956b5c92477ea2ff13cdd0c805f762a9d9fd5af43141ada6850ab3f6a0171",
        ),
        PublishedFile(
            "data/prompt/reasoning_prompt.txt",
            626,
            "eec6a0becac441c44fa789a46472e74aff2954f001ad839e0c24c05d671b30b9",
        ),
        PublishedFile(
            "src/t2i-r1/src/open_r1/trainer/grpo_trainer.py",
            45_383,
            "fe1719f830f6e5aef8faf3753211c4401c580da4bc136a8536cce2d5ec33f398",
        ),
    ),
)
"""Its prompts, its instruction and its trainer, in this order."""


def fetch(name: str, out: Path | None, console: Console) -> None:
    """Download what is published under a name into a folder, `data/NAME` by default. Raises UserError,
    with nothing written but complete published files."""
    names = (NAME, *RELEASES)
    if name not in names:
        raise UserError(f"{name}: nothing to fetch has this name; there are {', '.join(names)}")
    out = out or Path("data") / name
    try:
        line = fetch_t2i_r1(T2I_R1, out) if name == NAME else fetch_benchmark(RELEASES[name], out)
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}") from None
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def fetch_benchmark(release: Release, out: Path) -> str:
    """Write a benchmark's files into `out`, where the user may have put them already. Returns a line on
    what was done."""
    for file in release.files:
        fetched(release, file, out)
    return (
        f"{out}: {len(release.files)} files of github.com/{release.repository} at"
        f" {release.commit[:7]}; licence: {release.licence}"
    )


def fetch_t2i_r1(release: Release, out: Path) -> str:
    """Write `train.jsonl`, `heldout.jsonl` and `templates/` into `out`. The published files are kept in
    `out/published`, where the user may have put them already. Returns a line on what was done."""
    prompts, instruction, trainer = (fetched(release, f, out / "published") for f in release.files)
    train, held_out = split(prompts.decode().split("\n"))
    texts = {
        "train.jsonl": "\n".join(train) + "\n",
        "heldout.jsonl": "\n".join(held_out) + "\n",
        "templates/system.txt": system_prompt(trainer.decode()),
        "templates/semantic_cot.txt": instruction.decode().replace("{}", "{prompt}"),
        "templates/image.txt": "{raw_prompt}. {raw_cot}",
    }
    for name, text in texts.items():
        write_whole(out / name, text)
    return (
        f"{out}: {len(train)} prompts to train on, {len(held_out)} held out, and templates/ with the"
        " published wording"
    )


def split(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Rows of a prompt file as (train, held out), each in its old order. The same share of every task
    type is held out, at least one: the texts with the smallest hashes."""
    lines = [line for line in lines if line.strip()]
    by_type: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for line in lines:
        row = json.loads(line)
        by_type[row["task_type"]].append((prompt_id(row["prompt"]), line))
    held_out = {
        line
        for found in by_type.values()
        for _, line in sorted(found)[: max(1, round(HELD_OUT * len(found)))]
    }
    return [line for line in lines if line not in held_out], [x for x in lines if x in held_out]


def system_prompt(source: str) -> str:
    """The one non-empty text that a Python source passes as `system_prompt`."""
    values = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.keyword) and node.arg == "system_prompt"
    ]
    texts = {value.value for value in values if isinstance(value, ast.Constant)}
    (text,) = (text for text in texts if text and isinstance(text, str))
    return text


def check_fetched(*paths: str | None) -> None:
    """Raises UserError for a missing path that `bicot fetch` writes."""
    for path in map(Path, filter(None, paths)):
        if path.name in WRITTEN and path.parent.name == NAME and not path.exists():
            option = "" if path.parent == FOLDER else f" --out {path.parent}"
            raise UserError(
                f"{path}: not there yet: `bicot fetch {NAME}{option}` gets the published prompts and"
                " wording of T2I-R1"
            )
