"""Predictions of the figures, made before any measurement on a GPU, and their reasons.

For Janus-Pro-7B on one H100 of 80 GB, unless the conditions say otherwise. The arithmetic: a decoding
step reads the trunk (12.1 GB in bfloat16) and the keys and values so far (0.49 MB a token and row) at
3.0 TB/s; a kernel costs the host 10 to 15 us to launch; the learner's trunk takes 12.1 GFLOP a token
and pass. Rounding was measured on a CPU, with the checkpoint of the shapes world.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Prediction:
    figure: str
    """"part.figure"."""
    low: float
    high: float
    rests_on: str
    where: Mapping[str, object] = field(default_factory=dict)
    """Conditions under which it holds."""

    @property
    def range(self) -> str:
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"


SHAPES = "shapes checkpoint, CPU"
EXACT = "noise is the same on every device"
BIG: dict[str, object] = {"gpu": True, "model": "Janus-Pro-7B"}
BF16: dict[str, object] = {"dtype": "bfloat16", "sampler": "torch"}
FP32: dict[str, object] = {"dtype": "float32"}
CPU: dict[str, object] = {"gpu": False}

PREDICTIONS = (
    Prediction("env.copy_gb_s", 3000, 3000, "what is assumed for an H100 below", {"gpu": True}),
    # right: tokens
    Prediction("right.cots_same", 1, 1, EXACT, FP32),
    Prediction("right.images_same", 0.95, 1, f"{EXACT}; a few may turn on a last bit", FP32),
    Prediction("right.pixels_apart", 0, 1, "where a level is rounded", FP32),
    # right: sampler against learner
    Prediction("right.gap_mean", 0, 1e-6, f"3e-7: {SHAPES}", FP32 | CPU),
    Prediction("right.gap_mean", 1e-4, 2e-3, f"4.4e-4: {SHAPES}", BF16 | {"tokens": "cot"}),
    Prediction("right.gap_max", 0, 0.05, f".009: {SHAPES}", BF16 | {"tokens": "cot"}),
    Prediction("right.gap_share", 0, 0.02, f"none: {SHAPES}", BF16 | {"tokens": "cot"}),
    Prediction("right.gap_mean", 2e-4, 1e-2, f"4.4e-4: {SHAPES}", BF16 | {"tokens": "image"}),
    Prediction("right.gap_share", 0.005, 0.03, f"1.2 %: {SHAPES}", BF16 | {"tokens": "image"}),
    Prediction(
        "right.gap_mean", 1e-2, 3e-2, f"1.8e-2: {SHAPES}", BF16 | {"tokens": "guided", "guidance": 5.0}
    ),
    Prediction("right.gap_max", 0, 3, f"1.5: {SHAPES}", BF16 | {"tokens": "guided", "guidance": 5.0}),
    # torch
    Prediction("torch.kernels", 1050, 1050, "counted by operations, 35 a layer", BIG),
    Prediction("torch.launch_ms", 10, 15, "10 to 15 us a kernel", BIG),
    Prediction(
        "torch.gpu_ms", 8, 8, "weights and cache at 3.0 TB/s, and small kernels", BIG | {"pairs": 8}
    ),
    Prediction("torch.step_ms", 9, 13, "13 by launches, 9 in a CUDA graph", BIG | {"pairs": 24}),
    # decode
    Prediction("decode.batch_s", 0.2, 0.4, "570 GFLOP an image", BIG | {"images": 48}),
    Prediction("decode.peak_gb", 6, 8, "activations at 384 x 384", BIG | {"images": 48}),
    # learn and publish
    Prediction("learn.tflops", 330, 420, "12.1 GFLOP a token, layer by layer the same", BIG),
    Prediction("publish.pack_gb_s", 2, 4, "pageable copies, one thread", BIG),
    # vllm
    Prediction("vllm.v2_runner", 1, 1, "vLLM's sources", {"gpu": True}),
    Prediction("vllm.async_scheduling", 1, 1, "vLLM's sources", {"gpu": True}),
    Prediction("vllm.limit_ms", 10, 10, "30 GB at 3.0 TB/s", BIG | {"pairs": 48}),
    Prediction(
        "vllm.step_ms", 12.3, 17, "17; 12.3 if drawing never waits for the GPU", BIG | {"pairs": 48}
    ),
    Prediction("vllm.images_s", 4.9, 6.8, "48 pairs over 576 steps of these", BIG | {"pairs": 48}),
    Prediction("vllm.cots_same", 1, 1, EXACT, FP32 | CPU),
    Prediction("vllm.images_same", 1, 1, EXACT, FP32 | CPU),
    Prediction("vllm.gap_mean", 0, 1e-6, f"3e-7: {SHAPES}", FP32 | CPU),
    Prediction("vllm.gap_mean", 0, 1e-2, "no worse than the torch sampler", {"dtype": "bfloat16"}),
    Prediction("vllm.changed_by_new_weights", 1, 1, "every step reads the weights", {"gpu": True}),
    Prediction("vllm.same_after_old_weights", 1, 1, EXACT, CPU),
)


def prediction(figure: str, conditions: Mapping[str, object]) -> Prediction | None:
    """The first prediction for this figure under these conditions."""
    for made in PREDICTIONS:
        if made.figure == figure and made.where.items() <= conditions.items():
            return made
    return None
