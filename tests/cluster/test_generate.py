"""`bicot generate`: prompts of every kind of file, and a folder that is gone on with."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from actors.torch_sampler import TorchSampler
from cluster.commands.generate import generate, prompts_to_draw
from cluster.config import load_config
from policy.errors import UserError
from policy.prompts import numbered_prompts, read_prompts
from tests.cluster.commands import TRAIN, bicot_here
from tests.conftest import ROOT, SHAPES

pytestmark = pytest.mark.e2e

THREE = ("a red circle", "two blue squares", "a green triangle")


@pytest.fixture
def calls(monkeypatch) -> list[list[str]]:
    """What the sampler was asked to draw, call by call; set `stop_at` to be interrupted there."""

    class Calls(list):
        stop_at: int | None = None

    made = Calls()
    whole = TorchSampler.generate

    def generate(self, requests, **options):
        if made.stop_at == len(made):
            raise KeyboardInterrupt
        made.append([f"{r.prompt.text}/{r.index}" for r in requests])
        return whole(self, requests, **options)

    monkeypatch.setattr(TorchSampler, "generate", generate)
    monkeypatch.chdir(ROOT)
    return made


def draw(out, prompts=THREE, *overrides, samples=2, batch=2) -> str:
    """The command, two pictures at a time: its output."""
    console = Console(file=io.StringIO(), width=100)
    config = load_config(TRAIN, [f"actors.batch_size={batch}", "actors.sampler=torch", *overrides])
    try:
        generate(config, list(prompts), out, samples, console)
    finally:
        output = console.file.getvalue()
        (out.parent / "output").write_text(output)
    return output


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "cots.jsonl").read_text().splitlines()]


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_stopped_goes_on_and_comes_out_the_same(tmp_path, calls):
    draw(tmp_path / "at_once")
    whole = list(calls)
    assert whole == [[f"{prompt}/{n}" for n in range(2)] for prompt in THREE]
    calls.clear()
    calls.stop_at = 1
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        draw(out)
    output = (tmp_path / "output").read_text()
    assert f"stopped; what was drawn is in {out}, and the same command goes on from there\n" in output
    assert sorted(files(out)) == ["0000.png", "0001.png", "cots.jsonl", "generated.json"]
    assert [row["image"] for row in rows(out)] == ["0000.png", "0001.png"]
    calls.stop_at = None
    calls.clear()
    assert "2 of 6 pictures are there already" in draw(out)
    assert calls == whole[1:]
    assert files(out) == files(tmp_path / "at_once")
    assert [row["prompt"] for row in rows(out)] == [text for text in THREE for _ in range(2)]
    calls.clear()
    assert "6 of 6 pictures are there already" in draw(out)
    assert calls == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at_once", "output", "stopped"]


def test_a_killed_writer_and_a_lost_picture_are_made_good(tmp_path, calls):
    out = tmp_path / "out"
    draw(out)
    before = files(out)
    (out / "0002.png").unlink()
    (out / "0005.png").unlink()
    lines = (out / "cots.jsonl").read_text().splitlines(keepends=True)
    (out / "cots.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    calls.clear()
    draw(out)
    assert calls == [["two blue squares/0", "a green triangle/1"]]
    assert files(out) == before


def test_another_model_seed_setting_or_prompt_is_refused_by_name(tmp_path, calls, policy_config):
    out, words = tmp_path / "out", tmp_path / "words"
    shutil.copytree(SHAPES / "templates", words)
    draw(out, THREE, f"policy.templates={words}")
    before = files(out)
    calls.clear()

    def refusal(*overrides: str, prompts=THREE, samples: int = 2) -> str:
        with pytest.raises(UserError) as refused:
            draw(out, prompts, f"policy.templates={words}", *overrides, samples=samples)
        message = str(refused.value)
        assert message.startswith(f"{out}: there is another run in it (")
        assert message.endswith("asked for): choose another --out")
        assert "\n" not in message
        return message.partition("(")[2]

    assert refusal("seed=7").startswith("seed: 0 there, 7 asked for")
    assert refusal("actors.sampling.guidance=2").startswith("policy.guidance: 1.5 there, 2.0 asked for")
    assert refusal(f"policy.path={policy_config.path}").startswith("policy.path: ")
    assert refusal(f"policy.templates={SHAPES}/templates").startswith("policy.templates: ")
    assert refusal(samples=3).startswith("samples: 2 there, 3 asked for")
    other = refusal(prompts=(*THREE[:2], "a star"))
    assert other.startswith('prompts.3.text: "a green triangle" there, "a star" asked for')
    assert refusal(prompts=THREE[:2]).startswith("prompts.3: ")
    (words / "image.txt").write_text("{raw_prompt} {raw_cot}")
    assert refusal().startswith("wording.image: ")
    assert calls == []
    assert files(out) == before


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "notes").write_text("mine")
    status, output = bicot_here("generate", TRAIN, "a red circle", "--out", tmp_path)
    assert status == 2
    assert output == (
        f"error: {tmp_path}: holds notes and is no folder of `bicot generate`: name a new or an empty"
        " folder with --out\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_the_grid_is_that_of_all_pictures(tmp_path, calls):
    draw(tmp_path / "out", samples=1, batch=8)
    picture = np.asarray(Image.open(tmp_path / "out" / "0000.png").convert("RGB"))
    grid = np.asarray(Image.open(tmp_path / "out" / "grid.png").convert("RGB"))
    assert picture.shape == (24, 24, 3)
    np.testing.assert_array_equal(grid[10:106:4, 10:106:4], picture)


# --- files of prompts ---


def texts(path, monkeypatch) -> list[str]:
    monkeypatch.chdir(ROOT)
    return [prompt.text for prompt in prompts_to_draw([str(path)], load_config(TRAIN, []))]


def test_a_text_file_has_a_prompt_a_line(tmp_path, monkeypatch):
    path = tmp_path / "prompts.txt"
    path.write_bytes(
        "\ufeff# mine\n\n a red circle \r\n  # not this\ntwo\u2028lines\na red circle".encode()
    )
    assert texts(path, monkeypatch) == ["a red circle", "two\u2028lines", "a red circle"]
    found = numbered_prompts(path, plain=True)
    assert [number for number, _ in found] == [3, 5, 6]
    assert len({prompt.id for _, prompt in found}) == 3


def test_rows_of_a_prompt_alone_stand_beside_whole_ones(tmp_path, monkeypatch):
    path = tmp_path / "prompts.jsonl"
    whole = {"prompt": "two cups", "task_type": "numeracy", "nouns": ["cup"]}
    path.write_text(f'{{"prompt": "a red circle"}}\n\n{json.dumps(whole)}\n')
    assert texts(path, monkeypatch) == ["a red circle", "two cups"]
    (_, plain), (_, full) = numbered_prompts(path, plain=True)
    assert (plain.task_type, full.task_type, full.nouns) == ("other", "numeracy", ("cup",))
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: field 'task_type': Field required"):
        read_prompts(path)  # training tells scores apart by it


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("p.txt", "a\n" + "red " * 100, r"p\.txt:2: the prompt is too long"),
        ("p.txt", "# nothing\n\n", r"p\.txt: the file holds no prompts"),
        ("p.txt", "a\n\u200b\n", r"p\.txt:2: field 'prompt': is blank"),
        ("p.txt", b"\xff\n", r"p\.txt: not UTF-8 text"),
        ("p.jsonl", '{"prompt": "a"}\n{"promt": "b"}\n', r"p\.jsonl:2: field 'prompt'"),
        ("p.jsonl", "a red circle\n", r"p\.jsonl:1: not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, monkeypatch, name, content, complaint):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=complaint):
        texts(path, monkeypatch)
    with pytest.raises(UserError, match=r"none\.txt: no such prompt file"):
        texts(tmp_path / "none.txt", monkeypatch)
