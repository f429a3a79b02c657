"""How many rollout workers there are, what each gets, and how they sample."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from actors.vllm.config import VLLMConfig
from policy.resources import CustomResources, Labels


class SamplingConfig(BaseModel):
    """How a sample is generated. The defaults are T2I-R1's (arXiv 2505.00703)."""

    model_config = ConfigDict(extra="forbid")

    guidance: float = Field(5.0, ge=1.0)
    """Classifier-free guidance weight w: uncond + w * (cond - uncond); 1 draws from cond alone."""
    temperature: float = Field(1.0, ge=0.0)
    """Divides the logits of both phases; 0 takes the likeliest token."""
    max_cot_tokens: int = Field(256, ge=1)
    """A longer semantic CoT is cut: its first tokens are kept."""


class ActorsConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int = Field(1, ge=1)
    """Rollout workers."""
    num_cpus: float = Field(1.0, ge=0)
    """CPUs that Ray reserves for one actor."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs that Ray reserves for one actor. With less than one GPU, vLLM takes its share of that part
    only."""
    resources: CustomResources = {}
    """Custom resources of Ray that one actor takes, by name; only some nodes have them."""
    labels: Labels = {}
    """Labels of the nodes that are meant for rollouts."""
    sampler: Literal["auto", "torch", "vllm"] = "auto"
    """auto: vllm where it is installed and `num_gpus` asks for a GPU, else torch. The tokens are the
    same."""
    load_timeout_s: float = Field(1800.0, gt=0)
    """How long a rollout worker may take to load the model, a download included."""
    timeout_s: float = Field(1800, gt=0)
    """How long a batch may take, waiting included. A worker that takes longer is replaced."""
    max_redraws: int = Field(5, ge=0)
    """How often a batch is given to another worker before the run gives up."""
    batch_size: int = Field(32, ge=1)
    """Samples that one worker generates together, at most; a group is never split."""
    sampling: SamplingConfig = SamplingConfig()
    """How a sample is generated."""
    vllm: VLLMConfig = VLLMConfig()
    """Settings of the vLLM engine; the torch sampler has none."""

    @model_validator(mode="after")
    def _parallel_parts_have_gpus(self):
        parts = self.vllm.tensor_parallel_size
        if parts > 1 and 0 < self.num_gpus < parts:  # one part alone may have a share of a GPU
            raise ValueError(
                f"vllm.tensor_parallel_size of {parts} wants num_gpus: {parts}, not {self.num_gpus:g}"
            )
        return self
