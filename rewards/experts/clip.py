"""How well an image goes with its prompt, as the angle between two embeddings: CLIPScore, and two
models of human preference with its architecture, PickScore and HPSv2.

All give the cosine c of image and prompt embedding, uncut; `unit: logit` gives s * c, with the model's
learned scale s (about 100).

| | paper | as published |
|---|---|---|
| `CLIPScore` | Hessel et al., arXiv 2104.08718 | 2.5 * max(c, 0) |
| `PickScore` | Kirstain et al., arXiv 2305.01569, section 3 | s * c |
| `HPSv2` | Wu et al., arXiv 2306.09341, section 4 | c (the paper: s * c; its code: c) |
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel

from policy.hub import model_file, model_folder
from policy.records import Prompt
from rewards.expert import Expert, ExpertScores
from rewards.experts.common import Device, Dtype, batches, pad_to_square, pictures
from rewards.experts.open_clip_layout import config_of, to_transformers
from rewards.experts.published_weights import (
    Placement,
    build_model,
    load_model,
    load_part,
    load_tokenizer,
    read_config,
    read_tensors,
)

Unit = Literal["cosine", "logit"]
_VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_VIT_H_HEADS = 16


class _Clip(Expert):
    """Embeds every image and every different prompt once. A prompt longer than the model's context (77
    tokens) is cut off at its end, as all published scores do."""

    pass_cosine: float

    def __init__(
        self, path: str, processor: str, device: Device, dtype: Dtype, batch_size: int, unit: Unit
    ):
        # float16: a cosine of two vectors of length 1 fits, and scores differ in the third digit.
        self._place = Placement.pick(device, dtype, half=torch.float16)
        folder = model_folder(processor, weights=processor == path)
        self._tokenizer = load_tokenizer(folder)
        self._image_processor = load_part(
            CLIPImageProcessorPil.from_pretrained, folder, "image processor"
        )
        self._model = self._load(path)
        self._batch_size = batch_size
        self._unit = float(self._model.logit_scale.float().exp()) if unit == "logit" else 1.0
        self.pass_threshold = self.pass_cosine * self._unit

    def _load(self, path: str) -> CLIPModel:
        folder = model_folder(path)
        read_config(folder, "clip")
        return load_model(CLIPModel, folder, self._place)

    def _pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        return self._image_processor(pictures(images), return_tensors="pt").pixel_values

    @torch.inference_mode()
    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        texts = list(dict.fromkeys(prompt.text for prompt in prompts))
        of_texts = torch.cat([self._embed_texts(some) for some in batches(texts, self._batch_size)])
        of_images = torch.cat([self._embed_images(some) for some in batches(images, self._batch_size)])
        rows = torch.tensor([texts.index(prompt.text) for prompt in prompts])
        cosines = (of_images * of_texts[rows]).sum(-1).cpu().numpy()
        return ExpertScores(self._unit * cosines, tuple(f"cosine {c:.4f}" for c in cosines))

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        """float32 [N, D], of length 1."""
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        # No mask: each token sees only what stands before it, and padding comes last.
        pooled = self._model.text_model(tokens.input_ids.to(self._place.device)).pooler_output
        return F.normalize(self._model.text_projection(pooled).float(), dim=-1)

    def _embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """float32 [N, D], of length 1."""
        pixels = self._pixels(images).to(self._place.device, self._place.dtype)
        pooled = self._model.vision_model(pixels).pooler_output
        return F.normalize(self._model.visual_projection(pooled).float(), dim=-1)


class CLIPScore(_Clip):
    """The cosine of image and prompt under any CLIP in transformers' layout."""

    pass_cosine = 0.25

    def __init__(
        self,
        path: str = "openai/clip-vit-large-patch14",
        processor: str | None = None,
        device: Device = "auto",
        dtype: Dtype = "auto",
        batch_size: int = 64,
        unit: Unit = "cosine",
    ):
        """`processor`: where its tokenizer and image processor are; None: beside the weights."""
        super().__init__(path, processor or path, device, dtype, batch_size, unit)


class PickScore(_Clip):
    """Human preference: a CLIP ViT-H/14 trained on which of two images people picked."""

    pass_cosine = 0.21

    def __init__(
        self,
        path: str = "yuvalkirstain/PickScore_v1",
        processor: str = _VIT_H,
        device: Device = "auto",
        dtype: Dtype = "auto",
        batch_size: int = 64,
        unit: Unit = "cosine",
    ):
        super().__init__(path, processor, device, dtype, batch_size, unit)


class HPSv2(_Clip):
    """Human preference: a CLIP ViT-H/14 trained on rankings of images, from its published file in
    open_clip's layout (v2.1; v2 is `xswu/HPSv2/HPS_v2_compressed.pt`). Images that are not square get
    black borders."""

    pass_cosine = 0.27

    def __init__(
        self,
        path: str = "xswu/HPSv2/HPS_v2.1_compressed.pt",
        processor: str = _VIT_H,
        device: Device = "auto",
        dtype: Dtype = "auto",
        batch_size: int = 64,
        unit: Unit = "cosine",
    ):
        super().__init__(path, processor, device, dtype, batch_size, unit)

    def _load(self, path: str) -> CLIPModel:
        tensors = to_transformers(read_tensors(model_file(path)), path)
        config = config_of(tensors, _VIT_H_HEADS, path)
        return build_model(CLIPModel, config, tensors, self._place, path)

    def _pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        whole = [pad_to_square(image, (0, 0, 0)) for image in pictures(images)]
        return self._image_processor(whole, return_tensors="pt").pixel_values
