import pytest

from policy.errors import UserError
from policy.prompts import BEGIN_OF_IMAGE, Templates, load_templates

PLAIN = Templates(system="be brief", semantic_cot="plan {prompt}", image="{prompt}. {cot}")


def test_the_cot_conversation_has_the_system_prompt_and_the_image_conversation_has_none():
    assert PLAIN.cot_conversation("a dog") == "be brief\n\nUser: plan a dog\n\nAssistant:"
    assert PLAIN.image_conversation("a dog", "brown fur") == (
        f"User: a dog. brown fur\n\nAssistant:{BEGIN_OF_IMAGE}"
    )


@pytest.mark.parametrize("prompt", ["A dog.", "A dog", " A dog. "])
def test_a_prompt_that_ends_in_a_full_stop_gets_no_second_one(prompt):
    assert "User: A dog. x\n" in PLAIN.image_conversation(prompt, "x")


def test_braces_in_prompt_and_cot_are_text():
    text = PLAIN.image_conversation("a {cot} and {}", "see {prompt} {0}")
    assert "User: a {cot} and {}. see {prompt} {0}\n" in text
    assert "plan {prompt} {}" in PLAIN.cot_conversation("{prompt} {}")


def test_a_folder_replaces_the_texts_it_holds(tmp_path):
    (tmp_path / "image.txt").write_text("draw {cot} for {prompt}")
    (tmp_path / "system.txt").write_text("")
    templates = load_templates(tmp_path)
    assert templates.image_conversation("it.", "that").startswith("User: draw that for it\n")
    assert templates.cot_conversation("it").startswith("User: ")
    assert templates.semantic_cot == load_templates().semantic_cot


def test_a_template_without_its_placeholder_is_named(tmp_path):
    (tmp_path / "image.txt").write_text("{prompt}")
    with pytest.raises(UserError, match=r"image\.txt: the template must contain \{cot\}"):
        load_templates(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_templates(tmp_path / "nowhere")


def test_a_byte_order_mark_does_not_reach_the_model(tmp_path):
    for name, text in (
        ("system", "be brief"),
        ("semantic_cot", "plan {prompt}"),
        ("image", "{prompt}. {cot}"),
    ):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8-sig")
    assert load_templates(tmp_path) == PLAIN
    (tmp_path / "image.txt").write_bytes("{prompt} {cot} ü".encode("latin-1"))
    with pytest.raises(UserError, match=r"image\.txt: not UTF-8 text"):
        load_templates(tmp_path)


def test_raw_placeholders_change_nothing(tmp_path):
    (tmp_path / "image.txt").write_text("{raw_prompt}. {raw_cot}|{cot}")
    text = load_templates(tmp_path).image_conversation(" a {cot} dog. ", " it {raw_prompt} ")
    assert text.startswith("User: a {cot} dog. .  it {raw_prompt} |it {raw_prompt}\n")
