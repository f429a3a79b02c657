"""Nouns: when two name the same thing, and the caption that a grounding detector reads."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from policy.errors import UserError

Variant = Literal["paper", "released"]
Spans = list[list[list[int]]]

_IRREGULAR = {
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "men": "man",
    "mice": "mouse",
    "oxen": "ox",
    "people": "person",
    "teeth": "tooth",
}
_STOPS = re.compile(r"[.?\s]+")  # a detector reads "." and "?" as the end of a phrase


def plain_noun(noun: str) -> str:
    """A noun as it is compared and looked for: lower case, single spaces, no full stops."""
    return _STOPS.sub(" ", noun).strip().lower()


@lru_cache(maxsize=4096)  # asked of every detection, about the same few nouns
def same_noun(noun1: str, noun2: str) -> bool:
    """Whether two nouns of any number of words are one but for case, spaces and a plural."""
    one, two = plain_noun(noun1), plain_noun(noun2)
    if one == two:
        return True
    *first1, last1 = one.split(" ")
    *first2, last2 = two.split(" ")
    return first1 == first2 and not _singulars(last1).isdisjoint(_singulars(last2))


def _singulars(word: str) -> set[str]:
    """All that a word could be the plural of, and itself: "leaves" gives "leave", "leav", "leaf" ...

    Some are no words, but two nouns share one only if they are forms of the same noun.
    """
    forms = {word}
    for ending, singular in (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe")):
        if word.endswith(ending) and len(word) > len(ending) + 1 and not word.endswith("ss"):
            forms.add(word.removesuffix(ending) + singular)
    stem = next((plural for plural in _IRREGULAR if word.endswith(plural)), None)
    if stem:
        forms.add(word.removesuffix(stem) + _IRREGULAR[stem])
    return forms


def phrase_spans(nouns: Sequence[str], *, variant: Variant = "paper") -> tuple[str, Spans]:
    """The caption that asks a grounding detector for all nouns at once, "hot dog . tv.", and where
    in it each noun's words are: spans[noun][word] = [begin, end) in characters.

    "paper" writes nouns as `plain_noun` does and marks every word; UserError for a noun without
    letters, or for none at all. "released" is the published code's: nouns as they come, and only the
    first and last word of each marked (or what its arithmetic takes for them, where a noun has spaces
    at its ends).
    """
    if variant == "released":
        return _released_spans(nouns)
    plain = [plain_noun(noun) for noun in nouns]
    if not all(plain) or not plain:
        raise UserError(f"nothing to look for: the nouns are {list(nouns)}, and each must name a thing")
    spans, begin = [], 0
    for noun in plain:
        spans.append([[begin + word.start(), begin + word.end()] for word in re.finditer(r"\S+", noun)])
        begin += len(noun) + len(" . ")
    return " . ".join(plain) + ".", spans


def _released_spans(nouns: Sequence[str]) -> tuple[str, Spans]:
    spans, begin = [], 0
    for noun in nouns:
        words = noun.strip().split(" ")
        length = len(words[0]) if len(words) == 1 else len(noun)
        first = [begin, begin + len(words[0])]
        last = [begin + length - len(words[-1]), begin + length]
        spans.append([first] if len(words) == 1 else [first, last])
        begin += length + len(" . ")
    return " . ".join(nouns) + ".", spans
