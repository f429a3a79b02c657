"""CLIPScore and PickScore from transformers' layout, HPSv2 from open_clip's."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from policy.errors import UserError
from rewards.experts.clip import CLIPScore, HPSv2, PickScore
from tests.rewards.experts import tiny
from tests.rewards.experts.open_clip import OpenClip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny CLIP in transformers' layout."""
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
def open_clip(folder) -> OpenClip:
    return tiny.randomize(OpenClip(tiny.SIZE, tiny.PATCH, vocabulary=54), seed=1)


@pytest.fixture
def published(open_clip, tmp_path) -> Path:
    """As HPSv2 is published: weights, wrapped, and the odds and ends of a training run."""
    torch.save({"epoch": 3, "state_dict": open_clip.state_dict()}, tmp_path / "HPS.pt")
    return tmp_path / "HPS.pt"


def test_clip_score_is_the_cosine_of_the_model_itself(folder):
    values = tiny.assert_batches_change_nothing(CLIPScore(str(folder), **tiny.EXACT, batch_size=2))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    texts = tokenizer([p.text for p in tiny.prompts()], padding=True, return_tensors="pt")
    pixels = processor(tiny.images(), return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = CLIPModel.from_pretrained(folder)(**texts, pixel_values=pixels).logits_per_image
        scale = CLIPModel.from_pretrained(folder).logit_scale.exp().item()
    np.testing.assert_allclose(values * scale, logits.diagonal(), atol=1e-5)


def test_pick_score_in_its_published_unit(folder):
    cosines = PickScore(str(folder), processor=str(folder), **tiny.EXACT)
    logits = PickScore(str(folder), processor=str(folder), **tiny.EXACT, unit="logit")
    scale = CLIPModel.from_pretrained(folder).logit_scale.exp().item()
    asked, shown = tiny.prompts(), tiny.images()
    np.testing.assert_allclose(
        logits.score(shown, asked).values, scale * cosines.score(shown, asked).values, rtol=1e-5
    )
    assert logits.pass_threshold == pytest.approx(scale * cosines.pass_threshold)


def test_a_prompt_longer_than_the_context_is_cut(folder):
    expert = CLIPScore(str(folder), **tiny.EXACT)
    prompt = tiny.parse_prompt({"prompt": "dog " * 50, "task_type": "color"})
    assert np.isfinite(expert.score(tiny.images(1), [prompt]).values).all()


def test_hpsv2_is_what_the_open_clip_model_says(published, open_clip, folder):
    expert = HPSv2(str(published), processor=str(folder), **tiny.EXACT, batch_size=3)
    values = tiny.assert_batches_change_nothing(expert)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(
        tiny.images(), return_tensors="pt"
    ).pixel_values
    with torch.no_grad():
        seen = F.normalize(open_clip.visual(pixels), dim=-1)
        asked = [torch.tensor([tokenizer(p.text).input_ids]) for p in tiny.prompts()]
        meant = F.normalize(torch.cat([open_clip.encode_text(ids) for ids in asked]), dim=-1)
    np.testing.assert_allclose(values, (seen * meant).sum(-1), atol=1e-5)


def test_hpsv2_shows_the_whole_of_a_wide_image(published, folder):
    """What stands at the edges counts; the crop of a plain CLIP would not see it."""
    expert = HPSv2(str(published), processor=str(folder), **tiny.EXACT)
    plain = CLIPScore(str(folder), **tiny.EXACT)
    wide = np.full((20, 80, 3), 128, np.uint8)
    edged = wide.copy()
    edged[:, :20] = (250, 10, 10)
    asked = tiny.prompts()[:1] * 2
    assert np.ptp(expert.score([wide, edged], asked).values) > 1e-4
    assert np.ptp(plain.score([wide, edged], asked).values) == 0


def change(file: Path, how) -> None:
    state = torch.load(file, weights_only=True)
    how(state["state_dict"])
    torch.save(state, file)


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        (lambda s: s.pop("ln_final.bias"), "1 missing: text_model.final_layer_norm.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 tensors that no open_clip model has: extra"),
        (lambda s: s.pop("visual.proj"), "1 missing: visual_projection.weight"),
        (
            lambda s: s.pop("visual.conv1.weight"),
            "not an open_clip model: no tensor for 'vision_model.emb",
        ),
        (
            lambda s: s.update({"ln_final.bias": torch.zeros(3)}),
            r"1 mismatched: text_model.final_layer_norm.bias \[3\] instead of \[32\]",
        ),
    ],
)
def test_an_open_clip_file_is_whole_or_refused(published, folder, how, complaint):
    change(published, how)
    with pytest.raises(UserError, match=complaint):
        HPSv2(str(published), processor=str(folder), **tiny.EXACT)


def test_files_that_are_no_weights(tmp_path, folder):
    class Odd:
        pass

    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    torch.save({"state_dict": {"a": "b"}}, tmp_path / "words.pt")
    (tmp_path / "code.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for name, complaint in (
        ("cut.pt", "truncated, or not a weights file"),
        ("words.pt", "not a mapping of names to tensors"),
        ("code.pt", "unpickling that could run any code"),
        ("none.pt", "no such file"),
    ):
        with pytest.raises(UserError, match=complaint):
            HPSv2(str(tmp_path / name), processor=str(folder), **tiny.EXACT)


def test_another_model_is_no_clip(folder, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "git"}')
    with pytest.raises(UserError, match="a 'git' checkpoint, where 'clip' is needed"):
        CLIPScore(str(tmp_path), processor=str(folder), **tiny.EXACT)
    with pytest.raises(UserError, match="no tokenizer in it"):
        CLIPScore(str(folder), processor=str(tmp_path), **tiny.EXACT)
    with pytest.raises(UserError, match="no such model directory"):
        CLIPScore(str(tmp_path / "nowhere"), **tiny.EXACT)


def test_half_precision(folder, published):
    tiny.assert_half_precision_is_close(CLIPScore, str(folder), atol=0.02)
    tiny.assert_half_precision_is_close(HPSv2, str(published), processor=str(folder), atol=0.02)
