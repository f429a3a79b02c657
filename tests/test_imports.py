"""Imports run one way: studio -> cluster -> evaluation -> actors, learner, rewards -> policy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "policy": {"policy"},
    "actors": {"actors", "policy"},
    "rewards": {"rewards", "policy"},
    "learner": {"learner", "policy"},
    "evaluation": {"evaluation", "actors", "rewards", "policy"},
    "cluster": {"cluster", "evaluation", "actors", "rewards", "learner", "policy"},
    "studio": {"studio", "cluster", "evaluation", "actors", "rewards", "policy"},
}
FORBIDDEN_LIBRARIES = {
    "policy": {"ray", "deepspeed", "vllm"},
    "actors": {"deepspeed"},
    "rewards": {"deepspeed", "vllm"},
    "learner": {"vllm"},
    "evaluation": {"deepspeed", "vllm"},
    "studio": {"deepspeed", "vllm"},
}
OURS = {*MAY_IMPORT, "examples", "benchmarks", "tests"}


def imported_packages(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 1
    for path in files:
        found = imported_packages(path)
        assert found & OURS <= MAY_IMPORT[package], path
        assert not found & FORBIDDEN_LIBRARIES.get(package, set()), path


HEAVY = {
    "torch", "transformers", "ray", "ray.serve", "deepspeed", "vllm", "peft", "scipy", "matplotlib",
    "tensorboard", "numpy",
}  # fmt: skip


def imported_by(code: str) -> set[str]:
    """The heavy ones among the modules that a process of its own has imported by its end."""
    program = f"{code}\nimport sys; print(*({HEAVY!r} & sys.modules.keys()))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


RUN = """
import sys
from cluster.cli import main
sys.argv = ["bicot", *{!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print()
"""


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        (RUN.format(["--help"]), set()),
        (RUN.format(["train", "--help"]), set()),
        ("import cluster.config, evaluation.config", set()),
        ("import rewards.client", {"ray", "ray.serve", "numpy"}),
        ("import rewards.replica, examples.shapes.experts", {"ray", "ray.serve", "numpy", "scipy"}),
        ("import rewards.gateway", {"ray", "ray.serve", "numpy"}),
        # transformers imports scipy where it is installed.
        ("import actors.rollout", {"ray", "numpy", "torch", "transformers", "scipy"}),
        ("import learner.worker", {"ray", "numpy", "torch", "transformers", "scipy"}),
        (
            RUN.format(["train", "examples/shapes/train.yaml", "--dry-run"]),
            {"ray", "numpy", "torch", "transformers", "scipy"},
        ),
    ],
    ids=[
        "help", "a command's help", "configuration", "reward worker", "replica", "gateway",
        "rollout worker", "learner worker", "dry run",
    ],
)  # fmt: skip
def test_a_process_imports_what_it_needs(code, allowed):
    """Half of a role's start is imports."""
    assert imported_by(code) <= allowed


def test_no_file_is_long():
    for path in ROOT.glob("*/**/*.py"):
        if ".venv" not in path.parts:
            assert len(path.read_text().splitlines()) <= 400, path
