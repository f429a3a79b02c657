"""Open-vocabulary detectors: GroundingDINO (arXiv 2303.05499), as T2I-R1 uses it, and OWLv2 (arXiv
2306.09683). Both look for any noun; what they find is scored by rewards/detection.py.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
)

from policy.errors import UserError
from policy.hub import model_file, model_folder
from rewards.experts.common import Device, Dtype, batches
from rewards.experts.detector import (
    Detector,
    detections,
    image_processor,
    pixels,
    same_size_batches,
    token_probabilities,
)
from rewards.experts.grounding_checkpoint import config_of, to_transformers, use_published_positions
from rewards.experts.published_weights import (
    Placement,
    build_model,
    load_model,
    load_tokenizer,
    read_config,
    read_tensors,
)
from rewards.matching import Detection, Variant, phrase_spans, plain_noun

_BERT = "google-bert/bert-base-uncased"


class GroundingDino(Detector):
    """One caption an image names all its nouns. A box counts for a noun if the mean probability of the
    noun's tokens is above `box_threshold`, and that of each is above `text_threshold`.

    `path`: a directory or hub id in transformers' layout; or a `.pth` of the authors, as a file or as
    the hub's "ShilongLiu/GroundingDINO/groundingdino_swint_ogc.pth". `processor`: where the tokenizer
    is; None: in `path`, and for a `.pth` at BERT's own.
    """

    def __init__(
        self,
        path: str = "IDEA-Research/grounding-dino-tiny",
        processor: str | None = None,
        device: Device = "auto",
        dtype: Dtype = "auto",
        batch_size: int = 16,
        box_threshold: float = 0.3,
        text_threshold: float = 0.0,
        variant: Variant = "paper",
    ):
        super().__init__(variant)
        self._place = Placement.pick(device, dtype)
        original = path.endswith(".pth")
        folder = model_folder(processor or (_BERT if original else path), weights=False)
        self._tokenizer = load_tokenizer(folder)
        self._image_processor = image_processor(GroundingDinoImageProcessorPil, folder)
        self._model = _published(path, self._place) if original else self._transformers(path)
        use_published_positions(self._model)
        self._batch_size = batch_size
        self._box_threshold = box_threshold
        self._text_threshold = text_threshold

    def _transformers(self, path: str) -> GroundingDinoForObjectDetection:
        folder = model_folder(path)
        read_config(folder, "grounding-dino")
        return load_model(GroundingDinoForObjectDetection, folder, self._place)

    @torch.inference_mode()
    def detect(
        self, images: Sequence[np.ndarray], nouns: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        found: list[list[Detection]] = [[] for _ in images]
        for some in same_size_batches(images, self._batch_size):
            asked = [phrase_spans(nouns[n], variant=self._variant) for n in some]
            captions, spans = zip(*asked, strict=True)
            words = self._words(captions)
            shown = self._model(
                pixel_values=pixels(self._image_processor, [images[n] for n in some], self._place),
                input_ids=words.input_ids.to(self._place.device),
                attention_mask=words.attention_mask.to(self._place.device),
            )
            tokens = words.input_ids.shape[1]
            probabilities = token_probabilities(shown.logits[..., :tokens])
            boxes = shown.pred_boxes.float().cpu()
            for row, n in enumerate(some):
                for of_noun in spans[row]:
                    phrase = " ".join(captions[row][begin:end] for begin, end in of_noun)
                    chosen = _tokens_in(words.offset_mapping[row], of_noun)
                    if not chosen.any():
                        raise UserError(f"the tokenizer finds no word in {phrase!r} to look for")
                    scores = probabilities[row][:, chosen]
                    sure = scores.mean(1)
                    kept = (sure > self._box_threshold) & (scores.min(1).values > self._text_threshold)
                    found[n] += detections(phrase, sure, boxes[row], kept)
        return found

    def _words(self, captions: Sequence[str]):
        words = self._tokenizer(
            list(captions), padding=True, return_offsets_mapping=True, return_tensors="pt"
        )
        most = self._model.config.max_text_len
        if words.input_ids.shape[1] > most:
            long = max(captions, key=len)
            raise UserError(f"too many nouns to look for at once (over {most} tokens): {long!r}")
        return words


def _published(path: str, place: Placement) -> GroundingDinoForObjectDetection:
    tensors = to_transformers(read_tensors(model_file(path), "model"), path)
    return build_model(GroundingDinoForObjectDetection, config_of(tensors, path), tensors, place, path)


class Owlv2(Detector):
    """Every noun is a query of its own, "a photo of a dog"; a box counts for it if its probability is
    above `box_threshold`. `path`: a directory or hub id in transformers' layout."""

    def __init__(
        self,
        path: str = "google/owlv2-base-patch16-ensemble",
        device: Device = "auto",
        dtype: Dtype = "auto",
        batch_size: int = 16,
        box_threshold: float = 0.2,
        variant: Variant = "paper",
    ):
        super().__init__(variant)
        self._place = Placement.pick(device, dtype)
        folder = model_folder(path)
        read_config(folder, "owlv2")
        self._tokenizer = load_tokenizer(folder)
        self._image_processor = image_processor(Owlv2ImageProcessorPil, folder)
        self._model = load_model(Owlv2ForObjectDetection, folder, self._place)
        self._batch_size = batch_size
        self._box_threshold = box_threshold

    @torch.inference_mode()
    def detect(
        self, images: Sequence[np.ndarray], nouns: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        every = list(dict.fromkeys(noun for some in nouns for noun in some))
        queries = torch.cat([self._embed(some) for some in batches(every, self._batch_size)])
        found: list[list[Detection]] = [[] for _ in images]
        for some in same_size_batches(images, self._batch_size):
            probabilities, boxes = self._look([images[n] for n in some], queries)
            for row, n in enumerate(some):
                for noun in nouns[n]:
                    sure = probabilities[row, :, every.index(noun)]
                    found[n] += detections(noun, sure, boxes[row], sure > self._box_threshold)
        return found

    def _embed(self, nouns: Sequence[str]) -> Tensor:
        """[P, D], one a noun."""
        words = self._tokenizer(
            [f"a photo of a {plain_noun(noun)}" for noun in nouns],
            padding="max_length",
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self._place.device)
        if words.input_ids.shape[1] > self._model.config.text_config.max_position_embeddings:
            raise UserError(f"a noun is too long to look for: {max(nouns, key=len)!r}")
        return self._model.owlv2.get_text_features(**words).pooler_output

    def _look(self, images: Sequence[np.ndarray], queries: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities [B, N, P] and boxes [B, N, 4], cxcywh in 0..1 of the images' sides."""
        features, _ = self._model.image_embedder(pixels(self._image_processor, images, self._place))
        flat = features.flatten(1, 2)
        logits, _ = self._model.class_predictor(flat, queries.expand(len(flat), -1, -1))
        boxes = self._model.box_predictor(flat, features)
        # Boxes are relative to the square that the processor makes of an image, at its top left.
        height, width, _ = images[0].shape
        side = max(height, width)
        scale = torch.tensor([side / width, side / height] * 2)
        return token_probabilities(logits), boxes.float().cpu() * scale


def _tokens_in(offsets: Tensor, spans: Sequence[Sequence[int]]) -> Tensor:
    """Which tokens, with their places [T, 2] in the caption, lie in the spans: bool [T]."""
    begin, end = offsets.T
    inside = torch.zeros(len(offsets), dtype=torch.bool)
    for first, last in spans:
        inside |= (begin < last) & (end > first)
    return inside
