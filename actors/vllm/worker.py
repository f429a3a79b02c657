"""Methods that the engine adds to vLLM's worker processes.

vLLM imports this in every worker, before it builds the model: so the model is known there, too, where
a worker is a process of its own (tensor parallelism).
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from actors.vllm.guided_sampling import (
    PairProcessorV1,
    PairProcessorV2,
    PairSampler,
    PhaseConfig,
    PhaseTokens,
)
from actors.vllm.model import register

register()


class JanusWorker:
    """A mixin for vLLM's worker class. The pair samplers of all workers hold the same."""

    get_model: Callable[[], Any]
    model_runner: Any

    def begin_phase(self, config: PhaseConfig) -> None:
        self.get_model().phase = config.phase
        self._pair_sampler().config = config

    def take_tokens(self) -> dict[int, PhaseTokens]:
        """The tokens sampled since the last call, by sample."""
        return self._pair_sampler().take()

    def replace_parameters(self, named: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Returns the names of the parameters that were left as they are."""
        model = self.get_model()
        loaded = model.load_weights(iter(named))
        return {name for name, _ in model.named_parameters()} - loaded

    def _pair_sampler(self) -> PairSampler:
        runner = self.model_runner
        v2 = hasattr(runner, "sampler") and hasattr(runner.sampler, "logits_processors")
        found = runner.sampler.logits_processors if v2 else runner.input_batch.logitsprocs.all
        return next(p.pair_sampler for p in found if isinstance(p, PairProcessorV1 | PairProcessorV2))
