"""Measures on this machine's GPU; with --tiny it checks on any machine that measuring works.

    python -m benchmarks.gpu                       # all parts, Janus-Pro-7B in random weights
    python -m benchmarks.gpu right vllm            # some
    python -m benchmarks.gpu --tiny                # a tiny model, on CPUs too

Every case of a part is a process of its own with a time limit: it has the GPU to itself, and a failure
or a hang is reported in a line while the others go on. The output of libraries is in a folder of logs
beside the figures. docs/gpu.md describes the parts and their figures.
"""

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    where: str
    """module:function"""
    limit_s: float
    name: str = ""
    gpu_only: bool = False
    """Skipped for a tiny model, where another case covers it."""


PARTS: dict[str, tuple[Case, ...]] = {
    "env": (Case("card:env", 90),),
    "right": (
        Case("agreement:right", 120, "float32"),
        Case("agreement:right", 120, "bfloat16"),
    ),
    "torch": (Case("sampling:torch_sampler", 300),),
    "decode": (Case("sampling:decode", 90),),
    "learn": (
        Case("learning:learn", 180, "recomputed"),
        Case("learning:learn", 180, "no reference", gpu_only=True),
        Case("learning:learn", 180, "kept", gpu_only=True),
    ),
    "publish": (Case("learning:publish", 180),),
    "vllm": (
        Case("vllm_parts:speed", 420, "speed"),
        Case("vllm_parts:agrees", 240, "float32"),
        Case("vllm_parts:agrees", 240, "bfloat16", gpu_only=True),
    ),
    "end_to_end": (Case("whole_run:end_to_end", 400),),
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{' '.join(PARTS)}; none: all")
    parser.add_argument("--model", default="Janus-Pro-7B", choices=("Janus-Pro-7B", "Janus-Pro-1B"))
    parser.add_argument("--tiny", action="store_true", help="a tiny model instead, on CPUs too")
    parser.add_argument("--layers", type=int, help="of the trunk (learner: as many as fit)")
    parser.add_argument("--pairs", type=int, nargs="+", help="samples drawn together (8 24 48)")
    parser.add_argument("--eager", action="store_true", help="vLLM without CUDA graphs")
    parser.add_argument("--trace", action="store_true", help="tables of kernels, beside the logs")
    parser.add_argument("--limit", type=float, help="seconds that a case may take, whatever its own")
    parser.add_argument("--out", type=Path, help="figures.jsonl, in $OUT or here; goes on with it")
    for own in ("--case", "--scratch", "--started"):
        parser.add_argument(own, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    parser = arguments()
    options = parser.parse_intermixed_args()
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"no such part: {', '.join(unknown)} (there are {', '.join(PARTS)})")
    if options.layers is not None and options.layers < 1:
        parser.error("--layers: at least 1")
    options.out = (options.out or Path(os.environ.get("OUT", ".")) / "figures.jsonl").absolute()
    if options.case is not None:
        return measure(options)
    logs = options.out.with_suffix(".logs")
    logs.mkdir(parents=True, exist_ok=True)
    started = time.strftime("%Y-%m-%dT%H:%M:%S")
    failed = []
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="bicot_gpu_", ignore_cleanup_errors=True) as scratch:
            for case in PARTS[part]:
                if options.tiny and case.gpu_only:
                    continue
                own = [f"--case={case.name}", f"--scratch={scratch}", f"--started={started}"]
                if not run(part, case, options, own):
                    failed.append(f"{part} {case.name}".rstrip())
    print(f"figures: {options.out}")
    if failed:
        print(f"not whole: {', '.join(failed)} (their output is in {logs})")
    return int(bool(failed))


# --- a case, seen from outside ---


def run(part: str, case: Case, options: argparse.Namespace, own: list[str]) -> bool:
    """Run a case. Returns whether it gave all its figures in time."""
    command = [sys.executable, "-m", "benchmarks.gpu", part, *_flags(options), *own]
    limit = options.limit or case.limit_s
    name = f"{part} {case.name}".rstrip().replace(" ", "-")
    log = options.out.with_suffix(".logs") / f"{name}.log"
    with log.open("w") as output:
        # A process group of its own, so that no child is left behind.
        process = subprocess.Popen(command, stderr=output, start_new_session=True)
        try:
            status = process.wait(limit)
            why = f"it died with {signal.Signals(-status).name}" if status < 0 else ""
        except subprocess.TimeoutExpired:
            status, why = 1, f"no end after {limit:g} s"
        finally:
            _end(process)
    if why:
        from benchmarks.gpu.figures import Figures

        outside = Figures(options.out, part, own[-1].partition("=")[2], sys.stdout, {"case": case.name})
        outside.fail(case.name, why)
    return status == 0


def _flags(options: argparse.Namespace) -> list[str]:
    flags = [f"--model={options.model}", f"--out={options.out}"]
    flags += [f"--{name}" for name in ("tiny", "eager", "trace") if getattr(options, name)]
    if options.layers:
        flags.append(f"--layers={options.layers}")
    return [*flags, "--pairs", *map(str, options.pairs)] if options.pairs else flags


def _end(process: subprocess.Popen) -> None:
    """End the whole group: first with SIGTERM, on which `bicot train` stops its Ray."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        for _ in range(200):
            process.poll()
            os.killpg(process.pid, 0)  # raises if no process is left
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
    except ProcessLookupError:
        return


# --- a case, from inside ---


def measure(options: argparse.Namespace) -> int:
    """Runs in the case's own process. Output of libraries goes to the log."""
    people = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from benchmarks.gpu.figures import Figures

    (part,) = options.parts
    case = next(case for case in PARTS[part] if case.name == options.case)
    conditions = {"model": "tiny" if options.tiny else options.model, "gpu": False, "device": "CPU"}
    figures = Figures(options.out, part, options.started, people, conditions)
    options.scratch = Path(options.scratch)
    with figures.attempt(case.name):
        import torch

        torch.set_num_threads(1)
        if torch.cuda.is_available():
            conditions |= {"gpu": True, "device": torch.cuda.get_device_name()}
        from benchmarks.gpu.setting import Setting

        module, _, function = case.where.partition(":")
        part_of = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
        part_of(Setting.of(options), figures, case.name)
    return int(figures.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
