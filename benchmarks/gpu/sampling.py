"""Parts `torch` and `decode`: the torch sampler at a published model's size, and the image decoder."""

import gc
from typing import Any

import torch
from transformers import JanusForConditionalGeneration

from actors.sampler import SamplingConfig
from actors.torch_sampler import TorchSampler
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.limit import step_bytes
from benchmarks.gpu.measure import (
    add_memory,
    copy_bytes_s,
    fresh_memory,
    seconds,
    seconds_to_launch,
    this_gpu,
    traced,
)
from benchmarks.gpu.setting import DEVICE, GROUP, ON_GPU, Setting, with_short_images
from benchmarks.rollout import TransformersBaseline
from cluster.estimate.speed import decoder_flops


def torch_sampler(setting: Setting, figures: Figures, case: str) -> None:
    bytes_s = copy_bytes_s()
    janus = setting.build()
    add_memory(figures, "held_gb")
    for pairs in (1, setting.pairs[0]):
        with figures.attempt(f"single steps, {pairs} pairs"):
            single_steps(setting, figures, janus, pairs)
        fresh_memory()
    sampler = TorchSampler(janus, _sampling(setting), 0)
    for pairs in (setting.pairs[0], setting.pairs[-1]):
        with figures.attempt(f"text, {pairs} rows"):
            text(setting, figures, sampler, pairs)
    for pairs in setting.pairs:
        fresh_memory()
        with figures.attempt(f"images, {pairs} pairs"):
            images(setting, figures, sampler, pairs, bytes_s)
    fresh_memory()
    with figures.attempt("the plain loop"):
        against_the_plain_loop(setting, figures, sampler, setting.pairs[0])


def single_steps(setting: Setting, figures: Figures, janus: Any, pairs: int) -> None:
    """Times steps in the middle of an image: the difference between drawing a few tokens and some more,
    so that the prompt's own pass does not count. At one pair the GPU waits for the host, so the time to
    launch is the host's."""
    few, more = 4, 12
    prompts = setting.image_prompts(pairs, more=janus.image_tokens // 2)
    keys = setting.keys(pairs, "image")
    found = []
    for tokens in (few, more):
        sampler = TorchSampler(with_short_images(janus, tokens), _sampling(setting), 0)

        def draw(sampler=sampler) -> None:
            sampler.generate_images(prompts, keys)

        draw()
        launched = min(seconds_to_launch(draw) for _ in range(3))
        table = setting.trace and setting.trace / f"torch-{pairs}-pairs.txt"
        found.append((seconds(draw, 3), launched, *traced(draw, table)))
        del sampler, draw
        gc.collect()  # its fused weights
    taken, launched, kernels, busy = ((b - a) / (more - few) for a, b in zip(*found, strict=True))
    figures.add("single_step_ms", 1e3 * taken, "ms", pairs=pairs)
    if pairs == 1:
        figures.add("launch_ms", 1e3 * launched, "ms", pairs=pairs)
    unit = "kernels" if ON_GPU else "operators"
    figures.add("kernels", round(kernels), unit, pairs=pairs)
    figures.add("gpu_ms", busy, "ms", pairs=pairs)


def text(setting: Setting, figures: Figures, sampler: TorchSampler, rows: int) -> None:
    prompts, keys = setting.cot_prompts(rows), setting.keys(rows, "cot")
    sampler.generate_cots(prompts, keys)
    written = sampler.generate_cots(prompts, keys)
    taken = seconds(lambda: sampler.generate_cots(prompts, keys))
    steps = max(map(len, written.ids))
    figures.add("text_step_ms", 1e3 * taken / steps, "ms", rows=rows)


def images(
    setting: Setting, figures: Figures, sampler: TorchSampler, pairs: int, bytes_s: float
) -> None:
    """Times whole images, without decoding their pixels."""
    prompts, keys = setting.image_prompts(pairs), setting.keys(pairs, "image")
    sampler.generate_images(prompts, keys)
    fresh_memory()
    taken = seconds(lambda: sampler.generate_images(prompts, keys))
    limit = step_bytes(sampler.janus, setting, "image", pairs) / bytes_s
    step = taken / sampler.janus.image_tokens
    figures.add("step_ms", 1e3 * step, "ms", pairs=pairs)
    figures.add("images_s", pairs / taken, "images/s", pairs=pairs)
    figures.add("limit_ms", 1e3 * limit, "ms", pairs=pairs)
    figures.add("of_limit", limit / step, pairs=pairs)
    add_memory(figures, "peak_gb", pairs=pairs)


def against_the_plain_loop(
    setting: Setting, figures: Figures, sampler: TorchSampler, pairs: int
) -> None:
    """Times whole samples: CoT, image and pixels, by transformers alone as the published code does."""
    orders = setting.orders(pairs)
    plain = TransformersBaseline(sampler.janus, sampler.config)
    slow = seconds(lambda: plain.draw([order.prompt.text for order in orders]))
    drawn = []
    fast = seconds(lambda: drawn.extend(sampler.generate(orders)))
    cot = sum(len(sample.cot_ids) for sample in drawn) / pairs
    prompt = sum(len(sample.image_prompt_ids) for sample in drawn) / pairs
    figures.add("sample_cot_tokens", cot, "tokens", pairs=pairs)
    figures.add("sample_image_prompt_tokens", prompt, "tokens", pairs=pairs)
    figures.add("samples_s", pairs / fast, "samples/s", pairs=pairs)
    figures.add("plain_samples_s", pairs / slow, "samples/s", pairs=pairs)
    figures.add("times_the_plain_loop", slow / fast, pairs=pairs)


def decode(setting: Setting, figures: Figures, case: str) -> None:
    """Times decoding image tokens to pixels on the host."""
    janus = setting.build(layers=1)
    codes = janus.model.config.vq_config.num_embeddings
    with torch.device("meta"):
        shapes = JanusForConditionalGeneration(janus.model.config)
    for count in (2,) if setting.tiny else (4, GROUP, 16, 48, 64):
        fresh_memory()
        with figures.attempt(f"decode {count} images"):
            ids = torch.randint(0, codes, (count, janus.image_tokens), device=DEVICE)
            janus.decode_images(ids)
            taken = seconds(lambda ids=ids: janus.decode_images(ids), 3)
            figures.add("batch_s", taken, "s", images=count)
            figures.add("image_ms", 1e3 * taken / count, "ms", images=count)
            if count == 48 and (gpu := this_gpu()):
                done = count * decoder_flops(shapes)
                figures.add_factor("image_decoder_flops", done / taken / gpu.flops)
            add_memory(figures, "peak_gb", images=count)


def _sampling(setting: Setting) -> SamplingConfig:
    return SamplingConfig(guidance=setting.guidance, max_cot_tokens=setting.lengths.cot)
