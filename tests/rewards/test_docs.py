"""The worked example of docs/experts.md, as it stands there: a user's own expert, served and asked."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from io import BytesIO

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from tests.cluster.commands import environment
from tests.conftest import ROOT

IMAGE = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)


def block(language: str) -> str:
    """The first block of code in this language."""
    text = (ROOT / "docs" / "experts.md").read_text()
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL).group(1)


@pytest.fixture
def gateway(tmp_path):
    """The URL of `bicot serve-experts`, started where the user's module lies."""
    (tmp_path / "my_experts.py").write_text(block("python"))
    config = yaml.safe_load((ROOT / "examples/shapes/train.yaml").read_text())
    config |= yaml.safe_load(block("yaml"))
    config["rewards"]["gateway"] = {"port": 0}
    config["ray"] = {"dashboard": False}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    env = environment() | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "log"
    with log.open("w") as out:
        command = [sys.executable, "-m", "cluster", "serve-experts", "train.yaml"]
        server = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=out, stderr=out)
    try:
        while not (found := re.search(r"experts answer at (\S+)", log.read_text())):
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        yield found.group(1)
    finally:
        os.kill(server.pid, signal.SIGTERM)
        server.wait(60)


def test_the_example_is_served_as_it_stands(gateway, tmp_path):
    png = BytesIO()
    Image.fromarray(IMAGE).save(png, "PNG")
    reply = httpx.post(
        f"{gateway}/v1/score",
        files=[("image", ("x.png", png.getvalue()))],
        data={"prompt": "something colourful"},
        timeout=60,
    )
    (image,) = reply.json()["images"]

    spec = importlib.util.spec_from_file_location("my_experts", tmp_path / "my_experts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    wanted = module.Colorful(gain=1.5).score([IMAGE], [None])
    scored = image["experts"]["colorful"]
    assert scored["score"] == pytest.approx(float(wanted.values[0]), rel=1e-5)
    assert scored["explanation"] == wanted.explanation[0]
    assert image["experts"]["objects"]["score"] is None
    assert image["reward"] == scored["score"]
