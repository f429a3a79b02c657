"""Settings of the vLLM engine inside one rollout worker."""

from pydantic import BaseModel, ConfigDict, Field


class VLLMConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kv_cache_mb: int | None = Field(None, ge=1)
    """Memory for keys and values; None: on a GPU what `gpu_memory_utilization` leaves, on a CPU 256,
    but no more than `max_num_seqs` rows of the model's context fill."""
    gpu_memory_utilization: float = Field(0.85, gt=0.0, le=1.0)
    """Share of a GPU's memory for weights, activations and, without `kv_cache_mb`, the cache; where
    `actors.num_gpus` is less than 1, of that part of the GPU."""
    max_num_seqs: int = Field(128, ge=2)
    """Rows that run together; a guided sample has two. Samples above that wait their turn."""
    max_num_batched_tokens: int = Field(8192, ge=2)
    """Tokens of one step. Prompts are never cut, so two of the longest ones must fit."""
    block_size: int | None = Field(None, ge=1)
    """Tokens of one block of the cache, and of a shared prefix; None: vLLM's choice."""
    prefix_caching: bool = True
    """Compute the common start of prompts once."""
    enforce_eager: bool = False
    """Run without CUDA graphs. CPUs always do."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that share one copy of the model."""
