"""Part `right`, and vLLM's share of it: do the samplers draw the right tokens here, and does the
learner compute the log-probabilities that they were drawn with? Uses the shapes world's checkpoint,
whose weights are trained.
"""

from collections.abc import Sequence

import numpy as np
import torch

from actors.sampler import Sampler, SamplingConfig
from actors.torch_sampler import TorchSampler
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.setting import DEVICE, ON_GPU, Setting, shapes_policy
from learner.batch import make_batch
from learner.logprobs import JanusLogps
from policy.model import load_janus
from policy.prompts import plain_prompt
from policy.records import Sample, SampleRequest

WORDS = ("two red circles", "a blue square left of a red circle", "three black triangles")
ORDERS = [SampleRequest(plain_prompt(WORDS[n % 3]), n) for n in range(48)]
SAMPLING = SamplingConfig(guidance=1.5, max_cot_tokens=32)


def right(setting: Setting, figures: Figures, case: str) -> None:
    """The torch sampler; `case` is the dtype."""
    full_float32()
    sampler = TorchSampler(load_janus(shapes_policy(case), DEVICE), SAMPLING, 0)
    samples = sampler.generate(ORDERS)
    if case == "float32":
        on_cpu = samples
        if ON_GPU:
            on_cpu = TorchSampler(load_janus(shapes_policy(case)), SAMPLING, 0).generate(ORDERS)
        against = "the CPU" if ON_GPU else "itself, for there is no GPU here"
        compare(figures, on_cpu, samples, dtype=case, against=against)
    check_sampler(figures, sampler, samples, "torch", case)
    if case == "bfloat16":
        config = SAMPLING.model_copy(update={"guidance": setting.guidance})
        strongly = TorchSampler(sampler.janus, config, 0).generate(ORDERS)
        gaps(figures, strongly, setting.guidance, only="guided", sampler="torch", dtype=case)


def check_sampler(
    figures: Figures, sampler: Sampler, samples: list[Sample], name: str, dtype: str
) -> None:
    """Checks for every sampler: the learner agrees, a second run is the same, and so is a sample
    alone."""
    where = {"sampler": name, "dtype": dtype}
    gaps(figures, samples, SAMPLING.guidance, **where)
    compare(figures, samples, sampler.generate(ORDERS), against="the same batch again", **where)
    alone = [sample for order in ORDERS[:4] for sample in sampler.generate([order])]
    compare(figures, samples[:4], alone, against="the sample alone", **where)


def compare(figures: Figures, a: Sequence[Sample], b: Sequence[Sample], **where) -> None:
    """The shares of samples that are the same, and by how much the others differ."""

    def share(field: str, rows=None) -> float:
        pairs = rows or list(zip(a, b, strict=True))
        return float(np.mean([np.array_equal(getattr(x, field), getattr(y, field)) for x, y in pairs]))

    figures.add("cots_same", share("cot_ids"), **where)
    figures.add("images_same", share("image_ids"), **where)
    same = [
        (x, y)
        for x, y in zip(a, b, strict=True)
        if np.array_equal(x.cot_ids, y.cot_ids) and np.array_equal(x.image_ids, y.image_ids)
    ]
    if same:  # after a different token, log-probabilities cannot be compared
        levels = max(np.abs(x.image.astype(int) - y.image).max() for x, y in same)
        figures.add("pixels_apart", levels, "of 255", **where)
        figures.add("logps_same", min(share("cot_logps", same), share("image_logps", same)), **where)
        gap = max(np.abs(x.image_logps - y.image_logps).max() for x, y in same)
        figures.add("logp_difference", gap, **where)


def gaps(figures: Figures, samples: Sequence[Sample], guidance: float, only: str = "", **where) -> None:
    """Log-probabilities of the drawn tokens, learner against sampler: mean, largest, and the share that
    is more than 1e-2 apart."""
    janus = load_janus(shapes_policy(where["dtype"]), DEVICE)
    batch = make_batch(samples, [0.0] * len(samples), pad_id=janus.pad_id).to(DEVICE)
    with torch.no_grad():
        logps = JanusLogps(janus, guidance=guidance)(batch)
    split, real = batch.cot.shape[1], batch.cot_mask
    apart = {
        "cot": (logps.cot - batch.sampled_logps[:, :split])[real],
        "image": logps.image - batch.sampled_logps[:, split:],
        "guided": logps.guided - batch.guided_logps,
    }
    for tokens, gap in apart.items():
        if only in ("", tokens):
            size, conditions = gap.float().abs(), where | {"tokens": tokens, "guidance": guidance}
            figures.add("gap_mean", size.mean().item(), **conditions)
            figures.add("gap_max", size.max().item(), **conditions)
            figures.add("gap_share", (size > 1e-2).float().mean().item(), **conditions)


def full_float32() -> None:
    """No TF32: it rounds the factors of a float32 product to 10 bits."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
