"""How many tokens a sample's texts have, on average."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cluster.config import RunConfig
from policy.checkpoint import open_checkpoint
from policy.location import is_hub_id, model_folder
from policy.prompts import read_prompts
from policy.templates import load_templates

COUNTED = 200
"""Prompts whose tokens are counted."""


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
    """Counted where model and prompts are on this machine, else assumed. The length of CoTs is always
    assumed: `cot_tokens`, or 70, or half of what is allowed where that is less.

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
