"""Janus checkpoints in the original layout: the published implementation's, and one of our own."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from policy.convert import convert
from tests.conftest import shared_file

VECTORS = "vectors/janus_tiny"
_NAMES = {"reference_config.json": "config.json", "reference_model.safetensors": "model.safetensors"}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture(scope="session")
def reference_folder(tmp_path_factory) -> Path:
    """The published implementation's tiny Janus, laid out as its checkpoints are."""
    folder = tmp_path_factory.mktemp("reference")
    for name in (*_NAMES, *_TOKENIZER):
        shutil.copyfile(shared_file(f"{VECTORS}/{name}"), folder / _NAMES.get(name, name))
    return folder


@pytest.fixture(scope="session")
def forward() -> dict:
    """What the published implementation computed with it."""
    return load_file(shared_file(f"{VECTORS}/forward.safetensors"))


@pytest.fixture(scope="session")
def prompt_cases() -> list[dict]:
    return json.loads(shared_file(f"{VECTORS}/prompt_template.json").read_text())["cases"]


@pytest.fixture(scope="session")
def original_folder(policy_config, tmp_path_factory) -> Path:
    """The tiny random Janus of all tests in the original layout."""
    folder = tmp_path_factory.mktemp("converted") / "original"
    convert(policy_config.path, folder, "original")
    return folder
