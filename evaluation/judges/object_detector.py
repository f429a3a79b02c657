"""A judge that finds objects: an open-vocabulary detector in place of UniDet, T2I-CompBench's own,
which transformers does not have. Scores with it are not comparable with published ones.

Different: the confidences, which are half of a spatial score, and the vocabulary, which was UniDet's
closed list of 722 names. The same: boxes are in pixels of the picture as UniDet sees it, because the
benchmark's distances are in pixels.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from evaluation.benchmark import Ask, Reply
from evaluation.judges.base import Judge
from policy.hub import folder_hash, model_file, revision_of
from rewards.experts.common import Device, Dtype
from rewards.experts.detector import Detector
from rewards.experts.grounding import GroundingDino, Owlv2
from rewards.matching import Detection, plain_noun, to_xyxy

_SHORT_SIDE, _LONG_SIDE = 479, 480
_DETECTORS: dict[str, Any] = {"grounding_dino": GroundingDino, "owlv2": Owlv2}
_PATHS = {
    "grounding_dino": "IDEA-Research/grounding-dino-tiny",
    "owlv2": "google/owlv2-base-patch16-ensemble",
}


def seen_size(width: int, height: int) -> tuple[int, int]:
    """A picture's size after UniDet's resizing: 479 pixels on the short side, if the long one then has
    480 at most; else 480 on that."""
    scale = _SHORT_SIDE / min(width, height)
    if scale * max(width, height) > _LONG_SIDE:
        scale = _LONG_SIDE / max(width, height)
    return int(width * scale + 0.5), int(height * scale + 0.5)


class ObjectDetector(Judge):
    """Asked {"objects": [...]}, it replies {"detections": [[object, [x0, y0, x1, y1], score], ...],
    "size": [width, height]}: what it found, best first, in pixels of a picture of that size.

    `path` and `box_threshold`, the score from which a box counts, are the detector's own if not given.
    """

    def __init__(
        self,
        detector: Literal["grounding_dino", "owlv2"] = "grounding_dino",
        path: str | None = None,
        device: Device = "auto",
        dtype: Dtype = "auto",
        batch_size: int = 16,
        box_threshold: float | None = None,
    ):
        path = path or _PATHS[detector]
        limits = {} if box_threshold is None else {"box_threshold": box_threshold}
        self._detector: Detector = _DETECTORS[detector](
            path, device=device, dtype=dtype, batch_size=batch_size, **limits
        )
        self._identity = {"model": path, "revision": _revision(path)}

    def identity(self) -> dict[str, str]:
        return self._identity

    def replies(self, images: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[Reply]:
        objects = [list(dict.fromkeys(ask["objects"])) for ask in asks]
        found = self._detector.detect(images, objects)
        return [_reply(*each) for each in zip(images, objects, found, strict=True)]


def _reply(image: np.ndarray, objects: Sequence[str], found: Sequence[Detection]) -> Reply:
    width, height = seen_size(image.shape[1], image.shape[0])
    asked_as = {plain_noun(name): name for name in objects}
    best_first = sorted(found, key=lambda one: -one.score)
    rows = []
    for one in best_first:
        x0, y0, x1, y1 = to_xyxy(one.box)
        box = [x0 * width, y0 * height, x1 * width, y1 * height]
        rows.append([asked_as[plain_noun(one.phrase)], box, one.score])
    return {"detections": rows, "size": [width, height]}


def _revision(path: str) -> str:
    """The revision of a folder or hub id, or of the folder that holds an authors' file."""
    return folder_hash(model_file(path).parent) if path.endswith(".pth") else revision_of(path)
