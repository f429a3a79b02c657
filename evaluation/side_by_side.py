"""The page that shows models side by side: tables with intervals, then the pictures of each prompt, the
largest differences first. Its callers fill in the numbers.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from policy.paths import write_whole

SHOWN = 40  # prompts on the page
IMAGES = 2  # of a prompt and model
_SIDE = 256  # pixels


@dataclass(frozen=True)
class Cell:
    """A number and its interval as text, "" where there is none. `verdict`: "better" or "worse" of a
    difference beyond noise, "noise", or ""."""

    text: str
    interval: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Row:
    """One score of every model; `difference`: the second less the first, if there are two."""

    label: str
    cells: tuple[Cell, ...]
    difference: Cell | None = None
    section: str = ""
    """A heading above the first of several rows."""
    strong: bool = False


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt with each model's score, and pictures with their CoTs: (data URL or "", CoT)."""

    text: str
    what: str
    scores: tuple[str, ...]
    pictures: tuple[tuple[tuple[str, str], ...], ...]


@dataclass(frozen=True)
class Comparison:
    """One table of the page with its pictures. `differing` says why its numbers cannot be compared, if
    so; `about` has a line on each model's run."""

    title: str
    labels: tuple[str, ...]
    rows: Sequence[Row]
    heading: str
    shown: Sequence[ShownPrompt]
    differing: Sequence[str] = ()
    notes: Sequence[str] = ()
    about: Sequence[str] = ()


def write_comparisons(title: str, found: Sequence[Comparison], path: Path) -> None:
    """Write one self-contained HTML file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    write_whole(path, environment.get_template("compare.html.j2").render(title=title, found=found))


def thumbnail(image: np.ndarray) -> str:
    """A data URL: the image as it is, or reduced to 256 pixels."""
    picture = Image.fromarray(image)
    if max(picture.size) > _SIDE:
        picture.thumbnail((_SIDE, _SIDE))
    kind = "png" if max(picture.size) <= 64 else "jpeg"
    buffer = io.BytesIO()
    picture.save(buffer, format=kind.upper(), quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
