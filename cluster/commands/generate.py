"""`bicot generate`: semantic CoTs and images of prompts, into a folder that the same command completes.

    generated.json   what decides the pictures: model, wording, seed, sampling, prompts
    NNNN.png         the pictures, in the order of the prompts
    cots.jsonl       a line for each: image, prompt, cot
    grid.png         the first prompts' pictures, written last

A line is added after its picture, so a later call draws what has no line or no picture.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel
from rich.console import Console
from rich.progress import track

from actors.rollout import make_sampler
from cluster.commands.fetch import check_fetched
from cluster.config import RunConfig
from cluster.validate import prompts_that_fit, too_long
from cluster.watch.plots import fit, grid
from evaluation.config import policy_generator
from evaluation.generators import as_png
from evaluation.journal import Journal, check_empty, check_same, checked
from policy.errors import UserError
from policy.jsonl import read_object
from policy.lock import run_lock
from policy.model import countable_janus
from policy.paths import check_writable, write_whole
from policy.prompts import load_templates, named_prompt, plain_row
from policy.records import Group, Prompt, Sample, SampleRequest

_SHOWN = 64
"""Prompts whose pictures are in the grid, and whose CoTs are printed."""
_CELL = 96


class _Row(BaseModel):
    """A line of cots.jsonl."""

    image: str
    prompt: str
    cot: str


class _Record(BaseModel):
    """The content of generated.json."""

    policy: dict[str, Any]
    wording: dict[str, str]
    seed: int
    samples: int
    prompts: dict[str, dict[str, str]]


class Generated:
    """The folder of one `bicot generate`, new or begun; `requests`: name of the picture -> its
    request."""

    def __init__(self, folder: Path, what: dict[str, Any], requests: Sequence[SampleRequest]):
        """Raises UserError, with nothing written, if the folder is of other pictures."""
        self.folder = folder
        self.requests = {f"{number:04d}.png": request for number, request in enumerate(requests)}
        record = folder / "generated.json"
        if record.exists():
            check_same(folder, checked(read_object(record), _Record, str(record)), what)
        else:
            check_empty(folder, "folder of `bicot generate`")
            write_whole(record, json.dumps(what, indent=1, ensure_ascii=False) + "\n")
        self._journal = Journal(folder / "cots.jsonl", _Row)
        self._journal.mend()
        self.cots = {row["image"]: row["cot"] for row in self._journal.rows}

    def missing(self) -> list[str]:
        """The names of pictures that are not drawn yet."""
        return [
            name
            for name in self.requests
            if name not in self.cots or not (self.folder / name).is_file()
        ]

    def add(self, drawn: Iterable[tuple[str, Sample]]) -> None:
        """Save pictures and CoTs."""
        for name, sample in drawn:
            write_whole(self.folder / name, as_png(sample.image))
            if name not in self.cots:
                prompt = self.requests[name].prompt.text
                self._journal.add({"image": name, "prompt": prompt, "cot": sample.cot_text})
                self.cots[name] = sample.cot_text

    def write_grid(self, names: Sequence[str], columns: int) -> Path:
        """Write a grid of these pictures, each above its prompt."""
        captions = [self.requests[name].prompt.text for name in names]
        path = self.folder / "grid.png"
        pictures = grid([self._small(name) for name in names], captions, columns, _CELL)
        write_whole(path, as_png(np.asarray(pictures)))
        return path

    def _small(self, name: str) -> np.ndarray:
        with Image.open(self.folder / name, formats=["PNG"]) as picture:
            return np.asarray(fit(np.asarray(picture.convert("RGB")), _CELL))


def generate(
    config: RunConfig, asked: Sequence[str], out: Path, samples: int, console: Console
) -> None:
    """Draw the prompts that are missing in `out` on this machine. Raises UserError if `out` holds
    anything else."""
    prompts = prompts_to_draw(asked, config)
    check_writable(out)
    check_fetched(config.policy.templates)
    what = _record(config, prompts, samples)
    requests = [request for prompt in prompts for request in Group(prompt, samples)]
    with run_lock(out):
        folder = Generated(out, what, requests)
        try:
            _draw(config, folder, console)
        except KeyboardInterrupt:
            message = f"stopped; what was drawn is in {out}, and the same command goes on from there"
            console.print(message, highlight=False, markup=False, soft_wrap=True)
            raise
        shown = list(folder.requests)[: _SHOWN * samples]
        path = folder.write_grid(shown, samples if samples > 1 else 4)
    for name in shown[::samples]:
        text = f"{folder.requests[name].prompt.text}\n  {folder.cots[name]}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    if (more := len(prompts) - _SHOWN) > 0:
        line = f"and {more} more in {out / 'cots.jsonl'}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(str(path), highlight=False, markup=False, soft_wrap=True)


def _draw(config: RunConfig, folder: Generated, console: Console) -> None:
    missing = folder.missing()
    if there := len(folder.requests) - len(missing):
        line = f"{there} of {len(folder.requests)} pictures are there already"
        console.print(line, highlight=False)
    if not missing:
        return
    torch.set_num_threads(1)
    # A GPU is used if there is one, whatever the run's actors have.
    actors = config.actors.model_copy(update={"num_gpus": float(torch.cuda.is_available())})
    sampler = make_sampler(config.policy, actors, config.seed)
    size = actors.batch_size
    batches = [missing[begin : begin + size] for begin in range(0, len(missing), size)]
    for names in track(batches, "generating", console=console):
        drawn = sampler.generate([folder.requests[name] for name in names])
        folder.add(zip(names, drawn, strict=True))


def _record(config: RunConfig, prompts: Sequence[Prompt], samples: int) -> dict[str, Any]:
    """Everything that decides the pictures."""
    wording = vars(load_templates(config.policy.templates))
    digests = {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in wording.items()}
    return {
        "policy": policy_generator(config.policy, config.actors.sampling),
        "wording": digests,
        "seed": config.seed,
        "samples": samples,
        "prompts": {str(n): {"text": p.text, "id": p.id} for n, p in enumerate(prompts, 1)},
    }


def prompts_to_draw(asked: Sequence[str], config: RunConfig) -> list[Prompt]:
    """The prompts of one file, NAME.jsonl or NAME.txt, or else sentences. Raises UserError for one that
    cannot be read or does not fit the model."""
    janus, max_cot_tokens = countable_janus(config.policy), config.actors.sampling.max_cot_tokens
    if len(asked) == 1 and asked[0].endswith((".jsonl", ".txt")):
        return prompts_that_fit(os.path.expanduser(asked[0]), janus, max_cot_tokens, plain=True)
    prompts = [named_prompt(plain_row(text), f"prompt {n}") for n, text in enumerate(asked, 1)]
    for n, prompt in enumerate(prompts, 1):
        if why := too_long(prompt, janus, max_cot_tokens):
            raise UserError(f"prompt {n}: {why}")
    return prompts
