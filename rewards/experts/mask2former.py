"""Mask2Former (arXiv 2112.01527) for instance segmentation: every object of COCO's 80 classes with its
score, box and mask, as MMDetection has them.

transformers' own post-processing gives other scores and no boxes, so MMDetection's is here: of all
pairs of query and class the 100 most probable; a score is the class's probability times the mean
probability of the mask, over the pixels where the logit is above 0; a box is their extent.
The image is resized to a short side of 800 pixels, the long one at most 1333, and padded with gray to a
multiple of 32; masks are resized to that, cut to the image, and resized to the image as it was. So does
MMDetection 2.x with the configuration of its instance models, configs/mask2former/
mask2former_r50_lsj_8x2_50e_coco.py. With random weights of the published size its version 2.28.1 gives
the same pixels and boxes, and scores within 5e-6.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation

from policy.hub import model_file, model_folder
from rewards.expert import check_sides
from rewards.experts.common import Device, Dtype
from rewards.experts.detector import same_size_batches
from rewards.experts.mask2former_checkpoint import config_of, to_transformers
from rewards.experts.opencv_resize import resize_linear
from rewards.experts.published_weights import (
    Placement,
    build_model,
    load_model,
    read_config,
    read_tensors,
)

_SHORT, _LONG = 800, 1333
_STRIDE = 32
_GRAY = 128.0
_MEAN = (123.675, 116.28, 103.53)  # of ImageNet's pixels, RGB
_STD = (58.395, 57.12, 57.375)
_PAIRS = 100
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Instance:
    """An object in an image."""

    label: int
    """COCO's class, counted from 0."""
    score: float
    """A float32 value."""
    box: tuple[float, float, float, float]
    """xyxy in pixels of the image; the far edges are one beyond the mask's last pixels."""
    mask: np.ndarray
    """bool [H, W]."""


class Mask2Former:
    """Finds the objects of some classes.

    `path`: a directory or hub id in transformers' layout; or a `.pth` of MMDetection, as a file or as
    the hub's "owner/name/file". "auto" is float32 on every device: scores are compared with thresholds.
    """

    def __init__(
        self,
        path: str = "facebook/mask2former-swin-small-coco-instance",
        device: Device = "auto",
        dtype: Dtype = "auto",
        batch_size: int = 4,
    ):
        self._place = Placement.pick(device, dtype, half=torch.float32)
        self._model = _load(path, self._place)
        self._batch_size = batch_size
        self.classes: int = self._model.class_predictor.out_features - 1

    @torch.inference_mode()
    def instances(
        self,
        images: Sequence[np.ndarray],
        labels: Sequence[Collection[int]],
        above: Sequence[float],
    ) -> list[list[Instance]]:
        """In image n the objects of the classes labels[n] with a score above above[n], in the order of
        their classes' probabilities. Images are uint8 [H, W, 3]."""
        check_sides(images)
        found: list[list[Instance]] = [[] for _ in images]
        for some in same_size_batches(images, self._batch_size):
            shown = self._model(self._pixels([images[n] for n in some]))
            for row, n in enumerate(some):
                classes, masks = shown.class_queries_logits[row], shown.masks_queries_logits[row]
                if not (classes.isfinite().all() and masks.isfinite().all()):
                    raise RuntimeError("the detector computed nan: its dtype may be too small for it")
                found[n] = _instances(
                    classes.float(), masks.float(), labels[n], above[n], images[n].shape[:2]
                )
        return found

    def _pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        shown = torch.stack([model_input(image) for image in images])
        return shown.to(self._place.device, self._place.dtype)


def _instances(
    classes: Tensor, masks: Tensor, labels: Collection[int], above: float, shape: tuple[int, ...]
) -> list[Instance]:
    """The objects of one image of this `shape`, from the logits of its classes [Q, C + 1] and masks [Q,
    h, w]."""
    probabilities, kinds, queries = best_pairs(classes)
    found = []
    for n, (probability, kind) in enumerate(zip(probabilities.tolist(), kinds.tolist(), strict=True)):
        # A mask's probability is at most 1, up to rounding: a class below the threshold needs no mask.
        if kind in labels and probability > above - _ROUNDING:
            whole = full_size(masks[queries[n]], *shape)
            instance = as_instance(kind, probabilities[n], whole)
            if np.float32(instance.score) > np.float32(above):
                found.append(instance)
    return found


def _load(path: str, place: Placement) -> Mask2FormerForUniversalSegmentation:
    kind = Mask2FormerForUniversalSegmentation
    if path.endswith(".pth"):
        tensors = to_transformers(read_tensors(model_file(path)), path)
        return build_model(kind, config_of(tensors, path), tensors, place, path)
    folder = model_folder(path)
    read_config(folder, "mask2former")
    return load_model(kind, folder, place)


def resized_shape(height: int, width: int) -> tuple[int, int]:
    """Height and width of the image that the model is shown, without padding."""
    scale = min(_SHORT / min(height, width), _LONG / max(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def _padded(side: int) -> int:
    return -(-side // _STRIDE) * _STRIDE


def model_input(image: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> float32 [3, H', W'], resized, padded at the right and the bottom, and
    normalized."""
    height, width = resized_shape(*image.shape[:2])
    planes = torch.from_numpy(resize_linear(image, height, width)).permute(2, 0, 1).float()
    planes = F.pad(planes, (0, _padded(width) - width, 0, _padded(height) - height), value=_GRAY)
    mean, std = (planes.new_tensor(v)[:, None, None] for v in (_MEAN, _STD))
    return (planes - mean) / std


def best_pairs(logits: Tensor, most: int = _PAIRS) -> tuple[Tensor, Tensor, Tensor]:
    """The most probable pairs of query and class: their probabilities, classes and queries, best first.

    `logits`: [Q, C + 1]; the last class is that there is no object.
    """
    probabilities = logits.softmax(-1)[:, :-1]
    scores, indices = probabilities.flatten().topk(min(most, probabilities.numel()))
    classes = probabilities.shape[1]
    return scores, indices % classes, indices // classes


def full_size(logits: Tensor, height: int, width: int) -> Tensor:
    """A mask's logits [h, w] on the padded image -> [height, width] on the image as it was."""
    shown = resized_shape(height, width)
    padded = [_padded(side) for side in shown]
    on_padded = F.interpolate(logits[None, None], padded, mode="bilinear", align_corners=False)
    on_shown = on_padded[..., : shown[0], : shown[1]]
    return F.interpolate(on_shown, (height, width), mode="bilinear", align_corners=False)[0, 0]


def as_instance(label: int, probability: Tensor, logits: Tensor) -> Instance:
    """An object from its class's probability and its mask's logits [H, W]. One without a pixel has the
    score 0 and an empty box at the origin."""
    mask = logits > 0
    sure = (logits.sigmoid() * mask).sum() / (mask.sum() + 1e-6)
    score = float((probability * sure).item())
    return Instance(label, score, _extent(mask), mask.cpu().numpy())


def _extent(mask: Tensor) -> tuple[float, float, float, float]:
    columns, rows = mask.any(0).nonzero().flatten(), mask.any(1).nonzero().flatten()
    if not len(columns):
        return 0.0, 0.0, 0.0, 0.0
    left, right, top, bottom = (float(n) for n in (columns[0], columns[-1], rows[0], rows[-1]))
    return left, top, right + 1, bottom + 1
