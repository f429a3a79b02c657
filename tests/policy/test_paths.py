import os

import pytest

from policy.errors import UserError
from policy.hub import is_hub_id, model_file, model_folder
from policy.model import PolicyConfig
from policy.paths import check_writable


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights.bin").write_text("")
    assert PolicyConfig(path="~/model", templates="~/texts").path == f"{tmp_path}/model"
    assert model_folder("~") == tmp_path
    assert model_file("~/weights.bin") == tmp_path / "weights.bin"


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path):
    for folder in (tmp_path, tmp_path / "a" / "b"):
        check_writable(folder)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["file", "file/runs", "n" * 300, "a/" + "n" * 300, "a\0b", "/proc/a"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: ") as error:
        check_writable(tmp_path / out)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("path", ["n" * 300, "/n/" + "n" * 300, "a\0b", "~nobody-of-this-name/x"])
def test_a_path_that_can_be_none_is_no_model(path):
    assert not is_hub_id(path)
    with pytest.raises(UserError, match="no such model directory"):
        model_folder(path)
