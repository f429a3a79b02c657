"""Samples that hold nothing but an image."""

import numpy as np

from benchmarks.samples import dummy_sample
from policy.prompts import parse_prompt, plain_prompt
from policy.records import Prompt, Sample, SampleRequest

RED = parse_prompt({"prompt": "a red circle", "task_type": "color", "attr_nouns": ["red circle"]})
PLAIN = plain_prompt("something bright")
WHITE = np.full((8, 8, 3), 255, np.uint8)


def sample(prompt: Prompt, image: np.ndarray, index: int = 0) -> Sample:
    return dummy_sample(SampleRequest(prompt, index), image)
