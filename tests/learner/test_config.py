import json
import re

import pytest
from pydantic import ValidationError

from examples.shapes.tiny_janus import build_janus, build_tokenizer
from learner.config import LearnerConfig, check_learner, deepspeed_settings
from learner.losses import LOSSES, load_loss
from policy.errors import UserError


def test_the_users_deepspeed_settings_pass_over_the_defaults_unchanged(tmp_path):
    mine = {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5}},
        "gradient_clipping": 0.3,
    }
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(mine))
    for given in (mine, str(path)):
        settings = deepspeed_settings(LearnerConfig(deepspeed=given), "bfloat16")
        assert settings["zero_optimization"]["stage"] == 2
        assert settings["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
        assert settings["zero_optimization"]["overlap_comm"] is False
        assert settings["scheduler"] == mine["scheduler"]
        assert settings["gradient_clipping"] == 0.3
        assert settings["bf16"] == {"enabled": True}


def test_a_bad_deepspeed_file_is_named(tmp_path):
    for name, content, complaint in [
        ("none.json", None, "no such file"),
        ("torn.json", '{"a": 1,\n', r"torn\.json: .* at line 2, "),
        ("twice.json", '{"a": 1, "a": 2}', r"twice\.json: .*'a' stands there twice"),
        ("list.json", "[]", "must be a JSON object"),
    ]:
        path = tmp_path / name
        if content is not None:
            path.write_text(content)
        with pytest.raises(UserError, match=complaint):
            deepspeed_settings(LearnerConfig(deepspeed=str(path)), "float32")
    path.write_text('{"gradient_clipping": 0.5}', encoding="utf-8-sig")
    assert deepspeed_settings(LearnerConfig(deepspeed=str(path)), "float32")["gradient_clipping"] == 0.5


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"reference": "none"}, "learner.kl_coef 0.01 needs a reference model: set learner.kl_coef=0"),
        (
            {"reference": "sharded", "kl_coef": 0},
            "learner.reference is sharded: set learner.reference=null",
        ),
        ({"reference_path": "other", "kl_coef": 0}, "uses no reference model"),
        ({"lora": {"rank": 0}}, "greater than or equal to 1"),
        ({"lora": {"target_modules": []}}, "at least 1 item"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        LearnerConfig(**settings)


def test_the_reference_follows_from_beta_and_lora():
    assert LearnerConfig().reference_kind == "copy"
    assert LearnerConfig(reference="sharded").reference_kind == "sharded"
    assert LearnerConfig(lora={}).reference_kind == "lora-off"
    assert LearnerConfig(lora={}, reference="sharded").reference_kind == "lora-off"
    assert LearnerConfig(lora={}, reference_path="other").reference_kind == "copy"
    assert LearnerConfig(lora={}, kl_coef=0).reference_kind == "none"
    assert LearnerConfig(kl_coef=0, reference="none").reference_kind == "none"


def test_ranks_that_would_share_a_gpu_are_refused(policy_config):
    with pytest.raises(UserError, match=r"learner.num_gpus 0\.5: NCCL wants a GPU of its own"):
        check_learner(LearnerConfig(ranks=2, num_gpus=0.5), policy_config)
    check_learner(LearnerConfig(ranks=1, num_gpus=0.5), policy_config)


def test_a_reference_of_other_tokens_is_refused(policy_config, tmp_path):
    tokenizer = build_tokenizer()
    build_janus(tokenizer, hidden=64, layers=2, codes=64).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"reference_path: .* tokens \(vq_config\.num_embeddings\) where"
    ):
        check_learner(LearnerConfig(reference_path=str(tmp_path)), policy_config)
    with pytest.raises(UserError, match=r"learner\.reference_path: .*no such"):
        check_learner(LearnerConfig(reference_path=str(tmp_path / "nothing")), policy_config)
    check_learner(LearnerConfig(reference_path=policy_config.path), policy_config)


def test_two_schedules_are_refused(policy_config):
    theirs = {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 3}}}
    check_learner(LearnerConfig(deepspeed=theirs), policy_config)
    with pytest.raises(
        UserError, match=r"learner\.schedule and warmup_steps set the learning rate too"
    ):
        check_learner(LearnerConfig(deepspeed=theirs, schedule="cosine"), policy_config)


def test_a_loss_is_found_by_its_name_or_as_a_function_of_ones_own():
    assert load_loss("grpo") is LOSSES["grpo"]
    assert load_loss("learner.losses:grpo_loss") is LOSSES["grpo"]
    for name, complaint in (
        ("grop", "learner.loss: 'grop' is unknown; did you mean grpo"),
        ("my_losses:nothing", "learner.loss: 'my_losses:nothing' cannot be loaded"),
        ("learner.losses:nothing", "learner.losses has no nothing"),
        ("learner.losses:", "write package.module:name"),
    ):
        with pytest.raises(UserError, match=re.escape(complaint)):
            load_loss(name)
