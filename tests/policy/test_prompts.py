import json

import pytest
from pydantic import ValidationError

from policy.errors import UserError
from policy.prompts import parse_prompt, prompt_id, prompt_row, read_prompts
from policy.records import ObjectCount, SpatialInfo
from tests.conftest import shared_file

SPATIAL = {
    "prompt": "a photo of a car below a zebra",
    "nouns": ["car", "zebra"],
    "spatial_info": {"obj1": "car", "obj2": "zebra", "locality": "below"},
    "task_type": "spatial",
}
COUNT = {
    "prompt": "two brooms",
    "nouns": ["broom"],
    "numeracy_info": [{"obj_name": "broom", "num": 2}],
    "task_type": "numeracy",
}


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rows_become_records(tmp_path):
    spatial, count = read_prompts(write(tmp_path / "p.jsonl", [SPATIAL, "", COUNT]))
    assert spatial.text == SPATIAL["prompt"]
    assert spatial.spatial_info == SpatialInfo("car", "zebra", "below")
    assert count.numeracy_info == (ObjectCount("broom", 2),)
    assert count.spatial_info is None
    assert count.id == prompt_id("two brooms")


def test_a_text_that_occurs_again_gets_an_id_of_its_own(tmp_path):
    prompts = read_prompts(write(tmp_path / "p.jsonl", [COUNT, COUNT, COUNT]))
    first = prompt_id("two brooms")
    assert [p.id for p in prompts] == [first, f"{first}#2", f"{first}#3"]


def test_no_number_makes_two_ids_one(tmp_path):
    rows = [{**COUNT, "id": name} for name in ("a", "a", "a#2", "a", "b")]
    prompts = read_prompts(write(tmp_path / "p.jsonl", rows))
    assert [p.id for p in prompts] == ["a", "a#3", "a#2", "a#4", "b"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('{"prompt": "x", ', r"p\.jsonl:2: not valid JSON"),
        ("[1, 2]", r"p\.jsonl:2: this must be a JSON object"),
        ({"task_type": "color"}, r"p\.jsonl:2: field 'prompt': Field required"),
        ({"prompt": "", "task_type": "color"}, r"p\.jsonl:2: field 'prompt'"),
        ({"prompt": 3, "task_type": "color"}, r"p\.jsonl:2: field 'prompt'"),
        ({**COUNT, "nuons": []}, r"p\.jsonl:2: field 'nuons'"),
        ({**COUNT, "nouns": "broom"}, r"p\.jsonl:2: field 'nouns'"),
        ({**COUNT, "numeracy_info": [{"obj_name": "b"}]}, r"p\.jsonl:2: field 'numeracy_info\.0\.num'"),
        ({**SPATIAL, "spatial_info": {"obj1": "a"}}, r"p\.jsonl:2: field 'spatial_info\.obj2'"),
        ({**SPATIAL, "nouns": ["car", " "]}, r"p\.jsonl:2: field 'nouns\.1': is blank"),
        ({**SPATIAL, "attr_nouns": [""]}, r"p\.jsonl:2: field 'attr_nouns\.0': is blank"),
        ({**SPATIAL, "prompt": "\u200b\ufeff "}, r"p\.jsonl:2: field 'prompt': is blank"),
        ({**SPATIAL, "id": ""}, r"p\.jsonl:2: field 'id': is blank"),
        ({**COUNT, "id": "\ud83d"}, r"p\.jsonl:2: half of a surrogate pair"),
        (json.dumps(COUNT)[:-1] + ', "prompt": "x"}', r"p\.jsonl:2: .*'prompt' stands there twice"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, row, complaint):
    with pytest.raises(UserError, match=complaint):
        read_prompts(write(tmp_path / "p.jsonl", [COUNT, row]))


def test_a_row_that_is_no_text_of_a_file_is_checked_too():
    with pytest.raises(ValidationError, match="surrogates not allowed"):
        parse_prompt({**COUNT, "nouns": ["\ud83d"]})


def test_what_an_editor_leaves_in_a_file_is_no_part_of_a_prompt(tmp_path):
    texts = ["a\u2028b", "c\u0085d"]
    rows = [json.dumps({**COUNT, "prompt": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "p.jsonl").write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    assert [p.text for p in read_prompts(tmp_path / "p.jsonl")] == texts


def test_a_missing_empty_or_binary_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: no such prompt file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="holds no prompts"):
        read_prompts(write(tmp_path / "empty.jsonl", [""]))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match=r"binary\.jsonl:1: not UTF-8 text"):
        read_prompts(tmp_path / "binary.jsonl")


def test_the_published_prompt_set_loads_whole():
    prompts = read_prompts(shared_file("prompts/t2i_r1_prompts.jsonl"))
    assert len(prompts) == 7223
    assert len({p.id for p in prompts}) == 7223
    assert sum(p.task_type == "spatial" for p in prompts) == 2195
    assert sum(bool(p.numeracy_info) for p in prompts) == 1172
    assert sum(p.spatial_info is not None for p in prompts) == 2380


def test_a_row_made_of_a_record_is_read_as_that_record(prompts):
    for prompt in prompts:
        assert parse_prompt(json.loads(json.dumps(prompt_row(prompt)))) == prompt
