"""Decodes image files into arrays, within bounds: the work of one decoding process of the gateway.

Files are not trusted. Their number, their sizes, and the number of their parts are checked before a
pixel is decoded. Whatever passes these checks ends with the process, at the deadline or at its limit of
memory (rewards/decoding.py).
"""

import json
import re
import resource
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO

import numpy as np
from fastapi import HTTPException
from PIL import Image, ImageOps

MAX_ASPECT = 8
"""The longest aspect ratio allowed. An expert that resizes the short side, or pads to a square, needs
that much more memory than the image."""
_MAX_SCANS = 32  # of a JPEG, each a pass over all pixels; encoders write about ten
_MAX_PARTS = 1000  # chunks, segments and stray bytes of a file, and one more for each KiB of it
_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits a channel
# What Pillow's decoders raise on bytes that are no image of their kind.
_UNREADABLE: tuple[type[Exception], ...]
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError)
_UNREADABLE += (OverflowError, struct.error, zlib.error)

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # of a JPEG: no restart, no stuffed or fill byte
_START_OF_SCAN = 0xDA
_BARE = (0x01, 0xD8, 0xD9)  # markers that no segment follows


def read_images(files: Sequence[bytes], max_pixels: int, max_images: int = 256) -> list[np.ndarray]:
    """Files as RGB images, uint8 [H, W, 3] each, turned as their EXIF says; transparency is dropped.

    All headers are read, and all sizes added up, before the first pixel is decoded. Raises an
    HTTPException: 415 for what is no readable image, 413 for what is too much.
    """
    if len(files) > max_images:
        raise HTTPException(413, f"there are more than {max_images} images")
    opened = [_open(n, data) for n, data in enumerate(files, 1)]
    if sum(image.width * image.height for image in opened) > max_pixels:
        raise HTTPException(413, f"the images have more than {max_pixels} pixels together")
    return [_decode(n, image) for n, image in enumerate(opened, 1)]


def _open(number: int, data: bytes) -> Image.Image:
    _check_parts(number, data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides
            image = Image.open(BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"image {number}: {error}") from error
    except _UNREADABLE as error:
        raise HTTPException(415, f"image {number} is no PNG, JPEG or WebP image") from error
    if image.mode not in _MODES:
        raise HTTPException(415, f"image {number} has mode {image.mode}; use 8 bits a channel")
    if max(image.size) > MAX_ASPECT * min(image.size):
        sides = f"{image.width} x {image.height} pixels"
        raise HTTPException(413, f"image {number}: {sides}; one may be {MAX_ASPECT} times the other")
    return image


def _decode(number: int, image: Image.Image) -> np.ndarray:
    try:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except _UNREADABLE as error:
        raise HTTPException(415, f"image {number} cannot be decoded: {error}") from error


def _check_parts(number: int, data: bytes) -> None:
    """Bounds the parts of a file: one of nothing but headers costs as much as a large one, since Pillow
    reads them one by one."""
    left, scans = _MAX_PARTS + len(data) // 1024, _MAX_SCANS
    for cost, is_scan in _parts(data):
        left, scans = left - cost, scans - is_scan
        if left < 0 or scans < 0:
            raise HTTPException(413, f"image {number} has too many {'scans' if scans < 0 else 'parts'}")


def _parts(data: bytes) -> Iterator[tuple[int, bool]]:
    """The chunks of a PNG, the segments of a JPEG: for each its cost, and whether it is a scan."""
    if data.startswith(_PNG):
        at = len(_PNG)
        while at < len(data):
            yield 1, False
            at += 12 + int.from_bytes(data[at : at + 4])
    elif data.startswith(_JPEG):
        at, in_header = 0, True
        while at < len(data):
            found = _MARKER.search(data, at)
            begin = found.start() if found else len(data)
            stray = begin - at if in_header else 0  # after the first scan they are pixels
            kind = data[begin + 1] if found else 0
            yield 1 + stray, kind == _START_OF_SCAN
            in_header = in_header and kind != _START_OF_SCAN
            at = begin + 2
            if kind not in _BARE:
                at += int.from_bytes(data[at : at + 2])


def main() -> None:
    """Decode for the process at the other end of the pipes: a line of JSON, then bytes, each way.

    A request is the sizes of files and the files. A reply is the shapes of images and their pixels, or
    a status and a detail.
    """
    max_pixels, max_images = map(int, sys.argv[1:])
    memory = 2**30 + 32 * max_pixels
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while line := requests.readline():
        files = [requests.read(size) for size in json.loads(line)]
        images: list[np.ndarray] = []
        try:
            images = read_images(files, max_pixels, max_images)
            reply: dict = {"shapes": [image.shape for image in images]}
        except HTTPException as refusal:
            reply = {"status": refusal.status_code, "detail": refusal.detail}
        except MemoryError:
            reply = {"status": 413, "detail": "the images take too much memory to decode"}
        replies.write(json.dumps(reply).encode() + b"\n")
        for image in images:
            replies.write(image.tobytes())
        replies.flush()


if __name__ == "__main__":
    main()
