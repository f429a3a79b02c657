"""Riddles: prompts that name neither a colour nor a shape, so that the model must reason.

"a shape with three corners in the colour of a lemon left of something round in the colour of coal" asks
for a yellow triangle left of a black circle, and a semantic CoT names it. It is a small version of WISE
(arXiv 2503.07265). The other fields of such a prompt hold the solution, so the experts score it as any
other.

There are several facts of each colour and each shape. A hash of a shape's fact and a colour's fact
decides whether the pair is used in training or in the held-out prompts: a held-out riddle combines
known facts in new pairs.
"""

import hashlib
import random
from dataclasses import dataclass
from functools import cache
from itertools import product

from examples.shapes.world import RELATIONS, make_prompt
from policy.records import Prompt, SpatialInfo

COLOR_FACTS = {
    "red": ("a ripe tomato", "a fire engine", "a strawberry", "fresh blood"),
    "green": ("grass", "a frog", "a cucumber", "an emerald"),
    "blue": ("a clear sky", "the sea", "a sapphire", "new jeans"),
    "yellow": ("a lemon", "a ripe banana", "an egg yolk", "a canary"),
    "purple": ("an aubergine", "lavender", "a plum", "an amethyst"),
    "black": ("coal", "a raven", "the night", "tar"),
}
SHAPE_FACTS = {
    "circle": ("something round", "a shape without corners", "a coin", "the outline of a wheel"),
    "square": ("a shape with four corners", "four equal sides", "a chessboard", "the side of a die"),
    "triangle": ("a shape with three corners", "three equal sides", "a slice of pizza", "a tent"),
}
KINDS = {"one": 0.2, "two": 0.4, "spatial": 0.4}


@dataclass(frozen=True)
class Described:
    """An object by a fact of its shape and a fact of its colour."""

    shape: str
    color: str
    shape_fact: str
    color_fact: str

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    def __str__(self) -> str:
        return f"{self.shape_fact} in the colour of {self.color_fact}"

    @property
    def held_out(self) -> bool:
        return hashlib.sha256(str(self).encode()).digest()[0] < 51


@cache
def descriptions(held_out: bool) -> list[Described]:
    """Every object in all descriptions of one side: one pair of facts in five is held out."""
    every = [
        Described(shape, color, shape_fact, color_fact)
        for shape, color in product(SHAPE_FACTS, COLOR_FACTS)
        for shape_fact, color_fact in product(SHAPE_FACTS[shape], COLOR_FACTS[color])
    ]
    return [described for described in every if described.held_out == held_out]


def riddle(held_out: bool, rng: random.Random) -> Prompt:
    """A random riddle: one object, two, or two in a relation."""
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    a = rng.choice(descriptions(held_out))
    if kind == "one":
        return make_prompt(str(a), "riddle", {a.name: 1})
    others = [b for b in descriptions(held_out) if b.color != a.color and b.shape != a.shape]
    b = rng.choice(others)
    counts = {a.name: 1, b.name: 1}
    if kind == "two":
        return make_prompt(f"{a} and {b}", "riddle", counts)
    where = rng.choice(RELATIONS)
    return make_prompt(f"{a} {where} {b}", "riddle", counts, SpatialInfo(a.name, b.name, where))


def some_riddles(count: int, held_out: bool) -> list[Prompt]:
    """`count` different riddles, always the same."""
    rng = random.Random(int(held_out))
    found: dict[str, Prompt] = {}
    while len(found) < count:
        prompt = riddle(held_out, rng)
        found[prompt.text] = prompt
    return list(found.values())
