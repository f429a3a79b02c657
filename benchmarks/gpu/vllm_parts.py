"""Part `vllm`: does its engine work here, how fast is it, and does it draw the torch sampler's
tokens?"""

import os

import torch

from actors.sampler import SamplingConfig
from actors.torch_sampler import TorchSampler
from benchmarks.gpu.agreement import ORDERS, SAMPLING, check_sampler, compare, full_float32
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.limit import step_bytes
from benchmarks.gpu.measure import copy_bytes_s, fresh_memory, seconds, this_gpu
from benchmarks.gpu.setting import DEVICE, GROUP, ON_GPU, Setting, shapes_policy
from cluster.estimate.hardware import FACTORS
from policy.errors import UserError
from policy.model import Janus, load_janus


def speed(setting: Setting, figures: Figures, case: str) -> None:
    """Measures speed at a published model's size."""
    bytes_s = copy_bytes_s()
    janus = setting.build()
    limits = {pairs: step_bytes(janus, setting, "image", pairs) / bytes_s for pairs in setting.pairs}
    janus.model.to("cpu")  # the engine takes the weights from there
    fresh_memory()
    trained = {
        name: p.detach()
        for name, p in janus.model.named_parameters()
        if name.startswith(("model.language_model.", "lm_head."))
    }
    sampling = SamplingConfig(guidance=setting.guidance, max_cot_tokens=setting.lengths.cot)
    rows = 2 * setting.pairs[-1]
    settings = {"max_num_seqs": max(128, rows), "enforce_eager": setting.eager}
    sampler = start(figures, janus, sampling, case, **settings)
    with figures.attempt("text"):
        text(setting, figures, sampler, setting.pairs[-1])
    for pairs in setting.pairs:
        with figures.attempt(f"images, {pairs} pairs"):
            images(setting, figures, sampler, pairs, limits[pairs], bytes_s)
    with figures.attempt("new weights"):
        new_weights(setting, figures, sampler, trained)


def agrees(setting: Setting, figures: Figures, case: str) -> None:
    """Compares it with the torch sampler and the learner, in one dtype. A small share of the GPU is
    enough."""
    full_float32()
    small = {"kv_cache_mb": 64 if not ON_GPU else 512, "gpu_memory_utilization": 0.2}
    policy = shapes_policy(case)
    sampler = start(figures, load_janus(policy), SAMPLING, case, enforce_eager=setting.eager, **small)
    samples = sampler.generate(ORDERS)
    wanted = TorchSampler(load_janus(policy, DEVICE), SAMPLING, 0).generate(ORDERS)
    compare(figures, wanted, samples, dtype=case, against="the torch sampler")
    check_sampler(figures, sampler, samples, "vllm", case)


def start(figures: Figures, janus: Janus, sampling: SamplingConfig, case: str, **settings):
    """Start the engine. The first figures are the settings that it chose."""
    if settings["enforce_eager"] and ON_GPU:
        os.environ["VLLM_GPU_SYNC_CHECK"] = "warn"  # logs where drawing waits for the GPU
    try:
        from actors.vllm.config import VLLMConfig
        from actors.vllm.sampler import VLLMSampler
    except ModuleNotFoundError as error:
        raise UserError(f"it needs vLLM (`make install`): {error}") from None
    made = []
    config = VLLMConfig(**settings)
    if not ON_GPU and config.kv_cache_mb is None:
        config = config.model_copy(update={"kv_cache_mb": 64})
    taken = seconds(lambda: made.append(VLLMSampler(janus, sampling, 0, config)))
    sampler = made[0]
    engine = sampler.engine._config
    figures.add("start_s", taken, "s", case=case)
    figures.add("v2_runner", bool(engine.use_v2_model_runner), case=case)
    figures.add("async_scheduling", bool(engine.scheduler_config.async_scheduling), case=case)
    figures.add("cuda_graphs", str(engine.compilation_config.cudagraph_mode), case=case)
    cache = engine.cache_config
    figures.add("cache_tokens", cache.num_gpu_blocks * cache.block_size, "tokens", case=case)
    if ON_GPU:
        figures.add("free_gb", torch.cuda.mem_get_info()[0] / 1e9, "GB", case=case)
    return sampler


def text(setting: Setting, figures: Figures, sampler, rows: int) -> None:
    prompts, keys = setting.cot_prompts(rows), setting.keys(rows, "cot")
    sampler.generate_cots(prompts, keys)
    written = []
    taken = seconds(lambda: written.append(sampler.generate_cots(prompts, keys)))
    steps = max(map(len, written[0].ids))
    figures.add("text_step_ms", 1e3 * taken / steps, "ms", rows=rows)


def images(
    setting: Setting, figures: Figures, sampler, pairs: int, limit: float, bytes_s: float
) -> None:
    prompts, keys = setting.image_prompts(pairs), setting.keys(pairs, "image")
    sampler.generate_images(prompts, keys)
    taken = seconds(lambda: sampler.generate_images(prompts, keys))
    step = taken / sampler.janus.image_tokens
    figures.add("step_ms", 1e3 * step, "ms", pairs=pairs)
    figures.add("images_s", pairs / taken, "images/s", pairs=pairs)
    figures.add("limit_ms", 1e3 * limit, "ms", pairs=pairs)
    figures.add("limit_images_s", pairs / limit / sampler.janus.image_tokens, "images/s", pairs=pairs)
    figures.add("of_limit", limit / step, pairs=pairs)
    reading = step - FACTORS["decode_step_s"].value
    if (gpu := this_gpu()) and reading > 0:
        figures.add_factor("decode_bandwidth", limit * bytes_s / reading / gpu.memory_bytes_s)


def new_weights(setting: Setting, figures: Figures, sampler, trained: dict[str, torch.Tensor]) -> None:
    """Replaces weights under the running engine, with its CUDA graphs: other weights draw other tokens,
    and the old ones the old tokens."""
    prompts, keys = setting.cot_prompts(GROUP), setting.keys(GROUP, "cot")
    before = sampler.generate_cots(prompts, keys).ids
    sampler.load_weights(1, {name: -tensor for name, tensor in trained.items()}.items())
    other = sampler.generate_cots(prompts, keys).ids
    taken = seconds(lambda: sampler.load_weights(2, trained.items()))
    again = sampler.generate_cots(prompts, keys).ids
    gb = sum(tensor.nbytes for tensor in trained.values()) / 1e9
    figures.add("load_s", taken, "s")
    figures.add("load_gb_s", gb / taken, "GB/s")
    figures.add("changed_by_new_weights", _share(a != b for a, b in zip(before, other, strict=True)))
    figures.add("same_after_old_weights", _share(a == b for a, b in zip(before, again, strict=True)))


def _share(found) -> float:
    found = list(found)
    return sum(found) / len(found)
