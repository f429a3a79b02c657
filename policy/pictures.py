"""Picture files as a model's encoder wants them: square, RGB, of one size."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from policy.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP")
# What Pillow's decoders raise on bytes that are no image of their kind.
_UNREADABLE: tuple[type[Exception], ...]
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError)
_UNREADABLE += (OverflowError, struct.error, zlib.error, Image.DecompressionBombError)


def check_picture(path: Path, where: str, side: int, resize: bool) -> None:
    """Look at a picture's header alone. Raises UserError, behind `where`, for one that is missing, is
    no picture, or has another size than `side` x `side` and may not be resized."""
    _open(path, where, side, resize).close()


def read_picture(path: Path, where: str, side: int, resize: bool) -> np.ndarray:
    """uint8 [side, side, 3], turned as its EXIF says; transparency is dropped. `resize`: one of another
    size is cut to its middle square and scaled. Raises UserError, behind `where`."""
    with _open(path, where, side, resize) as opened:
        try:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
        except _UNREADABLE as error:
            raise UserError(f"{where}: image {path} cannot be decoded: {error}") from None
    if picture.size != (side, side):
        edge = min(picture.size)
        left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
        picture = picture.crop((left, top, left + edge, top + edge))
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _open(path: Path, where: str, side: int, resize: bool) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise UserError(f"{where}: image {path}: no such file") from None
    except _UNREADABLE:
        raise UserError(f"{where}: image {path} is no PNG, JPEG or WebP image") from None
    if picture.size != (side, side) and not resize:
        raise UserError(
            f"{where}: image {path} has {picture.width} x {picture.height} pixels, and the model's have"
            f" {side} x {side}: sft.resize=true cuts and scales it"
        )
    return picture
