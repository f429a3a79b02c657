"""Prepares the shapes world's cold start: `python -m examples.shapes.warmup`, then `bicot sft
examples/shapes/sft.yaml`.

Writes a Janus and worked examples into runs/shapes_start. From them `bicot sft` makes a checkpoint like
the one that ships with the project, from which `make train` starts.

1. The model: a random trunk, and a VQ autoencoder that is trained here, in a minute. All images are
   made of 73 different patches, so the code of every patch is known: one a patch, and for the ground
   one a position, which shows the trunk where it is. Encoder and decoder learn them.
2. The examples: prompts of the training split, each with a plan and an image. The teacher is sloppy on
   purpose: its plans have mistakes, and name the wrong thing more often where a riddle must be
   understood; its images follow the plan, with mistakes of their own. So the model learns what a plan
   is and how to draw one; which plans and images are right is left to reinforcement learning. Some
   images come without a plan, so that the model can also draw without thinking.
"""

import argparse
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from examples.shapes.riddles import riddle
from examples.shapes.tiny_janus import GRID, PATCH, build_janus, build_tokenizer
from examples.shapes.world import (
    OBJECTS,
    Placed,
    Prompt,
    all_prompts,
    corrupt,
    is_held_out,
    make_plan,
    plan_text,
    render,
)

KINDS = {"single": 0.07, "count": 0.14, "two": 0.14, "mixed": 0.14, "spatial": 0.21, "riddle": 0.3}
HELD_OUT = 256  # examples of held-out prompts, for the loss on them


# --- 1. the autoencoder --------------------------------------------------------------------------


def patches(images: np.ndarray) -> Tensor:
    """uint8 [N, 24, 24, 3] -> float32 [N, 36, 48] in -1..1."""
    x = torch.tensor(images).float() / 127.5 - 1
    x = x.view(len(images), GRID, PATCH, GRID, PATCH, 3).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(len(images), GRID * GRID, PATCH * PATCH * 3)


class Codes:
    """The code of every patch of the world: the ground at position i is code i, then one a patch."""

    def __init__(self):
        alone = np.stack([render([Placed(name, 0, 0)]) for name in OBJECTS])
        every = torch.unique(patches(alone).reshape(-1, PATCH * PATCH * 3), dim=0)
        self.ground = patches(render([])[None])[0, 0]
        drawn = (every - self.ground).abs().amax(1) > 0.01
        self.drawn = every[drawn]
        self.count = GRID * GRID + len(self.drawn)

    def __call__(self, images: np.ndarray) -> Tensor:
        """uint8 [N, 24, 24, 3] -> int64 [N, 36]."""
        x = patches(images)
        nearest = torch.cdist(x, self.drawn).argmin(-1) + GRID * GRID
        is_ground = (x - self.ground).abs().amax(-1) < 0.01
        return torch.where(is_ground, torch.arange(GRID * GRID), nearest)


def random_images(count: int, rng: random.Random) -> np.ndarray:
    def plan():
        share = rng.choice([0.2, 0.4, 0.6])
        cells = [(row, column) for row in range(3) for column in range(3)]
        return [Placed(rng.choice(OBJECTS), *cell) for cell in cells if rng.random() < share]

    return np.stack([render(plan()) for _ in range(count)])


def train_autoencoder(vq, codes: Codes, steps: int, rng: random.Random, batch: int = 16) -> None:
    """Decoder: codes to pixels. Encoder: pixels to the same codes, so that encoding works too."""
    optimizer = torch.optim.AdamW(vq.parameters(), 4e-3, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.1)
    for step in range(steps):
        images = random_images(batch, rng)
        target = torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        ids = codes(images)
        book = F.normalize(vq.quantize.embedding.weight, dim=-1)
        latent = book[ids].view(batch, GRID, GRID, -1).permute(0, 3, 1, 2)
        pixels = vq.decoder(vq.post_quant_conv(latent))
        encoded = F.normalize(vq.quant_conv(vq.encoder(target)), dim=1).permute(0, 2, 3, 1)
        match = F.cross_entropy(encoded.flatten(0, 2) @ book.detach().t() * 20, ids.flatten())
        error = pixels - target
        loss = error.abs().mean() + error.square().mean() + 0.2 * match
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step + 1 == steps:
            print(f"autoencoder {step:4d}  L1 {error.abs().mean():.4f}  code {match:.3f}", flush=True)
    with torch.no_grad():  # transformers' encode does not normalise the codebook, decode does
        vq.quantize.embedding.weight.copy_(F.normalize(vq.quantize.embedding.weight, dim=-1))


# --- 2. the examples -----------------------------------------------------------------------------


@cache
def plain_prompts(held_out: bool) -> dict[str, list[Prompt]]:
    """The prompts of one split, by kind."""
    return {
        kind: [prompt for prompt in prompts if is_held_out(prompt) == held_out]
        for kind, prompts in all_prompts().items()
    }


def random_prompt(held_out: bool, rng: random.Random) -> Prompt:
    """A prompt of one split; the kinds have the weights of `KINDS`."""
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    if kind == "riddle":
        return riddle(held_out, rng)
    return rng.choice(plain_prompts(held_out)[kind])


def lesson(
    prompt: Prompt, codes: Codes, args: argparse.Namespace, rng: random.Random
) -> dict[str, Any]:
    """A row for `bicot sft`: a prompt, a sloppy plan, and a sloppy image of that plan; now and then the
    image alone."""
    names = args.fact_errors if prompt.task_type == "riddle" else None
    plan = corrupt(make_plan(prompt, rng), args.plan_errors, rng, names)
    image = render(corrupt(plan, args.image_errors, rng))
    row: dict[str, Any] = {"prompt": prompt.text}
    if rng.random() >= args.no_plan:
        row["cot"] = plan_text(plan)
    return row | {"image_ids": codes(image[None])[0].tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/shapes_start"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vq-steps", type=int, default=600)
    parser.add_argument("--lessons", type=int, default=40_000)
    parser.add_argument("--plan-errors", type=float, default=0.18)
    parser.add_argument("--fact-errors", type=float, default=0.35, help="of a riddle's names")
    parser.add_argument("--image-errors", type=float, default=0.13)
    parser.add_argument("--no-plan", type=float, default=0.15, help="share of images without a plan")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    codes = Codes()
    tokenizer = build_tokenizer()
    model = build_janus(tokenizer)
    print(f"{codes.count} codes, {sum(p.numel() for p in model.parameters()):,} parameters")
    train_autoencoder(model.model.vqmodel, codes, args.vq_steps, rng)
    with torch.no_grad():
        model.model.generation_embeddings.weight.normal_(0, 1)
    model.eval().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    for name, held_out, count in (("lessons", False, args.lessons), ("heldout", True, HELD_OUT)):
        prompts = (random_prompt(held_out, rng) for _ in range(count))
        with (args.out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for prompt in prompts:
                file.write(json.dumps(lesson(prompt, codes, args, rng)) + "\n")
    print(f"{args.out} is written; go on with: bicot sft examples/shapes/sft.yaml")


if __name__ == "__main__":
    main()
