"""DeepSpeed's settings are checked before anything starts, the last of these by DeepSpeed itself."""

import pytest

from learner.config import LearnerConfig, check_learner
from policy.errors import UserError
from policy.model import PolicyConfig

pytestmark = pytest.mark.deepspeed


def refused(deepspeed, dtype="float32"):
    policy = PolicyConfig(path="examples/shapes/checkpoint", dtype=dtype)
    with pytest.raises(UserError) as error:
        check_learner(LearnerConfig(deepspeed=deepspeed), policy)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, "bucket_size: auto"),
        ({"optimizer": {"params": {"betas": [0.9, "auto"]}}}, "optimizer.params.betas.1: auto"),
        ({"train_batch_size": 32}, "train_batch_size is not yours to set"),
        ({"train_micro_batch_size_per_gpu": 1}, "train_micro_batch_size_per_gpu is not yours to set"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is not yours to set"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is True, with policy.dtype float32"),
        ({"gradient_cliping": 1.0}, "gradient_cliping: DeepSpeed has no such setting"),
        ({"zero_optimization": {"stge": 2}}, "DeepSpeedZeroConfig: stge: Extra inputs"),
        ({"zero_optimization": 2}, "zero_optimization: must be a mapping, not 2"),
        ({"scheduler": {"typ": "WarmupLR"}}, "scheduler.typ: DeepSpeed has no such setting"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_their_key(settings, complaint):
    assert complaint in refused(settings)


def test_half_precision_wants_a_gpu():
    assert refused(None, "float16").startswith("policy.dtype float16 needs GPUs to learn on")


def test_settings_that_deepspeed_takes_are_taken():
    scheduler = {"type": "WarmupLR", "params": {"warmup_num_steps": 10}}
    settings = {"scheduler": scheduler, "zero_optimization": {"stage": 2}, "gradient_clipping": 0.5}
    check_learner(LearnerConfig(deepspeed=settings), PolicyConfig(path="examples/shapes/checkpoint"))
