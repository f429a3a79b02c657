"""The shapes world: prompts, plans in words, and a renderer.

An image is a 3 x 3 board of coloured shapes, 24 x 24 pixels. A plan names each object with its
position, "red circle top left ; blue square middle right", and is the semantic CoT of this world.
"""

import hashlib
import random
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

from examples.shapes.experts import COLORS, GROUND, SHAPES
from policy.prompts import prompt_id
from policy.records import ObjectCount, Prompt, SpatialInfo

SIZE = 24
CELL = 8
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
NUMBERS = {"two": 2, "three": 3, "four": 4}
RELATIONS = ("left of", "right of", "above", "below")
OBJECTS = tuple(f"{color} {shape}" for color, shape in product(COLORS, SHAPES))


@dataclass(frozen=True)
class Placed:
    """An object ("red circle") on the board, row and column from the top left."""

    name: str
    row: int
    column: int


Plan = list[Placed]


# --- prompts -------------------------------------------------------------------------------------


def make_prompt(
    text: str, task_type: str, counts: dict[str, int], spatial: SpatialInfo | None = None
) -> Prompt:
    """A prompt that asks for a number of each object ("red circle"), and perhaps for a relation."""
    return Prompt(
        id=prompt_id(text),
        text=text,
        task_type=task_type,
        nouns=tuple(name.split()[1] for name in counts),
        attr_nouns=tuple(counts),
        spatial_info=spatial,
        numeracy_info=tuple(ObjectCount(name, num) for name, num in counts.items()),
    )


def all_prompts() -> dict[str, list[Prompt]]:
    """Every plain prompt of the world by kind: one object, a count, two objects, both, a relation."""
    pairs = [
        (a, b)
        for a, b in product(OBJECTS, OBJECTS)
        if a.split()[0] != b.split()[0] and a.split()[1] != b.split()[1]
    ]
    some = [(word, num) for word, num in NUMBERS.items() if num < 4]
    return {
        "single": [make_prompt(f"a {a}", "color", {a: 1}) for a in OBJECTS],
        "count": [
            make_prompt(f"{word} {a}s", "numeracy", {a: num})
            for a in OBJECTS
            for word, num in NUMBERS.items()
        ],
        "two": [make_prompt(f"a {a} and a {b}", "complex", {a: 1, b: 1}) for a, b in pairs],
        "mixed": [
            make_prompt(f"{word} {a}s and a {b}", "numeracy", {a: num, b: 1})
            for a, b in pairs
            for word, num in some
        ],
        "spatial": [
            make_prompt(f"a {a} {where} a {b}", "spatial", {a: 1, b: 1}, SpatialInfo(a, b, where))
            for a, b in pairs
            for where in RELATIONS
        ],
    }


def is_held_out(prompt: Prompt) -> bool:
    """One plain prompt in five, by a hash of its text: never seen in warm-up or training."""
    return hashlib.sha256(prompt.text.encode()).digest()[0] < 51


# --- plans ---------------------------------------------------------------------------------------


def _stands_right(a: Placed, b: Placed, locality: str) -> bool:
    return {
        "left of": a.column < b.column,
        "right of": a.column > b.column,
        "above": a.row < b.row,
        "below": a.row > b.row,
    }[locality]


def make_plan(prompt: Prompt, rng: random.Random) -> Plan:
    """A random correct plan for a prompt, with its objects in the prompt's order."""
    names = [c.obj_name for c in prompt.numeracy_info for _ in range(c.num)]
    while True:
        cells = rng.sample(list(product(range(3), range(3))), len(names))
        plan = [Placed(name, *cell) for name, cell in zip(names, cells, strict=True)]
        where = prompt.spatial_info
        if where is None or _stands_right(plan[0], plan[1], where.locality):
            return plan


def corrupt(plan: Plan, rate: float, rng: random.Random, names: float | None = None) -> Plan:
    """A plan with mistakes: each position is redrawn with probability `rate`, each colour and shape
    with probability `names` (None: `rate`), and an object is lost or added with probability `rate`."""
    names = rate if names is None else names
    wrong = []
    for placed in plan:
        color, shape = placed.name.split()
        row, column = placed.row, placed.column
        if rng.random() < names:
            color = rng.choice(list(COLORS))
        if rng.random() < names:
            shape = rng.choice(SHAPES)
        if rng.random() < rate:
            row, column = rng.randrange(3), rng.randrange(3)
        wrong.append(Placed(f"{color} {shape}", row, column))
    if rng.random() < rate:
        if len(wrong) > 1 and rng.random() < 0.5:
            wrong.pop(rng.randrange(len(wrong)))
        else:
            wrong.append(Placed(rng.choice(OBJECTS), rng.randrange(3), rng.randrange(3)))
    return wrong


def plan_text(plan: Plan) -> str:
    return " ; ".join(f"{p.name} {ROWS[p.row]} {COLUMNS[p.column]}" for p in plan)


def read_plan(text: str) -> Plan | None:
    """Parses the text of a plan; None: the text is no plan."""
    plan = []
    for part in text.split(";"):
        words = part.split()
        if len(words) != 4 or words[2] not in ROWS or words[3] not in COLUMNS:
            return None
        name = f"{words[0]} {words[1]}"
        if name not in OBJECTS:
            return None
        plan.append(Placed(name, ROWS.index(words[2]), COLUMNS.index(words[3])))
    return plan


def cot_is_right(prompt: Prompt, text: str) -> bool:
    """Whether drawing this plan faithfully would satisfy the prompt: the right objects, as many as
    asked, each at a position of its own, with the prompt's relation."""
    plan = read_plan(text)
    if plan is None:
        return False
    wanted = sorted(c.obj_name for c in prompt.numeracy_info for _ in range(c.num))
    if sorted(p.name for p in plan) != wanted:
        return False
    if len({(p.row, p.column) for p in plan}) != len(plan):
        return False
    where = prompt.spatial_info
    if where is None:
        return True
    first = next(p for p in plan if p.name == where.obj1)
    second = next(p for p in plan if p.name == where.obj2)
    return _stands_right(first, second, where.locality)


# --- pictures ------------------------------------------------------------------------------------

_ZOOM = 8  # shapes are drawn large and averaged down, for smooth edges


def render(plan: Plan) -> np.ndarray:
    """Draw a plan: uint8 [24, 24, 3]. A shape fills 7 of its cell's 8 pixels, so neighbours never
    touch."""
    canvas = Image.new("RGB", (SIZE * _ZOOM, SIZE * _ZOOM), GROUND)
    pen = ImageDraw.Draw(canvas)
    for placed in plan:
        color, shape = placed.name.split()
        left, top = placed.column * CELL * _ZOOM, placed.row * CELL * _ZOOM
        right, bottom = left + 7 * _ZOOM - 1, top + 7 * _ZOOM - 1
        if shape == "circle":
            pen.ellipse((left, top, right, bottom), fill=COLORS[color])
        elif shape == "square":
            pen.rectangle((left, top, right, bottom), fill=COLORS[color])
        else:
            apex = ((left + right) / 2, top)
            pen.polygon([apex, (left, bottom), (right, bottom)], fill=COLORS[color])
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX))
