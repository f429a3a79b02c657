"""Commands beside training: evaluate, generate, serve-experts."""

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from actors.rollout import make_sampler
from cluster.commands.fetch import check_fetched
from cluster.config import RunConfig
from cluster.placement import check_room, roles, total_cpus
from cluster.ray_session import existing_cluster, ray_session
from cluster.validate import prompts_that_fit, too_long, validate_run
from cluster.watch.console import evaluation_table
from cluster.watch.evaluation import save_evaluation
from cluster.watch.plots import grid
from cluster.workers import start_workers
from policy.errors import UserError
from policy.model import countable_janus
from policy.paths import check_writable
from policy.prompts import named_prompt, plain_row
from policy.records import Group, Prompt
from rewards.config import GatewayConfig
from rewards.expert import check_experts
from rewards.gateway import start_gateway
from rewards.serving import deploy_experts, shutdown_experts


def evaluate(config: RunConfig, out: Path | None, console: Console) -> None:
    """Judge held-out samples of a policy as it is; into `out`, or runs/NAME-evaluation."""
    inputs = validate_run(config, learn=False)
    out = out or config.folder.with_name(f"{config.name}-evaluation")
    check_writable(out)
    with (
        ray_session(config.ray, total_cpus(config), console, inputs.store_need(config, learn=False)),
        start_workers(config, inputs.evaluator.prompts, console, learn=False) as workers,
        console.status("generating and scoring"),
    ):
        found, failures = inputs.evaluator(workers.rollouts, None, step=0)
    save_evaluation(found, out)
    groups = list(found.by_prompt().values())
    firsts = [scored[0] for scored in groups][:64]
    captions = [f"{j.reward:.2f}  {j.prompt.text}" for j in firsts]
    grid([j.sample.image for j in firsts], captions, columns=8).save(out / "grid.png")
    for failure in failures:
        console.print(f"left out {failure}", highlight=False, markup=False)
    title = f"{len(groups)} held-out prompts, {len(found.scored)} images"
    console.print(evaluation_table(title, {config.policy.path: found}))
    console.print(f"{out / 'evaluation.json'}\n{out / 'grid.png'}", highlight=False, soft_wrap=True)


def generate(
    config: RunConfig, asked: Sequence[str], out: Path, samples: int, console: Console
) -> None:
    """Draw prompts on this machine: NNNN.png, cots.jsonl and grid.png into `out`."""
    prompts = _prompts(asked, config)
    check_writable(out)
    check_fetched(config.policy.templates)
    torch.set_num_threads(1)
    # A GPU is used where there is one, whatever the run gives its actors.
    actors = config.actors.model_copy(update={"num_gpus": float(torch.cuda.is_available())})
    sampler = make_sampler(config.policy, actors, config.seed)
    requests = [request for prompt in prompts for request in Group(prompt, samples)]
    size = config.actors.batch_size
    batches = [requests[i : i + size] for i in range(0, len(requests), size)]
    out.mkdir(parents=True, exist_ok=True)
    generated = [
        s for batch in track(batches, "generating", console=console) for s in sampler.generate(batch)
    ]
    with (out / "cots.jsonl").open("w", encoding="utf-8") as rows:
        for number, (request, sample) in enumerate(zip(requests, generated, strict=True)):
            name = f"{number:04d}.png"
            Image.fromarray(sample.image).save(out / name)
            row = {"image": name, "prompt": request.prompt.text, "cot": sample.cot_text}
            rows.write(json.dumps(row, ensure_ascii=False) + "\n")
    _grid([s.image for s in generated], [o.prompt.text for o in requests], samples, out / "grid.png")
    for request, sample in zip(requests[::samples], generated[::samples], strict=True):
        console.print(f"{request.prompt.text}\n  {sample.cot_text}", highlight=False, markup=False)
    console.print(str(out / "grid.png"), highlight=False, soft_wrap=True)


def serve_experts(config: RunConfig, console: Console) -> None:
    """Run the experts and their gateway until Ctrl-C."""
    rewards = config.rewards
    rewards = rewards.model_copy(update={"gateway": rewards.gateway or GatewayConfig()})
    check_experts(rewards)
    cpus = sum(e.most_replicas * e.num_cpus for e in rewards.experts.values())
    with ray_session(config.ray, cpus, console):
        try:
            with console.status("starting experts"):
                experts = roles(config, fewest=True, learn=False)
                check_room(config.ray, [role for role in experts if not role.strategy])
                deploy_experts(rewards)
                url = start_gateway(rewards)
            console.print(
                f"experts answer at {url}  ({url}/docs); Ctrl-C stops them",
                highlight=False,
                soft_wrap=True,
            )
            threading.Event().wait()
        finally:
            if existing_cluster(config.ray):  # our own ends with us, all at once
                shutdown_experts()


def _prompts(asked: Sequence[str], config: RunConfig) -> list[Prompt]:
    """Sentences, whatever files have their names, or the prompts of one file, NAME.jsonl."""
    janus, max_cot_tokens = countable_janus(config.policy), config.actors.sampling.max_cot_tokens
    if len(asked) == 1 and asked[0].endswith(".jsonl"):
        return prompts_that_fit(os.path.expanduser(asked[0]), janus, max_cot_tokens)
    prompts = [named_prompt(plain_row(text), f"prompt {n}") for n, text in enumerate(asked, 1)]
    for n, prompt in enumerate(prompts, 1):
        if why := too_long(prompt, janus, max_cot_tokens):
            raise UserError(f"prompt {n}: {why}")
    return prompts


def _grid(images: Sequence[np.ndarray], captions: Sequence[str], columns: int, path: Path) -> None:
    grid(images, captions, columns=columns if columns > 1 else 4).save(path)
