"""The model that is served draws and tells the same with vLLM."""

import asyncio
import io
from functools import partial

import numpy as np
import pytest
from PIL import Image

from studio.model_replica import ModelReplica
from studio.records import CotDelta, CotDone, ImageTask, PartialImage, Settings
from tests.studio.conftest import ACTORS, POLICY

pytest.importorskip("vllm", reason="vLLM is not installed: make install")
pytestmark = pytest.mark.vllm


def task(prompt: str, index: int, cot: bool | str = True) -> ImageTask:
    return ImageTask(prompt, cot, 7, index, Settings(1.5, 1.0))


REQUESTS = [
    [task("two red circles and a blue square", n) for n in range(3)],
    [task("a green triangle", 0, cot=False)],
    [task("a green triangle", 0, cot="green triangle top left")],
]


async def draw(replica: ModelReplica) -> tuple[list, list]:
    """Images of requests at once, and the events of the first one, an image each."""

    async def stream() -> list:
        return [event async for some in replica.stream(REQUESTS[0], 2) for event in some]

    *plain, events = await asyncio.gather(*map(replica.generate, REQUESTS), stream())
    of_each = [[e for e in events if e.index == n] for n in range(len(REQUESTS[0]))]
    return [image for images in plain for image in images], of_each


def test_vllm_draws_and_tells_what_the_torch_sampler_does(replica):
    settings = {"sampler": "vllm", "vllm": {"kv_cache_mb": 16, "block_size": 32}}
    actors = ACTORS.model_validate(ACTORS.model_dump() | settings)
    build = partial(ModelReplica, "shapes", POLICY, actors)
    (images, streams), (wanted, wanted_streams) = (asyncio.run(draw(one)) for one in (build(), replica))
    assert [(i.cot, i.cot_tokens) for i in images] == [(i.cot, i.cot_tokens) for i in wanted]
    for image, other in zip(images, wanted, strict=True):
        pixels, others = (np.asarray(Image.open(io.BytesIO(i.png)), int) for i in (image, other))
        assert np.abs(pixels - others).max() <= 1  # the decoder's last bits
    for events, others in zip(streams, wanted_streams, strict=True):
        for kind in (CotDone, PartialImage):
            assert len([e for e in events if isinstance(e, kind)]) == (1 if kind is CotDone else 2)
        texts = ["".join(e.delta for e in some if isinstance(e, CotDelta)) for some in (events, others)]
        assert texts[0] == texts[1] != ""
        assert events[-1].image.png in [image.png for image in images[:3]]
