"""GenEval's judge, on tiny random models in the published layouts."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Mask2FormerForUniversalSegmentation,
)

from evaluation.geneval import JUDGE, GenEval
from evaluation.geneval_rules import COLORS
from evaluation.judges.base import ask_prompt
from evaluation.judges.geneval import ObjectsAndColors, best_of_each, clip_square, cut_out
from policy.errors import UserError
from rewards.config import ExpertConfig, RewardsConfig
from rewards.expert import check_experts, score_checked
from rewards.experts.mask2former import Instance, Mask2Former
from tests.conftest import shared_file
from tests.rewards.experts import tiny
from tests.rewards.experts.mmdet_mask2former import mmdet_tensors, tiny_mask2former


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mask2former")
    tiny_mask2former(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    layer = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    layer |= {"num_attention_heads": 4, "projection_dim": 24}
    text = layer | {"vocab_size": tiny.clip_tokenizer(folder), "max_position_embeddings": 40}
    vision = layer | {"image_size": tiny.SIZE, "patch_size": tiny.PATCH}
    config = CLIPConfig(
        text_config=text | {"eos_token_id": 53}, vision_config=vision, projection_dim=24
    )
    tiny.randomize(CLIPModel(config)).save_pretrained(folder)
    tiny.clip_images(folder)
    return folder


@pytest.fixture(scope="module")
def judge(detector_folder, clip_folder) -> ObjectsAndColors:
    return ObjectsAndColors(str(detector_folder), str(clip_folder), **tiny.EXACT)


def seen_classes(folder: Path, image: np.ndarray) -> list[int]:
    """The classes that the tiny detector finds in an image, the most frequent ones first."""
    (found,) = Mask2Former(str(folder), **tiny.EXACT).instances([image], [range(80)], [0.0])
    labels = [instance.label for instance in found]
    return sorted(set(labels), key=labels.count, reverse=True)


def ask(*classes: int, colors_of=(), most: int = 16, threshold: float = 0.0) -> dict:
    names = {f"thing {chr(97 + n)}": label for n, label in enumerate(classes)}
    return {"classes": names, "colors_of": list(colors_of), "threshold": threshold, "most": most}


def test_published_crops():
    for case in json.loads(shared_file("bench/vectors/geneval.json").read_text())["crops"]["cases"]:
        mask = None if case["mask"] is None else np.array(case["mask"], bool)
        options = case["options"]
        shown = cut_out(
            np.array(case["image"], np.uint8),
            case["box"],
            mask,
            options.get("bgcolor", "#999"),
            options.get("crop", "1") == "1",
        )
        assert np.asarray(shown).tolist() == case["out"]


def test_an_object_alone_on_gray_cut_to_rounded_edges():
    image = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    mask = np.zeros((5, 6), bool)
    mask[1, 2] = mask[3, 4] = True
    shown = np.asarray(cut_out(image, np.array([1.5, 0.5, 4.5, 4.0], np.float32), mask))
    wanted = np.full((4, 2, 3), 0x99, np.uint8)
    wanted[1, 0] = image[1, 2]
    np.testing.assert_array_equal(shown, wanted)
    np.testing.assert_array_equal(np.asarray(cut_out(image, (0, 0, 6, 5), mask, "original")), image)


def test_a_long_picture_loses_its_ends():
    picture = np.zeros((10, 40, 3), np.uint8)
    picture[:, 15:25] = 200
    shown = np.asarray(clip_square(Image.fromarray(picture), 20))
    assert shown.shape == (20, 20, 3)
    assert (shown > 150).all()  # Pillow's edges are not sharp


def test_the_middle_of_an_odd_rest_is_the_even_one():
    picture = Image.fromarray(np.arange(13, dtype=np.uint8)[None, :, None].repeat(10, 0).repeat(3, 2))
    assert np.asarray(clip_square(picture, 10))[0, :, 0].tolist() == list(range(2, 12))  # 1.5 -> 2


@pytest.mark.parametrize(("width", "height"), [(50, 50), (33, 90), (90, 33)])
def test_else_clip_is_shown_what_transformers_shows(clip_folder, width, height):
    picture = Image.fromarray(tiny.images(1, height, width)[0])
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    shown, wanted = (
        processor(p, return_tensors="pt").pixel_values
        for p in (clip_square(picture, tiny.SIZE), picture)
    )
    assert torch.equal(shown, wanted)


def instance(label: int, score: float) -> Instance:
    return Instance(label, score, (0.0, 0.0, 1.0, 1.0), np.ones((1, 1), bool))


def test_the_best_of_each_class_stay_in_their_order():
    found = [instance(1, s) for s in (0.5, 0.9, 0.7, 0.7)] + [instance(2, 0.1)]
    assert best_of_each(found, 2) == [found[1], found[3], found[4]]
    assert best_of_each(found, 16) == found


def plain_colors(folder: Path, crops, name: str) -> list[str]:
    """One by one, with the model's own functions."""
    model = CLIPModel.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    means = []
    for color in COLORS:
        texts = [
            f"a photo of a {color} {name}",
            f"a photo of a {color}-colored {name}",
            f"a photo of a {color} object",
        ]
        each = []
        for text in texts:
            words = tokenizer(text, truncation=True, max_length=40, return_tensors="pt")
            with torch.no_grad():
                each.append(F.normalize(model.get_text_features(**words).pooler_output, dim=-1))
        means.append(F.normalize(torch.cat(each).mean(0), dim=-1))
    colors = []
    for crop in crops:
        pixels = processor(clip_square(crop, tiny.SIZE), return_tensors="pt").pixel_values
        with torch.no_grad():
            shown = model.get_image_features(pixel_values=pixels).pooler_output[0]
        colors.append(COLORS[int((torch.stack(means) @ shown).argmax())])
    return colors


def test_replies_are_what_both_models_say(judge, detector_folder, clip_folder):
    images = tiny.images(3, 60, 84)
    first, second = seen_classes(detector_folder, images[0])[:2]
    asks = [
        ask(first, second, colors_of=["thing a"]),
        ask(second),
        ask(first, colors_of=["thing a"], most=1),
    ]
    replies = judge.replies(images, asks)
    detector = Mask2Former(str(detector_folder), **tiny.EXACT)
    for image, asked, reply in zip(images, asks, replies, strict=True):
        (found,) = detector.instances([image], [list(asked["classes"].values())], [0.0])
        chosen = best_of_each(found, asked["most"])
        names = {label: name for name, label in asked["classes"].items()}
        colored = [i for i in chosen if names[i.label] in asked["colors_of"]]
        crops = [cut_out(image, i.box, i.mask) for i in colored]
        colors = iter(plain_colors(clip_folder, crops, "thing a"))
        assert len(reply["detections"]) == len(chosen)
        for (name, box, score, color), wanted in zip(reply["detections"], chosen, strict=True):
            assert name == names[wanted.label] and box == list(wanted.box)
            assert score == pytest.approx(wanted.score, abs=1e-6)
            assert color == (next(colors) if name in asked["colors_of"] else None)
    assert {color for *_, color in replies[0]["detections"]} >= {None}
    assert len(replies[2]["detections"]) == 1


def test_it_answers_as_an_expert_in_json(judge, detector_folder):
    image = tiny.images(1, 60, 84)[0]
    asked = ask(*seen_classes(detector_folder, image)[:1], colors_of=["thing a"])
    scores = score_checked("objects", judge, [image], [ask_prompt("00000", asked)])
    reply = json.loads(scores.explanation[0])
    by = reply.pop("by")
    assert reply == judge.replies([image], [asked])[0] and reply["detections"]
    assert all(np.float32(score) == score for _, _, score, _ in reply["detections"])
    assert by["model"] == str(detector_folder) and by["weights"] == "transformers"


def test_mmdetections_file_says_the_same_under_its_own_name(
    judge, detector_folder, clip_folder, tmp_path
):
    file = tmp_path / "published.pth"
    model = Mask2FormerForUniversalSegmentation.from_pretrained(detector_folder)
    torch.save({"state_dict": mmdet_tensors(model)}, file)
    image = tiny.images(1, 60, 84)[0]
    asked = ask(*seen_classes(detector_folder, image)[:2], colors_of=["thing b"])
    published = ObjectsAndColors(str(file), str(clip_folder), **tiny.EXACT)
    assert published.replies([image], [asked]) == judge.replies([image], [asked])
    assert published.identity()["weights"] == "mmdet"
    assert published.identity()["revision"] == hashlib.sha256(file.read_bytes()).hexdigest()[:8]


def test_the_benchmarks_entry_loads():
    check_experts(RewardsConfig(experts={JUDGE: ExpertConfig(**GenEval.judges[JUDGE])}))


def test_a_detector_of_other_classes_is_refused(clip_folder, tmp_path):
    tiny_mask2former(tmp_path, classes=133)
    with pytest.raises(UserError, match="a detector of 133 classes, where COCO's 80 are needed"):
        ObjectsAndColors(str(tmp_path), str(clip_folder), **tiny.EXACT)
