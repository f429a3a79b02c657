"""Commands beside training: evaluate, serve-experts."""

import threading
from pathlib import Path

from rich.console import Console

from cluster.config import RunConfig
from cluster.placement import check_room, roles, total_cpus
from cluster.ray_session import existing_cluster, ray_session
from cluster.start_progress import StartProgress
from cluster.validate import validate_run
from cluster.watch.console import evaluation_table
from cluster.watch.evaluation import save_evaluation
from cluster.watch.plots import grid
from cluster.workers import start_workers
from policy.paths import check_writable
from rewards.config import GatewayConfig
from rewards.expert import check_experts
from rewards.gateway import start_gateway
from rewards.serving import deploy_experts, shutdown_experts


def evaluate(config: RunConfig, out: Path | None, console: Console) -> None:
    """Score held-out samples of the configured policy. Writes to `out`, or runs/NAME-evaluation."""
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


def serve_experts(config: RunConfig, console: Console) -> None:
    """Run the experts and their gateway until Ctrl-C."""
    rewards = config.rewards
    rewards = rewards.model_copy(update={"gateway": rewards.gateway or GatewayConfig()})
    check_experts(rewards)
    cpus = sum(e.most_replicas * e.num_cpus for e in rewards.experts.values())
    with ray_session(config.ray, cpus, console):
        try:
            with StartProgress(console) as starting:
                starting.begin("starting experts")
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
            if existing_cluster(config.ray):  # our own cluster ends with this process
                shutdown_experts()
