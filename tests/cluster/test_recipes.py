"""What each recipe asks for, added up, against the number of GPUs that it names."""

import json
import math
import re
import shlex
from dataclasses import dataclass

import pytest

from cluster.config import RunConfig, load_config
from cluster.estimate.gpu_memory import model_shapes
from cluster.estimate.store_memory import MB, MEMORY_SHARE, store_need
from cluster.placement import Role, missing, roles
from learner.memory import sizes
from tests.cluster.kustomize import render
from tests.conftest import ROOT

EXAMPLES = ("examples/janus_pro/train.yaml", "examples/janus_pro/train_1b.yaml")
OVERLAYS = ("shapes", "janus_pro")
GIB = 2**30


@dataclass(frozen=True)
class Pool:
    """Nodes of one kind: at most `most` of them, with so much each."""

    most: int
    memory: float
    """Bytes."""
    has: dict[str, float]


@dataclass(frozen=True)
class Recipe:
    config: RunConfig
    named: int
    """GPUs that its text says it needs."""
    pools: list[Pool]
    fixed: bool
    """The nodes are all there, not started when they are asked for."""


def named_gpus(text: str) -> int:
    numbers = {"one": 1, "eight": 8}
    (word,) = re.findall(r"on (\w+) GPUs? of 80 GB", text)
    return numbers.get(word) or int(word)


def example_gpus(path: str) -> int:
    text = (ROOT / path).read_text()
    return named_gpus(text) if path in EXAMPLES else 0


def gigabytes(text: str) -> float:
    return float(text.rstrip("Gi")) * GIB


def kubernetes(name: str) -> Recipe:
    folder = ROOT / "cluster" / "kubernetes" / name
    (job,) = (d for d in render(folder) if d["kind"] == "RayJob")
    _, _, _, _, path, *overrides = shlex.split(job["spec"]["entrypoint"])
    pools = []
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        custom = json.loads(shlex.split(group["rayStartParams"]["resources"])[0])
        gpus = float(limits.get("nvidia.com/gpu", 0))
        has = {"CPU": float(limits["cpu"]), "GPU": gpus, **custom}
        pools.append(Pool(group["maxReplicas"], gigabytes(limits["memory"]), has))
    text = (folder / "kustomization.yaml").read_text()
    named = named_gpus(text) if name != "shapes" else 0
    return Recipe(load_config(ROOT / path, overrides), named, pools, fixed=False)


def sbatch_lines() -> list[str]:
    text = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in ("slurm", "first_run"))
    text += (ROOT / "cluster" / "slurm" / "train.sbatch").read_text().replace("\n#", "\n")
    text = text.replace("CONFIG [key=value ...]", "examples/shapes/train.yaml").replace("\\\n", " ")
    found = re.findall(r"^ +((?:[A-Z_]+=\S.*?)?sbatch --nodes=.*train\.sbatch .*)$", text, re.MULTILINE)
    assert len(found) == text.count("sbatch --nodes")
    return found


def slurm(line: str) -> Recipe:
    words = shlex.split(line)
    environment = dict(w.split("=", 1) for w in words[: words.index("sbatch")])
    script = next(n for n, word in enumerate(words) if word.endswith("train.sbatch"))
    options = dict(w.lstrip("-").split("=", 1) for w in words[:script] if w.startswith("--"))
    path, *overrides = words[script + 1 :]
    nodes, kinds = int(options["nodes"]), environment.get("BICOT_ROLES", "").split()
    pools = []
    for n in range(nodes):
        custom = kinds[min(n, len(kinds) - 1)].split(",") if kinds else []
        has = {"CPU": float(options["cpus-per-task"]), "GPU": float(options.get("gpus-per-node", 0))}
        pools.append(Pool(1, gigabytes(options["mem"]), has | dict.fromkeys(custom, 1.0)))
    return Recipe(load_config(ROOT / path, overrides), example_gpus(path), pools, fixed=True)


RECIPES = {f"kubernetes {name}": (kubernetes, name) for name in OVERLAYS}
RECIPES |= {f"slurm {n}": (slurm, line) for n, line in enumerate(sbatch_lines())}


@pytest.fixture(params=RECIPES)
def recipe(request) -> Recipe:
    read, what = RECIPES[request.param]
    return read(what)


def bundle(role: Role) -> dict[str, float]:
    asked = {"CPU": role.cpus, "GPU": role.gpus, **role.custom}
    return {name: amount for name, amount in asked.items() if amount}


@dataclass
class Node:
    pool: Pool
    free: dict[str, float]
    processes: list[Role]

    @classmethod
    def of(cls, pool: Pool) -> "Node":
        return cls(pool, dict(pool.has), [])

    def fits(self, role: Role) -> bool:
        return all(self.free.get(k, 0) >= v - 1e-9 for k, v in bundle(role).items())

    def take(self, role: Role) -> None:
        self.processes.append(role)
        for name, amount in bundle(role).items():
            self.free[name] -= amount


def placed(recipe: Recipe) -> list[Node]:
    """Nodes with their processes: those with the largest GPUs first, each on the first node that has
    room, or on a new one of a pool that may grow."""
    nodes = [Node.of(pool) for pool in recipe.pools] if recipe.fixed else []
    for role in sorted(roles(recipe.config), key=lambda r: -r.gpus):
        for _ in range(role.count):
            room = [node for node in nodes if node.fits(role)]
            if not room:
                grown = [p for p in recipe.pools if sum(n.pool is p for n in nodes) < p.most]
                room = [node for node in map(Node.of, grown) if node.fits(role)]
                nodes.append(room[0])
            room[0].take(role)
    return nodes


@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_places_as_many_gpus_as_it_names(path):
    asked = sum(r.count * r.gpus for r in roles(load_config(ROOT / path)))
    assert math.ceil(asked - 1e-9) == example_gpus(path)


def test_every_role_finds_room_and_the_gpus_are_those_that_are_named(recipe):
    nodes = placed(recipe)
    assert sum(node.pool.has["GPU"] for node in nodes) == recipe.named
    assert sum(len(node.processes) for node in nodes) == sum(r.count for r in roles(recipe.config))
    if recipe.fixed:  # by the rule of the run itself
        has = [pool.has for pool in recipe.pools]
        assert all(missing(bundle(role), role.count, has) is None for role in roles(recipe.config))


def host_bytes(config: RunConfig, role: Role) -> float:
    """What one process holds in host memory, about: a rank its share of a checkpoint that is being
    written, a rollout worker the model that it loads, and 4 GiB of libraries each."""
    model = model_shapes(config.policy)
    size, width = sizes(model, config.learner), 2 if config.policy.dtype != "float32" else 4
    shares = {"learner": (12 * size.trained + width * size.total) / config.learner.ranks}
    held = shares.get(role.name, width * size.total if role.name == "rollout" else 0)
    return held + (4 * GIB if config.policy.dtype != "float32" else 0.5 * GIB)


def test_memory_holds_the_processes_and_the_learners_object_store(recipe):
    config = recipe.config
    need = store_need(config, held_out=200).mb * MB
    for node in placed(recipe):
        store = need if any(role.name == "learner" for role in node.processes) else 0
        assert store <= MEMORY_SHARE * node.pool.memory
        assert store + sum(host_bytes(config, r) for r in node.processes) <= node.pool.memory


@pytest.mark.parametrize("path", EXAMPLES)
def test_lora_takes_one_override(path):
    config = load_config(ROOT / path, ["learner.lora.rank=16"])
    assert config.learner.reference_kind == "lora-off"
