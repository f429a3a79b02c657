"""Checks before a benchmark starts, so that a mistake is one line at once and not after minutes."""

from collections.abc import Sequence
from pathlib import Path

import httpx

from cluster.commands.bench_config import BenchRunConfig
from cluster.config import RayConfig
from cluster.ray_session import existing_cluster
from cluster.validate import too_long
from evaluation.benchmark import Item
from evaluation.run_folder import RunFolder
from policy.errors import UserError, in_one_line
from policy.model import check_policy, countable_janus
from policy.prompts import plain_prompt
from rewards.config import RewardsConfig
from rewards.expert import check_experts
from rewards.experts.chat import authorization
from rewards.http import http_client


def check_job(
    config: BenchRunConfig, folder: RunFolder, items: Sequence[Item], judges: RewardsConfig | None
) -> None:
    """Check a job before anything starts. Raises UserError."""
    if not items:
        raise UserError(f"{folder.benchmark.title}: no prompt is asked for")
    if not config.generates:
        _check_images(folder, items)
    if not config.generates and judges is None and not (folder.folder / "replies.jsonl").exists():
        raise UserError(f"{folder.folder}: no judge was asked yet: leave out --no-judge")
    if judges is not None:
        check_experts(judges, "judges")
    if config.api is not None and not existing_cluster(config.ray):
        authorization(config.api.api_key_env)
    if config.policy is not None:
        _check_policy(config, items)


def _check_images(folder: RunFolder, items: Sequence[Item]) -> None:
    if not folder.images.is_dir():
        raise UserError(f"{folder.images}: no such folder of images")
    if not any((folder.images / path).exists() for i in items for path in folder.benchmark.files(i)):
        raise UserError(
            f"{folder.images}: none of the images is there; the first would be"
            f" {folder.benchmark.files(items[0])[0]}"
        )


def check_servers(judges: RewardsConfig | None, ray: RayConfig) -> None:
    """Check the servers of judges before anything starts. Raises UserError. On an existing cluster only
    that they are named: its nodes may have keys and networks of their own."""
    for name, entry in (judges.experts if judges else {}).items():
        url = entry.options.get("url")
        if url is None:
            continue
        if not url or not entry.options.get("model"):
            raise UserError(
                f"the judge {name} is a vision-language model on a server: name both, as --judge-url"
                " http://HOST:8000/v1 --judge-model NAME"
            )
        if not existing_cluster(ray):
            authorization(entry.options.get("api_key_env"))
            _check_answers(name, url)


def _check_answers(name: str, url: str) -> None:
    """Checks that a server answers at all; any status is fine."""
    with http_client(url, timeout=10) as client:
        try:
            client.head(url)
        except httpx.TransportError as error:
            raise UserError(
                f"the judge {name}: no server answers at {url}: {in_one_line(error)}"
            ) from None


def _check_policy(config: BenchRunConfig, items: Sequence[Item]) -> None:
    assert config.policy is not None
    check_policy(config.policy)
    templates = config.policy.templates
    if config.cot and templates and not (Path(templates) / "semantic_cot.txt").exists():
        raise UserError(
            f"{templates}: no semantic_cot.txt, the text that asks for a semantic CoT: put one there,"
            " or draw without one by --no-cot"
        )
    janus = countable_janus(config.policy)
    most = config.actors.sampling.max_cot_tokens if config.cot else 0
    for item in items:
        if why := too_long(plain_prompt(item.text), janus, most):
            raise UserError(f"prompt {item.key}: {why}")
