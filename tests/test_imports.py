"""Imports run one way: studio -> cluster -> evaluation -> actors, learner, rewards -> policy."""

import ast
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


def test_no_file_is_long():
    for path in ROOT.glob("*/**/*.py"):
        if ".venv" not in path.parts:
            assert len(path.read_text().splitlines()) <= 400, path
