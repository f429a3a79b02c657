import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policy.weights import StoredBuckets, TensorSpec, plan_buckets, unpack

DTYPES = ("float32", "bfloat16", "float16", "int64", "uint8")
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@given(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=8), st.integers(1, 400))
def test_every_tensor_comes_back_as_it_was(kinds, bucket_bytes):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"t{n}": (torch.rand(shape, generator=generator) * 100).to(getattr(torch, dtype))
        for n, (shape, dtype) in enumerate(kinds)
    }
    specs = [TensorSpec(n, tuple(t.shape), str(t.dtype)[6:]) for n, t in tensors.items()]
    manifest = plan_buckets(specs, bucket_bytes)
    sender = StoredBuckets()
    for bucket in manifest:
        sender.send([tensors[spec.name] for spec in bucket])
    back = dict(StoredBuckets(sender.buckets).receive(manifest))
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=20), st.integers(1, 150))
def test_a_bucket_is_over_its_size_only_for_one_large_tensor(sizes, bucket_bytes):
    specs = [TensorSpec(f"t{n}", (size,), "uint8") for n, size in enumerate(sizes)]
    for bucket in plan_buckets(specs, bucket_bytes):
        assert len(bucket) == 1 or sum(spec.nbytes for spec in bucket) <= bucket_bytes


def test_incomplete_buckets_are_refused_before_the_first_tensor():
    manifest = plan_buckets([TensorSpec("a", (4,), "float32"), TensorSpec("b", (4,), "float32")], 16)
    whole = [np.zeros(16, np.uint8), np.zeros(16, np.uint8)]
    for wrong in (whole[:1], [whole[0], whole[1][:8]]):
        with pytest.raises(ValueError, match="incomplete"):
            unpack(manifest, wrong)
