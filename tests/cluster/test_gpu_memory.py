"""What the plan foretells, against what real engines and caches hold."""

import inspect

import pytest
import ray
import torch
from typer.testing import CliRunner

from actors.kv_decoder import FusedLlama, LockstepDecoder
from cluster.cli import app
from cluster.config import load_config
from cluster.estimate.gpu_memory import DECODED_TOGETHER, cache_bytes, model_shapes, needs
from learner.batch import make_batch
from learner.config import LearnerConfig
from learner.logprobs import JanusLogps
from learner.memory import activation_bytes, rank_bytes, sizes, step_bytes
from learner.schedules import Coefficients, StepSettings
from learner.worker import LearnerWorker
from policy.errors import UserError
from policy.model import Janus, PolicyConfig
from tests.conftest import ROOT, SHAPES
from tests.learner.ranks import ADVANTAGES, scored

pytestmark = pytest.mark.deepspeed

SEVEN_B = ROOT / "examples" / "janus_pro" / "train.yaml"
ONE_B = ROOT / "examples" / "janus_pro" / "train_1b.yaml"


class Weighed(LearnerWorker):
    """A rank that says what it holds, in bytes, also in the middle of the optimizer's step."""

    def setup(self, *arguments):
        count = super().setup(*arguments)
        inner = self.engine.optimizer.optimizer
        plain, self.in_step = inner.step, 0

        def step():
            lent = [p.grad for group in inner.param_groups for p in group["params"]]
            self.in_step = max(self.in_step, sum(g.nbytes for g in lent if g is not None))
            return plain()

        inner.step = step
        return count

    def weigh(self, stage: int) -> dict[str, int]:
        zero = self.engine.optimizer
        tensors = [p.ds_tensor if stage == 3 else p for p in self.engine.module.parameters()]
        if stage == 3:
            gradients = [zero.grad_partitions_flat_buffer]
        else:
            gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        inner = zero.optimizer
        state = [t for s in inner.state.values() for t in s.values() if t.dim()]
        # Stage 3 lends its float32 copies to the optimizer during a step only.
        lent = [p for group in inner.param_groups for p in group["params"]]
        masters = zero.fp32_partitioned_groups_flat if stage == 3 else lent
        return {
            "parameters": sum(t.nbytes for t in tensors),
            "gradients": sum(t.nbytes for t in gradients),
            "optimizer": sum(t.nbytes for t in (*state, *masters)),
            "step": self.in_step,
        }


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("stage", "dtype"), [(1, "float32"), (3, "bfloat16")])
def test_a_real_engine_holds_what_was_foretold(policy_config, samples, stage, dtype):
    policy = policy_config.model_copy(update={"dtype": dtype})
    config = LearnerConfig(ranks=2, zero_stage=stage, num_cpus=0.5, kl_coef=0, timeout_s=60)
    ranks = [ray.remote(Weighed).options(num_cpus=0.5).remote(n, 2) for n in range(2)]
    where = ray.get(ranks[0].rendezvous.remote(True))
    ray.get([r.setup.remote(policy, config, 1.0, 2.0, where) for r in ranks])
    groups = scored(samples, ADVANTAGES)
    shares = [(list(groups.indices[n::2]), groups.advantages[n::2]) for n in range(2)]
    at_start = StepSettings(Coefficients.at_start(config))
    ray.get([r.step.remote(groups.samples, [s], at_start) for r, s in zip(ranks, shares, strict=True)])
    held = ray.get(ranks[0].weigh.remote(stage))
    for rank in ranks:
        ray.kill(rank)
    foretold = rank_bytes(model_shapes(policy), config, dtype, sample_tokens=1)
    size, zero = sizes(model_shapes(policy), config), {"stage": stage}
    flat = 2 if dtype == "bfloat16" else 0  # it is there a little before
    in_step = held.pop("step") * (4 + flat) / 4
    assert step_bytes(size, zero, 2, 2 if flat else 4) == pytest.approx(in_step, rel=0.15)
    for name, measured in held.items():
        if measured:  # after a step, gradients may be free again
            assert foretold[name] == pytest.approx(measured, rel=0.15), name
    assert held["parameters"] > 0
    assert held["optimizer"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_holds_what_was_foretold(janus, dtype):
    janus.model.to(getattr(torch, dtype))
    llama = janus.model.model.language_model
    prompts = torch.zeros(3, 9, llama.config.hidden_size, dtype=getattr(torch, dtype))
    decoder, _ = LockstepDecoder.prefill(
        FusedLlama(llama), prompts, torch.tensor([5, 9, 7]), torch.arange(3), new_tokens=36
    )
    measured = sum(cache.nbytes for cache in (*decoder._keys, *decoder._values))
    width = getattr(torch, dtype).itemsize
    assert cache_bytes(janus.model.config.text_config, 3, 45, width) == measured


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_backward_keeps_what_was_foretold(janus, samples, dtype, checkpointed):
    """Every tensor that autograd saves in the trunk; a checkpointed layer saves its input alone, and at
    the peak one layer is being computed again."""
    janus.model.to(getattr(torch, dtype))
    module = JanusLogps(janus)
    batch = make_batch(samples, [1.0] * len(samples), pad_id=0)
    tokens = batch.image_prompt.numel() + batch.image.numel()
    weights = {p.data_ptr() for p in module.parameters()}
    kept = {}

    def look(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    if checkpointed:
        module.checkpoint_layers()
    with torch.autograd.graph.saved_tensors_hooks(look, lambda t: t):
        hidden = module._image_hidden(batch, batch.image_prompt)
    measured = sum(t.untyped_storage().nbytes() for t in kept.values())
    assert hidden.requires_grad
    llama, width = janus.model.config.text_config, getattr(torch, dtype).itemsize
    foretold = activation_bytes(llama, width, checkpointed)(tokens)
    if checkpointed:  # forward alone: no layer is being computed again
        deeper = type(llama)(**(llama.to_dict() | {"num_hidden_layers": llama.num_hidden_layers + 1}))
        layer = activation_bytes(deeper, width, False)(tokens) - activation_bytes(llama, width, False)(
            tokens
        )
        foretold -= layer
    assert foretold == pytest.approx(measured, rel=0.15)


def test_the_published_sizes():
    """Parameters of Janus-Pro from the geometry that is shipped, by the numbers that its name says."""
    for name, billions in (("Janus-Pro-7B", 7.4), ("Janus-Pro-1B", 2.1)):
        model = model_shapes(PolicyConfig(path=f"deepseek-community/{name}"))
        assert sizes(model, LearnerConfig()).total / 1e9 == pytest.approx(billions, abs=0.05)


def test_adapters_are_counted(policy_config):
    model = model_shapes(policy_config)
    config = LearnerConfig(lora={"rank": 4, "target_modules": ["q_proj"]})
    assert sizes(model, config).trained == 2 * 4 * (64 + 64)  # two layers of hidden size 64


def test_a_model_that_is_not_known_is_named():
    with pytest.raises(
        UserError, match=r"someone/Janus-3B is not on this machine.*Janus-Pro-1B, Janus-Pro-7B"
    ):
        model_shapes(PolicyConfig(path="someone/Janus-3B"))


@pytest.mark.parametrize("file", [SEVEN_B, ONE_B])
def test_the_examples_fit(file):
    result = CliRunner().invoke(app, ["estimate", str(file), "--gpu-gb", "80"])
    assert result.exit_code == 0, result.output
    assert "does not fit" not in result.output


@pytest.mark.parametrize(
    ("overrides", "gpu_gb"),
    [
        ([], "24"),
        (["learner.ranks=1"], "80"),
        (["learner.gradient_checkpointing=false"], "80"),
        (["actors.batch_size=512"], "80"),
    ],
)
def test_what_does_not_fit_fails(overrides, gpu_gb):
    result = CliRunner().invoke(app, ["estimate", str(SEVEN_B), *overrides, "--gpu-gb", gpu_gb])
    assert result.exit_code == 1
    assert "does not fit" in result.output


def test_lora_offload_and_sharding_save_memory():
    def learner(*overrides):
        config = load_config(SEVEN_B, overrides)
        return next(n for n in needs(config, model_shapes(config.policy)) if n.role == "learner")

    full = learner()
    assert learner("learner.zero_stage=3").parts["parameters"] < full.parts["parameters"]
    assert learner("learner.reference=copy").parts["reference"] > full.parts["reference"]
    lora = learner("learner.lora={}", "learner.reference=null", "learner.ranks=1")
    assert lora.parts["reference"] == 0
    assert lora.gb < full.gb
    cpu = learner("learner.deepspeed.zero_optimization.offload_optimizer.device=cpu")
    assert cpu.parts["optimizer"] == 0


def test_images_are_decoded_eight_at_a_time():
    """48 at once would take 6 to 8 GB (docs/performance.md)."""
    config = load_config(SEVEN_B)
    rollout = next(n for n in needs(config, model_shapes(config.policy)) if n.role == "rollout")
    assert 6e9 <= rollout.parts["image decoder"] * 48 / 8 <= 8e9
    eight = inspect.signature(Janus.decode_images).parameters["batch"].default
    assert eight == DECODED_TOGETHER == 8


def test_roles_without_gpus_are_not_judged():
    result = CliRunner().invoke(app, ["estimate", str(SHAPES / "train.yaml"), "--gpu-gb", "1"])
    assert result.exit_code == 0
    assert result.output.count("on the CPU") == 2
