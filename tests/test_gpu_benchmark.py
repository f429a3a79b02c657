"""benchmarks.gpu on a tiny model: every part gives its figures, and one that fails says so. Times are
not asserted: machines are noisy. What does not depend on them is."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.predicted import PREDICTIONS, prediction
from benchmarks.gpu.setting import Lengths, Setting, made_up_tokenizer
from policy.prompts import load_templates
from tests.conftest import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

GAPS = {"gap_mean", "gap_max", "gap_share"}
SAME = {"cots_same", "images_same", "logps_same", "logp_difference", "pixels_apart"}
SPEED = {"text_step_ms", "step_ms", "images_s", "limit_ms", "of_limit"}
STEPS = {"single_step_ms", "launch_ms", "kernels", "gpu_ms"}
LEARNER = {"layers", "setup_s"}
FIGURES = {
    "env": {"version", "copy_gb_s", "matmul_tflops"},
    "right": GAPS | SAME,
    "torch": SPEED | STEPS | {"samples_s", "plain_samples_s", "times_the_plain_loop"},
    "decode": {"batch_s", "image_ms"},
    "learn": LEARNER | {"step_s", "tokens_s", "tflops", "grad_norm_is_finite"},
    "publish": LEARNER | {"trained_gb", "pack_s", "pack_gb_s", "load_s", "load_gb_s"},
    "vllm": SPEED
    | GAPS
    | SAME
    | {"start_s", "v2_runner", "async_scheduling", "load_gb_s", "changed_by_new_weights"},
    "end_to_end": {"images_s", "generate_s", "score_s", "learn_s", "publish_s", "step_s"},
}
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install")


def measure(folder: Path, *arguments: str, **environment: str):
    """Exit status, output, and the lines of JSON."""
    out = folder / "figures.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--tiny", f"--out={out}", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return done.returncode, done.stdout + done.stderr, lines


@pytest.mark.parametrize(
    "part", [pytest.param(p, marks=needs_vllm if p == "vllm" else ()) for p in PARTS]
)
def test_a_part_gives_its_figures_on_a_tiny_model(part, tmp_path):
    status, output, lines = measure(tmp_path, part)
    logs = "".join(log.read_text()[-3000:] for log in tmp_path.glob("*/*.log"))
    assert status == 0, output + logs
    assert {line["part"] for line in lines} == {part}
    assert FIGURES[part] <= {line["figure"] for line in lines}
    assert "failed" not in output
    for line in lines:
        assert line["figure"].replace("_", " ") in output
        assert line["conditions"]["model"] == "tiny"
        if line["predicted"]:  # on a CPU there are predictions of what rounding does, and of no time
            low, high = line["predicted"]
            assert low <= line["value"] <= high, line
            assert line["rests_on"] in output


@pytest.mark.parametrize(
    ("figure", "conditions"),
    [
        ("right.cots_same", {"dtype": "float32", "gpu": False}),
        ("right.gap_mean", {"dtype": "bfloat16", "sampler": "torch", "tokens": "cot", "gpu": True}),
        ("torch.launch_ms", {"gpu": True, "model": "Janus-Pro-7B", "pairs": 1}),
        ("vllm.step_ms", {"gpu": True, "model": "Janus-Pro-7B", "pairs": 48}),
        ("learn.tflops", {"gpu": True, "model": "Janus-Pro-7B", "case": "recomputed"}),
    ],
)
def test_what_is_promised_is_predicted(figure, conditions):
    assert prediction(figure, conditions)
    assert prediction(figure, conditions | {"dtype": "float16", "model": "tiny", "gpu": None}) is None


def test_predictions_are_of_figures_that_there_are():
    for made in PREDICTIONS:
        part, figure = made.figure.split(".")
        assert made.low <= made.high
        assert figure in FIGURES[part] | {"peak_gb", "same_after_old_weights"}


def test_without_ray_the_learner_is_measured_and_what_needs_ray_says_so_in_one_line(tmp_path):
    (tmp_path / "ray.py").write_text("raise ImportError('there is no Ray here')\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    status, output, lines = measure(tmp_path, "end_to_end", "learn", PYTHONPATH=path)
    assert status == 1, output
    assert [line for line in output.splitlines() if "failed" in line and "needs Ray" in line]
    assert "Traceback" not in output
    failed = [line for line in lines if "failed" in line]
    assert [(line["part"], line["failed"]) for line in failed] == [("end_to_end", "end_to_end")]
    assert "step_s" in {line.get("figure") for line in lines if line["part"] == "learn"}
    assert output.splitlines()[-1].startswith("not whole: end_to_end (")


def test_a_part_that_hangs_is_ended_and_reported_and_the_next_one_goes_on(tmp_path):
    status, output, lines = measure(tmp_path, "decode", "env", "--limit=0.5")
    assert status == 1
    assert output.count("no end after 0.5 s") == 2
    assert [line["part"] for line in lines] == ["decode", "env"]


def test_the_process_that_starts_the_parts_does_not_load_torch():
    """So it holds no memory of a GPU, which each part has to itself."""
    code = "import sys, benchmarks.gpu.__main__, benchmarks.gpu.figures; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_a_cot_of_a_published_models_random_ids_is_as_long_in_the_images_prompt():
    tokenizer, templates, lengths = made_up_tokenizer(102_400), load_templates(), Lengths()
    cot = np.random.default_rng(0).integers(40, 102_400, lengths.cot).tolist()
    prompt = " ".join(["red"] * (lengths.words - 7))
    asked = templates.image_conversation(prompt, tokenizer.decode(cot, skip_special_tokens=True))
    assert len(tokenizer(asked).input_ids) == lengths.image_prompt


def test_prompts_are_as_long_as_a_real_runs(tmp_path):
    setting = Setting("Janus-Pro-7B", None, (8, 48), False, None, tmp_path)
    assert {len(ids) for ids in setting.cot_prompts(48)} == {125}
    images = [len(ids) for ids in setting.image_prompts(400)]
    assert len({len(ids) for ids in setting.image_prompts(48)}) > 8
    assert np.mean(images) == pytest.approx(93, abs=2)
    samples, advantages = setting.scored_samples(4)
    assert advantages.shape == (4, 8)
    assert {len(sample.image_ids) for group in samples for sample in group} == {576}
    tokens = [s.image_prompt_ids.size - s.cot_ids.size for group in samples for s in group]
    assert set(tokens) == {23}
