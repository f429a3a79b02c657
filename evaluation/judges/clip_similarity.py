"""T2I-CompBench's judge of non-spatial relations: the cosine of image and text under CLIP ViT-B/32
(Radford et al., arXiv 2103.00020), neither scaled nor clipped; about .31 for a good image.
"""

from collections.abc import Sequence

import numpy as np

from evaluation.benchmark import Ask, Reply
from evaluation.judges.base import Judge
from policy.hub import revision_of
from policy.records import Prompt
from rewards.experts.clip import CLIPScore
from rewards.experts.common import Device, Dtype


class ClipSimilarity(Judge):
    """Asked {"text": ...}, it replies {"cosine": ...}. On a GPU it runs in half precision, as OpenAI's
    own code does."""

    def __init__(
        self,
        path: str = "openai/clip-vit-base-patch32",
        device: Device = "auto",
        dtype: Dtype = "auto",
        batch_size: int = 64,
    ):
        self._clip = CLIPScore(path, device=device, dtype=dtype, batch_size=batch_size)
        self._identity = {"model": path, "revision": revision_of(path)}

    def identity(self) -> dict[str, str]:
        return self._identity

    def replies(self, images: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[Reply]:
        texts = [Prompt(id="", text=ask["text"], task_type="benchmark") for ask in asks]
        return [{"cosine": c} for c in self._clip.score(images, texts).values.tolist()]
