"""Runs the learner's rank in this process, with or without Ray: a reference holds its object, and
nothing is fetched. The rank's work on its GPU is the same.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Reference:
    """A reference to an object of this process."""

    def __init__(self, held):
        self.held = held

    def hex(self) -> str:
        return f"{id(self.held):x}"


class _Absent(ModuleType):
    """A module of a package that is not installed: any name in it is an empty class."""

    __path__: list[str] = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "ray" else None

    def create_module(self, spec):
        return _Absent(spec.name)

    def exec_module(self, module):
        pass


def _get(references, timeout=None):
    if isinstance(references, Reference):
        return references.held
    return [reference.held for reference in references]


def plain_ray() -> None:
    """Call it before learner.rank is imported, in a process that needs no other Ray."""
    try:
        importlib.import_module("ray")
    except ImportError:
        sys.meta_path.insert(0, _Finder())
    ray: Any = importlib.import_module("ray")
    ray.util = importlib.import_module("ray.util")
    ray.get = _get
    ray.util.get_node_ip_address = lambda: "127.0.0.1"
