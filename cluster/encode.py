"""Encodes pictures into image token ids with the model's own encoder, in the learner's placement
group."""

from collections.abc import Sequence

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from rich.console import Console
from rich.progress import track

from cluster.sft_config import SftConfig
from cluster.sft_rows import Example
from policy.errors import UserError, in_one_line
from policy.model import PolicyConfig, load_janus
from policy.pictures import read_picture

BATCH = 16  # pictures that are encoded together


class PictureEncoder:
    """One process that holds the model and encodes pictures."""

    def __init__(self, policy: PolicyConfig, on_gpu: bool):
        torch.set_num_threads(1)
        self._device = "cuda:0" if on_gpu else "cpu"
        self._janus = load_janus(policy, self._device)

    def encode(self, examples: Sequence[Example], resize: bool) -> np.ndarray:
        """int64 [len(examples), Ti]. Raises UserError for a picture that cannot be read."""
        side = self._janus.image_side
        pictures = [read_picture(e.picture, e.where, side, resize) for e in examples if e.picture]
        pixels = torch.from_numpy(np.stack(pictures)).to(self._device).permute(0, 3, 1, 2)
        dtype = self._janus.model.dtype
        return self._janus.encode_images(pixels.to(dtype) / 127.5 - 1).cpu().numpy()


def encode_pictures(
    config: SftConfig, examples: Sequence[Example], place: PlacementGroup, console: Console
) -> list[np.ndarray | None]:
    """The image ids of each example, in order: its own, or its picture's; None if it has neither.

    Raises UserError for a picture that cannot be read.
    """
    with_picture = [example for example in examples if example.picture]
    batches = [with_picture[n : n + BATCH] for n in range(0, len(with_picture), BATCH)]
    encoded = iter(_encode(config, batches, place, console) if batches else [])
    return [next(encoded) if example.picture else example.image_ids for example in examples]


def _encode(
    config: SftConfig, batches: Sequence[Sequence[Example]], place: PlacementGroup, console: Console
) -> list[np.ndarray]:
    learner = config.learner
    actor, encoders = ray.remote(PictureEncoder), []
    for bundle in range(min(learner.ranks, len(batches))):
        where = PlacementGroupSchedulingStrategy(place, bundle)
        options = {"num_cpus": learner.num_cpus, "num_gpus": learner.num_gpus}
        placed = actor.options(scheduling_strategy=where, **options)
        encoders.append(placed.remote(config.policy, learner.num_gpus > 0))
    work = [
        encoders[n % len(encoders)].encode.remote(batch, config.sft.resize)
        for n, batch in enumerate(batches)
    ]
    try:
        found = [
            ray.get(one, timeout=learner.load_timeout_s)
            for one in track(work, "encoding pictures", console=console, transient=True)
        ]
    except RayTaskError as error:
        raise UserError(in_one_line(error)) from error
    finally:
        for encoder in encoders:
            ray.kill(encoder)
    return [ids for batch in found for ids in batch]
