"""`bicot export`: a run's model in either layout, its card, and the way to the hub, byte by byte."""

import io
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from cluster.checkpoint import State
from cluster.commands.export import export
from cluster.commands.model_card import find_base
from cluster.config import dump_config, load_config
from cluster.sft_config import load_sft_config
from cluster.watch.recorder import Recorder
from policy.convert import convert, keep_side_files
from policy.errors import UserError
from policy.janus_checkpoint import save_tokenizer
from policy.model import PolicyConfig, load_janus
from policy.shards import Shards
from tests.cluster.commands import TRAIN, bicot, environment
from tests.cluster.small_hub import TOKEN, SmallHub, small_hub
from tests.cluster.test_report import evaluation
from tests.conftest import ROOT, SHAPES

pytestmark = pytest.mark.e2e

SIDE_FILES = {
    "processor_config.json": '{"processor_class": "VLChatProcessor"}',
    "preprocessor_config.json": '{"image_size": 24}',
    "special_tokens_map.json": '{"bos_token": "<bos>"}',
    "chat_template.jinja": "{{ messages }}",
    "generation_config.json": '{"top_k": 0}',
}
UNUSED = ("vision_model.vision_tower.attn_pool.latent", "gen_vision_model.quantize.codebook_used")
LICENSE = """---
license: mit
license_name: deepseek
license_link: LICENSE
---
# A Janus
"""


@pytest.fixture(scope="module")
def original(policy_config, tmp_path_factory) -> Path:
    """A model as it is published: with what no output depends on, and files beside it."""
    folder = tmp_path_factory.mktemp("published") / "janus"
    convert(policy_config.path, folder, "original")
    state = load_file(folder / "model.safetensors")
    state |= {name: torch.arange(7.0) for name in UNUSED}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for name, text in SIDE_FILES.items():
        (folder / name).write_text(text)
    (folder / "README.md").write_text(LICENSE)
    return folder


@pytest.fixture(scope="module")
def run(original, tmp_path_factory) -> Path:
    """The directory of a run of ten steps from it, with a checkpoint as the learner writes one."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    recorder = Recorder(folder)
    recorder.evaluation(0, evaluation(0, 0.25, objects=0.5))
    for step in range(1, 11):
        recorder.step(step, {"reward/mean": step / 10})
    recorder.evaluation(10, evaluation(10, 0.75, objects=0.875))
    recorder.evaluation(20, evaluation(20, 0.95, objects=0.9))  # after the newest checkpoint
    recorder.close()
    overrides = [f"policy.path={original}", f"policy.templates={SHAPES}/templates"]
    (folder / "config.yaml").write_text(dump_config(load_config(ROOT / TRAIN, overrides)))
    checkpoint = folder / "checkpoints" / "step_000010"
    janus = load_janus(PolicyConfig(path=str(original)))
    with torch.no_grad():
        janus.model.lm_head.weight.add_(1)
    janus.model.save_pretrained(checkpoint)
    save_tokenizer(janus.tokenizer, checkpoint)
    keep_side_files(janus.source, checkpoint)
    (checkpoint / "learner").mkdir()
    (checkpoint / "learner" / "state").write_bytes(b"the optimizer's")
    files = {str(p.relative_to(checkpoint)): p for p in checkpoint.rglob("*") if p.is_file()}
    sizes = {name: path.stat().st_size for name, path in files.items()}
    state = State(step=10, weights_version=10, ranks=1, config={}, files=sizes)
    (checkpoint / "state.json").write_text(json.dumps(asdict(state)))
    return folder


def exported(run: Path, target: Path, layout="transformers", **options) -> str:
    console = Console(file=io.StringIO(), width=60)
    export(run, target, layout, console, **options)
    return console.file.getvalue()


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {name: spec.shape for name, spec in Shards(folder).specs.items()}


# --- layouts ---


def test_after_training_the_published_layout_has_all_that_the_source_had(run, original, tmp_path):
    exported(run, tmp_path / "new", "original")
    assert shapes(tmp_path / "new") == shapes(original)
    found, wanted = Shards(tmp_path / "new"), Shards(original)
    assert set(UNUSED) < found.specs.keys()
    for name in wanted.specs:
        learned = 1.0 if name == "language_model.lm_head.weight" else 0.0
        assert torch.equal(found.read(name), wanted.read(name) + learned), name
    for name, text in SIDE_FILES.items():
        assert (tmp_path / "new" / name).read_text() == text
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config == json.loads((original / "config.json").read_text())
    assert {path.name for path in original.iterdir()} - {
        path.name for path in (tmp_path / "new").iterdir()
    } == {
        "README.md"  # which is about the source
    }


def test_the_model_alone_is_exported(run, tmp_path):
    output = exported(run, tmp_path / "new")
    assert output == f"{tmp_path / 'new'}: the model after step 10\n"
    checkpoint = run / "checkpoints" / "step_000010"
    found = files(tmp_path / "new")
    assert found == {
        n: b for n, b in files(checkpoint).items() if n not in ("state.json", "learner/state")
    }
    convert(str(tmp_path / "new"), tmp_path / "back", "original")
    assert set(UNUSED) < shapes(tmp_path / "back").keys()


# --- the card ---


@pytest.fixture(scope="module")
def carded(run, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("carded") / "my-janus"
    exported(run, target, card=True)
    return target


def front_matter(folder: Path) -> dict:
    text = (folder / "README.md").read_text()
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_a_card_says_what_the_model_is_and_what_training_changed(carded, run, original):
    metadata = front_matter(carded)
    assert metadata["license"] == "mit"
    assert metadata["license_name"] == "deepseek"
    assert metadata["pipeline_tag"] == "text-to-image"
    assert metadata["library_name"] == "transformers"
    assert {"bicot", "janus", "reinforcement-learning"} < set(metadata["tags"])
    assert "base_model" not in metadata  # a folder is nowhere for others
    text = (carded / "README.md").read_text()
    assert text.partition("\n# ")[2].startswith("my-janus\n")
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        first, *more = (cell.strip() for cell in line.strip("|").split("|"))
        rows.setdefault(first, more)
    rows[""] = next(line.split("|") for line in text.splitlines() if line.startswith("| | step"))[2:]
    assert [cell.strip() for cell in rows[""][:2]] == ["step 0", "step 10"]
    assert rows["Reward"][:2] == ["0.250", "0.750"]
    assert rows["expert: objects"][:2] == ["0.500", "0.875"]
    assert rows["base model"] == [str(original)]
    assert rows["steps"] == ["10"]
    assert rows["learning rate"] == ["0.0002, constant"]
    assert rows["prompts"] == ["examples/shapes/prompts/train.jsonl"]
    assert "count (examples.shapes.experts:CountExpert, weight 1)" in rows["rewards"][0]
    assert "step 20" not in text and "0.950" not in text
    for name in ("before_after.png", "reward_curve.png"):
        assert f"]({name})" in text
        with Image.open(carded / name) as picture:
            assert min(picture.size) > 100


def test_the_example_in_a_card_draws(carded, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (carded / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(carded, tmp_path / "my-janus")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    with Image.open(tmp_path / "image.png") as picture:
        assert picture.size == (24, 24)
    janus = load_janus(PolicyConfig(path=str(carded), templates=str(SHAPES / "templates")))
    assert names["asked"].input_ids[0].tolist() == janus.image_prompt_ids(
        "two red circles", names["cot"]
    )


def test_a_card_of_the_original_layout_needs_no_transformers(run, tmp_path):
    exported(run, tmp_path / "new", "original", card=True)
    assert "library_name" not in front_matter(tmp_path / "new")
    text = (tmp_path / "new" / "README.md").read_text()
    assert "`bicot convert new DST --to transformers`" in text
    assert "```python" not in text


def test_the_base_of_a_run_from_a_run_is_the_first_model(run, original, tmp_path):
    found = find_base(str(run / "checkpoints" / "step_000010"))
    assert found.name == str(original)
    assert found.license == {"license": "mit", "license_name": "deepseek"}
    assert find_base("owner/name").hub_id == "owner/name"
    assert find_base("owner/name").license == {}
    assert find_base(str(tmp_path / "gone")).license == {}


def test_what_a_run_lacks_is_reported(run, tmp_path):
    """A run that has only begun, of a model that is not here any more."""
    bare = tmp_path / "bare"
    shutil.copytree(run / "checkpoints", bare / "checkpoints")
    config = load_config(
        ROOT / TRAIN, [f"policy.path={tmp_path}/gone", f"policy.templates={tmp_path}/gone"]
    )
    (bare / "config.yaml").write_text(dump_config(config))
    output = exported(bare, tmp_path / "new", card=True)
    assert f"README.md: the files of {tmp_path}/gone tell no license" in output
    assert "README.md: no reward curve: " in output
    assert "README.md: without the model's wording: " in output
    text = (tmp_path / "new" / "README.md").read_text()
    assert "license" not in front_matter(tmp_path / "new")
    assert "The run has no evaluation that shows what training changed." in text
    assert ".png" not in text


def test_a_card_of_supervised_fine_tuning_says_so_and_has_its_wording(run, original, tmp_path):
    taught, words = tmp_path / "taught", tmp_path / "words"
    shutil.copytree(run / "checkpoints", taught / "checkpoints")
    words.mkdir()
    (words / "image.txt").write_text("{raw_prompt} {raw_cot}")
    overrides = [f"policy.path={original}", f"policy.templates={words}"]
    config = load_sft_config(ROOT / "examples/shapes/sft.yaml", overrides)
    (taught / "config.yaml").write_text(dump_config(config))
    exported(taught, tmp_path / "new", card=True)
    text = (tmp_path / "new" / "README.md").read_text()
    assert "after 10 steps of supervised fine-tuning with" in text
    assert f"| examples | {config.sft.data} |" in text
    assert "supervised-fine-tuning" in front_matter(tmp_path / "new")["tags"]
    assert '.replace("{cot}", cot)' in text  # as it is, as this wording has it


# --- the hub ---


@pytest.fixture
def hub(monkeypatch):
    with small_hub() as served:
        for name, value in (
            ("ENDPOINT", served.url),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
        ):
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def test_every_byte_arrives(run, tmp_path):
    """As a person gives the command, in a process of its own."""
    with small_hub() as served:
        env = environment() | {"HF_ENDPOINT": served.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        target = tmp_path / "new"
        done = bicot("export", run, target, "--card", "--push", "someone/my-janus", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-2:] == [
        f"{target}: the model after step 10",
        f"{served.url}/someone/my-janus: uploaded",
    ]
    assert served.files == files(target)
    assert {
        "README.md",
        "before_after.png",
        "model.safetensors",
        "original/config.json",
    } < served.files.keys()
    assert served.made == [{"name": "my-janus", "organization": "someone", "visibility": "private"}]
    assert served.messages == ["mine, step 10"]
    assert "\n# someone/my-janus\n" in served.files["README.md"].decode()


def refusal(run: Path, target: Path, name: str = "someone/my-janus") -> str:
    with pytest.raises(UserError) as refused:
        exported(run, target, push=name)
    assert "\n" not in str(refused.value)
    assert TOKEN not in str(refused.value)
    return str(refused.value)


def test_what_the_hub_refuses_leaves_nothing_here(hub: SmallHub, run, tmp_path, monkeypatch):
    target = tmp_path / "new"
    hub.refuse["/api/repos/create"] = (403, "You don't have the rights to create a model under someone")
    assert refusal(run, target) == (
        f"someone/my-janus: not available on {hub.url}: 403: You don't have the rights to create a"
        " model under someone"
    )
    hub.refuse.clear()
    assert "someone/a name: not available on" in refusal(run, target, "someone/a name")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "401: Invalid credentials in Authorization header" in refusal(run, target)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert refusal(run, target).startswith(
        "someone/my-janus: no token for the Hugging Face hub: set HF_TOKEN"
    )
    assert hub.files == {}
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_nothing_is_written(hub: SmallHub, run, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "someone/my-janus: not available on http://127.0.0.1:9: ConnectError: " in refusal(
        run, tmp_path / "new"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(run, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_breaks_off_leaves_the_export_whole(hub: SmallHub, run, tmp_path):
    hub.refuse["/commit/"] = (413, "that is too much")
    target = tmp_path / "new"
    assert refusal(run, target) == (
        f"someone/my-janus: not uploaded: 413: that is too much; {target} is whole, and"
        f" `hf upload someone/my-janus {target}` sends it"
    )
    hub.refuse = {"/storage/": (403, "the signature is of yesterday")}
    shutil.move(target, tmp_path / "first")
    assert "not uploaded: 403: the signature is of yesterday; " in refusal(run, target)
    assert files(target) == files(tmp_path / "first")
    exported(run, tmp_path / "alone")
    assert files(target) == files(tmp_path / "alone")
    assert hub.files == {}


def test_a_repository_for_everybody(hub: SmallHub, run, tmp_path):
    exported(run, tmp_path / "new", push="someone/my-janus", public=True)
    assert [asked["visibility"] for asked in hub.made] == ["public"]
    assert hub.files == files(tmp_path / "new")
