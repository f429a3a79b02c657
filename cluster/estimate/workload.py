"""Estimates the work of a step: the mean lengths of a sample's texts, and each expert's cost of an
image.

Costs of the published experts follow from their models' shapes: 2 FLOP a parameter and token, at the
checkpoint that each loads by default. They are estimates; a measured `expert_s.NAME` in a file of
figures is better.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cluster.config import RunConfig
from policy.hub import is_hub_id, model_folder
from policy.janus_checkpoint import open_checkpoint
from policy.prompts import load_templates, read_prompts

COUNTED = 200
"""How many prompts' tokens are counted."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of the prompt of the semantic CoT, of the image's prompt without the CoT, and of the CoT.
    The defaults are those of T2I-R1's prompts in the templates of policy/templates, with a CoT of
    assumed length: 125 and 23 + 70."""

    cot_prompt: float = 125
    bare_image_prompt: float = 23
    cot: float = 70

    @property
    def image_prompt(self) -> float:
        return self.bare_image_prompt + self.cot


def lengths_of(config: RunConfig, cot_tokens: int | None = None) -> Lengths:
    """Lengths counted if model and prompts are on this machine, else assumed. The length of CoTs is
    always assumed: `cot_tokens`, or 70, or half of the allowed length if that is less.

    Raises UserError for a model or prompts that are here and cannot be read.
    """
    cot = cot_tokens or min(Lengths.cot, config.actors.sampling.max_cot_tokens / 2)
    if is_hub_id(config.policy.path) or not Path(config.train.prompts).is_file():
        return Lengths(cot=cot)
    tokenizer = open_checkpoint(model_folder(config.policy.path)).tokenizer
    templates = load_templates(config.policy.templates)
    texts = [prompt.text for prompt in islice(read_prompts(config.train.prompts), COUNTED)]

    def mean(conversations: list[str]) -> float:
        return sum(len(tokenizer(text).input_ids) for text in conversations) / len(conversations)

    return Lengths(
        mean([templates.cot_conversation(text) for text in texts]),
        mean([templates.image_conversation(text, "") for text in texts]),
        cot,
    )


GFLOP = {
    # Vision transformers: parameters x tokens of an image.
    "rewards.experts.clip:CLIPScore": 160,  # ViT-L/14, 224 pixels: 304 M x 257
    "rewards.experts.clip:PickScore": 325,  # ViT-H/14, 224 pixels: 632 M x 257
    "rewards.experts.clip:HPSv2": 325,
    "rewards.experts.grounding:Owlv2": 800,  # ViT-B/16, 960 pixels: 86 M x 3,600, and attention
    # Its paper's comparison tables say 464 for 800 x 1,333 pixels; a square image has fewer.
    "rewards.experts.grounding:GroundingDino": 350,
    # ViT-L/14 at 420 pixels once an image, and three short questions.
    "rewards.experts.vqa:Git": 700,
    "rewards.experts.vqa:BlipVqa": 200,  # ViT-B/16, 480 pixels, and three questions
    # Language models that read an image as tokens: parameters x (image and text tokens).
    "rewards.experts.orm:Orm": 12_000,  # 7 B x 850
    "rewards.experts.hpsv3:HPSv3": 7_000,  # 7.6 B x 450
}


def gflop_an_image(use: str) -> float | None:
    """GFLOP of `package.module:Class` for one image; None: not known."""
    return GFLOP.get(use)
