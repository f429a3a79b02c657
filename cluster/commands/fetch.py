"""`bicot fetch t2i_r1`: the prompt set and the wording that T2I-R1 published, as files for a run.

They come from the method's public repository (Apache License 2.0), at one commit, by the user's own
command. Here are only their places and their hashes. The system prompt is a literal in the source of
the published trainer, which is read and never run.
"""

import ast
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx
from rich.console import Console

from policy.errors import UserError, in_one_line
from policy.prompts import prompt_id

NAME = "t2i_r1"
FOLDER = Path("data") / NAME
WRITTEN = ("train.jsonl", "heldout.jsonl", "templates")
HELD_OUT = 0.03
"""Share of each task type's prompts that is held out."""


@dataclass(frozen=True)
class PublishedFile:
    path: str
    """In the repository."""
    nbytes: int
    sha256: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    def is_whole(self, content: bytes) -> bool:
        return hashlib.sha256(content).hexdigest() == self.sha256


@dataclass(frozen=True)
class Release:
    """Where one commit's files are, and those of them that are wanted."""

    url: str
    prompts: PublishedFile
    instruction: PublishedFile
    trainer: PublishedFile

    @property
    def files(self) -> tuple[PublishedFile, ...]:
        return self.prompts, self.instruction, self.trainer


T2I_R1 = Release(
    "https://raw.githubusercontent.com/CaraJ7/T2I-R1/2d9d4d1af4119953b3a8541f914f85481d7e1e76",
    prompts=PublishedFile(
        "data/geneval_and_t2i_data_final.json",
        1_228_443,
        "96b956b5c92477ea2ff13cdd0c805f762a9d9fd5af43141ada6850ab3f6a0171",
    ),
    instruction=PublishedFile(
        "data/prompt/reasoning_prompt.txt",
        626,
        "eec6a0becac441c44fa789a46472e74aff2954f001ad839e0c24c05d671b30b9",
    ),
    trainer=PublishedFile(
        "src/t2i-r1/src/open_r1/trainer/grpo_trainer.py",
        45_383,
        "fe1719f830f6e5aef8faf3753211c4401c580da4bc136a8536cce2d5ec33f398",
    ),
)


def fetch(release: Release, out: Path, console: Console) -> None:
    """Write `train.jsonl`, `heldout.jsonl` and `templates/` into `out`. The published files are kept in
    `out/published`, where a person may have put them. Raises UserError, with nothing written but
    published files that arrived whole."""
    try:
        prompts, instruction, trainer = (
            _published(release, f, out / "published") for f in release.files
        )
        train, held_out = split(prompts.decode().split("\n"))
        texts = {
            "train.jsonl": "\n".join(train) + "\n",
            "heldout.jsonl": "\n".join(held_out) + "\n",
            "templates/system.txt": system_prompt(trainer.decode()),
            "templates/semantic_cot.txt": instruction.decode().replace("{}", "{prompt}"),
            "templates/image.txt": "{raw_prompt}. {raw_cot}",
        }
        for name, text in texts.items():
            _write(out / name, text.encode())
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}") from None
    console.print(
        f"{out}: {len(train)} prompts to train on, {len(held_out)} held out, and templates/ with the"
        " published wording",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def split(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Rows of a prompt file as (train, held out), each in its old order. Of every task type the same
    share is held out, at least one: those whose texts have the smallest hashes."""
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
    """The one text that a Python source passes on as `system_prompt`, beside the empty one."""
    values = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.keyword) and node.arg == "system_prompt"
    ]
    texts = {value.value for value in values if isinstance(value, ast.Constant)}
    (text,) = (text for text in texts if text and isinstance(text, str))
    return text


def check_fetched(*paths: str | None) -> None:
    """Raises UserError for a path that `bicot fetch` would have written and that is not there."""
    for path in map(Path, filter(None, paths)):
        if path.name in WRITTEN and path.parent.name == NAME and not path.exists():
            option = "" if path.parent == FOLDER else f" --out {path.parent}"
            raise UserError(
                f"{path}: not there yet: `bicot fetch {NAME}{option}` gets the published prompts and"
                " wording of T2I-R1"
            )


def _published(release: Release, file: PublishedFile, folder: Path) -> bytes:
    """A published file's content: from `folder`, or from the network and then into `folder`."""
    kept = folder / file.name
    if kept.exists():
        content = kept.read_bytes()
        if not file.is_whole(content):
            raise UserError(
                f"{kept}: not the published file, whose SHA-256 is {file.sha256}: replace it"
            )
        return content
    url = f"{release.url}/{file.path}"
    try:
        content = _download(url, file.nbytes)
    except (httpx.HTTPError, httpx.InvalidURL, ImportError) as error:  # ImportError: a SOCKS proxy
        missing = [f"{release.url}/{f.path}" for f in release.files if not (folder / f.name).exists()]
        raise UserError(
            f"{url} cannot be downloaded ({in_one_line(error)}): get"
            f" {', '.join(missing)} some other way, put them into {folder}/, and give the command again"
        ) from None
    if not file.is_whole(content):
        raise UserError(f"{url}: what came is not the published file, whose SHA-256 is {file.sha256}")
    _write(kept, content)
    return content


def _download(url: str, nbytes: int) -> bytes:
    """At most a byte more than `nbytes`, so that a stranger's endless answer fills no memory."""
    content = b""
    with httpx.stream("GET", url, timeout=30, follow_redirects=True) as answer:
        answer.raise_for_status()
        for part in answer.iter_bytes():
            content += part
            if len(content) > nbytes:
                break
    return content


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
