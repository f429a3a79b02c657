"""Compares how long training waits for a checkpoint with how long the checkpoint takes to write.

    OMP_NUM_THREADS=1 python -m benchmarks.checkpoint [--hidden 1024] [--layers 6] [--repeats 5]

A DeepSpeed learner with one rank and full training (parameters and Adam's two moments, float32) takes a
step, then saves again and again as `cluster/checkpoint.py` does: `begin_save` copies to memory, and
threads write. Every file is flushed to the disk at the end, so that "written" does not mean "cached".
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import torch
from rich.console import Console
from rich.table import Table

from actors.sampler import SamplingConfig
from actors.torch_sampler import TorchSampler
from cluster.ray_session import WORKER_ENV
from examples.shapes.tiny_janus import build_janus, build_tokenizer
from learner.config import LearnerConfig
from learner.group import LearnerGroup, TrainingGroups
from policy.model import PolicyConfig, load_janus
from policy.prompts import plain_prompt
from policy.records import Group


def on_disk(folder: Path) -> int:
    """Flush every file; returns their bytes."""
    total = 0
    for file in folder.rglob("*"):
        if file.is_file():
            total += file.stat().st_size
            with file.open("rb") as content:
                os.fsync(content.fileno())
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    ray.init(address="local", num_cpus=2, include_dashboard=False, runtime_env={"env_vars": WORKER_ENV})
    stalls, writes, sizes = [], [], []
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        tokenizer = build_tokenizer()
        torch.manual_seed(0)
        build_janus(tokenizer, hidden=options.hidden, layers=options.layers).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        policy = PolicyConfig(path=root)
        sampling = SamplingConfig(guidance=2.0, max_cot_tokens=8)
        drawn = TorchSampler(load_janus(policy), sampling, 0).generate(
            [*Group(plain_prompt("a circle"), 4)]
        )
        group = TrainingGroups.of([ray.put(drawn)], np.linspace(-1, 1, 4, dtype=np.float32)[None])
        learner = LearnerGroup.start(policy, LearnerConfig(kl_coef=0.0), temperature=1.0, guidance=2.0)
        ray.get(learner.step(group), timeout=600)
        for number in range(options.repeats):
            target = folder / f"checkpoint{number}"
            target.mkdir()
            started = time.perf_counter()
            learner.begin_save(str(target))
            copied = time.perf_counter()
            while learner.saved() is None:
                time.sleep(0.02)
            sizes.append(on_disk(target) / 1e6)
            stalls.append(copied - started)
            writes.append(time.perf_counter() - copied)
    stall, write = statistics.median(stalls), statistics.median(writes)
    table = Table("MB", "s training stands still", "s written meanwhile", "share", title="checkpoints")
    table.add_row(f"{sizes[0]:.0f}", f"{stall:.2f}", f"{write:.2f}", f"{stall / write:.1%}")
    Console().print(table)
    ray.shutdown()


if __name__ == "__main__":
    main()
