"""The part of Kustomize that cluster/kubernetes/ uses: enough to render it where there is no kubectl.

A key that it does not know is an error, so that nothing is silently left out.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Document = dict[str, Any]
KNOWN = {
    "apiVersion",
    "kind",
    "resources",
    "components",
    "patches",
    "images",
    "configMapGenerator",
    "replacements",
}
LEFT_OUT = "config.kubernetes.io/local-config"


def render(folder: Path) -> list[Document]:
    """All objects of an overlay, as `kubectl kustomize` prints them (in another order)."""
    documents = _build(folder, [])
    return [d for d in documents if d["metadata"].get("annotations", {}).get(LEFT_OUT) != "true"]


def _build(folder: Path, documents: list[Document]) -> list[Document]:
    """A kustomization's objects; a component works on those of its caller too."""
    rules = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert rules.keys() <= KNOWN, f"{folder}: unknown keys {rules.keys() - KNOWN}"
    for name in rules.get("resources", []):
        documents += _build(folder / name, []) if (folder / name).is_dir() else _load(folder / name)
    for name in rules.get("components", []):
        documents = _build(folder / name, documents)
    documents += [_config_map(folder, **entry) for entry in rules.get("configMapGenerator", [])]
    for patch in rules.get("patches", []):
        text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text()
        documents = [
            jsonpatch.apply_patch(d, yaml.safe_load(text))
            if d["kind"] == patch["target"]["kind"]
            else d
            for d in documents
        ]
    for image in rules.get("images", []):
        for container in containers(documents):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    for replacement in rules.get("replacements", []):
        _replace(documents, replacement)
    return documents


def _load(path: Path) -> list[Document]:
    return [_no_aliases(d) for d in yaml.safe_load_all(path.read_text())]


def _no_aliases(value: Any) -> Any:
    """A copy in which no two places share an object."""
    if isinstance(value, dict):
        return {k: _no_aliases(v) for k, v in value.items()}
    return [_no_aliases(v) for v in value] if isinstance(value, list) else value


def _config_map(folder: Path, name: str, files: list[str], options: Document) -> Document:
    assert options.pop("disableNameSuffixHash") is True
    data = {file: (folder / file).read_text() for file in files}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name} | options, "data": data}


def _replace(documents: list[Document], rule: Document) -> None:
    def one(kind: str) -> Document:
        (found,) = (d for d in documents if d["kind"] == kind)
        return found

    value = one(rule["source"]["kind"])
    for key in rule["source"]["fieldPath"].split("."):
        value = value[key]
    for target in rule["targets"]:
        for path in target["fieldPaths"]:
            *parents, last = path.split(".")
            place = one(target["select"]["kind"])
            for key in parents:
                place = place[key]
            place[last] = deepcopy(value)


def containers(value: Any) -> list[Document]:
    """Every container anywhere in these documents."""
    if isinstance(value, list):
        return [c for item in value for c in containers(item)]
    if not isinstance(value, dict):
        return []
    here = value.get("containers", []) + value.get("initContainers", [])
    return here + [c for item in value.values() for c in containers(item)]
