"""A depth model as a judge, on a tiny random DPT."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessorPil

from evaluation.judges.base import ask_prompt
from evaluation.judges.depth import Depth
from policy.errors import UserError
from tests.rewards.experts import tiny

SIZE = 32
ASK = {"map": "nearness"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dpt")
    config = DPTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    torch.manual_seed(0)
    DPTForDepthEstimation(config).eval().save_pretrained(folder)
    processor = DPTImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, keep_aspect_ratio=True, ensure_multiple_of=16
    )
    processor.save_pretrained(folder)
    return folder


def test_its_map_is_the_model_s_in_coarse_cells(folder):
    judge = Depth(str(folder), device="cpu", cells=8)
    image = tiny.images(1, 40, 60)[0]
    (reply,) = judge.replies([image], [ASK])
    squashed = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    pixels = torch.tensor((np.asarray(squashed) / 255 - 0.5) / 0.5).float().permute(2, 0, 1)[None]
    processor = DPTImageProcessorPil.from_pretrained(folder)
    assert {*processor.image_mean, *processor.image_std} == {0.5}
    with torch.no_grad():
        depth = DPTForDepthEstimation.from_pretrained(folder)(pixel_values=pixels).predicted_depth[0]
    side = SIZE // 8
    cells = depth.numpy().reshape(8, side, 8, side).mean((1, 3))
    np.testing.assert_allclose(reply["nearness"], cells, rtol=1e-3, atol=1e-5)


def test_pictures_of_any_shape_go_together(folder):
    judge = Depth(str(folder), device="cpu", cells=4)
    shown = [tiny.images(1, 40, 60)[0], tiny.images(1, 64, 32)[0]]
    together = judge.replies(shown, [ASK, ASK])
    alone = [judge.replies([image], [ASK])[0] for image in shown]
    for one, many in zip(alone, together, strict=True):
        np.testing.assert_allclose(one["nearness"], many["nearness"], rtol=1e-3, atol=1e-5)
        assert np.shape(one["nearness"]) == (4, 4)


def test_its_reply_fits_an_explanation(folder):
    judge = Depth(str(folder), device="cpu")
    (line,) = judge.score(tiny.images(1), [ask_prompt("3d_spatial/0000", ASK)]).explanation
    assert len(line) < 50_000
    assert np.shape(json.loads(line)["nearness"]) == (48, 48)


def test_the_wrong_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="a 'clip' checkpoint, where 'dpt' is needed"):
        Depth(str(tmp_path), device="cpu")
