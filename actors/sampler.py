"""What a sampler is: it turns orders into samples, with weights that can be replaced under it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from policy.records import Draw, Sample
from policy.weights import TensorSpec

HALF_LOADED = -1


class SamplingConfig(BaseModel):
    """How a sample is drawn. The defaults are T2I-R1's (arXiv 2505.00703)."""

    model_config = ConfigDict(extra="forbid")

    guidance: float = Field(5.0, ge=1.0)
    """Classifier-free guidance weight w: uncond + w * (cond - uncond); 1 draws from cond alone."""
    temperature: float = Field(1.0, ge=0.0)
    """Divides the logits of both phases; 0 takes the likeliest token."""
    max_cot_tokens: int = Field(256, ge=1)
    """A semantic CoT that has not ended by then is cut: its first tokens are kept."""


class Sampler(ABC):
    """Draws semantic CoTs and images. Two rules bind every implementation, each with a test:

    - no sample depends on its batch-mates;
    - tokens are a pure function of (run seed, prompt id, sample index, phase, position) and weights.
    """

    weights_version: int = 0
    """HALF_LOADED: a load broke off in the middle, and nothing may be drawn until the next."""

    @abstractmethod
    def draw(self, orders: Sequence[Draw]) -> list[Sample]:
        """Draw one sample an order, in the orders' order."""

    @abstractmethod
    def load_weights(
        self,
        version: int,
        tensors: Iterable[tuple[str, Tensor]],
        specs: Sequence[TensorSpec] | None = None,
    ) -> None:
        """Replace the named parameters (transformers' names) in place.

        Names and shapes are checked before the first is touched: by `specs`, which say what will
        come, so that each tensor can be let go as soon as it is loaded; without them all are held.
        Raises ValueError for tensors that are not the model's. If `tensors` breaks off, its error
        passes, and the sampler refuses to draw until it has loaded a version whole.
        """
