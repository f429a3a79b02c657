"""The object store is as large as what goes through it."""

import subprocess
import sys
import textwrap

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.config import RayConfig, load_config
from cluster.estimate.gpu_memory import image_side, model_shapes, published_bytes
from cluster.estimate.store_memory import (
    FLOOR_MB,
    MB,
    StoreNeed,
    asked_of_cluster,
    store_need,
    store_size,
)
from learner.config import LearnerConfig, LoraSettings
from learner.deepspeed_engine import freeze
from learner.lora import add_adapters, exports
from tests.cluster.commands import environment
from tests.conftest import ROOT, SHAPES

SEVEN_B, ONE_B = (ROOT / "examples" / "janus_pro" / f"{name}.yaml" for name in ("train", "train_1b"))
PROMPTS = [f"{kind}.prompts={SHAPES / 'prompts' / 'heldout.jsonl'}" for kind in ("train", "evaluate")]
PROMPTS.append(f"policy.templates={SHAPES / 'templates'}")
LARGE = StoreNeed(versions=2, version_bytes=400e6, samples=100, sample_bytes=1e6)


@pytest.mark.parametrize("lora", [None, LoraSettings(target_modules=["q_proj", "down_proj"])])
def test_a_version_is_as_large_as_what_a_rank_publishes(janus, policy_config, lora):
    config = load_config(SHAPES / "train.yaml")
    config = config.model_copy(
        update={"policy": policy_config, "learner": LearnerConfig(lora=lora, kl_coef=0)}
    )
    if lora:
        add_adapters(janus, lora)
    else:
        freeze(janus.model, config.learner.freeze)
    published = sum(e.spec.nbytes for e in exports(janus.model) if e.trained)
    assert published_bytes(model_shapes(policy_config), config) == published > 0


def test_a_sample_has_room(samples, policy_config):
    config = load_config(SHAPES / "train.yaml", ["actors.sampling.max_cot_tokens=12"])
    config = config.model_copy(update={"policy": policy_config})
    assert samples[0].image.shape == (image_side(model_shapes(policy_config)),) * 2 + (3,)
    sizes = [sum(getattr(a, "nbytes", 0) for a in vars(sample).values()) for sample in samples]
    assert max(sizes) <= store_need(config, 1).sample_bytes <= 2 * max(sizes)


@pytest.mark.parametrize(("file", "gb", "versions"), [(ONE_B, 3.3, 2), (SEVEN_B, 13.8, 3)])
def test_the_recipes_weights_fit(file, gb, versions):
    """512 MB was the default for all. With max_staleness 1 there is a third: that of the samples
    that were just learned from."""
    need = store_need(load_config(file), held_out=100)
    assert need.version_bytes == pytest.approx(gb * 1e9, rel=0.01)
    assert need.versions == versions
    size, message, small = store_size(RayConfig(), need, most_mb=10**6)
    assert 0.8 * size * MB >= versions * gb * 0.99e9
    assert not small
    assert f"object store: {size} MB, for {versions} versions of {gb}" in message


def test_floor_ceiling_and_the_number_that_was_given():
    tiny = StoreNeed(versions=2, version_bytes=1e6)
    assert store_size(RayConfig(), tiny, 10**6)[0] == FLOOR_MB
    size, message, small = store_size(RayConfig(), LARGE, most_mb=700)
    assert (size, small) == (700, True)
    assert "30% of this machine's memory; Ray will spill to disk: 1073 MB hold" in message
    size, message, small = store_size(RayConfig(object_store_mb=600), LARGE, 10**6)
    assert (size, small) == (600, True)
    assert message.startswith("ray.object_store_mb: 600 is too small")
    assert store_size(RayConfig(object_store_mb=2000), LARGE, 10**6)[::2] == (2000, False)


def test_the_memory_that_a_cluster_should_have_is_named():
    message, small = asked_of_cluster(LARGE, "head:6379")
    assert "should have 1073 MB (ray start --object-store-memory=1125122048)" in message
    assert not small
    message, small = asked_of_cluster(LARGE, "head:6379", largest_mb=600)
    assert "should have 1073 MB but has 600 MB" in message
    assert small
    assert asked_of_cluster(LARGE, "head:6379", largest_mb=1100)[1] is False


@pytest.mark.parametrize(
    ("file", "overrides", "line"),
    [
        (SHAPES / "train.yaml", [], "object store: 512 MB, for 2 versions of"),
        (ONE_B, ["ray.object_store_mb=512"], "warning: ray.object_store_mb: 512 is too small"),
        (ONE_B, ["ray.address=head:6379"], "object store: the learner's node of the cluster at head"),
        (ONE_B, ["policy.path=someone/Janus-3B"], "warning: object store: 512 MB, which may be too"),
    ],
)
def test_a_dry_run_says_it_in_one_line(file, overrides, line):
    command = ["train", str(file), *PROMPTS, *overrides, "runs_dir=/nowhere", "--dry-run"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    (printed,) = (o for o in result.output.splitlines() if "object store:" in o or "mb: 512 is" in o)
    assert printed.startswith(line)


SESSION = """
    import logging
    import ray
    from rich.console import Console
    from cluster.config import RayConfig
    from cluster.estimate.store_memory import StoreNeed
    from cluster.ray_session import largest_store_mb, ray_session

    need = StoreNeed(versions=2, version_bytes=400e6)
    with ray_session(RayConfig(dashboard=False), 1, Console(), need):
        print(need.mb, largest_store_mb())
        logging.getLogger("ray.serve").error("while connected")
    logging.getLogger("ray.serve").error("when all is over")
"""


def test_a_cluster_of_our_own_has_the_store_that_the_run_needs_and_ends_silently():
    """In a process of its own: there is one Ray a process. What Serve notes late, nobody reads."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SESSION)],
        cwd=ROOT,
        env=environment() | {"RAY_raylet_start_wait_time_s": "120"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    needed, has = map(int, done.stdout.split()[-2:])
    assert needed == 954 == has, done.stdout + done.stderr
    assert "while connected" in done.stderr and "when all is over" not in done.stderr
