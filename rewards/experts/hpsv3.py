"""HPSv3: human preference from a Qwen2-VL-7B with a head that gives a mean and a spread (Ma et al.,
arXiv 2508.03789).

The model reads the image, a fixed instruction with the prompt, and a token of its own, <|Reward|>.
Three linear layers on the hidden state there give mu and the logarithm of sigma. The score is mu, as
published: it has no fixed range, and the best generators average about 10.

Two oddities of the published code are kept, since the weights were trained with them: every image is
scaled to about 448 x 448 pixels, and positions are counted through the image as through text, with none
of Qwen2-VL's two-dimensional ones.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLModel

from policy.errors import UserError
from policy.hub import model_file, model_folder
from policy.records import Prompt
from rewards.expert import Expert, ExpertScores
from rewards.experts.common import (
    IMAGE,
    PROMPT,
    Device,
    Dtype,
    batches,
    last_hidden,
    pictures,
    read_template,
    split_at_image,
)
from rewards.experts.published_weights import (
    Placement,
    build_model,
    listed,
    load_part,
    load_tokenizer,
    read_config,
    read_tensors,
    token_id,
)

_REWARD = "<|Reward|>"
_PIXELS = 256 * 28 * 28
_HEAD_LAYERS = (0, 3, 5)  # of a Sequential: linear, ReLU, dropout, linear, ReLU, linear
_UNUSED = ("lm_head.weight",)


class HPSv3(Expert):
    """The published file, and the tokenizer and config of the model that it was trained from."""

    pass_threshold = 8.0

    def __init__(
        self,
        path: str = "MizzenAI/HPSv3/HPSv3.safetensors",
        base: str = "Qwen/Qwen2-VL-7B-Instruct",
        device: Device = "auto",
        dtype: Dtype = "auto",
        batch_size: int = 8,
        pixels: int = _PIXELS,
    ):
        """`pixels`: to about how many each image is scaled; the published model was trained with the
        default alone."""
        self._place = Placement.pick(device, dtype)
        self._batch_size = batch_size
        self._before, self._after = split_at_image(
            read_template(None, "hpsv3.txt", PROMPT, IMAGE, _REWARD)
        )
        folder = model_folder(base, weights=False)
        read_config(folder, "qwen2_vl")
        config = load_part(Qwen2VLConfig.from_pretrained, folder, "config")
        self._tokenizer = load_tokenizer(folder)
        self._tokenizer.add_tokens([_REWARD], special_tokens=True)
        size = {"shortest_edge": pixels, "longest_edge": pixels}
        vision = config.vision_config
        self._image_processor = Qwen2VLImageProcessorPil(
            size=size, patch_size=vision.patch_size, merge_size=vision.spatial_merge_size
        )
        tensors, head = _split(read_tensors(model_file(path), "model"), path)
        words = tensors["language_model.embed_tokens.weight"].shape[0]
        if token_id(self._tokenizer, _REWARD) >= words:
            raise UserError(f"{path}: embeds {words} tokens, fewer than the tokenizer of {base} has")
        config.text_config.vocab_size = words
        self._model = build_model(Qwen2VLModel, config, tensors, self._place, path)
        self._head = head.to(self._place.device)  # float32, as published

    @torch.inference_mode()
    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        pairs = list(zip(images, prompts, strict=True))
        found = torch.cat(
            [self._read_scored(*zip(*some, strict=True)) for some in batches(pairs, self._batch_size)]
        )
        mu, log_sigma = found.cpu().numpy().T
        lines = (f"mu {m:.2f}, sigma {s:.2f}" for m, s in zip(mu, np.exp(log_sigma), strict=True))
        return ExpertScores(mu, tuple(lines))

    def _read_scored(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Tensor:
        """mu and log sigma, float32 [N, 2]."""
        inputs = self._image_processor(pictures(images), return_tensors="pt").to(self._place.device)
        seen = self._model.get_image_features(
            inputs.pixel_values.to(self._place.dtype), inputs.image_grid_thw
        ).pooler_output
        before = self._embedded(self._before)
        after = [self._embedded(self._after.replace(PROMPT, prompt.text)) for prompt in prompts]
        rows = [torch.cat([before, image, text]) for image, text in zip(seen, after, strict=True)]
        return self._head(last_hidden(self._model.language_model, rows).float())

    def _embedded(self, text: str) -> Tensor:
        ids = self._tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
        return self._model.get_input_embeddings()(ids.to(self._place.device))


def _split(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], nn.Sequential]:
    """The tensors of a Qwen2VLModel, and the head. Both ways to name a Qwen2-VL's parts are read."""
    weights = {n.removeprefix("rm_head."): t for n, t in tensors.items() if n.startswith("rm_head.")}
    model = {_renamed(n): t for n, t in tensors.items() if not n.startswith(("rm_head.", *_UNUSED))}
    expected = [f"{n}.{kind}" for n in _HEAD_LAYERS for kind in ("weight", "bias")]
    if sorted(weights) != sorted(expected) or "language_model.embed_tokens.weight" not in model:
        raise UserError(
            f"{source}: not an HPSv3: its reward head has the tensors {listed(sorted(weights))}"
        )
    linears = []
    for n in _HEAD_LAYERS:
        rows, columns = weights[f"{n}.weight"].shape
        linears.append(nn.Linear(columns, rows))
    head = nn.Sequential(linears[0], nn.ReLU(), nn.Identity(), linears[1], nn.ReLU(), linears[2])
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{source}: its reward head does not fit together: {error}") from None
    return model, head.requires_grad_(False).eval()


def _renamed(name: str) -> str:
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return "language_model." + name.removeprefix("model.")
    return name.removeprefix("model.")
