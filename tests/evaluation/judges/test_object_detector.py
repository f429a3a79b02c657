"""A detector in UniDet's place: its boxes are those of the detector, in the pixels that UniDet sees."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessorPil

from evaluation.judges.base import ask_prompt
from evaluation.judges.object_detector import ObjectDetector, seen_size
from rewards.experts.grounding import GroundingDino, Owlv2
from tests.rewards.experts import tiny
from tests.rewards.experts.grounding_original import tiny_grounding_dino

ASKS = [{"objects": ["cat", "hot dog"]}, {"objects": ["dog", "dog"]}]


@pytest.fixture(scope="module")
def dino(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    tiny_grounding_dino(folder)
    return folder


@pytest.fixture(scope="module")
def owl(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("owl")
    layer = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    layer |= {"num_attention_heads": 4}
    text = layer | {"vocab_size": tiny.clip_tokenizer(folder), "max_position_embeddings": 40}
    vision = layer | {"image_size": 56, "patch_size": 14}
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=32)
    tiny.randomize(Owlv2ForObjectDetection(config)).save_pretrained(folder)
    Owlv2ImageProcessorPil(size={"height": 56, "width": 56}).save_pretrained(folder)
    return folder


def images() -> list[np.ndarray]:
    return [tiny.images(1, 64, 64)[0], tiny.images(1, 48, 72)[0]]


@pytest.mark.parametrize("name", ["grounding_dino", "owlv2"])
def test_it_replies_what_the_detector_finds_best_first(name, dino, owl):
    folder, expert = {"grounding_dino": (dino, GroundingDino), "owlv2": (owl, Owlv2)}[name]
    options = {"device": "cpu", "dtype": "float32", "box_threshold": 0.0}
    judge = ObjectDetector(name, str(folder), **options)
    replies = judge.replies(images(), ASKS)
    assert [reply["size"] for reply in replies] == [[479, 479], [480, 320]]
    found = expert(str(folder), **options).detect(images(), [["cat", "hot dog"], ["dog"]])
    for reply, some in zip(replies, found, strict=True):
        width, height = reply["size"]
        wanted = []
        for d in some:
            cx, cy, w, h = d.box
            box = [(cx - w / 2) * width, (cy - h / 2) * height]
            wanted.append((-d.score, d.phrase, [*box, (cx + w / 2) * width, (cy + h / 2) * height]))
        wanted.sort(key=lambda row: row[0])
        assert reply["detections"]
        assert [(-s, label) for label, _, s in reply["detections"]] == [row[:2] for row in wanted]
        boxes = [box for _, box, _ in reply["detections"]]
        np.testing.assert_allclose(boxes, [row[2] for row in wanted], rtol=1e-5, atol=1e-3)


def test_labels_are_the_objects_as_they_were_asked_for(dino):
    judge = ObjectDetector(path=str(dino), device="cpu", dtype="float32", box_threshold=0.0)
    (reply,) = judge.replies(images()[:1], [{"objects": ["Hot  Dog"]}])
    assert {label for label, _, _ in reply["detections"]} == {"Hot  Dog"}


def test_a_box_that_the_detector_doubts_is_not_there(dino):
    judge = ObjectDetector(path=str(dino), device="cpu", dtype="float32", box_threshold=1.0)
    assert judge.replies(images()[:1], ASKS[:1]) == [{"detections": [], "size": [479, 479]}]


def test_it_says_which_detector_it_is(dino):
    judge = ObjectDetector(path=str(dino), device="cpu", dtype="float32")
    reply = json.loads(judge.score(images()[:1], [ask_prompt("spatial/0000", ASKS[0])]).explanation[0])
    assert reply["by"]["model"] == str(dino) and reply["by"]["revision"]


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((512, 512), (479, 479)),
        ((1024, 768), (480, 360)),
        ((768, 1024), (360, 480)),
        ((480, 479), (480, 479)),
        ((100, 100), (479, 479)),
    ],
)
def test_how_large_a_picture_unidet_sees(size, seen):
    assert seen_size(*size) == seen


@given(st.integers(16, 4000), st.integers(16, 4000))
def test_the_sides_keep_their_ratio(width, height):
    w, h = seen_size(width, height)
    assert max(w, h) <= 480 and min(w, h) <= 479 and max(w, h) >= 479
    assert w == pytest.approx(h * width / height, abs=0.5 + 0.5 * max(1, width / height))
