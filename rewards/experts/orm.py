"""The output reward model: does the image represent the whole prompt?

A LLaVA-OneVision is asked yes or no, and the score is P(yes) / (P(yes) + P(no)), from the logits of the
first answer token as they are. (The published code draws the answer at temperature 0.3, reads the
distribution that this sharpens, and gives 0 where the answer drawn is another word.) T2I-R1
(arXiv 2505.00703, section 3.3) takes a model of Guo et al., arXiv 2501.13926.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration, SiglipImageProcessorPil

from policy.hub import model_folder
from policy.records import Prompt
from policy.shards import Shards
from rewards.expert import Expert, ExpertScores
from rewards.experts import llava_layout
from rewards.experts.common import (
    IMAGE,
    PROMPT,
    Device,
    Dtype,
    batches,
    last_hidden,
    pad_to_square,
    pictures,
    read_template,
    split_at_image,
    yes_share,
)
from rewards.experts.published_weights import (
    Placement,
    build_model,
    load_model,
    load_tokenizer,
    read_config,
    token_id,
)

_GREY = (127, 127, 127)


class Orm(Expert):
    """Any LLaVA-OneVision, in transformers' layout or in LLaVA-NeXT's.

    Each image is one square of the vision tower's size, with grey borders where it is not square, as in
    the published code: no tiles.
    """

    def __init__(
        self,
        path: str,
        device: Device = "auto",
        dtype: Dtype = "auto",
        batch_size: int = 8,
        template: str | None = None,
    ):
        """`template`: a file with the conversation, up to the answer, with {prompt} and <image>."""
        self._head, self._tail = split_at_image(read_template(template, "orm.txt", PROMPT, IMAGE))
        self._place = Placement.pick(device, dtype)
        self._batch_size = batch_size
        folder = model_folder(path)
        self._model = self._load(folder)
        self._tokenizer = load_tokenizer(folder)
        self._yes, self._no = token_id(self._tokenizer, "yes"), token_id(self._tokenizer, "no")
        side = self._model.config.vision_config.image_size
        self._image_processor = SiglipImageProcessorPil(size={"height": side, "width": side})

    def _load(self, folder: Path) -> LlavaOnevisionForConditionalGeneration:
        model_class = LlavaOnevisionForConditionalGeneration
        raw = read_config(folder, "llava_onevision", *llava_layout.MODEL_TYPES)
        if raw["model_type"] == "llava_onevision":
            return load_model(model_class, folder, self._place)
        tied = bool(raw.get("tie_word_embeddings", False))
        tensors = llava_layout.read_tensors(Shards(folder), tied)
        config = llava_layout.config_of(raw, tensors, str(folder))
        return build_model(model_class, config, tensors, self._place, str(folder))

    @torch.inference_mode()
    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        pairs = list(zip(images, prompts, strict=True))
        yes = torch.cat(
            [self._answers(*zip(*some, strict=True)) for some in batches(pairs, self._batch_size)]
        )
        values = yes.cpu().numpy()
        return ExpertScores(values, tuple(f"yes: {p:.3f}" for p in values))

    def _answers(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Tensor:
        head = self._embedded(self._head)
        tails = [self._embedded(self._tail.replace(PROMPT, prompt.text)) for prompt in prompts]
        seen = self._seen(images)
        rows = [torch.cat([head, image, tail]) for image, tail in zip(seen, tails, strict=True)]
        logits = self._model.lm_head(last_hidden(self._model.model.language_model, rows))
        return yes_share(logits, self._yes, self._no)

    def _embedded(self, text: str) -> Tensor:
        ids = self._tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
        return self._model.get_input_embeddings()(ids.to(self._place.device))

    def _seen(self, images: Sequence[np.ndarray]) -> Tensor:
        """The embeddings of each image for the language model: [N, patches + 1, D], a newline at the
        end."""
        whole = [pad_to_square(image, _GREY) for image in pictures(images)]
        pixels = self._image_processor(whole, return_tensors="pt").pixel_values
        model = self._model.model
        tower = model.vision_tower(
            pixels.to(self._place.device, self._place.dtype), output_hidden_states=True
        )
        patches = model.multi_modal_projector(tower.hidden_states[-1])  # before the last norm
        newline = model.image_newline.expand(len(patches), 1, -1)
        return torch.cat([patches, newline], 1)
