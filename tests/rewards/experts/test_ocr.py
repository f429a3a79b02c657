"""Words in images, read by real models."""

# ruff: noqa: RUF001 (marks that look alike)

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from policy.errors import UserError
from policy.prompts import plain_prompt
from rewards.experts.ocr import Ocr, quoted

SIZE = 384


@pytest.fixture(scope="module")
def ocr() -> Ocr:
    pytest.importorskip("rapidocr", reason="needs pip install 'bicot[ocr]'")
    return Ocr()


def sign(*lines: str, size: int = 48) -> np.ndarray:
    """Dark blue words on light ground."""
    image = Image.new("RGB", (SIZE, SIZE), (240, 240, 225))
    draw = ImageDraw.Draw(image)
    for n, line in enumerate(lines):
        draw.text((30, 60 + 100 * n), line, fill=(20, 20, 110), font=ImageFont.load_default(size))
    return np.array(image)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('a sign that says "Open 24 hours"', ("Open 24 hours",)),
        ("a sign that says 'STOP' at a dog's house", ("STOP",)),
        ("the dogs' sign reads 'Don't walk'", ("Don't walk",)),
        ("“Café” over \u2018Bar\u2019, and «Tabac»", ("Café", "Bar", "Tabac")),
        ("ein Schild „Halt“ am Tor", ("Halt",)),
        ('"one" and then "two"', ("one", "two")),
        ("a dog's bone", ()),
        ("the dogs' bones and the cats' milk", ()),
        ('an empty " " sign, and one more ""', ()),
        ("a red dog", ()),
        ("a sign that says 'don't panic'", ("don't panic",)),
        ("the dogs' 'park' isn't open", ("park",)),
        ("\u2018don\u2019t\u2019 over ‚Tor\u2018", ("don\u2019t", "Tor")),
        ("in '90s style 'OPEN'", ("OPEN",)),
        ('rock \'n\' roll "A" and "B"', ("A", "B")),
        ('a 12" ruler that reads "A", 3" wide', ("A",)),
        ("une affiche « Bonjour »", ("Bonjour",)),
        ("»Hallo« und „Welt”", ("Hallo", "Welt")),
        ("写着「你好」和'再见'的牌子", ("你好", "再见")),
        ("看板『営業中』〝本日〟", ("営業中", "本日")),
        ("＂ＯＰＥＮ＂", ("ＯＰＥＮ",)),
        ('text \\"X\\"', ("X",)),
    ],
)
def test_what_a_prompt_quotes(text, found):
    assert quoted(text) == found


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1))
def test_any_word_in_any_marks_is_found(word):
    for marks in ('""', "''", "“”", "\u2018\u2019", "«»"):
        assert quoted(f"a sign {marks[0]}{word}{marks[1]}, red") == (word,)


@given(st.text())
def test_no_text_breaks_it(text):
    assert all(part.strip() for part in quoted(text))


@pytest.mark.parametrize("word", ["HELLO", "Open 24 hours", "fresh bread", "Exit 7"])
def test_words_that_are_there_and_words_that_are_not(ocr, word):
    right, wrong = (
        plain_prompt(f'a sign that says "{word}"'),
        plain_prompt('a sign that says "Zulu Mig"'),
    )
    answer = ocr.score([sign(word), sign(word), sign()], [right, wrong, right])
    assert answer.values[0] > 0.9
    assert answer.values[1] < 0.3
    assert answer.values[2] == 0
    assert answer.explanation[0] == f"read: {word}"
    assert answer.explanation[2] == "nothing to read"


def test_boxes_are_where_the_words_are(ocr):
    (boxes,) = ocr.score([sign("TOP", "bottom")], [plain_prompt('"TOP" over "bottom"')]).boxes
    assert [box.label for box in boxes] == ["TOP", "bottom"]
    top, bottom = (box.xyxy for box in boxes)
    assert 0 <= top[0] < top[2] <= 1 and 0 <= top[1] < top[3] < bottom[1] < bottom[3] <= 1
    assert top[0] * SIZE == pytest.approx(30, abs=12)
    assert top[1] * SIZE == pytest.approx(70, abs=16)
    assert all(box.score > 0.5 for box in boxes)


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (1, 3000), (20000, 2), (30, 5000)])
def test_an_image_of_any_shape_is_read(ocr, shape):
    noise = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    assert 0 <= ocr.score([noise], [plain_prompt('"A"')]).values[0] <= 1


def test_a_strip_is_read_and_its_boxes_are_parts_of_it(ocr):
    strip = sign("HELLO")[60:120]
    (boxes,) = ocr.score([strip], [plain_prompt('"HELLO"')]).boxes
    assert [box.label for box in boxes] == ["HELLO"]
    left, top, right, bottom = boxes[0].xyxy
    assert left < 0.1 and right < 0.8
    assert top < 0.4 and bottom > 0.6


def test_several_quotations_case_and_spaces(ocr):
    asked = plain_prompt("'top' over 'BOTTOM'")
    assert ocr.score([sign("TOP", "bottom")], [asked]).values[0] == 1


def test_words_that_nobody_asked_for_cost(ocr):
    asked = plain_prompt('a sign "TOP"')
    assert ocr.score([sign("TOP", "bottom")], [asked]).values[0] == pytest.approx(3 / 9)


def test_together_is_as_one_by_one(ocr):
    words = ("one", "two three", "4")
    shown, asked = [sign(w) for w in words], [plain_prompt(f'"{w}"') for w in ("one", "too tree", "44")]
    together = ocr.score(shown, asked).values
    alone = [ocr.score([i], [p]).values[0] for i, p in zip(shown, asked, strict=True)]
    assert together.tolist() == alone
    assert together.dtype == np.float32


def test_it_applies_to_quotations_only(ocr):
    assert ocr.applies(plain_prompt('a sign "A"'))
    assert not ocr.applies(plain_prompt("a sign"))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UserError, match=r"needs rapidocr: pip install 'bicot\[ocr\]'"):
        Ocr()
