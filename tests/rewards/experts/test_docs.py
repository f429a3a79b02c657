"""The YAML that the documentation shows is YAML that loads."""

import re
from importlib.util import find_spec

import pytest
import yaml

from rewards.config import ExpertConfig, RewardsConfig
from rewards.expert import check_experts
from tests.conftest import ROOT

BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "vision_experts.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_experts_in_the_documentation_can_be_configured(block):
    shown = yaml.safe_load(block)
    experts = shown["rewards"]["experts"] if "rewards" in shown else shown
    entries = {name: ExpertConfig(**entry) for name, entry in experts.items()}
    there = {name: e for name, e in entries.items() if find_spec(e.use.partition(":")[0])}
    check_experts(RewardsConfig(experts=there))


def test_all_are_shown():
    assert len(BLOCKS) == 7
