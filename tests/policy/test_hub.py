import json
import shutil

import huggingface_hub.constants
import pytest
from typer.testing import CliRunner

from cluster.cli import app
from policy.errors import UserError
from policy.hub import is_hub_id, model_file, model_folder
from policy.model import PolicyConfig, check_policy, load_janus


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A hub cache of our own; the tests' environment keeps the hub client offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def add(repo: str, folder) -> None:
        entry = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        shutil.copytree(folder, entry / "snapshots" / "0123abc")
        (entry / "refs").mkdir()
        (entry / "refs" / "main").write_text("0123abc")

    return add


def test_hub_ids_of_both_layouts_load(hub_cache, policy_config, original_folder):
    hub_cache("someone/janus", policy_config.path)
    hub_cache("someone/Janus-Pro", original_folder)
    for repo in ("someone/janus", "someone/Janus-Pro"):
        check_policy(PolicyConfig(path=repo))
        assert load_janus(PolicyConfig(path=repo)).image_tokens == 36


def test_a_hub_id_that_cannot_be_had(hub_cache):
    with pytest.raises(
        UserError, match="no-one/nothing: no such directory, and it cannot be downloaded"
    ):
        model_folder("no-one/nothing")
    with pytest.raises(UserError, match="cannot be downloaded"):
        model_folder("no one/not a name")


def test_a_single_file_of_a_repository(hub_cache, tmp_path):
    (tmp_path / "repo" / "sub").mkdir(parents=True)
    for name in ("weights.pt", "sub/more.pt", "config.json"):
        (tmp_path / "repo" / name).write_text(name)
    hub_cache("someone/preference", tmp_path / "repo")
    assert model_file("someone/preference/weights.pt").read_text() == "weights.pt"
    assert model_file("someone/preference/sub/more.pt").read_text() == "sub/more.pt"
    assert model_file(str(tmp_path / "repo" / "weights.pt")).read_text() == "weights.pt"
    assert (model_folder("someone/preference", weights=False) / "config.json").is_file()
    with pytest.raises(UserError, match=r"none\.pt: no such file, and it cannot be downloaded"):
        model_file("someone/preference/none.pt")
    for path in ("someone/preference", "./someone/preference/none.pt", "/none.pt"):
        with pytest.raises(UserError, match="no such file, and not the hub's owner/name/file"):
            model_file(path)


def test_a_directory_is_never_asked_of_the_hub(tmp_path, monkeypatch):
    assert is_hub_id("deepseek-ai/Janus-Pro-1B")
    (tmp_path / "models" / "janus").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("models/janus")
    for path in ("./janus", "/models/janus", "~/janus", "a/b/c", "janus"):
        assert not is_hub_id(path)


def test_the_command(policy_config, tmp_path):
    done = CliRunner().invoke(
        app, ["convert", policy_config.path, str(tmp_path / "new"), "--to", "original"]
    )
    assert done.exit_code == 0
    assert "tensors" in done.output
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model_type"] == "multi_modality"
