"""A vLLM engine in this process that draws whole samples, with weights that can be replaced."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import JanusConfig
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from actors.sampler import Progress
from actors.vllm.config import VLLMConfig
from actors.vllm.guided_sampling import PairedRow, PhaseConfig, PhaseTokens
from actors.vllm.launch import engine_config, executor_class
from actors.vllm.scheduler import blocks
from policy.errors import UserError

_BUCKET_BYTES = 2**28
"""How many bytes of weights go to other processes at once (a larger tensor goes alone)."""


@dataclass(frozen=True)
class Request:
    """A request for one sample's tokens in one phase."""

    prompt: list[int]
    negative: list[int] | None
    """The unconditional row's prompt, as long as the other; None: no guidance."""
    key: int
    """The noise stream."""


class Engine:
    """Holds dummy weights until the first `load_weights`, which must bring all of them.

    Use one engine a process: ending it removes vLLM's process-wide state.
    """

    def __init__(
        self, janus: JanusConfig, dtype: torch.dtype, settings: VLLMConfig, num_gpus: float = 1.0
    ):
        """`num_gpus`: the GPUs of this process; with a part of one, the engine takes its share of that
        part."""
        self._config = engine_config(janus, dtype, settings, num_gpus)
        self._engine = LLMEngine(
            vllm_config=self._config,
            executor_class=executor_class(self._config, settings),
            log_stats=False,
            multiprocess_mode=False,
        )
        self._phase: PhaseConfig | None = None
        self._output_kind = RequestOutputKind.FINAL_ONLY
        self._rows: dict[str, int] = {}  # unfinished request -> its sample
        self._tokens: dict[int, list[int]] = {}  # finished sample -> the tokens that vLLM returned
        self._so_far: dict[int, list[int]] = {}  # the same for every sample, with `each_step`

    def run(
        self, config: PhaseConfig, requests: Sequence[Request], on_progress: Progress | None = None
    ) -> list[PhaseTokens]:
        """Sample all requests, one PhaseTokens each, in their order. All or nothing."""
        self.submit(config, requests, each_step=on_progress is not None)
        try:
            while self._rows:
                self.step()
                if on_progress is not None:
                    on_progress([self._drawn_so_far(sample) for sample in range(len(requests))])
        except BaseException:
            self.abandon()
            raise
        sampled = self.collect()
        return [sampled[n] for n in range(len(requests))]

    # --- run, in pieces ---

    def submit(
        self, config: PhaseConfig, requests: Sequence[Request], *, each_step: bool = False
    ) -> None:
        """Hand requests to vLLM; a request's number is its sample. One phase at a time. `each_step`:
        vLLM returns the sampled tokens after every step, not only at the end."""
        if self.busy:
            raise RuntimeError("a batch is still being sampled")
        for request in requests:
            self._check_fits(request, config.max_tokens)
        self._phase = config
        self._tokens, self._so_far = {}, {}
        self._output_kind = RequestOutputKind.CUMULATIVE if each_step else RequestOutputKind.FINAL_ONLY
        self._on_workers("begin_phase", config)
        for sample, request in enumerate(requests):
            if request.negative is None:
                self._add(PairedRow(sample, "alone", config.phase, request.key), request.prompt)
            else:
                self._add(PairedRow(sample, "cond", config.phase, request.key), request.prompt)
                self._add(PairedRow(sample, "uncond", config.phase, request.key), request.negative)

    def step(self) -> None:
        """One forward pass over the rows that run together."""
        for output in self._engine.step():
            tokens = list(output.outputs[0].token_ids)
            self._so_far[self._rows[output.request_id]] = tokens
            if output.finished:
                sample = self._rows.pop(output.request_id)
                if self._tokens.setdefault(sample, tokens) != tokens:
                    raise RuntimeError(f"the two rows of sample {sample} got different tokens")

    def abort(self, samples: Sequence[int]) -> None:
        """Give up some samples, with all their rows at once."""
        rows = [name for name, sample in self._rows.items() if sample in set(samples)]
        for name in rows:
            del self._rows[name]
        self._engine.abort_request(rows)

    def abandon(self) -> None:
        """Abort all requests, and reset the cache: a failed step may have left blocks in it that are
        marked as computed and are not."""
        self.abort(list(self._rows.values()))
        # The step after the failed one is under way and fails too: its error must not reach the next
        # batch.
        if steps := self._engine.engine_core.engine_core.batch_queue:
            steps.clear()
        self._on_workers("take_tokens")
        self._engine.reset_prefix_cache()

    def collect(self) -> dict[int, PhaseTokens]:
        """The tokens of every finished sample."""
        assert self._phase is not None
        journal = self._on_workers("take_tokens")
        offset = self._first_id
        found = {}
        for sample, tokens in self._tokens.items():
            sampled, length = journal[sample], len(tokens)
            if [t + offset for t in sampled.tokens[:length]] != tokens:
                raise RuntimeError(f"vLLM reports other tokens than were sampled for sample {sample}")
            # With asynchronous scheduling a row is sampled once more before its end is seen.
            columns = (sampled.tokens, sampled.logps, sampled.guided_logps)
            found[sample] = PhaseTokens(*(column[:length] for column in columns))
        return found

    @property
    def _first_id(self) -> int:
        """The first id of this phase in the joint vocabulary."""
        assert self._phase is not None
        text = self._config.model_config.hf_config.text_vocabulary
        return text if self._phase.phase == "image" else 0

    def _drawn_so_far(self, sample: int) -> list[int]:
        return [token - self._first_id for token in self._so_far.get(sample, [])]

    @property
    def busy(self) -> bool:
        return bool(self._rows)

    # --- weights ---

    def load_weights(self, named: Iterable[tuple[str, Tensor]], *, complete: bool = False) -> None:
        """Replace parameters by transformers' names, between batches. Tensors that vLLM has no use for
        are skipped; with `complete`, a missing one is an error."""
        if self.busy:
            raise RuntimeError("weights cannot change while a batch is being sampled")
        apart = self._config.parallel_config.world_size > 1
        buckets = _buckets(named) if apart else (named,)
        missing = set.intersection(*(self._on_workers("replace_parameters", b) for b in buckets))
        if complete and missing:
            raise ValueError(f"the engine's first weights are incomplete: {sorted(missing)[:5]}")
        # Keys and values of the old weights must not meet queries of the new ones.
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM did not let go of the keys and values of the old weights")

    # --- helpers ---

    def _add(self, paired_row: PairedRow, prompt: list[int]) -> None:
        assert self._phase is not None
        name = f"{paired_row.sample}-{paired_row.role}"
        stop = self._phase.stop_id
        params = SamplingParams(
            temperature=0.0,  # the PairSampler draws; vLLM only takes the likeliest
            max_tokens=self._phase.max_tokens,
            stop_token_ids=None if stop is None else [stop],
            ignore_eos=True,
            detokenize=False,
            output_kind=self._output_kind,
            extra_args=paired_row.extra_args(),
        )
        self._engine.add_request(name, {"prompt_token_ids": prompt}, params)
        self._rows[name] = paired_row.sample

    def _check_fits(self, request: Request, new: int) -> None:
        rows = 1 if request.negative is None else 2
        cache, scheduler = self._config.cache_config, self._config.scheduler_config
        tokens = rows * len(request.prompt)
        if tokens > scheduler.max_num_batched_tokens:
            raise UserError(
                f"a sample's prompts have {tokens} tokens and are computed in one step: raise"
                f" actors.vllm.max_num_batched_tokens from {scheduler.max_num_batched_tokens}"
            )
        need = rows * blocks(len(request.prompt) + new, cache.block_size)
        have = cache.num_gpu_blocks - 1  # vLLM keeps one block for itself
        if need > have:
            raise UserError(
                f"a sample of {rows} rows, {len(request.prompt)} prompt tokens and {new} new ones each,"
                f" needs {need} blocks of the key/value cache, which has {have}: raise"
                " actors.vllm.kv_cache_mb (or gpu_memory_utilization)"
            )

    def _on_workers(self, method: str, *args):
        """Call a method of every JanusWorker, and return the first one's result: all hold the same."""
        return self._engine.collective_rpc(method, args=args)[0]


def _buckets(named: Iterable[tuple[str, Tensor]]) -> Iterator[list[tuple[str, Tensor]]]:
    """Buckets in order, at least one (empty). Each is filled only when the last has been sent."""
    bucket: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in named:
        if bucket and size + tensor.nbytes > _BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor.detach()))  # vLLM copies a Parameter twice, a plain tensor once
        size += tensor.nbytes
    yield bucket
