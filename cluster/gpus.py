"""What GPUs can do, by the maker's data sheets."""

from dataclasses import dataclass

from policy.errors import UserError


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
"""Links: NVLink's, or PCIe's where there is none. bfloat16 without sparsity."""

CPU_CORE = Gpu(
    "CPU core",
    21e9,
    90e9,
    21e9,
    0,
    "float32, measured on one core of an AMD EPYC (docs/performance.md)",
)
"""What a process without a GPU has: one core."""


def gpu_named(name: str) -> Gpu:
    """Raises UserError for a type that is not in the table."""
    if name not in GPUS:
        raise UserError(f"--gpu: {name!r} is not known; there are {', '.join(GPUS)}")
    return GPUS[name]


def gpu_of_device(device: str) -> Gpu | None:
    """The GPU that calls itself so ("NVIDIA H100 80GB HBM3"); None: it is not in the table."""
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
