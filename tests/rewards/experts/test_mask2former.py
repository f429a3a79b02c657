"""Mask2Former: its published files, what it is shown, and MMDetection's post-processing."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from policy.errors import UserError
from rewards.experts.mask2former import (
    Mask2Former,
    as_instance,
    best_pairs,
    full_size,
    model_input,
    resized_shape,
)
from rewards.experts.mask2former_checkpoint import config_of, to_transformers
from rewards.experts.opencv_resize import resize_linear
from tests.rewards.experts import tiny
from tests.rewards.experts.mmdet_mask2former import mmdet_tensors, tiny_mask2former

EVERY = range(80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mask2former")
    tiny_mask2former(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder) -> Mask2FormerForUniversalSegmentation:
    return Mask2FormerForUniversalSegmentation.from_pretrained(folder)


@pytest.fixture(scope="module")
def detector(folder) -> Mask2Former:
    return Mask2Former(str(folder), **tiny.EXACT)


# --- what it is shown ---


@pytest.mark.parametrize(
    ("height", "width", "shape"),
    [
        (384, 384, (800, 800)),
        (1024, 1024, (800, 800)),
        (190, 333, (761, 1333)),
        (333, 190, (1333, 761)),
        (300, 320, (800, 853)),
    ],
)
def test_the_short_side_becomes_800_and_the_long_one_1333_at_most(height, width, shape):
    assert resized_shape(height, width) == shape


def test_the_image_is_normalized_and_padded_with_gray():
    shown = model_input(np.full((300, 320, 3), (124, 116, 104), np.uint8))
    assert shown.shape == (3, 800, 864) and shown.dtype == torch.float32
    inside = [(124 - 123.675) / 58.395, (116 - 116.28) / 57.12, (104 - 103.53) / 57.375]
    outside = [(128 - 123.675) / 58.395, (128 - 116.28) / 57.12, (128 - 103.53) / 57.375]
    np.testing.assert_allclose(shown[:, 799, 852], inside, rtol=1e-5)
    np.testing.assert_allclose(shown[:, 799, 853], outside, rtol=1e-5)


def test_a_small_image_resized_by_opencv():
    image = np.array([[0, 255, 7], [90, 33, 254]], np.uint8)[..., None].repeat(3, 2)
    # cv2.resize(image, (5, 3), interpolation=cv2.INTER_LINEAR), opencv 5.0.0
    wanted = [[0, 102, 255, 106, 7], [45, 84, 144, 136, 131], [90, 67, 33, 166, 254]]
    assert (resize_linear(image, 3, 5) == np.array(wanted)[..., None]).all()


@given(st.tuples(*[st.integers(1, 60)] * 4), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_resizing_is_opencvs(sizes, seed):
    cv2 = pytest.importorskip("cv2")
    height, width, new_height, new_width = sizes
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    wanted = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize_linear(image, new_height, new_width), wanted)


def test_resizing_to_the_same_size_changes_nothing():
    (image,) = tiny.images(1, 31, 17)
    np.testing.assert_array_equal(resize_linear(image, 31, 17), image)


# --- post-processing ---


def test_the_best_pairs_leave_out_that_there_is_nothing():
    logits = torch.tensor([[2.0, 0.0, 9.0], [1.0, 3.0, 0.0]])
    scores, classes, queries = best_pairs(logits, most=3)
    sure = logits.softmax(-1)
    wanted = [(sure[1, 1], 1, 1), (sure[1, 0], 0, 1), (sure[0, 0], 0, 0)]
    assert list(zip(scores.tolist(), classes.tolist(), queries.tolist(), strict=True)) == wanted


def test_a_query_may_have_two_classes_and_a_hundred_pairs_are_kept():
    scores, classes, queries = best_pairs(torch.randn(30, 81, generator=torch.manual_seed(0)))
    assert len(scores) == 100 and len(set(queries.tolist())) < 100
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert classes.max() < 80


def test_an_instance_is_scored_over_its_mask_and_its_box_is_one_wider():
    logits = torch.full((5, 6), -1.0)
    logits[1, 2], logits[3, 4] = 1.0, 3.0
    logits[0, 0] = 0.0  # not above 0
    found = as_instance(7, torch.tensor(0.5), logits)
    sure = (1 / (1 + np.exp(-1.0)) + 1 / (1 + np.exp(-3.0))) / 2
    assert found.box == (2.0, 1.0, 5.0, 4.0) and found.label == 7
    assert found.score == pytest.approx(0.5 * sure, abs=1e-6)
    assert found.score == float(np.float32(found.score))
    assert np.argwhere(found.mask).tolist() == [[1, 2], [3, 4]]


def test_an_empty_mask_has_no_score():
    found = as_instance(0, torch.tensor(0.9), torch.full((4, 4), -2.0))
    assert found.score == 0.0 and found.box == (0.0, 0.0, 0.0, 0.0)


def test_masks_are_cut_to_the_image_before_they_are_resized_to_it():
    logits = torch.randn(200, 216, generator=torch.manual_seed(0))  # of 800 x 864
    whole = F.interpolate(logits[None, None], (800, 864), mode="bilinear")[..., :853]
    wanted = F.interpolate(whole, (300, 320), mode="bilinear")[0, 0]
    torch.testing.assert_close(full_size(logits, 300, 320), wanted)


def plain_instances(model, image) -> list[tuple[int, float, tuple, np.ndarray]]:
    """All 100 of them, class, score, box and mask, straight from the model, one after the other."""
    with torch.no_grad():
        shown = model(model_input(image)[None])
    sure = shown.class_queries_logits[0].softmax(-1)[:, :80]
    pairs = sorted(
        ((sure[q, c].item(), q, c) for q in range(len(sure)) for c in range(80)), reverse=True
    )
    found = []
    for score, query, kind in pairs[:100]:
        logits = full_size(shown.masks_queries_logits[0, query], *image.shape[:2]).numpy()
        rows, columns = np.nonzero(logits > 0)
        if len(rows):
            score *= (1 / (1 + np.exp(-logits[logits > 0]))).mean()
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            found.append((kind, score, box, logits > 0))
    return found


def test_it_finds_what_the_model_says_and_only_what_is_asked_for(model, detector):
    image = tiny.images(1, 60, 84)[0]
    every = plain_instances(model, image)
    classes = {kind for kind, *_ in every[:10]}
    middle = sorted(score for kind, score, *_ in every if kind in classes)[len(classes) // 2]
    (found,) = detector.instances([image], [classes], [middle + 1e-4])
    wanted = [row for row in every if row[0] in classes and row[1] > middle + 1e-4]
    assert len(wanted) > 2 and len(found) == len(wanted)
    for instance, (kind, score, box, mask) in zip(found, wanted, strict=True):
        assert instance.label == kind and instance.box == box
        assert instance.score == pytest.approx(score, abs=1e-5)
        np.testing.assert_array_equal(instance.mask, mask)


def test_a_score_must_be_above_what_is_asked(detector):
    image = tiny.images(1, 60, 84)[0]
    (every,) = detector.instances([image], [EVERY], [0.0])
    best = max(instance.score for instance in every)
    (above,) = detector.instances([image], [EVERY], [best])
    assert not above
    (at_least,) = detector.instances([image], [EVERY], [float(np.nextafter(np.float32(best), 0))])
    assert [i.score for i in at_least] == [best]


def test_batches_change_nothing(folder, detector):
    images = [*tiny.images(2, 60, 84), *tiny.images(1, 48, 48)]
    together = detector.instances(images, [EVERY] * 3, [0.0] * 3)
    for image, some in zip(images, together, strict=True):
        (alone,) = Mask2Former(str(folder), **tiny.EXACT, batch_size=1).instances(
            [image], [EVERY], [0.0]
        )
        assert [i.label for i in alone] == [i.label for i in some]
        np.testing.assert_allclose([i.score for i in alone], [i.score for i in some], atol=1e-5)


def test_what_is_no_number_is_an_error(folder):
    broken = Mask2Former(str(folder), **tiny.EXACT)
    with torch.no_grad():
        broken._model.class_predictor.bias.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="the detector computed nan"):
        broken.instances(tiny.images(1, 48, 48), [EVERY], [0.3])


# --- MMDetection's files ---


@pytest.mark.parametrize("release", [2, 3])
def test_mmdetections_file_is_the_same_model(model, detector, tmp_path, release):
    published = mmdet_tensors(model, release)
    converted = to_transformers(published, "published")
    own = model.state_dict()
    unread = {name for name in own if ".swin.layernorm." in name}
    assert converted.keys() == own.keys()
    for name in own.keys() - unread:
        torch.testing.assert_close(converted[name], own[name], atol=0, rtol=0)
    torch.save({"meta": {"CLASSES": ("a", "b")}, "state_dict": published}, tmp_path / "m.pth")
    image = tiny.images(1, 60, 84)[0]
    (wanted,) = detector.instances([image], [EVERY], [0.0])
    (found,) = Mask2Former(str(tmp_path / "m.pth"), **tiny.EXACT).instances([image], [EVERY], [0.0])
    assert [(i.label, i.score, i.box) for i in found] == [(i.label, i.score, i.box) for i in wanted]
    assert len(found) > 10


def test_patches_are_merged_as_by_torchs_unfold(model):
    """MMDetection merges patches with nn.Unfold, whose channels are the slowest."""
    published = mmdet_tensors(model)
    merge = model.model.pixel_level_module.encoder.swin.encoder.layers[0].downsample
    x = torch.randn(1, 8, 6, 4)
    old = F.unfold(x, kernel_size=2, stride=2).transpose(1, 2)
    prefix = "backbone.stages.0.downsample."
    old = F.layer_norm(old, (32,), published[prefix + "norm.weight"], published[prefix + "norm.bias"])
    wanted = old @ published[prefix + "reduction.weight"].T
    with torch.no_grad():
        torch.testing.assert_close(merge(x.flatten(2).transpose(1, 2), (6, 4)), wanted)


def test_sizes_of_the_published_model_are_read_off_its_tensors():
    backbone = SwinConfig(depths=[2, 2, 18, 2], out_features=[f"stage{n}" for n in (1, 2, 3, 4)])
    with torch.device("meta"):
        model = Mask2FormerForUniversalSegmentation(
            Mask2FormerConfig(backbone_config=backbone, num_labels=80)
        )
        tensors = to_transformers(mmdet_tensors(model), "published")
    config = config_of(tensors, "published")
    wanted = model.config
    for key in (
        "feature_size", "mask_feature_size", "hidden_dim", "num_queries", "num_attention_heads",
        "encoder_layers", "decoder_layers", "encoder_feedforward_dim", "dim_feedforward", "num_labels",
    ):  # fmt: skip
        assert getattr(config, key) == getattr(wanted, key), key
    for key in ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio"):
        found = getattr(config.backbone_config, key)
        assert found == pytest.approx(getattr(backbone, key)), key
    with torch.device("meta"):
        built = Mask2FormerForUniversalSegmentation(config)
    shapes = {name: tensor.shape for name, tensor in built.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in tensors.items()}


_LATERAL = "panoptic_head.pixel_decoder.lateral_convs.0.conv.bias"
_BIAS = "panoptic_head.transformer_decoder.layers.1.attentions.1.attn.in_proj_bias"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda t: t.update({"roi_head.x": torch.zeros(1)}),
            "1 tensors that no Mask2Former of MMDetection with a Swin backbone has: roi_head.x",
        ),
        (lambda t: t.pop("backbone.norm2.bias"), "1 missing: .*hidden_states_norms.stage3.bias"),
        (lambda t: t.pop("panoptic_head.query_feat.weight"), "no tensor for .*queries_features"),
        (
            lambda t: t.update({"panoptic_head.query_embed.weight": torch.zeros(12, 5)}),
            r"1 mismatched: .*queries_embedder.weight \[12, 5\] instead of \[12, 32\]",
        ),
        (
            lambda t: t.update({_LATERAL: torch.zeros(32)}),
            "1 unexpected: .*adapter_1.0.bias",
        ),
        (
            lambda t: t.update({_BIAS: torch.zeros(3)}),
            r"3 mismatched: .*layers.1.self_attn.k_proj.bias \[1\] instead of \[32\]",
        ),
        (
            lambda t: t.update({"backbone.stages.0.downsample.norm.bias": torch.zeros(5)}),
            r"downsample.norm.bias: \[5\], where the last axis holds 2 x 2 patches",
        ),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(model, tmp_path, change, complaint):
    tensors = mmdet_tensors(model)
    change(tensors)
    torch.save({"state_dict": tensors}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=complaint) as refused:
        Mask2Former(str(tmp_path / "bad.pth"), **tiny.EXACT)
    assert str(tmp_path / "bad.pth") in str(refused.value) and "\n" not in str(refused.value)


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "maskformer"}')
    with pytest.raises(UserError, match="a 'maskformer' checkpoint, where 'mask2former' is needed"):
        Mask2Former(str(tmp_path), **tiny.EXACT)
