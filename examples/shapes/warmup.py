"""Make the checkpoint that `make train` starts from: `python -m examples.shapes.warmup`.

Supervised, from scratch, about ten minutes on one CPU core. The teacher is sloppy on purpose: the
plans it shows have mistakes, and its images follow the plan it shows, with mistakes of their own.
So the model learns what a plan is and how to draw one, and leaves to reinforcement learning which
plans and images are right. Only prompts of the training split are used.

1. The VQ autoencoder. All images are made of 73 different patches, so the code of every patch is
   known: one a patch, and for the ground one a place, which tells the trunk where it is. Encoder
   and decoder learn them.
2. The trunk and both heads, on (prompt -> plan) and (prompt, plan -> image).
"""

import argparse
import random
import time
from pathlib import Path

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
from learner.batch import make_batch
from learner.logprobs import JanusLogps
from policy.model import Janus
from policy.prompts import load_templates
from policy.records import Sample

HERE = Path(__file__).parent
KINDS = {"single": 0.07, "count": 0.14, "two": 0.14, "mixed": 0.14, "spatial": 0.21, "riddle": 0.3}


# --- 1. the autoencoder --------------------------------------------------------------------------


def patches(images: np.ndarray) -> Tensor:
    """uint8 [N, 24, 24, 3] -> float32 [N, 36, 48] in -1..1."""
    x = torch.tensor(images).float() / 127.5 - 1
    x = x.view(len(images), GRID, PATCH, GRID, PATCH, 3).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(len(images), GRID * GRID, PATCH * PATCH * 3)


class Codes:
    """The code of every patch of the world: the ground at place i is code i, then one a patch."""

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


# --- 2. the trunk --------------------------------------------------------------------------------


def lesson(
    janus: Janus, prompt: Prompt, codes: Codes, args: argparse.Namespace, rng: random.Random
) -> Sample:
    """One worked example as a sample: a prompt, a sloppy plan, and a sloppy image of that plan; now and
    then the image is asked for without the plan."""
    names = args.fact_errors if prompt.task_type == "riddle" else None
    plan = corrupt(make_plan(prompt, rng), args.plan_errors, rng, names)
    text = plan_text(plan)
    cot = [*janus.tokenizer(text, add_special_tokens=False).input_ids, janus.eos_id]
    image = render(corrupt(plan, args.image_errors, rng))
    image_prompt = janus.image_prompt_ids(prompt.text, text)
    if rng.random() < args.no_plan:
        image_prompt = janus.plain_prompt_ids(prompt.text)
    ids = codes(image[None])[0].numpy()
    nothing = np.zeros(0, np.float32)
    return Sample(
        prompt_id=prompt.id,
        index=0,
        seed=0,
        weights_version=0,
        cot_prompt_ids=np.array(janus.cot_prompt_ids(prompt.text)),
        cot_ids=np.array(cot),
        cot_text=text,
        image_prompt_ids=np.array(image_prompt),
        image_ids=ids,
        cot_logps=np.zeros(len(cot), np.float32),
        image_logps=np.zeros(len(ids), np.float32),
        image_guided_logps=nothing,
        image=image,
        finish_reason="stop",
    )


def unconditional(janus: Janus, sample: Sample) -> Sample:
    ids = janus.unconditional_ids(sample.image_prompt_ids.tolist())
    return Sample(**{**vars(sample), "image_prompt_ids": np.array(ids)})


def train_trunk(janus: Janus, codes: Codes, args, rng: random.Random) -> None:
    model = janus.model
    for part in (model.model.vqmodel, model.model.vision_model, model.model.aligner):
        part.requires_grad_(False)
    with torch.no_grad():
        model.model.generation_embeddings.weight.normal_(0, 1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, args.lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.08)
    logps = JanusLogps(janus)
    train = {k: [p for p in v if not is_held_out(p)] for k, v in all_prompts().items()}
    kinds, shares = list(KINDS), list(KINDS.values())
    started = time.monotonic()
    for step in range(args.steps):
        prompts = [
            riddle(False, rng) if kind == "riddle" else rng.choice(train[kind])
            for kind in rng.choices(kinds, shares, k=args.batch)
        ]
        samples = [lesson(janus, prompt, codes, args, rng) for prompt in prompts]
        samples = [unconditional(janus, s) if rng.random() < args.dropout else s for s in samples]
        batch = make_batch(samples, [0.0] * len(samples), pad_id=janus.pad_id)
        out = logps(batch)
        text_loss = -(out.cot * batch.cot_mask).sum() / batch.cot_mask.sum()
        image_loss = -out.image.mean()
        optimizer.zero_grad()
        (text_loss + image_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step + 1 == args.steps:
            took = time.monotonic() - started
            print(
                f"trunk {step:5d}  plan {text_loss:.3f}  image {image_loss:.3f}  {took:.0f} s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(HERE / "checkpoint"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vq-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--plan-errors", type=float, default=0.18)
    parser.add_argument("--fact-errors", type=float, default=0.35, help="of a riddle's names")
    parser.add_argument("--image-errors", type=float, default=0.13)
    parser.add_argument("--no-plan", type=float, default=0.15, help="share of images without a plan")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the caption, for guidance")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    codes = Codes()
    tokenizer = build_tokenizer()
    janus = Janus(build_janus(tokenizer), tokenizer, load_templates(HERE / "templates"))
    print(f"{codes.count} codes, {sum(p.numel() for p in janus.model.parameters()):,} parameters")
    train_autoencoder(janus.model.model.vqmodel, codes, args.vq_steps, rng)
    train_trunk(janus, codes, args, rng)
    janus.model.eval().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"saved to {args.out}; look at it: bicot evaluate examples/shapes/train.yaml")


if __name__ == "__main__":
    main()
