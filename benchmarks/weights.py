"""Times a weight update into the running vLLM engine.

    OMP_NUM_THREADS=1 python -m benchmarks.weights [--hidden 1024] [--layers 6] [--repeats 5]

Times `VLLMSampler.load_weights` for the parameters that a run trains (the language model and its head)
of a randomly initialised Janus: from tensors in memory, and from the flat buckets that actors pull.
Prompts are drawn in between, so that there are cached keys and values to drop.
"""

import argparse
import statistics
import tempfile
import time

import torch
from rich.console import Console
from rich.table import Table

from actors.sampler import SamplingConfig
from actors.vllm.config import VLLMConfig
from actors.vllm.sampler import VLLMSampler
from examples.shapes.tiny_janus import build_janus, build_tokenizer
from policy.model import PolicyConfig, load_janus
from policy.prompts import plain_prompt
from policy.records import SampleRequest
from policy.weights import TensorSpec, pack, plan_buckets, unpack

ORDERS = [SampleRequest(plain_prompt("two red circles"), n) for n in range(4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = build_tokenizer()
        tokenizer.save_pretrained(folder)
        build_janus(tokenizer, hidden=options.hidden, layers=options.layers).save_pretrained(folder)
        janus = load_janus(PolicyConfig(path=folder))
    trained = {
        name: p.detach().clone()
        for name, p in janus.model.named_parameters()
        if name.startswith(("model.language_model.", "lm_head."))
    }
    sampling = SamplingConfig(guidance=2.0, max_cot_tokens=8)
    sampler = VLLMSampler(janus, sampling, 0, VLLMConfig(kv_cache_mb=64))
    specs = [TensorSpec.of(n, t) for n, t in trained.items()]
    manifest = plan_buckets(specs, 64 * 2**20)
    buckets = [pack([trained[spec.name] for spec in bucket]) for bucket in manifest]
    megabytes = sum(spec.nbytes for spec in specs) / 1e6
    ways = {
        "tensors in memory": lambda: trained.items(),
        f"{len(buckets)} flat buckets": lambda: unpack(manifest, buckets),
    }
    table = Table("from", "MB", "ms (median)", "ms/MB", "worst ms/MB")
    version = 0
    for name, tensors in ways.items():
        times = []
        for _ in range(options.repeats):
            sampler.generate(ORDERS)
            version += 1
            started = time.perf_counter()
            sampler.load_weights(version, tensors())
            times.append(1000 * (time.perf_counter() - started))
        median, worst = statistics.median(times), max(times)
        row = (megabytes, median, median / megabytes, worst / megabytes)
        table.add_row(name, *(f"{x:.0f}" if x >= 10 else f"{x:.3f}" for x in row))
    Console().print(table)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
