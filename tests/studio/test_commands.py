"""`bicot serve-model` before anything starts, and the name that `serve-experts` had."""

import socket

import pytest
from rich.console import Console

import cluster.cli
import studio.cli
from cluster.config import load_config
from policy.errors import UserError
from studio.serve_model import serve_model
from tests.conftest import ROOT

TRAIN = ROOT / "examples/shapes/train.yaml"


def test_the_whole_command_has_serve_model_beside_the_clusters_own():
    names = {
        command.name or command.callback.__name__ for command in studio.cli.app.registered_commands
    }
    assert {"serve-model", "serve-experts", "train", "generate"} <= names


def test_the_old_name_says_what_is_new():
    with pytest.raises(UserError, match="bicot serve is now bicot serve-experts"):
        cluster.cli.serve()


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["serve.host=0.0.0.0"], "set token_env"),
        (["serve.replicas=2", "serve.autoscale={max: 3}"], "not both"),
        (["serve.max_waiting=5"], r"max_waiting \(5\) is less than max_images \(10\)"),
        (["serve.model_name=a b"], "serve.model_name"),
    ],
)
def test_wrong_settings_are_refused(overrides, why):
    with pytest.raises(UserError, match=why):
        load_config(TRAIN, overrides)


def test_what_cannot_be_had_is_named_before_anything_starts(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("BICOT_NO_TOKEN", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for override, why in [
            (f"serve.port={port}", rf"port {port} on 127\.0\.0\.1 is in use; set serve\.port"),
            ("serve.token_env=BICOT_NO_TOKEN", r"serve\.token_env: .*BICOT_NO_TOKEN is not set"),
            ("policy.path=nowhere", "nowhere: no such model directory"),
        ]:
            with pytest.raises(UserError, match=why):
                serve_model(load_config(TRAIN, [override]), Console(quiet=True))
