"""Samples that hold nothing but an image, for code that uses nothing else."""

from functools import cache

import numpy as np

from policy.records import Sample, SampleRequest


def dummy_sample(draw: SampleRequest, image: np.ndarray, tokens: int = 1) -> Sample:
    ids, logps = _zeros(tokens)
    return Sample(
        prompt_id=draw.prompt.id,
        index=draw.index,
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


@cache
def _zeros(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The same arrays for all samples, so that packing hundreds costs little."""
    return np.zeros(tokens, np.int64), np.zeros(tokens, np.float32)
