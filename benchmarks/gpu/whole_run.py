"""Part `end_to_end`: a few steps of the shapes world by `bicot train`, with Ray, all roles on this
machine, and the GPU shared by those that use one.
"""

import json
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.figures import Figures
from benchmarks.gpu.measure import seconds
from benchmarks.gpu.setting import EXAMPLES, ON_GPU, Setting
from policy.errors import UserError

STEPS = 3
SMALL = (
    "name=end_to_end",
    f"train.steps={STEPS}",
    f"train.save_every={STEPS}",
    "evaluate.samples_per_prompt=1",
    "actors.count=1",
    "learner.ranks=1",
    "ray.dashboard=false",
)
ON_ONE_GPU = (
    "actors.num_gpus=0.5",
    "learner.num_gpus=0.4",
    # By default vLLM takes most of the GPU, which the learner shares.
    "actors.vllm.gpu_memory_utilization=0.3",
)


def end_to_end(setting: Setting, figures: Figures, case: str) -> None:
    _check_ray()
    held_out = setting.scratch / "heldout.jsonl"
    prompts = (EXAMPLES / "shapes" / "prompts" / "heldout.jsonl").read_text(encoding="utf-8")
    held_out.write_text("".join(prompts.splitlines(keepends=True)[::16]), encoding="utf-8")
    overrides = [*SMALL, f"evaluate.prompts={held_out}", f"runs_dir={setting.scratch}"]
    if ON_GPU:
        overrides += [*ON_ONE_GPU, f"actors.vllm.enforce_eager={str(setting.eager).lower()}"]
    config = str(EXAMPLES / "shapes" / "train.yaml")
    command = [sys.executable, "-m", "cluster", "train", config, *overrides]
    # Its output goes where this process's goes: into the part's log.
    ended = []
    taken = seconds(
        lambda: ended.append(subprocess.run(command, cwd=EXAMPLES.parent, timeout=3600).returncode)
    )
    if ended != [0]:
        raise UserError(f"bicot train ended with status {ended[0]}: the reason is in end_to_end.log")
    figures.add("whole_s", taken, "s", steps=STEPS)
    for name, values in _metrics(setting.scratch / "end_to_end" / "metrics.jsonl").items():
        role, _, what = name.rpartition("/")
        if role == "time":
            # The first step is a warm-up.
            figures.add(f"{what}_s", statistics.median(values[1:] or values), "s", steps=STEPS)
        elif name == "throughput/samples_per_s":
            figures.add("images_s", statistics.median(values[1:] or values), "images/s", steps=STEPS)


def _check_ray() -> None:
    """Raises UserError if `import ray` imports something else than Ray."""
    try:
        import ray
    except ImportError:
        ray = None
    if not hasattr(ray, "__version__") or find_spec("ray.serve") is None:
        raise UserError("it needs Ray, which is not installed here: make install")


def _metrics(path: Path) -> dict[str, list[float]]:
    """Name -> all values, step by step."""
    found: dict[str, list[float]] = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        for name, value in (json.loads(line) if line else {}).items():
            if isinstance(value, int | float):
                found.setdefault(name, []).append(float(value))
    return found
