"""The documentation: pages are listed, links lead somewhere, configuration keys are explained."""

import json
import re
from pathlib import Path

import pytest

from cluster.config import RunConfig
from cluster.config_docs import meanings, models, page
from cluster.sft_config import SftConfig
from policy.prompts import parse_prompt
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")]


def prose(path: Path) -> str:
    """A page without its blocks of code, fenced or indented."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


def links(path: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(path))


def anchors(path: Path) -> set[str]:
    """What GitHub makes of headings: lower case, no punctuation but `-` and `_`, `-` for a space."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_listed_once_with_a_line_and_the_readme_links_to_the_list():
    listed = re.findall(r"^- \[[^]]+\]\(([a-z_]+\.md)\): \S.+$", prose(ROOT / "docs/index.md"), re.M)
    assert sorted(listed) == sorted(p.name for p in ROOT.glob("docs/*.md") if p.name != "index.md")
    assert "docs/index.md" in links(ROOT / "README.md")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_relative_links_resolve(path):
    for link in links(path):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_no_part_of_the_configuration_is_left_out():
    parts = {model.__name__ for _, model in models()}
    assert parts == {"RunConfig", *RunConfig.model_json_schema()["$defs"]}


def test_every_configuration_key_has_a_meaning():
    every = [*models(), *models(SftConfig)]
    unexplained = {key: set(model.model_fields) - set(meanings(model)) for key, model in every}
    assert not any(unexplained.values()), unexplained


def test_the_page_of_the_configuration_is_current():
    assert (ROOT / "docs/configuration.md").read_text() == page(), (
        "run: python -m cluster.config_docs > docs/configuration.md"
    )


def test_the_rows_of_the_page_on_prompts_are_rows_of_a_prompt_file():
    (block,) = re.findall(r"^```json\n(.*?)^```", (ROOT / "docs/prompts.md").read_text(), re.M | re.S)
    prompts = [parse_prompt(json.loads(line)) for line in block.splitlines()]
    published = {"object", "color", "shape", "texture", "numeracy", "spatial", "non", "complex"}
    assert {prompt.task_type for prompt in prompts} == published
