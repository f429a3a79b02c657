"""Samples that hold nothing but an image."""

import numpy as np

from policy.prompts import parse_prompt, plain_prompt
from policy.records import Prompt, Sample

RED = parse_prompt({"prompt": "a red circle", "task_type": "color", "attr_nouns": ["red circle"]})
PLAIN = plain_prompt("something bright")
WHITE = np.full((8, 8, 3), 255, np.uint8)


def sample(prompt: Prompt, image: np.ndarray, index: int = 0) -> Sample:
    ids, logps = np.zeros(1, np.int64), np.zeros(1, np.float32)
    return Sample(
        prompt_id=prompt.id,
        index=index,
        seed=0,
        weights_version=0,
        cot_prompt_ids=ids,
        cot_ids=ids,
        cot_text="",
        image_prompt_ids=ids,
        image_ids=ids,
        cot_logps=logps,
        image_logps=logps,
        image_guided_logps=logps,
        image=image,
        finish_reason="stop",
    )
