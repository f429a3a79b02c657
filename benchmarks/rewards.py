"""The cost of scoring: `python -m benchmarks.rewards`, or with the names of some parts.

| part | compares, in one run on one machine |
|---|---|
| `batching` | an expert that scores 16 images at once, and each alone |
| `replicas` | three replicas of a slow expert, and one |
| `overhead` | 32 images of 384x384 scored through Ray Serve, and by the expert itself |

The two sides of a part take turns; medians are printed, and ratios within a turn, because absolute
times on a shared machine vary. Models are tiny and random, of the published classes, on one CPU thread.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from rich.console import Console
from rich.table import Table
from transformers import CLIPConfig, CLIPModel

from benchmarks.samples import dummy_sample
from policy.prompts import parse_prompt
from policy.records import Prompt, Sample, SampleRequest
from rewards.config import ExpertConfig, RewardsConfig
from rewards.expert import Expert, ExpertScores
from rewards.experts.clip import CLIPScore
from rewards.experts.grounding import GroundingDino
from rewards.serving import deploy_experts, shutdown_experts
from tests.rewards.experts import tiny
from tests.rewards.experts.grounding_original import tiny_grounding_dino

SIDE = 384
PROMPTS = (
    {"prompt": "a hot dog left of a cat", "task_type": "spatial", "nouns": ["hot dog", "cat"]}
    | {"spatial_info": {"obj1": "hot dog", "obj2": "cat", "locality": "left of"}},
    {"prompt": "two tvs", "task_type": "numeracy", "nouns": ["tv"]}
    | {"numeracy_info": [{"obj_name": "tv", "num": 2}]},
    {"prompt": "a roll of tape and a dog", "task_type": "color", "nouns": ["roll of tape", "dog"]},
)


class Sleeper(Expert):
    """Waits as long as an expert on a GPU takes, without using the CPU."""

    def __init__(self, seconds_per_image: float = 0.01):
        self.seconds_per_image = seconds_per_image

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        time.sleep(self.seconds_per_image * len(images))
        return ExpertScores(np.ones(len(images), np.float32))


class Brightness(Expert):
    """An expert that is nearly free, so that what is left is the cost of serving."""

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        return ExpertScores(np.array([image[::8, ::8].mean() / 255 for image in images], np.float32))


def samples(count: int) -> tuple[list[Sample], list[Prompt]]:
    """Random images of full size, and their prompts in turn."""
    prompts = [parse_prompt(PROMPTS[n % len(PROMPTS)]) for n in range(count)]
    images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    drawn = [
        dummy_sample(SampleRequest(prompt, n), image, tokens=576)
        for n, (prompt, image) in enumerate(zip(prompts, images, strict=True))
    ]
    return drawn, prompts


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(
    one: Callable[[], object], other: Callable[[], object], runs: int
) -> tuple[float, float, float]:
    """Median seconds of both, and the median of one / other within a turn. The first turn warms up."""
    pairs = [(seconds(one), seconds(other)) for _ in range(runs + 1)][1:]
    ones, others = zip(*pairs, strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(ones), statistics.median(others), ratio


def table(title: str, *columns: str) -> Table:
    made = Table(title=title)
    for column in columns:
        made.add_column(column, justify="right")
    return made


# --- batching ---


def tiny_clip(folder: Path) -> None:
    layer = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    layer |= {"num_attention_heads": 4, "projection_dim": 24}
    text = layer | {"vocab_size": tiny.clip_tokenizer(folder), "max_position_embeddings": 40}
    vision = layer | {"image_size": tiny.SIZE, "patch_size": tiny.PATCH}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    tiny.randomize(CLIPModel(config)).save_pretrained(folder)
    tiny.clip_images(folder)


def numbers(scores: ExpertScores) -> np.ndarray:
    """All numbers of an expert's answer: its values, and the confidence of every box."""
    return np.array([*scores.values, *(box.score for some in scores.boxes for box in some)])


def batching(runs: int, batch: int = 16) -> Table:
    drawn, prompts = samples(batch)
    images = [sample.image for sample in drawn]
    made = table(
        f"images per second, batch {batch}",
        "expert",
        "one by one",
        "batched",
        "ratio",
        "scores differ by",
    )
    models: list[tuple[str, Callable, type, dict[str, Any]]] = [
        ("CLIPScore", tiny_clip, CLIPScore, {}),
        ("GroundingDino", tiny_grounding_dino, GroundingDino, {"box_threshold": 0.0}),
    ]
    for name, build, kind, options in models:
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder))
            expert = kind(folder, device="cpu", dtype="float32", batch_size=batch, **options)

        def batched(expert=expert):
            return numbers(expert.score(images, prompts))

        def alone(expert=expert):
            pairs = zip(images, prompts, strict=True)
            return np.concatenate([numbers(expert.score([image], [prompt])) for image, prompt in pairs])

        apart = np.abs(np.sort(batched()) - np.sort(alone())).max()
        alone_s, batched_s, ratio = in_turns(alone, batched, runs)
        rates = (f"{batch / alone_s:.1f}", f"{batch / batched_s:.1f}")
        made.add_row(name, *rates, f"{ratio:.2f}", f"{apart:.1e}")
    return made


# --- serving ---


def serve(expert: type[Expert], replicas: int, **options):
    """A handle to an expert's replicas."""
    use = f"benchmarks.rewards:{expert.__name__}"
    entry = ExpertConfig(use=use, options=options, replicas=replicas, num_cpus=0.1)
    return deploy_experts(RewardsConfig(experts={"measured": entry}))["measured"]


def ask(handle, refs: Sequence[ray.ObjectRef], prompts: list[Prompt]) -> list[ExpertScores]:
    """All groups at once, as a training step does."""
    group = [SampleRequest(prompt, n) for n, prompt in enumerate(prompts)]
    replies = [handle.score_samples.remote([ref], group) for ref in refs]
    return [reply.result() for reply in replies]


def replicas(runs: int, groups: int = 24, group_size: int = 8) -> Table:
    drawn, prompts = samples(group_size)
    refs = [ray.put(drawn) for _ in range(groups)]
    made = table(
        "images per second of an expert that takes 10 ms an image", "replicas", "images/s", "ratio"
    )
    rates = {}
    for count in (1, 3):
        handle = serve(Sleeper, count)
        times = [seconds(partial(ask, handle, refs, prompts)) for _ in range(runs + 1)]
        rates[count] = groups * group_size / statistics.median(times[1:])
        shutdown_experts()
        made.add_row(str(count), f"{rates[count]:.1f}", f"{rates[count] / rates[1]:.2f}")
    return made


def overhead(runs: int, batch: int = 32) -> Table:
    drawn, prompts = samples(batch)
    images = [sample.image for sample in drawn]
    handle, expert = serve(Brightness, 1), Brightness()
    ref = ray.put(drawn)

    def direct():
        return expert.score(images, prompts)

    def served():
        return ask(handle, [ref], prompts)

    def stored_and_served():
        return ask(handle, [ray.put(drawn)], prompts)

    made = table(
        f"milliseconds per image of {SIDE}x{SIDE}, batch {batch}", "", "ms/image", "over direct"
    )
    for name, way in (("served", served), ("put into the store and served", stored_and_served)):
        way_s, direct_s, _ = in_turns(way, direct, runs)
        cost = 1000 * (way_s - direct_s) / batch
        made.add_row(name, f"{1000 * way_s / batch:.3f}", f"{cost:.3f}")
    shutdown_experts()
    return made


PARTS: dict[str, Callable[[int], Table]] = {
    "batching": batching,
    "replicas": replicas,
    "overhead": overhead,
}
SERVED = ("replicas", "overhead")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    if strange := [part for part in args.parts if part not in PARTS]:
        parser.error(f"no such part: {', '.join(strange)}; there are {', '.join(PARTS)}")

    torch.set_num_threads(1)
    parts = args.parts or list(PARTS)
    if any(part in SERVED for part in parts):
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    for part in parts:
        Console().print(PARTS[part](args.runs))


if __name__ == "__main__":
    main()
