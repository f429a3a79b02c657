"""The speed of GPUs by the maker's data sheets, and the share of it that a run reaches.

`Efficiency` holds every factor of the speed model, each with its source. A file of measured figures
replaces them (`bicot estimate --figures`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from policy.errors import UserError
from policy.jsonl import read_rows


@dataclass(frozen=True)
class Gpu:
    """`memory_bytes_s`: bandwidth. `flops`: dense, of the training dtype. `link_bytes_s`: to the other
    GPUs of a node, one way. `gib`: memory as the driver reports it."""

    name: str
    memory_bytes_s: float
    flops: float
    link_bytes_s: float
    gib: float
    source: str


def _gpu(name: str, tb_s: float, tflops: float, link_gb_s: float, gib: float, source: str) -> Gpu:
    return Gpu(name, tb_s * 1e12, tflops * 1e12, link_gb_s * 1e9, gib, source)


GPUS = {
    "a100-40": _gpu("A100 SXM, 40 GB", 1.555, 312, 300, 40, "NVIDIA A100 data sheet"),
    "a100-80": _gpu("A100 SXM, 80 GB", 2.039, 312, 300, 80, "NVIDIA A100 data sheet"),
    "h20": _gpu("H20, 96 GB", 4.0, 148, 450, 95.6, "NVIDIA H20 data sheet"),
    "h100": _gpu("H100 SXM, 80 GB", 3.35, 989, 450, 79.6, "NVIDIA H100 data sheet"),
    "h100-pcie": _gpu("H100 PCIe, 80 GB", 2.0, 756, 64, 79.6, "NVIDIA H100 data sheet"),
    "h200": _gpu("H200 SXM, 141 GB", 4.8, 989, 450, 140, "NVIDIA H200 data sheet"),
    "h800": _gpu("H800 SXM, 80 GB", 3.35, 989, 200, 79.6, "as H100, with NVLink of 400 GB/s"),
    "b200": _gpu("B200 SXM, 180 GB", 8.0, 2250, 900, 179, "NVIDIA Blackwell data sheet"),
    "l40s": _gpu("L40S, 48 GB", 0.864, 362, 32, 45, "NVIDIA L40S data sheet"),
    "l4": _gpu("L4, 24 GB", 0.3, 121, 32, 22.5, "NVIDIA L4 data sheet"),
}
"""Links are NVLink's, or PCIe's where there is none. bfloat16 without sparsity."""

CPU_CORE = Gpu(
    "CPU core",
    21e9,
    90e9,
    21e9,
    0,
    "float32, measured on one core of an AMD EPYC (docs/performance.md)",
)
"""The device of a process without a GPU: one core."""


def gpu_named(name: str) -> Gpu:
    """The GPU of a type. Raises UserError for one that is not in the table."""
    if name not in GPUS:
        raise UserError(f"--gpu: {name!r} is not known; there are {', '.join(GPUS)}")
    return GPUS[name]


def gpu_of_device(device: str) -> Gpu | None:
    """The GPU with this device name ("NVIDIA H100 80GB HBM3"); None: it is not in the table."""
    names = {
        "NVIDIA A100-SXM4-40GB": "a100-40",
        "NVIDIA A100-SXM4-80GB": "a100-80",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA H200": "h200",
        "NVIDIA H800": "h800",
        "NVIDIA B200": "b200",
        "NVIDIA H20": "h20",
        "NVIDIA L40S": "l40s",
        "NVIDIA L4": "l4",
    }
    return GPUS[names[device]] if device in names else None


@dataclass(frozen=True)
class Factor:
    value: float
    meaning: str
    source: str


def _assumed(value: float, meaning: str, why: str) -> Factor:
    return Factor(value, meaning, f"assumed: {why}")


FACTORS: dict[str, Factor] = {
    "decode_bandwidth": _assumed(
        0.81,
        "share of the memory bandwidth at which a decode step reads weights and cache",
        "a large copy reaches 0.9 on an H100 (3.0 of 3.35 TB/s), kernels 0.9 of that",
    ),
    "decode_step_s": _assumed(
        1.3e-3,
        "a decode step's kernels whose time does not grow with weights or cache",
        "logits, noise and the gaps between kernels",
    ),
    "launch_s_a_layer.vllm": _assumed(
        0.0,
        "the host's time to launch one layer's kernels, which the GPU's work hides",
        "vLLM runs decode steps as CUDA graphs",
    ),
    "launch_s_a_layer.torch": _assumed(
        0.43e-3, "the same, torch sampler", "1,050 kernels a step of 30 layers, 12 microseconds each"
    ),
    "launch_s_a_layer.plain": _assumed(
        0.75e-3,
        "the same, transformers' generation loop",
        "20 to 25 ms a token are usual for 30 layers",
    ),
    "synchronize_s.vllm": _assumed(
        0.0, "what a decode step waits for the host to read a token", "asynchronous scheduling"
    ),
    "synchronize_s.torch": _assumed(0.0, "the same, torch sampler", "tokens stay on the GPU"),
    "synchronize_s.plain": _assumed(0.0, "the same, transformers' loop", "hidden by its launches"),
    "longest_cot": _assumed(
        1.5, "tokens of a batch's longest semantic CoT, over the mean", "as many steps are made"
    ),
    "prefill_flops": _assumed(
        0.4, "share of the FLOP/s that reading prompts reaches", "large matrix products"
    ),
    "image_decoder_flops": _assumed(
        0.09, "share of the FLOP/s that decoding images reaches", "convolutions: 48 images in 0.3 s"
    ),
    "learner_flops": _assumed(
        0.38,
        "share of the FLOP/s that the learner's passes reach",
        "330 to 420 TFLOP/s on an H100; large models usually train at 0.3 to 0.45",
    ),
    "link": _assumed(
        0.15, "share of the link that a broadcast reaches", "buckets of 64 MB, one after another"
    ),
    "collective_link": _assumed(
        0.5, "share of the link that ZeRO's collectives reach", "NCCL reaches 0.7 on large buffers"
    ),
    "store_bytes_s": _assumed(
        3e9, "weights into the object store, and out of it", "2 to 4 GB/s through host memory"
    ),
    "host_link_bytes_s": _assumed(25e9, "from host memory to a GPU", "PCIe 4, pinned"),
    "driver_s": _assumed(
        0.1, "the driver's own part of a step", "27 ms with 256 simulated workers (docs/results.md)"
    ),
    "expert_flops": _assumed(
        0.1, "share of the FLOP/s that an expert reaches", "small batches, images prepared on the host"
    ),
}


EXPERT = "expert_s."
"""Prefix before an expert's name: measured seconds an image of one replica."""


def is_factor(name: str) -> bool:
    return name in FACTORS or name.startswith(EXPERT)


class Efficiency:
    """The factors; measured ones replace assumed ones."""

    def __init__(self, measured: Mapping[str, float] | None = None, source: str = "measured"):
        self.measured = dict(measured or {})
        self.source = source
        if wrong := [name for name in self.measured if not is_factor(name)]:
            raise KeyError(f"no factors: {wrong}")

    def __getitem__(self, name: str) -> float:
        return self.measured.get(name, FACTORS[name].value)

    @property
    def experts(self) -> dict[str, float]:
        """Measured seconds an image, by expert."""
        named = ((name.removeprefix(EXPERT), name) for name in self.measured if name.startswith(EXPERT))
        return {expert: self.measured[name] for expert, name in named}

    def source_of(self, name: str) -> str:
        return self.source if name in self.measured else FACTORS[name].source

    def replaced(self, **values: float) -> "Efficiency":
        """A copy with other values; dots in a name are written as __."""
        named = {name.replace("__", "."): value for name, value in values.items()}
        return Efficiency({**self.measured, **named}, self.source)


def read_figures(path: Path) -> Efficiency:
    """JSON lines {"figure": NAME, "value": NUMBER, ...}, as `benchmarks.gpu` writes them among others;
    the last of a repeated figure counts, and figures that are no factors are skipped.

    Raises UserError for a line of another form, and if no line is a factor.
    """
    measured: dict[str, float] = {}
    for number, row in read_rows(path, "file of figures"):
        if "part" in row and not is_factor(str(row.get("figure"))):
            continue  # no factor, or one that the benchmark could not measure
        name, value = row.get("figure"), row.get("value")
        if not (isinstance(name, str) and isinstance(value, int | float) and 0 <= value < math.inf):
            raise UserError(
                f'--figures: {path}:{number}: not {{"figure": "...", "value": number >= 0}}'
            )
        if is_factor(name):
            measured[name] = float(value)
    if not measured:
        raise UserError(f"--figures: {path}: holds none of {', '.join(FACTORS)}, {EXPERT}NAME")
    return Efficiency(measured, f"measured: {path.name}")
