import json

import pytest

from policy.errors import UserError
from policy.jsonl import parse_object, read_lines, read_rows, read_text


def test_a_line_ends_at_a_newline_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"a{letter}b"} for letter in "\u2028\u2029\u0085\x0b\x0c\x1c"]
    path.write_text("\r\n".join(json.dumps(row, ensure_ascii=letters) for letters in (True, False)
                               for row in rows) + "\n\n  \n", encoding="utf-8", newline="")  # fmt: skip
    assert [row for _, row in read_rows(path)] == rows * 2
    assert [number for number, _ in read_rows(path)] == list(range(1, 13))


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}', encoding="utf-8-sig")
    assert list(read_rows(path)) == [(1, {"text": "a"})]
    assert read_text(path) == '{"text": "a"}'


def test_a_last_line_that_was_cut_off_is_the_last_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"a": 1}\n{"a": "ü'.encode()[:-1])
    assert [len(line) for line in read_lines(path)] == [8, 8]
    with pytest.raises(UserError, match=r"rows\.jsonl:2: not UTF-8 text: unexpected end .* at byte 8$"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "'a' stands there twice"),
        ('{"b": [{"\\u00e9": 1, "é": 2}]}', "twice"),
        ('{"a": "\\ud83d"}', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("[" * 200_000 + "]" * 200_000, "too many brackets"),
        ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "too many brackets"),
        ('{"a": ' + "9" * 5000 + "}", "limit .* digits"),
        ('{"a": 1}\n{"a"', "at line 2, column 1"),
        ("3", "must be a JSON object, not int"),
    ],
)
def test_what_is_no_object_is_refused_in_one_line(text, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        parse_object(text.encode(), "f:7")
    assert str(error.value).startswith("f:7: ")
    assert "\n" not in str(error.value)


def test_a_whole_surrogate_pair_is_a_letter():
    assert parse_object(b'{"a": "\\ud83d\\ude00"}', "f") == {"a": "\U0001f600"}


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="no such ledger"):
        read_lines(tmp_path / "none", "ledger")
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / ("n" * 300), "File name too long")):
        with pytest.raises(UserError, match=f"cannot be read: {why}"):
            read_lines(path)
