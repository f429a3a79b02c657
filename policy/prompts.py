"""Prompts: the files that they come from, the order of training, and the texts that the model reads.

A prompt file is JSON lines with the fields of T2I-R1's published prompt set. The two prompts of BiCoT
(T2I-R1, arXiv 2505.00703, section 3), one for the semantic CoT and one for the image, are worded in
three text files that a user can replace:

| file | used for | placeholders |
|---|---|---|
| `system.txt` | system prompt of the semantic CoT; may be empty | |
| `semantic_cot.txt` | what the user asks for the semantic CoT | `{prompt}` |
| `image.txt` | what the user asks for the image | `{prompt}`, `{cot}`, or `{raw_prompt}`, `{raw_cot}` |

In `image.txt`, `{prompt}` loses outer white space and a full stop at its end, `{cot}` outer white
space; `{raw_prompt}` and `{raw_cot}` are as they are, as in T2I-R1's published code.
"""

import hashlib
import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from policy.errors import UserError
from policy.jsonl import read_rows, read_text
from policy.records import Group, ObjectCount, Prompt, SpatialInfo


def legible(text: str) -> str:
    """Checks that a text is not blank, and valid UTF-8: half a surrogate cannot be hashed."""
    text.encode("utf-8")
    if not any(letter.isprintable() and not letter.isspace() for letter in text):
        raise ValueError("is blank")
    return text


_Text = Annotated[str, AfterValidator(legible)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Spatial(_Strict):
    obj1: _Text
    obj2: _Text
    locality: _Text


class _Count(_Strict):
    obj_name: _Text
    num: int = Field(ge=1, le=10**6)


class _Row(_Strict):
    id: _Text | None = None
    prompt: _Text
    task_type: _Text
    nouns: list[_Text] = []
    attr_nouns: list[_Text] | None = None
    spatial_info: _Spatial | None = None
    numeracy_info: list[_Count] | None = None


def prompt_id(text: str) -> str:
    """An id that depends on the text alone, so that re-ordering a file changes no sample."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def parse_prompt(row: dict[str, Any]) -> Prompt:
    """One row as a record. Raises pydantic's ValidationError for a missing, unknown or bad field."""
    r = _Row.model_validate(row)
    spatial = SpatialInfo(**r.spatial_info.model_dump()) if r.spatial_info else None
    counts = tuple(ObjectCount(c.obj_name, c.num) for c in r.numeracy_info or ())
    return Prompt(
        id=r.id or prompt_id(r.prompt),
        text=r.prompt,
        task_type=r.task_type,
        nouns=tuple(r.nouns),
        attr_nouns=tuple(r.attr_nouns or ()),
        spatial_info=spatial,
        numeracy_info=counts,
    )


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """The row that `parse_prompt` reads as this record."""
    row = dict(vars(prompt))
    row["prompt"] = row.pop("text")
    row["nouns"], row["attr_nouns"] = list(prompt.nouns), list(prompt.attr_nouns)
    row["spatial_info"] = vars(prompt.spatial_info) if prompt.spatial_info else None
    row["numeracy_info"] = [vars(count) for count in prompt.numeracy_info]
    return row


def plain_row(text: str) -> dict[str, Any]:
    """The row of a prompt that is nothing but a sentence."""
    return {"prompt": text, "task_type": "other"}


def plain_prompt(text: str) -> Prompt:
    return parse_prompt(plain_row(text))


def read_prompts(path: str | Path) -> list[Prompt]:
    """All prompts of a file, in its order. A text that occurs again gets an id of its own ("ID#2").

    Raises UserError, naming file, line and field, before anything is returned.
    """
    return [prompt for _, prompt in numbered_prompts(path)]


def numbered_prompts(path: str | Path, *, plain: bool = False) -> list[tuple[int, Prompt]]:
    """`read_prompts`, each prompt with the number of its line. `plain`, for prompts that are only
    drawn: a row needs no `task_type`, and a file NAME.txt holds a prompt a line; blank lines and lines
    that begin with "#" hold none."""
    path = Path(path)
    rows = _text_rows(path) if plain and path.suffix == ".txt" else read_rows(path, "prompt file")
    default = plain_row("") if plain else {}
    found = [(number, named_prompt({**default, **row}, f"{path}:{number}")) for number, row in rows]
    if not found:
        raise UserError(f"{path}: the file holds no prompts")
    numbers, prompts = zip(*found, strict=True)
    return list(zip(numbers, _with_ids_of_their_own(prompts), strict=True))


def _text_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_text(path, "prompt file").split("\n"), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield number, {"prompt": text}


def _with_ids_of_their_own(prompts: Sequence[Prompt]) -> list[Prompt]:
    taken = {prompt.id for prompt in prompts}
    seen: Counter[str] = Counter()
    unique = []
    for prompt in prompts:
        seen[prompt.id] += 1
        if (times := seen[prompt.id]) > 1:
            new = next(i for n in itertools.count(times) if (i := f"{prompt.id}#{n}") not in taken)
            taken.add(new)
            prompt = replace(prompt, id=new)
        unique.append(prompt)
    return unique


def named_prompt(row: dict[str, Any], where: str) -> Prompt:
    """`parse_prompt` with a UserError instead, that names the field, behind `where`."""
    try:
        return parse_prompt(row)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{where}: field {name!r}: {first['msg'].removeprefix('Value error, ')}"
        ) from None


class GroupStream:
    """Groups in the order of training, by their number: endless, shuffled anew each round, the same for
    the same seed.

    Every prompt comes once a round. Sample indices go on from round to round: no sample comes twice.
    """

    def __init__(self, prompts: Sequence[Prompt], group_size: int, seed: int):
        self._prompts, self._size, self._seed = prompts, group_size, seed
        self._round, self._order = -1, list(prompts)

    def __getitem__(self, number: int) -> Group:
        rounds, place = divmod(number, len(self._prompts))
        if rounds != self._round:
            self._round, self._order = rounds, list(self._prompts)
            random.Random(f"{self._seed}/{rounds}").shuffle(self._order)
        return Group(self._order[place], self._size, rounds * self._size, number)


DEFAULT_FOLDER = Path(__file__).parent / "templates"
BEGIN_OF_IMAGE = "<begin_of_image>"
_PLACEHOLDER = re.compile(r"\{(prompt|cot|raw_prompt|raw_cot)\}")


@dataclass(frozen=True)
class Templates:
    system: str
    semantic_cot: str
    image: str

    def cot_conversation(self, prompt: str) -> str:
        """The text after which the model writes its semantic CoT."""
        return _conversation(self.system, self.semantic_cot.replace("{prompt}", prompt))

    def image_conversation(self, prompt: str, cot: str) -> str:
        """The text after which the model writes image tokens."""
        values = {
            "prompt": prompt.strip().removesuffix("."),
            "cot": cot.strip(),
            "raw_prompt": prompt,
            "raw_cot": cot,
        }
        # In one pass: a CoT that happens to contain "{prompt}" stays as it is.
        asked = _PLACEHOLDER.sub(lambda found: values[found[1]], self.image)
        return _conversation("", asked.strip()) + BEGIN_OF_IMAGE


def plain_conversation(prompt: str) -> str:
    """The text after which a Janus draws a prompt as it stands, as the published model is asked."""
    return _conversation("", prompt) + BEGIN_OF_IMAGE


def _conversation(system: str, user: str) -> str:
    """Janus's conversation format, down to the blank lines."""
    head = f"{system}\n\n" if system else ""
    return f"{head}User: {user}\n\nAssistant:"


def load_templates(folder: str | Path | None = None) -> Templates:
    """Templates from a folder; a file that the folder lacks is the default one.

    Raises UserError if the folder is missing or a text lacks its placeholder.
    """
    folder = Path(folder) if folder else DEFAULT_FOLDER
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of prompt templates")

    def text(name: str, *placeholders: str) -> str:
        path = folder / name
        path = path if path.exists() else DEFAULT_FOLDER / name
        content = read_text(path).strip()
        for placeholder in placeholders:
            if not any(name in content for name in placeholder.split(" or ")):
                raise UserError(f"{path}: the template must contain {placeholder}")
        return content

    return Templates(
        system=text("system.txt"),
        semantic_cot=text("semantic_cot.txt", "{prompt}"),
        image=text("image.txt", "{prompt} or {raw_prompt}", "{cot} or {raw_cot}"),
    )
