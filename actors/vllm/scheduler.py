"""Which rows run together. vLLM's own scheduler admits, cuts and preempts rows one by one, which takes
a pair apart as soon as anything is scarce. This one decides for whole samples:

- a sample is admitted with all its rows or not at all, in order of arrival;
- its prompts are computed whole, in one step;
- the cache blocks that it may need are reserved, so that nothing is ever preempted.
"""

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from actors.vllm.guided_sampling import LockstepError, paired_row_of


def blocks(tokens: int, block_size: int) -> int:
    """Cache blocks that a row of this length fills."""
    return -(-tokens // block_size)


class _WholeSamples(Scheduler):
    """Mixed into both of vLLM's schedulers."""

    waiting: Any

    def schedule(self, *args, **kwargs) -> SchedulerOutput:
        held = self._hold_back() if self.waiting else []
        try:
            output = super().schedule(*args, **kwargs)
            left = bool(self.waiting)
        finally:
            for request in held:
                self.waiting.add_request(request)
        try:
            if left:
                raise LockstepError("vLLM did not schedule a sample that was admitted")
            self._check(output)
        except LockstepError:
            # No worker will see this output: pass the finished requests on next time, or the workers
            # keep rows for them.
            self.finished_req_ids |= output.finished_req_ids
            raise
        return output

    def _hold_back(self) -> list[Request]:
        """Leave in the waiting queue what this step admits; return the rest, in order."""
        rows = self.max_num_active_reqs - len(self.running)
        tokens = self.max_num_scheduled_tokens - len(self.running)
        free = self._unclaimed_blocks()
        samples = _by_sample(self.waiting)
        admitted: list[Request] = []
        while samples:
            sample = samples[0]
            new = sum(r.num_tokens for r in sample)
            need = sum(map(self._blocks, sample))
            if len(sample) > rows or new > tokens or need > free:
                if not self.running and not admitted:
                    raise ValueError(
                        f"a sample can never run: {len(sample)} rows of {rows}, {new} prompt tokens of"
                        f" {tokens}, {need} cache blocks of {free}"
                    )
                break
            rows, tokens, free = rows - len(sample), tokens - new, free - need
            admitted += samples.pop(0)
        self.waiting = create_request_queue(self.policy)
        for request in admitted:
            self.waiting.add_request(request)
        return [request for sample in samples for request in sample]

    def _unclaimed_blocks(self) -> int:
        """Free blocks less those that the running rows may still need."""
        manager = self.kv_cache_manager
        claimed = sum(
            self._blocks(r) - len(manager.get_block_ids(r.request_id)[0]) for r in self.running
        )
        return manager.block_pool.get_num_free_blocks() - claimed

    def _blocks(self, request: Request) -> int:
        return blocks(request.num_prompt_tokens + request.max_tokens, self.block_size)

    def _check(self, output: SchedulerOutput) -> None:
        scheduled = [self.requests[name] for name in output.num_scheduled_tokens]
        for rows in _by_sample(scheduled):
            if len({(r.num_output_tokens, r.num_tokens - r.num_computed_tokens) for r in rows}) > 1:
                raise LockstepError(
                    f"the rows of a pair are at different tokens: sample {_name(rows[0])}"
                )

    def _preempt_request(self, request: Request, *args, **kwargs):
        raise LockstepError(f"vLLM wants to preempt a row of sample {_name(request)}")


def _by_sample(requests: Iterable[Request]) -> list[list[Request]]:
    """Rows grouped by sample, in order of arrival. Raises LockstepError if a pair is not whole."""
    samples: dict[object, list[Request]] = {}
    for request in requests:
        samples.setdefault(_name(request), []).append(request)
    for name, rows in samples.items():
        paired_rows = [paired_row_of(r.sampling_params) for r in rows]
        if (
            any(paired_row and paired_row.role != "alone" for paired_row in paired_rows)
            and len(rows) != 2
        ):
            raise LockstepError(f"only one row of a pair is left: sample {name}")
    return list(samples.values())


def _name(request: Request) -> object:
    paired_row = paired_row_of(request.sampling_params)
    return paired_row.sample if paired_row else request.request_id


class PairScheduler(_WholeSamples, Scheduler):
    pass


class AsyncPairScheduler(_WholeSamples, AsyncScheduler):
    pass
