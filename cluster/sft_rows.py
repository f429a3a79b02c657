"""Worked examples: the rows of a file of JSON lines, and the samples that the learner reads.

A row is `{"prompt": ..., "cot": ..., "image": PATH}` or, for an image, `"image_ids": [...]`; a path is
relative to the file's folder, as in the `cots.jsonl` that `bicot generate` writes. Without a CoT the
image is that of the prompt alone; a missing part is not learned from.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from policy.errors import UserError
from policy.jsonl import read_rows
from policy.model import PolicyModel
from policy.pictures import check_picture
from policy.prompts import legible
from policy.records import Sample

_Text = Annotated[str, AfterValidator(legible)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: _Text
    cot: _Text | None = None
    image: _Text | None = None
    image_ids: list[Annotated[int, Field(ge=0)]] | None = None


@dataclass(frozen=True)
class Example:
    """One row. `where` is its file and line; at most one of `picture` and `image_ids` is set."""

    where: str
    prompt: str
    cot: str | None = None
    picture: Path | None = None
    image_ids: np.ndarray | None = None  # int64 [Ti]


def read_examples(path: str, janus: PolicyModel, *, resize: bool) -> list[Example]:
    """All rows of a file. Raises UserError, with file and line, for the first invalid one: a wrong
    field, nothing to learn, a picture or ids that do not fit the model, too long a text.
    """
    file = Path(path)
    examples = [_example(row, f"{path}:{n}", file.parent) for n, row in read_rows(file, "data file")]
    if not examples:
        raise UserError(f"{path}: it has no rows")
    for example in examples:
        _check(example, janus, resize)
    return examples


def _example(row: dict, where: str, folder: Path) -> Example:
    try:
        r = _Row.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        fault = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: field {name!r}: {fault}") from None
    if r.image is not None and r.image_ids is not None:
        raise UserError(f"{where}: give 'image' or 'image_ids', not both")
    if r.cot is None and r.image is None and r.image_ids is None:
        raise UserError(f"{where}: there is nothing to learn: give 'cot', 'image' or 'image_ids'")
    picture = folder / r.image if r.image is not None else None
    ids = np.array(r.image_ids, np.int64) if r.image_ids is not None else None
    return Example(where, r.prompt, r.cot, picture, ids)


def _check(example: Example, janus: PolicyModel, resize: bool) -> None:
    if example.picture is not None:
        check_picture(example.picture, example.where, janus.image_side, resize)
    if (ids := example.image_ids) is not None:
        if len(ids) != janus.image_tokens:
            raise UserError(
                f"{example.where}: 'image_ids' has {len(ids)} ids, and the model's images have"
                f" {janus.image_tokens}"
            )
        if ids.max() >= janus.codebook_size:
            raise UserError(
                f"{example.where}: 'image_ids' holds {ids.max()}, and the model's codebook has"
                f" {janus.codebook_size} entries"
            )
    sample = as_sample(example, janus, None)
    needed = max(
        len(sample.cot_prompt_ids) + len(sample.cot_ids),
        len(sample.image_prompt_ids) + janus.image_tokens,
    )
    if needed > janus.max_positions:
        raise UserError(
            f"{example.where}: prompt and CoT are too long: they take {needed} tokens, with the image,"
            f" and the model's context is {janus.max_positions}"
        )


_NOTHING = np.zeros(0, np.int64)


def as_sample(
    example: Example, janus: PolicyModel, image_ids: np.ndarray | None, *, drop_prompt: bool = False
) -> Sample:
    """An example in the form of a sample. `image_ids`: None for no image. `drop_prompt`: its image
    prompt is the unconditional one."""
    prompt, cot = example.prompt, example.cot
    image_prompt = (
        janus.plain_prompt_ids(prompt) if cot is None else janus.image_prompt_ids(prompt, cot)
    )
    if drop_prompt:
        image_prompt = janus.unconditional_ids(image_prompt)
    cot_ids = _NOTHING if cot is None else np.array(janus.cot_ids(cot), np.int64)
    ids = _NOTHING if image_ids is None else image_ids
    return Sample(
        prompt_id=example.where,
        index=0,
        seed=0,
        weights_version=0,
        cot_prompt_ids=np.array(janus.cot_prompt_ids(prompt), np.int64),
        cot_ids=cot_ids,
        cot_text=cot or "",
        image_prompt_ids=np.array(image_prompt, np.int64),
        image_ids=ids,
        cot_logps=np.zeros(len(cot_ids), np.float32),
        image_logps=np.zeros(len(ids), np.float32),
        image_guided_logps=np.zeros(len(ids), np.float32),
        image=np.zeros((0, 0, 3), np.uint8),
        finish_reason="none" if cot is None else "stop",
    )


@dataclass(frozen=True)
class Lessons:
    """Examples in the order of training, which is a function of the seed: each comes once an epoch, and
    epochs follow each other without a break. `image_ids` has an entry an example, None for no image."""

    examples: Sequence[Example]
    image_ids: Sequence[np.ndarray | None]
    janus: PolicyModel
    seed: int = 0
    drop_prompt: float = 0.0

    def order(self) -> Iterator[int]:
        """Indices of the examples, endless, shuffled anew each epoch."""
        epoch = 0
        while True:
            places = list(range(len(self.examples)))
            random.Random(f"{self.seed}/{epoch}").shuffle(places)
            yield from places
            epoch += 1

    def batches(self, size: int, done: int = 0) -> Iterator[list[Sample]]:
        """Batches in order, without the first `done`."""
        places = islice(enumerate(self.order()), done * size, None)
        while True:
            yield [self._sample(place, number) for number, place in islice(places, size)]

    def all(self) -> list[Sample]:
        """Each example once, in the file's order and with its prompt."""
        return [
            as_sample(example, self.janus, ids)
            for example, ids in zip(self.examples, self.image_ids, strict=True)
        ]

    def _sample(self, place: int, number: int) -> Sample:
        dropped = random.Random(f"{self.seed}/drop/{number}").random() < self.drop_prompt
        example, ids = self.examples[place], self.image_ids[place]
        return as_sample(example, self.janus, ids, drop_prompt=dropped)
