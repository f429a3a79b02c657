import json
import re

import pytest
import torch

from policy.janus_checkpoint import original_shapes
from policy.janus_layout import RULES, UNUSED_BY_TRANSFORMERS, correspondences, original_name
from tests.conftest import shared_file


@pytest.fixture
def names(janus) -> list[str]:
    return list(janus.model.state_dict())


def test_every_tensor_has_one_rule_and_one_original(names):
    for name in names:
        assert sum(bool(re.fullmatch(pattern, name)) for pattern, _ in RULES) == 1, name
    pairs = correspondences(names)
    assert sorted(part for pair in pairs for part in pair.transformers) == sorted(names)
    assert len({pair.original for pair in pairs}) == len(pairs)
    assert {len(pair.transformers) for pair in pairs} == {1, 3}


def test_a_stack_is_q_then_k_then_v_whatever_order_the_model_lists_them_in(names):
    for listed in (names, names[::-1], sorted(names)):
        stacks = [pair for pair in correspondences(listed) if len(pair.transformers) == 3]
        for pair in stacks:
            assert [re.search(r"\.([qkv])_proj\.", part)[1] for part in pair.transformers] == [*"qkv"]


def test_tensors_split_and_join_exactly(janus):
    state = janus.model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for pair in correspondences(state):
        joined = pair.join([state[part] for part in pair.transformers])
        assert tuple(joined.shape) == original_shapes(shapes)[pair.original]
        for part, tensor in zip(pair.transformers, pair.split(joined), strict=True):
            assert torch.equal(tensor, state[part])


def test_a_name_that_no_rule_knows(names):
    assert original_name("model.vision_model.encoder.layers.0.self_attn.q_norm.weight") is None
    with pytest.raises(ValueError, match="no such tensor"):
        correspondences([*names, "model.audio_model.conv.weight"])


def test_the_map_is_the_published_implementations():
    published = json.loads(
        shared_file("vectors/janus_tiny/key_map_reference_to_transformers.json").read_text()
    )
    used = {
        original: tuple(names) if isinstance(names, list) else (names,)
        for original, names in published.items()
        if names
    }
    found = correspondences([name for names in used.values() for name in names])
    assert {pair.original: pair.transformers for pair in found} == used
    unused = {original for original in published if UNUSED_BY_TRANSFORMERS.fullmatch(original)}
    assert unused == published.keys() - used.keys()
