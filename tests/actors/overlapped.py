"""vLLM's engine core as it runs on GPUs, with no GPU: asynchronous scheduling, a step in flight while
the next one is scheduled, the pair processor of model runner V2.

All of that is vLLM's own, down to the requests' slots. Only the forward pass is a stand-in: it makes
logits up from a row's tokens, so that a plain loop can say what must come out.
"""

from collections import deque
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.worker.gpu.model_runner import sort_batch_req_ids
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcRequestState
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.worker_base import CompilationTimes

from actors.token_choice import choose_tokens
from actors.vllm.engine import Request
from actors.vllm.guided_sampling import PairProcessorV2, PhaseConfig, PhaseTokens
from actors.vllm.worker import JanusWorker

BLOCK, LAYERS, HEADS, HEAD_SIZE = 32, 2, 4, 32


class Logits:
    """What the stand-in computes: float32 [V], for ever the same after the same tokens."""

    def __init__(self, vocabulary: int):
        self._vocabulary = vocabulary

    def after(self, tokens: list[int]) -> Tensor:
        seed = hash(tuple(tokens)) & 0x7FFFFFFF
        return 2 * torch.randn(self._vocabulary, generator=torch.Generator().manual_seed(seed))


def plain_loop(logits: Logits, text: int, config: PhaseConfig, request: Request) -> PhaseTokens:
    """One sample by itself. `text`: the size of the text vocabulary."""
    offset = text if config.phase == "image" else 0
    part = slice(offset, None) if offset else slice(text)
    rows = [list(prompt) for prompt in (request.prompt, request.negative) if prompt is not None]
    sampled, key = PhaseTokens(), torch.tensor([request.key])
    while len(sampled.tokens) < config.max_tokens and config.stop_id not in sampled.tokens[-1:]:
        conditional, *other = (logits.after(row)[None, part] for row in rows)
        choice = choose_tokens(
            conditional,
            key,
            torch.tensor([len(sampled.tokens)]),
            config.temperature,
            unconditional=other[0] if other else None,
            guidance=config.guidance,
        )
        sampled.tokens.append(token := int(choice.tokens))
        sampled.logps.append(float(choice.logps))
        sampled.guided_logps.append(float(choice.guided_logps))
        for row in rows:
            row.append(token + offset)
    return sampled


class InFlight(AsyncModelRunnerOutput):
    """Sampled tokens on their way to the host."""

    def __init__(self, output: ModelRunnerOutput, flying: deque):
        self._output = output
        self._flying = flying
        flying.append(self)

    def get_output(self) -> ModelRunnerOutput:
        self._flying.remove(self)
        return self._output


class Worker(JanusWorker):
    """Keeps the books of vLLM's V2 model runner: its `execute_model` and `sample_tokens`."""

    def __init__(self, config):
        self.memory = config.cache_config.kv_cache_memory_bytes
        self.vocabulary = config.model_config.hf_config.vocab_size
        self.logits = Logits(self.vocabulary)
        self.states = RequestState(
            max_num_reqs=config.scheduler_config.max_num_seqs,
            max_model_len=config.model_config.max_model_len,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            num_speculative_steps=0,
            vocab_size=self.vocabulary,
            device=torch.device("cpu"),
        )
        self.processor = PairProcessorV2(config, LogitsProcRequestState.from_request_state(self.states))
        self.model_runner = SimpleNamespace(sampler=SimpleNamespace(logits_processors=[self.processor]))
        self.model = SimpleNamespace(
            phase=None, load_weights=lambda named: set(), named_parameters=dict
        )
        self.histories: dict[int, list[int]] = {}  # by slot
        self.cached: list[int] = []  # of each admitted row, the tokens that the prefix cache had
        self.flying: deque[InFlight] = deque()
        self.most_in_flight = 0
        self.rows_drawn = 0
        self._scheduled = None

    def get_model(self):
        return self.model

    def execute_model(self, scheduled):
        for name in sorted(scheduled.finished_req_ids):
            self.states.remove_request(name)
        for new in scheduled.scheduled_new_reqs:
            self.states.add_request(
                new.req_id,
                new.prompt_len,
                new.prefill_token_ids,
                new.num_computed_tokens,
                new.sampling_params.max_tokens,
            )
            slot = self.states.req_id_to_index[new.req_id]
            self.processor.add_request(slot, new.sampling_params)
            self.histories[slot] = list(new.prefill_token_ids)
            self.cached.append(new.num_computed_tokens)
        old = scheduled.scheduled_cached_reqs
        for name, computed in zip(old.req_ids, old.num_computed_tokens, strict=True):
            self.states.num_computed_tokens_np[self.states.req_id_to_index[name]] = computed
        if not scheduled.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        self._scheduled = scheduled
        return None

    def sample_tokens(self, _):
        counts, self._scheduled = self._scheduled.num_scheduled_tokens, None
        names = sort_batch_req_ids(counts, {}, 1)
        slots = np.array([self.states.req_id_to_index[name] for name in names], np.intp)
        lengths = self.states.num_computed_tokens_np[slots] + [counts[name] for name in names]
        logits = torch.stack([self.logits.after(self.histories[slot]) for slot in slots])
        padded = np.concatenate([lengths, [0, 0, 0]]).astype(np.int32)
        context = SimpleNamespace(idx_mapping_np=slots, seq_lens_upper_bound_np=padded)
        tokens = self.processor.apply(logits, context).argmax(1).tolist()
        # The scheduler ran ahead of the tokens, and still knows how many there are.
        assert lengths.tolist() == [len(self.histories[slot]) for slot in slots]
        for slot, token in zip(slots, tokens, strict=True):
            self.histories[slot].append(token)
        self.rows_drawn += len(names)
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: n for n, name in enumerate(names)},
            sampled_token_ids=[[token] for token in tokens],
        )
        in_flight = InFlight(output, self.flying)
        self.most_in_flight = max(self.most_in_flight, len(self.flying))
        return in_flight

    # --- what vLLM asks for when it starts and ends ---

    def get_kv_cache_spec(self):
        spec = FullAttentionSpec(
            block_size=BLOCK, num_kv_heads=HEADS, head_size=HEAD_SIZE, dtype=torch.float32
        )
        return {f"layer {n}": spec for n in range(LAYERS)}

    def get_supported_kv_cache_layouts(self):
        return ["NHD", "HND"]

    def set_kv_cache_layout(self, layout):
        pass

    def determine_available_memory(self):
        return self.memory

    def initialize_from_config(self, configs):
        pass

    def compile_or_warm_up_model(self):
        return CompilationTimes(language_model=0.0, encoder=0.0)

    def get_supported_tasks(self):
        return ("generate",)

    def reset_mm_cache(self):
        pass

    def shutdown(self):
        pass


class OneWorker(UniProcExecutor):
    def _init_executor(self):
        self.driver_worker = Worker(self.vllm_config)
