"""The published prompts and wording as `bicot fetch` writes them, where the published files lie beside
the repository: their token ids are those of the published code."""

import hashlib
from collections import Counter
from dataclasses import replace

import pytest

from cluster.commands.fetch import T2I_R1, fetch_t2i_r1
from evaluation.data import PublishedFile
from policy.model import PolicyConfig, load_janus
from policy.prompts import read_prompts
from tests.conftest import shared_file


@pytest.fixture
def fetched(tmp_path, prompt_cases):
    """The two published data files as a user puts them there, and a source with the system prompt that
    the vectors name."""
    (system,) = {case["system_prompt"] for case in prompt_cases} - {""}
    source = f"ask(system_prompt={system!r})".encode()
    trainer = PublishedFile("trainer.py", len(source), hashlib.sha256(source).hexdigest())
    kept = tmp_path / "published"
    kept.mkdir()
    prompts, instruction, _ = T2I_R1.files
    for file, name in (
        (prompts, "t2i_r1_prompts.jsonl"),
        (instruction, "t2i_r1_instruction.txt"),
    ):
        (kept / file.name).write_bytes(shared_file(f"prompts/{name}").read_bytes())
    (kept / trainer.name).write_bytes(source)
    fetch_t2i_r1(replace(T2I_R1, files=(prompts, instruction, trainer)), tmp_path)
    return tmp_path


def test_all_published_prompts_are_there_once(fetched):
    train, held_out = (read_prompts(fetched / f"{name}.jsonl") for name in ("train", "heldout"))
    assert len(train) + len(held_out) == 7223 == len({p.id for p in train + held_out})
    shares = Counter(p.task_type for p in held_out)
    for kind, count in Counter(p.task_type for p in train + held_out).items():
        assert shares[kind] == round(0.03 * count)


def test_ids_are_the_published_ones(fetched, reference_folder, prompt_cases):
    janus = load_janus(PolicyConfig(path=str(reference_folder), templates=str(fetched / "templates")))
    instruction = (fetched / "published" / T2I_R1.files[1].name).read_text()
    before, after = (part.strip() for part in instruction.split("{}"))
    start = janus.tokenizer("<begin_of_image>").input_ids[-1:]
    for case in prompt_cases:
        text = case["user_content"]
        if case["system_prompt"]:
            prompt = text.strip().removeprefix(before).removesuffix(after)
            assert janus.cot_prompt_ids(prompt) == case["input_ids"]
        else:
            prompt, cot = text.rsplit(". ", 1)
            assert janus.image_prompt_ids(prompt, cot) == case["input_ids"] + start


def test_the_white_space_around_a_cot_is_the_models_own(fetched, reference_folder):
    config = PolicyConfig(path=str(reference_folder), templates=str(fetched / "templates"))
    janus = load_janus(config)
    cot = janus.tokenizer(" a red dog \n").input_ids[1:]
    assert janus.cot_text(cot) == " a red dog \n"
    assert "User: a dog..  a red dog" in janus.tokenizer.decode(
        janus.image_prompt_ids("a dog.", janus.cot_text(cot))
    )
