"""Prepares the start of a vLLM engine: its configuration, the folder that it reads, its executor."""

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import JanusConfig, LlamaConfig
from vllm import EngineArgs, envs
from vllm.config import VllmConfig
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.executor import Executor

from actors.vllm.config import VLLMConfig
from actors.vllm.guided_sampling import PairProcessorV1, PairProcessorV2
from actors.vllm.model import joint_config, register
from actors.vllm.scheduler import AsyncPairScheduler, PairScheduler, blocks
from policy.errors import UserError

_CPU_KV_CACHE_MB = 256


def engine_config(
    janus: JanusConfig, dtype: torch.dtype, settings: VLLMConfig, num_gpus: float = 1.0
) -> VllmConfig:
    """vLLM's configuration for a Janus of this shape. `num_gpus`: the actor's GPUs, or its part of
    one."""
    register()
    _check_head_size(janus)
    _check_cache(janus, dtype, settings)
    on_gpu = torch.cuda.is_available()
    cache_mb = settings.kv_cache_mb or (None if on_gpu else _CPU_KV_CACHE_MB)
    config = EngineArgs(
        model=str(model_folder(joint_config(janus), Path(envs.VLLM_CACHE_ROOT))),
        # Dummy weights, so that any layout that `load_janus` reads will do; the first real ones arrive
        # like all later ones.
        load_format="dummy",
        skip_tokenizer_init=True,
        generation_config="vllm",
        dtype=str(dtype).removeprefix("torch."),
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_cache_memory_bytes=cache_mb and cache_mb * 2**20,
        # Of the whole card; vLLM wants that much free even where the size of the cache is given.
        gpu_memory_utilization=settings.gpu_memory_utilization * (min(1.0, num_gpus) or 1.0),
        block_size=settings.block_size,
        enable_prefix_caching=settings.prefix_caching,
        enforce_eager=settings.enforce_eager or not on_gpu,
        tensor_parallel_size=settings.tensor_parallel_size,
        distributed_executor_backend="uni" if settings.tensor_parallel_size == 1 else "mp",
        worker_extension_cls="actors.vllm.worker.JanusWorker",
        disable_log_stats=True,
    ).create_engine_config()
    v2 = config.use_v2_model_runner
    config.model_config.logits_processors = [PairProcessorV2 if v2 else PairProcessorV1]
    overlapped = config.scheduler_config.async_scheduling
    config.scheduler_config.scheduler_cls = AsyncPairScheduler if overlapped else PairScheduler
    return config


def executor_class(config: VllmConfig, settings: VLLMConfig) -> type[Executor]:
    """vLLM's own executor, with another cache size where `kv_cache_mb` does not give it.

    vLLM fills all memory that it may have. For a small model that is a million blocks, of which few are
    ever used, and all are walked whenever the weights change.
    """
    known: Any = Executor.get_class(config)
    if settings.kv_cache_mb:
        return known

    class CacheForRows(known):
        def determine_available_memory(self) -> list[int]:
            rows, context = config.scheduler_config.max_num_seqs, config.model_config.max_model_len
            useful = [
                # vLLM keeps one block.
                sum(
                    s.page_size_bytes * (rows * blocks(context, s.block_size) + 1)
                    for s in specs.values()
                )
                for specs in self.get_kv_cache_specs()
            ]
            found = super().determine_available_memory()
            return [min(pair) for pair in zip(found, useful, strict=True)]

    return CacheForRows


def model_folder(joint: LlamaConfig, cache: Path) -> Path:
    """A folder that holds a model's config alone, which is how vLLM wants to read it.

    vLLM keeps what it compiled under `cache`, by the model's path among others. So equal configs have
    one path, or every start would compile anew. It lies there too, where nobody else can write. Raises
    UserError if the folder cannot be made.
    """
    home = cache / "bicot"
    text = joint.to_json_string()
    folder = home / hashlib.sha256(text.encode()).hexdigest()[:16]
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(home)
        folder.mkdir(mode=0o700, exist_ok=True)
        # Several workers may start at once: each puts the whole file in its place.
        with tempfile.NamedTemporaryFile("w", dir=home, delete=False) as file:
            file.write(text)
        os.replace(file.name, folder / "config.json")
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}: set VLLM_CACHE_ROOT to a folder that you can write to"
        ) from error
    return folder


def _check_owner(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & stat.S_IWOTH:
        raise UserError(
            f"{folder} is not a folder that belongs to you alone: remove it, or set VLLM_CACHE_ROOT to"
            " a folder of yours"
        )


def _check_head_size(janus: JanusConfig) -> None:
    """On CPUs vLLM would only fail in the middle of the first batch."""
    text = janus.text_config
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    known = CPUAttentionBackend.get_supported_head_sizes()
    if not torch.cuda.is_available() and size not in known:
        raise UserError(
            f"vLLM on a CPU has no attention for heads of size {size} (it has {known}):"
            " set actors.sampler: torch"
        )


def _check_cache(janus: JanusConfig, dtype: torch.dtype, settings: VLLMConfig) -> None:
    """vLLM requires that one row as long as the context fits; its own message names none of our
    keys."""
    text = janus.text_config
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * size * dtype.itemsize
    need = -(-per_token * text.max_position_embeddings // settings.tensor_parallel_size // 2**20)
    if settings.kv_cache_mb and settings.kv_cache_mb < need:
        raise UserError(
            f"actors.vllm.kv_cache_mb: {settings.kv_cache_mb} MB do not hold one row of the model's"
            f" context of {text.max_position_embeddings} tokens: it takes more than {need} MB,"
            " and a guided sample has two rows"
        )
