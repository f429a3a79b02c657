"""GenEval's judge: which of some COCO objects are in an image, where, and of which color.

Mask2Former finds them; CLIP ViT-L/14 classifies the color of each, one of ten, from a crop of the
object alone. The published detector is MMDetection's `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco`,
whose file loads as published. The default is Meta's own training of the same architecture on the same
data: other weights, so scores are near the published ones, not equal to them.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor
from torch import Tensor

from evaluation.benchmark import Ask, Reply
from evaluation.geneval_rules import COLORS, ranked
from evaluation.judges.base import Judge
from policy.errors import UserError
from policy.hub import model_file, revision_of
from rewards.experts.clip import CLIPScore
from rewards.experts.common import Device, Dtype, batches
from rewards.experts.mask2former import Instance, Mask2Former

_CLASSES = 80
_TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
_BATCH = 16  # crops


class ObjectsAndColors(Judge):
    """Asked for {"classes": {name: COCO's number from 0}, "colors_of": names among them, "threshold":
    scores above it count, "most": objects of a class at most}.

    Replies {"detections": [[name, [x0, y0, x1, y1] in pixels, score, color or null], ...]}, in the
    detector's order, which ranks equal scores.

    `path`: the detector, a directory or hub id in transformers' layout or a `.pth` of MMDetection.
    `clip_path`: the CLIP that names colors; `clip_processor`: where its tokenizer and image processor
    are; None: beside the weights. "auto" is float32 on every device, as published. `background`: the
    color around the object; "original": the image. `crop`: whether to cut the object out.
    """

    def __init__(
        self,
        path: str = "facebook/mask2former-swin-small-coco-instance",
        clip_path: str = "openai/clip-vit-large-patch14",
        clip_processor: str | None = None,
        device: Device = "auto",
        dtype: Dtype = "auto",
        batch_size: int = 4,
        background: str = "#999",
        crop: bool = True,
    ):
        self._detector = Mask2Former(path, device, dtype, batch_size)
        if self._detector.classes != _CLASSES:
            raise UserError(
                f"{path}: a detector of {self._detector.classes} classes, where COCO's {_CLASSES} are"
                " needed: take one for instance segmentation"
            )
        self._colors = ColorNames(
            clip_path, clip_processor, device, "float32" if dtype == "auto" else dtype
        )
        self._background, self._crop = background, crop
        self._identity = {
            "model": path,
            "revision": _revision(path),
            "weights": "mmdet" if path.endswith(".pth") else "transformers",
            "colors": clip_path,
            "colors_revision": revision_of(clip_path),
        }

    def identity(self) -> dict[str, str]:
        return self._identity

    def replies(self, images: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[Reply]:
        labels = [set(ask["classes"].values()) for ask in asks]
        above = [float(ask["threshold"]) for ask in asks]
        found = self._detector.instances(images, labels, above)
        return [
            {"detections": self._described(image, ask, some)}
            for image, ask, some in zip(images, asks, found, strict=True)
        ]

    def _described(self, image: np.ndarray, ask: Ask, found: Sequence[Instance]) -> list[list[Any]]:
        names = {label: name for name, label in ask["classes"].items()}
        chosen = best_of_each(found, ask["most"])
        colors: dict[int, str] = {}
        for name in ask["colors_of"]:
            where = [n for n, instance in enumerate(chosen) if names[instance.label] == name]
            crops = [
                cut_out(image, chosen[n].box, chosen[n].mask, self._background, self._crop)
                for n in where
            ]
            colors |= dict(zip(where, self._colors.name(crops, name), strict=True))
        return [
            [names[instance.label], list(instance.box), instance.score, colors.get(n)]
            for n, instance in enumerate(chosen)
        ]


class ColorNames(CLIPScore):
    """Classifies an object's color: the one of COLORS whose descriptions are nearest to its picture."""

    def __init__(self, path: str, processor: str | None, device: Device, dtype: Dtype):
        super().__init__(path, processor, device, dtype, _BATCH)
        self._known: dict[str, Tensor] = {}

    @torch.inference_mode()
    def name(self, crops: Sequence[Image.Image], name: str) -> list[str]:
        """The colors of N pictures of one object each, all of the class `name`."""
        if not crops:
            return []
        if name not in self._known:
            self._known[name] = self._descriptions(name)
        shown = [np.asarray(clip_square(crop, self._side)) for crop in crops]
        pictures = torch.cat([self._embed_images(some) for some in batches(shown, _BATCH)])
        nearest = (pictures @ self._known[name].T).argmax(1)
        return [COLORS[n] for n in nearest.tolist()]

    @property
    def _side(self) -> int:
        return self._model.config.vision_config.image_size

    def _descriptions(self, name: str) -> Tensor:
        """float32 [colors, D], of length 1: the mean of each color's descriptions."""
        texts = [t.format(color=color, name=name) for color in COLORS for t in _TEMPLATES]
        each = torch.cat([self._embed_texts(some) for some in batches(texts, _BATCH)])
        return F.normalize(each.unflatten(0, (len(COLORS), len(_TEMPLATES))).mean(1), dim=-1)


def best_of_each(found: Sequence[Instance], most: int) -> list[Instance]:
    """The `most` best instances of each class, in their original order; of equal scores the later ones
    are better."""
    seen: Counter[int] = Counter()
    chosen = set()
    for n in ranked([instance.score for instance in found]):
        seen[found[n].label] += 1
        if seen[found[n].label] <= most:
            chosen.add(n)
    return [instance for n, instance in enumerate(found) if n in chosen]


def cut_out(
    image: np.ndarray,
    box: Sequence[float],
    mask: np.ndarray | None,
    background: str = "#999",
    crop: bool = True,
) -> Image.Image:
    """An object alone: one color outside of its mask (None: nothing is covered), cut to its box, whose
    edges are rounded, halves to the even number. `image`: uint8 [H, W, 3], `mask`: bool [H, W]."""
    if mask is not None and background != "original":
        ground = np.array(ImageColor.getrgb(background), np.uint8)
        image = np.where(mask[..., None], image, ground)
    picture = Image.fromarray(np.ascontiguousarray(image))
    if not crop:
        return picture
    left, top, right, bottom = (round(float(edge)) for edge in box)
    return picture.crop((left, top, right, bottom))


def clip_square(picture: Image.Image, side: int) -> Image.Image:
    """CLIP's own preprocessing: the short side resized to `side`, and the square in the middle cut out.
    transformers' own crop is up to a pixel off."""
    width, height = picture.size
    short = min(width, height)
    size = (side * width // short, side * height // short)
    resized = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in size)
    return resized.crop((left, top, left + side, top + side))


def _revision(path: str) -> str:
    """The model's revision; of a `.pth` the beginning of its hash, with which MMDetection ends its
    names."""
    if not path.endswith(".pth"):
        return revision_of(path)
    with open(model_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]
