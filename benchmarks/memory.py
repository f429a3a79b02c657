"""Compares the peak memory of one learner step (forward and backward) with a straightforward
implementation.

    python -m benchmarks.memory

Janus-Pro's vocabularies (102,400 text tokens, 16,384 image tokens) on a small trunk; 8 samples of 576
image tokens and up to 64 CoT tokens; float32 on the CPU. Each variant has a process of its own; it
shows by how much the peak resident memory exceeds that before the step.

The straightforward implementation is that of the published code: both heads over all positions of both
sequences, all hidden states kept, the log-softmax of a whole sequence at a time.

Exit status 1 unless ours takes at most half, for a loss within 1e-5.
"""

import resource
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

from learner.batch import Batch, make_batch
from learner.config import LearnerConfig
from learner.deepspeed_engine import freeze
from learner.logprobs import JanusLogps
from learner.losses import bicot_loss
from policy.model import Janus
from policy.records import Sample

TEXT_VOCABULARY, CODES = 102_400, 16_384
HIDDEN, LAYERS, SAMPLES, IMAGE_TOKENS, COT_TOKENS, PROMPT_TOKENS = 256, 4, 8, 576, 64, 32
VARIANTS = ("straightforward", "ours", "ours, layers checkpointed")


def build() -> Janus:
    """A model frozen as in training: only the language model has gradients."""
    text = LlamaConfig(
        vocab_size=TEXT_VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=int(2.75 * HIDDEN),
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    vision = JanusVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, projection_dim=HIDDEN
    )
    vq = JanusVQVAEConfig(
        num_embeddings=CODES,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 1],
        num_res_blocks=0,
        projection_dim=HIDDEN,
        image_token_embed_dim=HIDDEN,
    )
    config = JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    model = JanusForConditionalGeneration(config).eval()
    freeze(model, LearnerConfig().freeze)
    return Janus(model, SimpleNamespace(pad_token_id=0), templates=cast(Any, None))


def random_batch() -> Batch:
    """Samples with CoTs of different lengths."""
    rng = np.random.default_rng(0)

    def ids(high: int, length: int) -> np.ndarray:
        return rng.integers(1, high, length)

    samples = []
    for n in range(SAMPLES):
        length = COT_TOKENS * (SAMPLES + n) // (2 * SAMPLES - 1)
        samples.append(
            Sample(
                prompt_id="p",
                index=n,
                seed=0,
                weights_version=0,
                cot_prompt_ids=ids(TEXT_VOCABULARY, PROMPT_TOKENS),
                cot_ids=ids(TEXT_VOCABULARY, length),
                cot_text="",
                image_prompt_ids=ids(TEXT_VOCABULARY, PROMPT_TOKENS),
                image_ids=ids(CODES, IMAGE_TOKENS),
                cot_logps=np.full(length, -np.log(TEXT_VOCABULARY), np.float32),
                image_logps=np.full(IMAGE_TOKENS, -np.log(CODES), np.float32),
                image_guided_logps=np.full(IMAGE_TOKENS, -np.log(CODES), np.float32),
                image=np.zeros((1, 1, 3), np.uint8),
                finish_reason="stop",
            )
        )
    return make_batch(samples, rng.normal(size=SAMPLES).tolist(), pad_id=0)


def straightforward(janus: Janus, batch: Batch) -> torch.Tensor:
    """float32 [N, Lc + Ti]."""

    def both_heads(embedded, mask, start):
        output = janus.trunk(
            inputs_embeds=embedded,
            attention_mask=mask.long(),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            output_hidden_states=True,
        )
        hidden = output.hidden_states[-1]
        text, image = janus.text_logits(hidden), janus.image_logits(hidden)
        return text[:, start - 1 : -1], image[:, start - 1 : -1], output

    def gather(logits, ids):
        return logits.log_softmax(-1).gather(2, ids[..., None]).squeeze(2)

    text = torch.cat([batch.cot_prompt, batch.cot], 1)
    text_mask = torch.cat([batch.cot_prompt_mask, batch.cot_mask], 1)
    logits, _, _ = both_heads(janus.embed_text(text), text_mask, batch.cot_prompt.shape[1])
    cot = gather(logits, batch.cot)
    embedded = torch.cat([janus.embed_text(batch.image_prompt), janus.embed_image(batch.image)], 1)
    image_mask = torch.cat([batch.image_prompt_mask, torch.ones_like(batch.image, dtype=torch.bool)], 1)
    _, logits, _ = both_heads(embedded, image_mask, batch.image_prompt.shape[1])
    return torch.cat([cot, gather(logits, batch.image)], 1)


def ours(janus: Janus, batch: Batch, checkpointed: bool) -> torch.Tensor:
    module = JanusLogps(janus, chunk_tokens=LearnerConfig().logprob_chunk_tokens)
    if checkpointed:
        module.checkpoint_layers()
    out = module(batch)
    return torch.cat([out.cot, out.image], 1)


def measure(variant: str) -> tuple[float, float, float]:
    """Loss, gradient norm, and growth of the peak in MiB; for a fresh process."""
    torch.set_num_threads(1)
    janus, batch = build(), random_batch()
    parameters = [p for p in janus.model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(
            parameter
        )  # all variants have these, so that they do not count
    before = psutil.Process().memory_info().rss
    if variant == "straightforward":
        logps = straightforward(janus, batch)
    else:
        logps = ours(janus, batch, checkpointed=variant.endswith("checkpointed"))
    loss = bicot_loss(logps, batch.sampled_logps, None, batch.token_advantages, batch.token_weights)
    value = loss.sum / loss.count
    value.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    return value.item(), norm.item(), (peak - before) / 2**20


def main() -> int:
    results = {}
    for variant in VARIANTS:
        command = [sys.executable, "-m", "benchmarks.memory", variant]
        printed = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, timeout=3600
        ).stdout
        results[variant] = [float(x) for x in printed.split()[-3:]]
    loss, _, whole = results["straightforward"]
    table = Table(title="one learner step: peak memory over what was held before")
    for column in ("", "loss", "gradient norm", "peak MiB", "of straightforward"):
        table.add_column(column, justify="right" if column else "left")
    for variant, (value, norm, peak) in results.items():
        table.add_row(variant, f"{value:.6f}", f"{norm:.6f}", f"{peak:.0f}", f"{peak / whole:.0%}")
    Console().print(table)
    good = all(
        abs(value - loss) <= 1e-5 and peak <= whole / 2
        for variant, (value, _, peak) in results.items()
        if variant != "straightforward"
    )
    return 0 if good else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(*measure(sys.argv[1]))
    else:
        sys.exit(main())
