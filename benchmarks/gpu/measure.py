"""Measures seconds, bytes and kernels."""

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.figures import Figures
from benchmarks.gpu.setting import DEVICE, ON_GPU
from cluster.estimate.hardware import Gpu, gpu_of_device


def this_gpu() -> Gpu | None:
    """This machine's GPU by its data sheet; None: it is not known."""
    return gpu_of_device(torch.cuda.get_device_name()) if ON_GPU else None


def wait() -> None:
    """Wait until the GPU has finished its work."""
    if ON_GPU:
        torch.cuda.synchronize()


def seconds(call: Callable, runs: int = 1) -> float:
    """Median seconds of a call, the GPU's work included."""
    times = []
    for _ in range(runs):
        wait()
        started = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def seconds_to_launch(call: Callable) -> float:
    """Seconds until the call returns, without the GPU's work."""
    wait()
    started = time.perf_counter()
    call()
    launched = time.perf_counter() - started
    wait()
    return launched


def fresh_memory() -> None:
    """Free unused memory, and reset the peak counters."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def add_memory(figures: Figures, what: str, **where) -> None:
    """Torch's memory on the GPU, if there is one: `held_gb` now, or `peak_gb` since `fresh_memory`."""
    if ON_GPU:
        read = torch.cuda.max_memory_allocated if what == "peak_gb" else torch.cuda.memory_allocated
        figures.add(what, read() / 1e9, "GB", **where)


def copy_bytes_s() -> float:
    """Bytes a second, read and written, of a copy that no cache holds: the bound of a decoding step."""
    size = 2**32 if ON_GPU else 2**26
    source, target = (torch.zeros(size, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    target.copy_(source)
    return 2 * size / seconds(lambda: target.copy_(source), 10)


class Work(NamedTuple):
    """The work of a call on the device."""

    kernels: int
    """On a CPU: operators."""
    busy_ms: float


def traced(call: Callable, table: Path | None = None) -> Work:
    """Run a call under the profiler; write the longest kernels to `table`."""
    activities = [ProfilerActivity.CUDA] if ON_GPU else [ProfilerActivity.CPU]
    wait()
    with profile(activities=activities) as trace:
        call()
        wait()
    events = [e for e in trace.events() if _counts(e)]
    if table:
        by = "self_cuda_time_total" if ON_GPU else "self_cpu_time_total"
        text = trace.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=80)
        table.write_text(text, encoding="utf-8")
    return Work(len(events), sum(_ms(e) for e in events))


def _counts(event) -> bool:
    if ON_GPU:
        return event.device_type == DeviceType.CUDA
    return event.name.startswith("aten::")


def _ms(event) -> float:
    return (event.device_time if ON_GPU else event.self_cpu_time_total) / 1e3


def parameters(modules: Iterable[torch.nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())
