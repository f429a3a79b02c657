"""Every wait for another process has a time limit: the code is read for it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("policy", "actors", "rewards", "learner", "cluster", "studio", "examples", "benchmarks")
ASKS_SERVE = ("run", "run_many", "start", "status", "delete", "shutdown")

pytestmark = pytest.mark.unit


def calls(path: Path):
    """(line, what is called, names of keyword arguments) of all calls in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), {word.arg for word in node.keywords}


def product_files():
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_ray_is_never_waited_for_without_a_limit():
    waits = [
        (f"{path.relative_to(ROOT)}:{line}", words)
        for path in product_files()
        for line, name, words in calls(path)
        if name in ("ray.get", "ray.wait")
    ]
    assert len(waits) > 20
    assert [where for where, words in waits if "timeout" not in words] == []


def test_a_program_is_never_run_without_a_limit():
    runs = [
        (f"{path.relative_to(ROOT)}:{line}", words)
        for path in product_files()
        for line, name, words in calls(path)
        if name == "subprocess.run"
    ]
    assert len(runs) > 2
    assert [where for where, words in runs if "timeout" not in words] == []


def test_serve_is_asked_through_the_controller_module_alone():
    """Its own calls wait without a limit; inside a lambda they are handed over, not made."""
    direct = []
    for path in product_files():
        tree = ast.parse(path.read_text())
        handed = {
            id(call)
            for node in ast.walk(tree)
            if isinstance(node, ast.Lambda)
            for call in ast.walk(node)
        }
        direct += [
            f"{path.relative_to(ROOT)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and id(node) not in handed
            and ast.unparse(node.func) in {f"serve.{name}" for name in ASKS_SERVE}
        ]
    assert direct == []
