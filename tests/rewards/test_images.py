"""Small files that would cost much, and the processes that decode."""

import asyncio
import struct
import time
import zlib
from base64 import b64encode
from contextlib import suppress
from io import BytesIO

import numpy as np
import psutil
import pytest
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from PIL import Image

from rewards.config import GatewayConfig
from rewards.decoding import ImageDecoder
from rewards.experts.common import pictures
from rewards.experts.detector import pixels
from rewards.images import read_images
from rewards.schemas import AppliesBody, ScoreBody, _from_json, parse_body, read_prompt

pytestmark = pytest.mark.unit

PIXELS = 4096 * 4096


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


SMALL = Image.new("RGB", (24, 24))
PNG, JPEG = encoded(SMALL, "PNG"), encoded(SMALL, "JPEG")
PROGRESSIVE = encoded(Image.new("L", (512, 512), 128), "JPEG", progressive=True)
SCAN = PROGRESSIVE[PROGRESSIVE.rfind(b"\xff\xda") : -2]


def refusal(*files: bytes) -> HTTPException:
    with pytest.raises(HTTPException) as raised:
        read_images(files, PIXELS)
    return raised.value


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([PNG] * 257, "there are more than 256 images"),
        ([JPEG[:2] + b"\xff\xfe\x00\x02" * 10_000 + JPEG[2:]], "image 1 has too many parts"),
        ([JPEG[:3] + bytes(10_000)], "image 1 has too many parts"),
        ([JPEG[:2] + b"\xff" * 10_000 + JPEG[2:]], "image 1 has too many parts"),
        ([PROGRESSIVE[:-2] + SCAN * 800 + b"\xff\xd9"], "image 1 has too many scans"),
        ([PNG[:33] + chunk(b"teXt") * 10_000 + PNG[33:]], "image 1 has too many parts"),
        (
            [PNG, encoded(Image.new("L", (20_000, 1)), "PNG")],
            "image 2: 20000 x 1 pixels;",
        ),
        ([encoded(Image.new("L", (1, 9)), "WEBP")], "image 1: 1 x 9 pixels; one may be 8 times"),
    ],
    ids=["images", "comments", "stray", "fill bytes", "scans", "chunks", "thin", "thin webp"],
)
def test_work_is_bounded_before_anything_is_decoded(files, reason):
    refused = refusal(*files)
    assert (refused.status_code, refused.detail[: len(reason)]) == (413, reason)


def test_what_encoders_write_is_read():
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (600, 900, 3), np.uint8))
    profile = rng.bytes(300_000)  # markers by chance
    files = [encoded(photo, "JPEG", progressive=True, icc_profile=profile, quality=95)]
    files += [encoded(photo, "PNG", icc_profile=profile), encoded(photo, "WEBP", exif=b"Exif\0\0")]
    files += [encoded(photo, "JPEG", subsampling=0, restart_marker_blocks=1)]
    assert [image.shape for image in read_images(files, PIXELS)] == [(600, 900, 3)] * 4


def test_an_image_is_turned_as_its_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    (image,) = read_images([encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif)], PIXELS)
    assert image.shape == (30, 20, 3)


def test_a_model_that_resizes_sees_nothing_long_and_thin():
    for thin in (np.zeros((1, 5000, 3), np.uint8), np.zeros((90, 10, 3), np.uint8)):
        with pytest.raises(RuntimeError, match="one may be 8 times the other"):
            pictures([thin])
        with pytest.raises(RuntimeError, match="one may be 8 times the other"):
            pixels(None, [thin], None)
    assert pictures([np.zeros((80, 10, 3), np.uint8)])[0].size == (10, 80)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"prompt": "x", "images": [' + b"3," * 100_000 + b"3]}", ("body", "images", 0)),
        (b'{"prompts": [' + b"3," * 100_000 + b"3]}", ("body", "prompts", 0, "str")),
        (b"{" + b",".join(b'"%d": 1' % n for n in range(10_000)) + b"}", ("body",)),
    ],
)
def test_of_a_hundred_thousand_faults_the_first_is_reported(body, where):
    model = AppliesBody if b"prompts" in body else ScoreBody
    with pytest.raises(RequestValidationError) as raised:
        parse_body(model, body)
    assert raised.value.errors()[0]["loc"] == where
    assert len(raised.value.errors()) < 3


@pytest.mark.parametrize(
    "prompt", ["x" * 70_000, {"prompt": "x", "task_type": "color", "nouns": ["x"] * 30_000}]
)
def test_a_prompt_has_a_length(prompt):
    with pytest.raises(RequestValidationError) as raised:
        read_prompt(prompt)
    assert "longer than 65536 characters" in raised.value.errors()[0]["msg"]


# --- the processes ---


def children() -> set[int]:
    found = set()
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if process.status() != psutil.STATUS_ZOMBIE and "rewards.images" in process.cmdline():
                found.add(process.pid)
    return found


def run_with(work, **limits):
    async def run():
        return await work(ImageDecoder(GatewayConfig(**limits)))

    return asyncio.run(run())


def test_a_process_decodes_and_is_kept():
    async def work(decoder):
        first = await decoder.read([PNG, JPEG])
        mine = children()
        with pytest.raises(HTTPException) as raised:
            await decoder.read([b"hello"])
        await decoder.read([PNG])
        assert children() == mine
        return first, raised.value

    images, refused = run_with(work)
    assert [image.shape for image in images] == [(24, 24, 3)] * 2
    assert (refused.status_code, refused.detail) == (415, "image 1 is no PNG, JPEG or WebP image")


def test_a_process_that_is_late_is_killed():
    before = children()

    async def work(decoder):
        with pytest.raises(HTTPException, match=r"413: the images take longer than 0\.001 s"):
            await decoder.read([PNG])

    run_with(work, decode_timeout_s=0.001)
    gone(before)


def test_a_process_whose_client_left_is_killed():
    """Meanwhile it still starts, or decodes: either way nobody waits for it."""
    before = children()

    async def work(decoder):
        reading = asyncio.create_task(decoder.read([encoded(Image.new("L", (4096, 4096)), "PNG")]))
        while not children() - before:
            await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        return await decoder.read([PNG])

    assert len(run_with(work)) == 1


def gone(before: set[int]) -> None:
    for _ in range(600):
        if not children() - before:
            return
        time.sleep(0.1)
    raise AssertionError("a decoding process lives on")


def test_a_process_that_dies_is_replaced():
    async def work(decoder):
        before = children()
        await decoder.read([PNG])
        for pid in children() - before:
            psutil.Process(pid).kill()
        with pytest.raises(HTTPException, match="415: the images ended the process"):
            await decoder.read([PNG])
        return await decoder.read([PNG])

    assert len(run_with(work)) == 1


def test_memory_of_a_process_is_bounded():
    before = children()

    async def work(decoder):
        await decoder.read([PNG])
        (pid,) = children() - before
        return psutil.Process(pid).rlimit(psutil.RLIMIT_AS)

    assert run_with(work, max_pixels=1000) == (2**30 + 32_000,) * 2


def test_as_json_many_images_are_refused_before_they_are_unpacked():
    images = ",".join([f'"{b64encode(PNG).decode()}"'] * 257)
    with pytest.raises(HTTPException, match="413: there are more than 256 images"):
        _from_json(f'{{"prompt": "x", "images": [{images}]}}'.encode(), 256)
