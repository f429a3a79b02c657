"""Compares a whole step with one as the published code does it: `python -m benchmarks.published`.

One group of 8 samples from a small Janus with Janus-Pro's vocabularies (102,400 text tokens, 16,384
image tokens, 576 of them an image), float32, one thread: generate, then learn.

The published code (github.com/CaraJ7/T2I-R1, `compute_loss`): transformers' growing cache, multinomial
draws, conditional and unconditional rows in one batch; then both CoTs teacher-forced with all hidden
states kept and gradient checkpointing on, the text head on every position of both sequences (and once
more on the text, where its logits are read), the reference model likewise, one AdamW step. Here: the
rollout worker's sampler, and the learner's worker as training starts it. Both generate the same number
of tokens and learn from the same samples. They take turns; medians and their ratios are printed,
because absolute times on a shared machine vary.
"""

import argparse
import statistics
import tempfile
import time
from copy import deepcopy

import numpy as np
import ray
import torch
from rich.console import Console
from rich.table import Table

from actors.sampler import SamplingConfig
from actors.torch_sampler import TorchSampler
from benchmarks.memory import build
from benchmarks.rollout import TransformersBaseline
from cluster.ray_session import WORKER_ENV
from examples.shapes.tiny_janus import build_tokenizer
from learner.batch import Batch, make_batch
from learner.config import LearnerConfig
from learner.deepspeed_engine import freeze
from learner.group import LearnerGroup, TrainingGroups
from learner.losses import bicot_loss
from policy.model import Janus, PolicyConfig, load_janus
from policy.records import Sample

GROUP, PROMPT, COT = 8, 32, 64
GUIDANCE = 5.0


class Published:
    """Generates and learns as the published code does."""

    def __init__(self, janus: Janus):
        self.janus, self.reference = janus, deepcopy(janus)
        self.loop = TransformersBaseline(janus, SamplingConfig(guidance=GUIDANCE, max_cot_tokens=COT))
        freeze(janus.model, LearnerConfig().freeze)
        self.reference.model.requires_grad_(False)
        for each in (janus, self.reference):
            trunk = each.trunk
            trunk.gradient_checkpointing_enable({"use_reentrant": False})
        parameters = [p for p in janus.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, 1e-6)

    def generate(self, cot_prompts: list[list[int]], image_prompts: list[list[int]]) -> None:
        self.janus.model.eval()
        self.loop.cots(cot_prompts)
        self.loop.images(image_prompts)

    def learn(self, samples: list[Sample], advantages: list[float]) -> None:
        self.janus.trunk.train()
        batch = make_batch(samples, advantages, pad_id=self.janus.pad_id)
        logps = teacher_forced(self.janus, batch)
        with torch.no_grad():
            reference = teacher_forced(self.reference, batch)
        seen = batch.sampled_logps, reference, batch.token_advantages, batch.token_weights
        loss = bicot_loss(logps, *seen)
        (loss.sum / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def teacher_forced(janus: Janus, batch: Batch) -> torch.Tensor:
    """Log-probabilities of both CoTs, float32 [N, Lc + Ti]."""

    def hidden(embedded, mask):
        output = janus.trunk(
            inputs_embeds=embedded, attention_mask=mask.long(), output_hidden_states=True
        )
        janus.text_logits(output.hidden_states[-1])  # of either sequence; they are not used
        return output.hidden_states[-1]

    def gather(logits, ids):
        rows = zip(logits, ids, strict=True)
        return torch.stack([x.log_softmax(-1).gather(1, i[:, None])[:, 0] for x, i in rows])

    text = torch.cat([batch.cot_prompt, batch.cot], 1)
    mask = torch.cat([batch.cot_prompt_mask, batch.cot_mask], 1)
    logits = janus.text_logits(hidden(janus.embed_text(text), mask))
    cot = gather(logits[:, :-1], text[:, 1:])[:, -batch.cot.shape[1] :]
    embedded = torch.cat([janus.embed_text(batch.image_prompt), janus.embed_image(batch.image)], 1)
    mask = torch.cat([batch.image_prompt_mask, torch.ones_like(batch.image, dtype=torch.bool)], 1)
    start = batch.image_prompt.shape[1]
    logits = janus.image_logits(hidden(embedded, mask)[:, start - 1 : -1])
    return torch.cat([cot, gather(logits, batch.image)], 1)


class Here:
    """Generates and learns with this project's sampler and learner."""

    def __init__(self, policy: PolicyConfig):
        sampling = SamplingConfig(guidance=GUIDANCE, max_cot_tokens=COT)
        self.sampler = TorchSampler(load_janus(policy), sampling, run_seed=0)
        config = LearnerConfig(num_cpus=0)
        self.learner = LearnerGroup.start(policy, config, temperature=1.0, guidance=GUIDANCE)

    def generate(self, cot_prompts: list[list[int]], image_prompts: list[list[int]]) -> None:
        self.sampler.generate_cots(cot_prompts, list(range(GROUP)))
        self.sampler.generate_images(image_prompts, list(range(GROUP)))

    def learn(self, samples: list[Sample], advantages: list[float]) -> None:
        groups = TrainingGroups.of([ray.put(samples)], np.array([advantages], np.float32))
        ray.get(self.learner.step(groups), timeout=600)


def prompts(run: int) -> tuple[list[list[int]], list[list[int]]]:
    """One prompt for the CoTs; one of its own, with a CoT in it, for every image."""
    generator = torch.Generator().manual_seed(run)
    one = torch.randint(5, 40, (PROMPT,), generator=generator).tolist()
    own = torch.randint(5, 40, (GROUP, PROMPT + COT), generator=generator).tolist()
    return [one] * GROUP, own


def made_up_samples(janus: Janus, cot_prompts, image_prompts) -> list[Sample]:
    rng = np.random.default_rng(0)
    count, codes = janus.image_tokens, janus.model.config.vq_config.num_embeddings
    logps = np.full(count, -np.log(codes), np.float32)
    return [
        Sample(
            prompt_id="p",
            index=n,
            seed=0,
            weights_version=0,
            cot_prompt_ids=np.array(cot_prompts[n]),
            cot_ids=rng.integers(5, 40, COT),
            cot_text="",
            image_prompt_ids=np.array(image_prompts[n]),
            image_ids=rng.integers(0, codes, count),
            cot_logps=np.full(COT, -11.5, np.float32),
            image_logps=logps,
            image_guided_logps=logps,
            image=np.zeros((1, 1, 3), np.uint8),
            finish_reason="length",
        )
        for n in range(GROUP)
    ]


def measure(policy: PolicyConfig, runs: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by side and part; the first turn warms up."""
    published, here = Published(load_janus(policy)), Here(policy)
    samples = made_up_samples(published.janus, *prompts(0))
    advantages = np.linspace(-1, 1, GROUP).tolist()
    taken: dict[str, dict[str, list[float]]] = {
        side: {"generate": [], "learn": []} for side in ("published", "here")
    }
    for run in range(runs + 1):
        for name, side in (("published", published), ("here", here)):
            started = time.perf_counter()
            side.generate(*prompts(run))
            middle = time.perf_counter()
            side.learn(samples, advantages)
            taken[name]["generate"].append(middle - started)
            taken[name]["learn"].append(time.perf_counter() - middle)
    return {side: {part: t[1:] for part, t in parts.items()} for side, parts in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, runtime_env={"env_vars": WORKER_ENV})
    with tempfile.TemporaryDirectory() as folder:
        build().model.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        taken = measure(PolicyConfig(path=folder), options.runs)
    ray.shutdown()
    table = Table(title=f"one step of {GROUP} samples, seconds (medians), one thread")
    for column in ("", "published manner", "here", "times as fast"):
        table.add_column(column, justify="right" if column else "left")
    for side in taken.values():
        side["step"] = [a + b for a, b in zip(side["generate"], side["learn"], strict=True)]
    for part in ("generate", "learn", "step"):
        theirs, ours = taken["published"][part], taken["here"][part]
        ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
        seconds = [f"{statistics.median(times):.1f}" for times in (theirs, ours)]
        table.add_row(part, *seconds, f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
