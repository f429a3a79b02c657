"""How fast a Janus-Pro of random weights samples, learns and publishes on the GPU at hand.

    python -m benchmarks.gpu                       # Janus-Pro-1B, 32 pairs
    python -m benchmarks.gpu --model Janus-Pro-7B
    python -m benchmarks.gpu --model tiny --pairs 2 --cot-tokens 4 --micro-groups 1   # any machine

Sampling: whole samples, CoT and image, by a plain loop in the published code's manner
(benchmarks.rollout has it), by the torch sampler and by vLLM. CoTs of random weights hardly end by
themselves, so all are `--cot-tokens` long. Beside them the memory-bandwidth limit: every decoding step
reads the language model once and all keys and values so far, and cannot be faster than these bytes over
the bandwidth that a large copy reaches here.

Learning: a full update of one rank (LoRA where the optimizer of a full one does not fit), and what it
takes to publish the weights through the object store to an actor.

Each part runs in a process of its own, so that each has the GPU to itself.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import ray
import torch
from rich.console import Console
from rich.table import Table
from transformers import JanusConfig, JanusForConditionalGeneration

from actors.config import ActorsConfig
from actors.rollout import RolloutActor
from actors.sampler import SamplingConfig
from actors.torch_sampler import TorchSampler
from actors.vllm.config import VLLMConfig
from benchmarks.rollout import PlainLoop
from cluster.plan import GEOMETRIES
from cluster.session import WORKER_ENV
from examples.shapes.tiny_janus import build_janus, build_tokenizer
from learner.config import LearnerConfig
from learner.group import LearnerGroup, ScoredGroups
from learner.lora import LoraSettings
from policy.janus import PolicyConfig, load_janus
from policy.prompts import plain_prompt
from policy.records import Draw
from policy.work import Work

ON_GPU = torch.cuda.is_available()
PARTS = ("bandwidth", "plain", "torch", "vllm", "learner")
GROUP = 8


def make_model(name: str, folder: str) -> None:
    """Random weights in the model's own shapes, with the tiny world's tokenizer."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    if name == "tiny":
        model = build_janus(tokenizer, hidden=128, layers=2)
    else:
        config = JanusConfig.from_json_file(GEOMETRIES / f"{name}.json")
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda" if ON_GPU else "cpu"):
            model = JanusForConditionalGeneration(config)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def policy_of(options: argparse.Namespace) -> PolicyConfig:
    return PolicyConfig(path=options.folder, dtype="bfloat16" if ON_GPU else "float32")


def sampling_of(options: argparse.Namespace) -> SamplingConfig:
    return SamplingConfig(guidance=5.0, max_cot_tokens=options.cot_tokens)


def orders_of(options: argparse.Namespace, run: int) -> list[Draw]:
    """Groups of eight, as in training."""
    words = ["one", "two", "three"]
    texts = [f"{words[n // GROUP % 3]} red circles and a blue square" for n in range(options.pairs)]
    return [Draw(plain_prompt(text), run * options.pairs + n) for n, text in enumerate(texts)]


# --- the parts ---


def bandwidth(options: argparse.Namespace) -> dict:
    """Bytes a second of a large copy, read and written."""
    size = 2**31 if ON_GPU else 2**27
    device = "cuda" if ON_GPU else "cpu"
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    times = []
    for _ in range(12):
        _wait()
        started = time.perf_counter()
        target.copy_(source)
        _wait()
        times.append(time.perf_counter() - started)
    return {"bytes_s": 2 * size / statistics.median(times[2:])}


def plain(options: argparse.Namespace) -> dict:
    janus = load_janus(policy_of(options), "cuda" if ON_GPU else "cpu")
    loop = PlainLoop(janus, sampling_of(options))
    return _time_draws(options, lambda orders: loop.draw([o.prompt.text for o in orders]))


def torch_(options: argparse.Namespace) -> dict:
    janus = load_janus(policy_of(options), "cuda" if ON_GPU else "cpu")
    return _time_draws(options, TorchSampler(janus, sampling_of(options), 0).draw)


def vllm(options: argparse.Namespace) -> dict:
    from actors.vllm.sampler import VLLMSampler

    settings = VLLMConfig(max_num_seqs=max(128, 2 * options.pairs))
    sampler = VLLMSampler(load_janus(policy_of(options)), sampling_of(options), 0, settings)
    return _time_draws(options, sampler.draw)


def learner(options: argparse.Namespace) -> dict:
    """Draws once, then learns from that batch again and again."""
    gpus = float(ON_GPU)
    full = _parameters(options)["trunk"] * 16 < 0.6 * _memory()
    config = LearnerConfig(
        num_gpus=gpus,
        num_cpus=0.5,
        gradient_checkpointing=True,
        beta=0.01 if full else 0.0,
        reference="offload" if full else None,
        lora=None if full else LoraSettings(),
    )
    ray.init(address="local", num_cpus=4, include_dashboard=False, runtime_env={"env_vars": WORKER_ENV})
    sampling, policy = sampling_of(options), policy_of(options)
    # On one GPU the actor goes before the learner comes; another takes the weights on the CPU.
    drawer = _actor(ActorsConfig(sampler="torch", num_gpus=gpus, sampling=sampling), policy)
    orders = orders_of(options, 0)[: GROUP * options.micro_groups]
    groups = [orders[n : n + GROUP] for n in range(0, len(orders), GROUP)]
    *drawn, _ = ray.get(
        drawer.draw.options(num_returns=len(groups) + 1).remote(Work.of([groups], None))
    )
    samples = [ray.put(group) for group in drawn]
    ray.kill(drawer)
    ranks = LearnerGroup(policy, config, temperature=1.0, guidance=5.0)
    advantages = np.tile(np.linspace(-1, 1, GROUP, dtype=np.float32), (len(samples), 1))
    scored = ScoredGroups.of(samples, advantages)
    steps, publishes = [], []
    for _ in range(1 + options.runs):
        started = time.perf_counter()
        ray.get(ranks.step(scored))
        middle = time.perf_counter()
        weights = ranks.publish(1)
        publishes.append(time.perf_counter() - middle)
        steps.append(middle - started)
    manifest = ray.get(ray.get(weights.parts)[0])
    nbytes = sum(spec.nbytes for bucket in manifest for spec in bucket)
    ray.shutdown()
    return {
        "kind": "full" if full else "LoRA",
        "samples": len(orders),
        "step_s": statistics.median(steps[1:]),
        "publish_s": statistics.median(publishes[1:]),
        "published_bytes": nbytes,
    }


def _actor(config: ActorsConfig, policy: PolicyConfig):
    options = {"num_cpus": 0.5, "num_gpus": config.num_gpus}
    return ray.remote(RolloutActor).options(**options).remote(policy, config, 0)


def _time_draws(options: argparse.Namespace, draw) -> dict:
    times = []
    for run in range(1 + options.runs):  # the first is a warm-up
        orders = orders_of(options, run)
        _wait()
        started = time.perf_counter()
        draw(orders)
        _wait()
        times.append(time.perf_counter() - started)
    return {"seconds": statistics.median(times[1:])}


def _wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def _memory() -> int:
    return torch.cuda.mem_get_info()[1] if ON_GPU else 2**33


# --- the limit ---


def _parameters(options: argparse.Namespace) -> dict[str, int]:
    with torch.device("meta"):
        model = JanusForConditionalGeneration(JanusConfig.from_pretrained(options.folder))
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    return {"trunk": count(model.model.language_model), "head": count(model.lm_head)}


def limit_s(options: argparse.Namespace, bytes_s: float) -> float:
    """Seconds that reading weights, keys and values takes, were nothing else to do.

    A step of phase 1 reads trunk and text head and the caches of `pairs` rows; one of phase 2 the trunk
    and those of twice as many. The image head, the prompts' own pass, and the CoT in the image's
    prompt (made-up ids have hardly any text) are left out: a lower bound.
    """
    config = JanusConfig.from_pretrained(options.folder)
    text = config.text_config
    width = 2 if ON_GPU else 4
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * size * width
    counts = _parameters(options)
    embedding = text.vocab_size * text.hidden_size  # looked up, not read
    trunk = (counts["trunk"] - embedding) * width
    prompt = prompt_tokens(options)
    image_tokens = config.vision_config.num_image_tokens
    total = 0
    for step in range(options.cot_tokens):
        total += trunk + counts["head"] * width + options.pairs * (prompt + step) * per_token
    for step in range(image_tokens):
        total += trunk + 2 * options.pairs * (prompt + step) * per_token
    return total / bytes_s


def prompt_tokens(options: argparse.Namespace) -> int:
    """Of one prompt, about."""
    return len(build_tokenizer()(orders_of(options, 0)[0].prompt.text).input_ids) + 4


# --- all of it ---


def run_part(part: str, options: argparse.Namespace) -> dict | str:
    """The part's figures, or the last line of its error: a part that does not fit says so."""
    flags = {"pairs", "cot_tokens", "runs", "micro_groups", "folder"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part]
    for flag in sorted(flags):
        command += [f"--{flag.replace('_', '-')}", str(getattr(options, flag))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no word of why"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="Janus-Pro-1B", help="Janus-Pro-1B, Janus-Pro-7B or tiny")
    parser.add_argument("--pairs", type=int, default=32, help="samples drawn together")
    parser.add_argument("--cot-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--micro-groups", type=int, default=4, help="groups of 8 in a learner's step")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        torch.set_num_threads(1)
        part = torch_ if options.part == "torch" else globals()[options.part]
        print(json.dumps(part(options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        make_model(options.model, folder)
        found = {part: run_part(part, options) for part in PARTS}
        show(options, found)
    return int(any(isinstance(result, str) for result in found.values()))


def show(options: argparse.Namespace, found: dict[str, dict | str]) -> None:
    console = Console()
    device = torch.cuda.get_device_name() if ON_GPU else "CPU, one thread"
    console.print(f"{options.model}, {options.pairs} pairs, CoTs of {options.cot_tokens}, on {device}")
    speed = found["bandwidth"]
    seconds = {p: found[p]["seconds"] for p in PARTS[1:4] if isinstance(found[p], dict)}
    limit = limit_s(options, speed["bytes_s"]) if isinstance(speed, dict) else None
    table = Table("sampler", "images/s", "times the plain loop", "of the bandwidth limit")
    for part, taken in seconds.items():
        ratio = f"{seconds['plain'] / taken:.2f}" if "plain" in seconds else "-"
        share = f"{limit / taken:.0%}" if limit else "-"
        table.add_row(part, f"{options.pairs / taken:.2f}", ratio, share)
    if limit:
        table.add_row("limit", f"{options.pairs / limit:.2f}", "", f"{speed['bytes_s'] / 1e9:.0f} GB/s")
    console.print(table)
    if isinstance(learned := found["learner"], dict):
        size = learned["published_bytes"] / 1e6
        console.print(
            f"learner: {learned['kind']} update of {learned['samples']} samples in"
            f" {learned['step_s']:.2f} s; {size:.0f} MB of weights published in"
            f" {learned['publish_s']:.2f} s ({1000 * learned['publish_s'] / size:.2f} ms/MB)"
        )
    for part, result in found.items():
        if isinstance(result, str):
            console.print(f"{part}: failed: {result}", style="red", markup=False)


if __name__ == "__main__":
    sys.exit(main())
