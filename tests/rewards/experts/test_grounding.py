"""GroundingDINO in both layouts, and OWLv2, as experts: tiny random models of the same classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    SwinConfig,
)

from policy.errors import UserError
from policy.prompts import parse_prompt
from policy.records import Prompt
from rewards.detection import existence_score, spatial_score
from rewards.expert import score_checked
from rewards.experts.detector import Detector
from rewards.experts.grounding import GroundingDino, Owlv2
from rewards.experts.grounding_checkpoint import config_of, phrase_positions, to_transformers
from tests.rewards.experts import tiny
from tests.rewards.experts.grounding_original import original_tensors, tiny_grounding_dino

TEXTS = ["a cat left of a hot dog", "two tvs", "a roll of tape and a dog", "a cat"]


def prompts() -> list[Prompt]:
    asked = (
        {"task_type": "spatial", "nouns": ["cat", "hot dog"]}
        | {"spatial_info": {"obj1": "cat", "obj2": "hot dog", "locality": "left of"}},
        {"task_type": "numeracy", "nouns": ["tv"], "numeracy_info": [{"obj_name": "tv", "num": 2}]},
        {"task_type": "complex", "nouns": ["roll of tape", "dog"]},
        {"task_type": "non", "nouns": ["cat"]},
    )
    return [parse_prompt({"prompt": t} | some) for t, some in zip(TEXTS, asked, strict=True)]


def images() -> list[np.ndarray]:
    """Of two shapes."""
    square, wide = tiny.images(3, 64, 64), tiny.images(1, 48, 72)
    return [square[0], wide[0], square[1], square[2]]


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    tiny_grounding_dino(folder)
    return folder


@pytest.fixture(scope="module")
def dino(dino_folder) -> GroundingDino:
    expert = GroundingDino(str(dino_folder), **tiny.EXACT)
    return at_a_telling_threshold(expert, lambda: expert.detect(images(), [["dog", "cat"]] * 4))


@pytest.fixture(scope="module")
def owl_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("owl")
    layer = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    layer |= {"num_attention_heads": 4}
    text = layer | {"vocab_size": tiny.clip_tokenizer(folder), "max_position_embeddings": 40}
    vision = layer | {"image_size": 56, "patch_size": 14}
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=32)
    tiny.randomize(Owlv2ForObjectDetection(config)).save_pretrained(folder)
    Owlv2ImageProcessorPil(size={"height": 56, "width": 56}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def owl(owl_folder) -> Owlv2:
    expert = Owlv2(str(owl_folder), **tiny.EXACT)
    return at_a_telling_threshold(expert, lambda: expert.detect(images(), [["dog", "cat"]] * 4))


def at_a_telling_threshold(expert, detect):
    """Some boxes of a random model above it, some below, none near."""
    expert._box_threshold = -1.0
    scores = np.sort([d.score for some in detect() for d in some])
    upper = scores[len(scores) // 2 :]
    widest = int(np.diff(upper).argmax())
    expert._box_threshold = float(upper[widest : widest + 2].mean())
    return expert


# --- both detectors ---


@pytest.fixture(params=["dino", "owl"])
def detector(request) -> Detector:
    return request.getfixturevalue(request.param)


def test_a_batch_changes_nothing(detector):
    asked, shown = prompts(), images()
    nouns = [detector.nouns(prompt) for prompt in asked]
    together = detector.detect(shown, nouns)
    alone = [detector.detect([image], [some])[0] for image, some in zip(shown, nouns, strict=True)]
    assert sum(map(len, together)) > 0
    for one, many in zip(alone, together, strict=True):
        assert [d.phrase for d in one] == [d.phrase for d in many]
        np.testing.assert_allclose([d.score for d in one], [d.score for d in many], atol=1e-4)
        np.testing.assert_allclose([d.box for d in one], [d.box for d in many], atol=1e-4)
    values = detector.score(shown, asked).values
    singly = [detector.score([i], [p]).values[0] for i, p in zip(shown, asked, strict=True)]
    np.testing.assert_allclose(values, singly, atol=1e-4)


def test_scores_are_those_of_its_detections_and_people_see_them(detector):
    asked = prompts()
    nouns = [detector.nouns(prompt) for prompt in asked]
    found = detector.detect(images(), nouns)
    scores = score_checked("detector", detector, images(), asked)
    assert scores.values[0] == pytest.approx(spatial_score(found[0], asked[0].spatial_info))
    assert scores.values[2] == pytest.approx(existence_score(found[2], asked[2].nouns))
    assert [line.partition(":")[0] for line in scores.explanation] == [
        "spatial",
        "count",
        "existence",
        "existence",
    ]
    shown = scores.boxes
    assert [len(some) for some in shown] == [len(some) for some in found]
    assert all(b.xyxy[0] <= b.xyxy[2] and b.xyxy[1] <= b.xyxy[3] for some in shown for b in some)


def test_a_prompt_that_names_nothing_does_not_concern_it(detector):
    bare = parse_prompt({"prompt": "joy", "task_type": "non"})
    where = {"obj1": "cat", "obj2": "dog", "locality": "behind"}
    behind = parse_prompt(
        {"prompt": "x", "task_type": "spatial", "nouns": ["cat"], "spatial_info": where}
    )
    assert not detector.applies(bare) and not detector.applies(behind)
    assert all(map(detector.applies, prompts()))


# --- GroundingDINO ---


def test_the_original_layout_gives_the_same_model(dino_folder, dino, tmp_path):
    file = tmp_path / "groundingdino.pth"
    model = GroundingDinoForObjectDetection.from_pretrained(dino_folder)
    torch.save({"model": original_tensors(model)}, file)
    converted = GroundingDino(str(file), processor=str(dino_folder), **tiny.EXACT)
    mine, theirs = (e._model.state_dict() for e in (converted, dino))
    read = [name for name in theirs if ".swin.layernorm." not in name]
    assert all(torch.equal(mine[name], theirs[name]) for name in read)
    pixels, words = torch.randn(2, 3, 128, 192), torch.tensor([[101, 1030, 1031, 1012, 102]] * 2)
    with torch.no_grad():
        one, two = (e._model(pixel_values=pixels, input_ids=words) for e in (converted, dino))
    torch.testing.assert_close(one.logits, two.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.pred_boxes, two.pred_boxes, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "swin",
    [
        {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
        {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
    ],
    ids=["Swin-T OGC", "Swin-B"],
)
def test_the_sizes_of_the_published_models_are_read_off_their_tensors(swin):
    backbone = SwinConfig(**swin, out_indices=[2, 3, 4])
    with torch.device("meta"):
        model = GroundingDinoForObjectDetection(GroundingDinoConfig(backbone_config=backbone))
        tensors = to_transformers(original_tensors(model), "published")
    config = config_of(tensors, "published")
    with torch.device("meta"):
        built = GroundingDinoForObjectDetection(config)
    shapes = {name: tensor.shape for name, tensor in built.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in tensors.items()}
    assert config.text_config.num_attention_heads == 12
    assert config.backbone_config.num_heads == swin["num_heads"]
    assert config.backbone_config.window_size == swin["window_size"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.update(stranger=torch.zeros(1)), "1 tensors that no GroundingDINO has: stranger"),
        (lambda t: t.pop("module.feat_map.bias"), "1 missing: model.text_projection.bias"),
        (
            lambda t: t.update({"module.feat_map.bias": torch.zeros(3)}),
            r"1 mismatched: model.text_projection.bias \[3\] instead of \[32\]",
        ),
        (lambda t: t.pop("module.transformer.level_embed"), "no tensor for 'model.level_embed'"),
    ],
)
def test_an_original_that_does_not_fit_is_refused(dino_folder, tmp_path, change, complaint):
    tensors = original_tensors(GroundingDinoForObjectDetection.from_pretrained(dino_folder))
    change(tensors)
    torch.save({"model": tensors}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=complaint):
        GroundingDino(str(tmp_path / "bad.pth"), processor=str(dino_folder), **tiny.EXACT)


def test_another_kind_of_model_is_refused(dino_folder, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "owlv2"}')
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((dino_folder / name).read_bytes())
    with pytest.raises(UserError, match="a 'owlv2' checkpoint, where 'grounding-dino' is needed"):
        GroundingDino(str(tmp_path), **tiny.EXACT)


def test_positions_count_from_the_beginning_of_a_phrase():
    # [CLS] hot dog . tv . [SEP] [PAD], where a token sees its phrase and the stop after it
    block = torch.tensor([0, 1, 1, 1, 2, 2, 3, 4])
    allowed = block[None, :, None] == block[None, None, :]
    assert phrase_positions(allowed).tolist() == [[0, 0, 1, 2, 0, 1, 0, 0]]


def test_the_model_reads_the_published_positions(dino):
    seen = {}
    model = dino._model.model
    hooks = [
        model.text_backbone.embeddings.register_forward_pre_hook(
            lambda _, __, kwargs: seen.update(ids=kwargs["position_ids"]), with_kwargs=True
        ),
        model.encoder.layers[0].text_enhancer_layer.register_forward_pre_hook(
            lambda _, __, kwargs: seen.update(sines=kwargs["position_embeddings"]), with_kwargs=True
        ),
    ]
    dino.detect(tiny.images(2, 64, 64), [["hot dog", "tv"], ["tv"]])
    for hook in hooks:
        hook.remove()
    assert seen["ids"].tolist() == [[0, 0, 1, 2, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0]]
    periods = 10000 ** (torch.arange(0, 32, 2) / 32)
    angles = 2 * torch.pi * seen["ids"][..., None] / periods
    sines = torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)
    torch.testing.assert_close(seen["sines"], sines, atol=1e-5, rtol=0)


def test_all_tokens_of_a_noun_count_and_no_other(dino_folder, dino):
    image = tiny.images(1, 64, 64)[0]
    (found,) = GroundingDino(str(dino_folder), **tiny.EXACT, box_threshold=-1.0).detect(
        [image], [["hot dog", "cats"]]
    )
    words = dino._tokenizer("hot dog . cats.", return_tensors="pt")
    assert dino._tokenizer.convert_ids_to_tokens(words.input_ids[0]) == [
        "[CLS]", "hot", "dog", ".", "ca", "##t", "##s", ".", "[SEP]",
    ]  # fmt: skip
    pixels = dino._image_processor([image], return_tensors="pt").pixel_values
    with torch.no_grad():
        chances = dino._model(pixel_values=pixels, **words).logits[0].sigmoid()
    for phrase, tokens in (("hot dog", slice(1, 3)), ("cats", slice(4, 7))):
        scores = [d.score for d in found if d.phrase == phrase]
        np.testing.assert_allclose(scores, chances[:, tokens].mean(1), atol=1e-5)


def test_the_text_threshold_asks_every_token(dino_folder):
    image = tiny.images(1, 64, 64)[0]
    strict = GroundingDino(str(dino_folder), **tiny.EXACT, box_threshold=0.0, text_threshold=1.0)
    assert strict.detect([image], [["hot dog"]]) == [[]]


def test_more_nouns_than_it_reads_is_an_error(dino):
    with pytest.raises(UserError, match="too many nouns to look for at once"):
        dino.detect(tiny.images(1, 64, 64), [["hot dog"] * 100])


def test_the_published_variant_asks_by_task_and_misses_long_nouns(dino_folder, dino):
    options = {**tiny.EXACT, "box_threshold": -1.0, "variant": "released"}
    published = GroundingDino(str(dino_folder), **options)
    where = {"obj1": "cat", "obj2": "dog", "locality": "left of"}
    both = parse_prompt(
        {"prompt": "x", "task_type": "complex", "nouns": ["cat", "roll of tape"], "spatial_info": where}
    )
    assert dino.question(both) == "spatial" and published.question(both) == "existence"
    scores = published.score(tiny.images(1, 64, 64), [both])
    assert scores.values[0] == 0.5, "it looks for 'roll tape'"


# --- OWLv2 ---


def test_a_noun_longer_than_owl_reads_is_an_error(owl):
    with pytest.raises(UserError, match="too long to look for: 'zzz"):
        owl.detect(tiny.images(1, 48, 72), [["z" * 50]])


def test_owl_says_what_the_model_itself_says(owl_folder, owl):
    image = tiny.images(1, 48, 72)[0]
    words = owl._tokenizer(
        ["a photo of a hot dog", "a photo of a cat"], padding=True, return_tensors="pt"
    )
    pixels = owl._image_processor(
        [image], input_data_format="channels_last", return_tensors="pt"
    ).pixel_values
    with torch.no_grad():
        outputs = owl._model(pixel_values=pixels, **words)
    (found,) = Owlv2(str(owl_folder), **tiny.EXACT, box_threshold=-1.0).detect(
        [image], [["hot dog", "cat"]]
    )
    for n, noun in enumerate(("hot dog", "cat")):
        mine = [d for d in found if d.phrase == noun]
        chances = outputs.logits[0, :, n].sigmoid()
        np.testing.assert_allclose([d.score for d in mine], chances, atol=1e-5)
        scale = torch.tensor([1, 1.5, 1, 1.5])  # 72 pixels square, of which the image is 48 high
        np.testing.assert_allclose([d.box for d in mine], outputs.pred_boxes[0] * scale, atol=1e-5)
