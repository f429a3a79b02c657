"""T2I-CompBench++'s judge of what is nearer: DPT-hybrid of MiDaS (Ranftl et al., arXiv 2103.13413), a
map of inverse depth for a whole picture.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DPTForDepthEstimation, DPTImageProcessorPil

from evaluation.benchmark import Ask, Reply
from evaluation.judges.base import Judge
from policy.hub import model_folder, revision_of
from rewards.experts.common import Device, Dtype, batches, pictures
from rewards.experts.published_weights import Placement, load_model, load_part, read_config


class Depth(Judge):
    """Asked {"map": "nearness"}, it replies {"nearness": [[...], ...]}: `cells` x `cells` numbers, rows
    from the top, higher for nearer; each is a mean over its part of the picture. They have no unit, and
    are comparable only within one picture."""

    def __init__(
        self,
        path: str = "Intel/dpt-hybrid-midas",
        device: Device = "auto",
        dtype: Dtype = "float32",
        batch_size: int = 16,
        cells: int = 48,
    ):
        self._place = Placement.pick(device, dtype)
        folder = model_folder(path)
        read_config(folder, "dpt")
        self._image_processor = load_part(
            DPTImageProcessorPil.from_pretrained, folder, "image processor"
        )
        # Resized without keeping the aspect ratio, so that pictures of any shape fit in one batch, and
        # a map's cells match the picture's.
        self._image_processor.keep_aspect_ratio = False
        self._model = load_model(DPTForDepthEstimation, folder, self._place)
        self._batch_size = batch_size
        self._cells = cells
        self._identity = {"model": path, "revision": revision_of(path)}

    def identity(self) -> dict[str, str]:
        return self._identity

    @torch.inference_mode()
    def replies(self, images: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[Reply]:
        found: list[Reply] = []
        for some in batches(images, self._batch_size):
            pixels = self._image_processor(pictures(some), return_tensors="pt").pixel_values
            pixels = pixels.to(self._place.device, self._place.dtype)
            maps = self._model(pixel_values=pixels).predicted_depth.float()
            coarse = F.adaptive_avg_pool2d(maps, self._cells).cpu()
            found += [
                {"nearness": [[float(f"{x:.5g}") for x in row] for row in one]}
                for one in coarse.tolist()
            ]
        return found
