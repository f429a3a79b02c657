"""Bytes from anywhere: an image, or a refusal, and nothing else."""

from io import BytesIO

import numpy as np
import pytest
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from policy.records import Prompt
from rewards.schemas import read_images, read_prompt

NOISE = np.random.default_rng(0).integers(0, 255, (24, 31, 3), np.uint8)


def encoded(kind: str, **options) -> bytes:
    out = BytesIO()
    Image.fromarray(NOISE).save(out, kind, **options)
    return out.getvalue()


FILES = [encoded("PNG"), encoded("JPEG"), encoded("WEBP"), encoded("WEBP", lossless=True)]
FILES += [encoded("JPEG", progressive=True)]


@settings(max_examples=300)
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
def test_a_damaged_file_is_read_or_refused(data, bites, keep):
    damaged = bytearray(data)
    for where, value in bites:
        damaged[int(where * (len(damaged) - 1))] = value
    if keep < 0.5:
        damaged = damaged[: int(2 * keep * len(damaged))]
    image = read_or_status(bytes(damaged))
    if isinstance(image, int):
        assert image in (413, 415)
    else:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[0] * image.shape[1] <= 10_000


def read_or_status(data: bytes) -> np.ndarray | int:
    try:
        return read_images([data], max_pixels=10_000)[0]
    except HTTPException as refusal:
        return refusal.status_code


@settings(max_examples=50)
@given(
    st.text(max_size=20)
    | st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3)
)
def test_a_prompt_is_read_or_refused(given_):
    prompt = read_or_place(given_)
    if isinstance(prompt, Prompt):
        assert prompt.text
    else:
        assert prompt[:2] == ("body", "prompt")


def read_or_place(given_: str | dict) -> Prompt | tuple:
    """The prompt, or where the fault in it is."""
    try:
        return read_prompt(given_)
    except RequestValidationError as error:
        return error.errors()[0]["loc"]


@pytest.mark.parametrize("size", [(1, 10_001), (101, 100)])
def test_pixels_are_counted_before_they_are_decoded(size):
    out = BytesIO()
    Image.new("RGB", size).save(out, "PNG")
    with pytest.raises(HTTPException) as refusal:
        read_images([out.getvalue()[:60]], max_pixels=10_000)  # the header, and no pixels
    assert refusal.value.status_code == 413


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_as_its_exif_says(kind):
    upright = Image.fromarray(np.zeros((8, 16, 3), np.uint8))
    upright.paste((255, 255, 255), (0, 0, 8, 8))  # white on the left
    exif = upright.getexif()
    exif[ExifTags.Base.Orientation] = 6  # a camera held upright: turn right to look at it
    out = BytesIO()
    upright.save(out, kind, exif=exif)
    (image,) = read_images([out.getvalue()], max_pixels=128)
    assert image.shape == (16, 8, 3)
    assert image[:7].mean() > 200 and image[9:].mean() < 50  # white on top


def test_a_row_with_a_key_twice_is_refused():
    with pytest.raises(RequestValidationError, match="'prompt' stands there twice"):
        read_prompt('{"prompt": "a", "task_type": "color", "prompt": "b"}')
