import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.yaml_text import read_yaml, write_yaml
from policy.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-1", 0.1),
        ("-2E+3", -2000.0),
        ("1.0e-5", 1e-5),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("+12", 12),
        ("0x1F", 31),
        ("yes", True),
        ("~", None),
        *(
            (text, text)
            for text in ("2024_01", "2024-01-01", "010", "1:30", "1_000.5", "=", "e5", "1e")
        ),
    ],
)
def test_a_scalar_is_what_it_looks_like(text, value):
    assert read_yaml(text, "f") == value
    assert type(read_yaml(f"[{text}]", "f")[0]) is type(value)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_LOOK_ALIKES = st.from_regex(r"[-+]?[0-9_.:xeE]{1,6}", fullmatch=True)


@given(
    st.recursive(
        _SCALARS | _LOOK_ALIKES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_is_written_is_read_as_the_same(tree):
    assert read_yaml(write_yaml(tree), "f") == tree


def test_an_alias_is_a_copy():
    tree = read_yaml("a: &a {weight: 1}\nb: *a\nc: {<<: *a, weight: 2}\nd: {<<: *a}", "f")
    tree["a"]["weight"] = 5
    assert [tree[name]["weight"] for name in "abcd"] == [5, 1, 2, 1]


NINE = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]\n" for n in range(9))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: 2\na: 3", "f:3: not valid YAML: the key 'a' stands there twice, first in line 1"),
        ("a:\n  b: 1\n  'b': 2", "f:3: .*'b' stands there twice, first in line 2"),
        ("{a: {b: 1, b: 2}}", "f: .*'b' stands there twice"),
        ("a: " + "[" * 5000 + "]" * 5000, "deeper than"),
        ("a: &a [*a]", "holds itself"),
        ("a: &a {b: *a}", "holds itself"),
        (NINE, "more than 10000 values"),
        ("a: " + "9" * 5000, "limit .* digits"),
        ("a: !!binary YQ==", "a bytes, where text"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: \x00", "unacceptable character"),
        ("a: 1\n--- {}", "f:2: .*another document"),
    ],
)
def test_what_is_no_configuration_is_refused_in_one_line(text, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        read_yaml(text, "f")
    assert "\n" not in str(error.value)
