import pytest
import yaml

from cluster.cli import with_policy
from cluster.config import PRESETS, RunConfig, dump_config, load_config
from cluster.resume import affects_training
from learner.loss_defaults import defaults_of
from policy.errors import UserError
from tests.conftest import SHAPES

TRAIN = SHAPES / "train.yaml"


def test_the_shapes_config_loads_and_survives_a_round_trip(tmp_path):
    config = load_config(TRAIN)
    path = tmp_path / "again.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_overrides_are_yaml_values_at_dotted_keys():
    config = load_config(
        TRAIN,
        [
            "learner.lr=1e-4",
            "train.max_staleness=1",
            "name=other",
            "rewards.experts.count.weight=0.5",
            "learner.deepspeed.zero_optimization.stage=3",
            "learner.deepspeed.optimizer={params: {eps: 1e-9}}",
            "rewards.experts.count.options={gain: 1e-1, tag: 2024_01}",
            "evaluate.samples_per_prompt=4",
        ],
    )
    assert config.learner.lr == 1e-4
    assert config.train.max_staleness == 1
    assert config.name == "other"
    assert config.rewards.experts["count"].weight == 0.5
    assert config.learner.deepspeed == {
        "zero_optimization": {"stage": 3},
        "optimizer": {"params": {"eps": 1e-9}},
    }
    assert config.rewards.experts["count"].options == {"gain": 0.1, "tag": "2024_01"}


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        (
            "learner.lrr=1",
            "override 'learner.lrr=1': unknown key 'learner.lrr'; did you mean 'learner.lr'?",
        ),
        ("trian.steps=1", "unknown key 'trian'; did you mean 'train'?"),
        ("train.group_siez=4", "unknown key 'train.group_siez'; did you mean 'train.group_size'?"),
        ("actors.sampling.guidence=4", "did you mean 'actors.sampling.guidance'?"),
        (
            "actors.guidance=4",
            "unknown key 'actors.guidance'; did you mean 'actors.sampling.guidance'?",
        ),
        ("learner.beta=0.1", "unknown key 'learner.beta'; did you mean 'learner.kl_coef'?"),
        ("evaluate.plan_judge=a:b", "did you mean 'evaluate.cot_checker'?"),
        ("rewards.experts.count.wieght=4", "did you mean 'rewards.experts.count.weight'?"),
        (
            "learner.lr=fast",
            "'learner.lr': should be a valid number, unable to parse string as a number, not 'fast'",
        ),
        ("learner.lr=-1", "'learner.lr': should be greater than 0, not -1"),
        ("train.steps=0", "'train.steps': should be greater than or equal to 1, not 0"),
        ("learner.zero_stage=4", "'learner.zero_stage': should be 0, 1, 2 or 3, not 4"),
        ("learner.lr", "write key=value"),
        ("learner.lr.x=1", "'lr' is a value, not a group of keys"),
        ("learner.lr=[1", "not valid YAML"),
        ("name=a/b", "'name': String should match pattern"),
        ("name=..", "'name': String should match pattern"),
        ("name=" + "n" * 201, "'name': String should have at most 200 characters"),
        ("name=" + "[" * 3000, "[[...: not valid YAML: deeper than"),
        ("name={a: 1, a: 2}", "'a' stands there twice"),
    ],
)
def test_a_bad_override_is_one_clear_line(override, complaint):
    with pytest.raises(UserError) as caught:
        load_config(TRAIN, [override])
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "run.yaml"
    with pytest.raises(UserError, match=r"run\.yaml: no such configuration file"):
        load_config(path)
    path.write_text("name: x\n  steps: [\n")
    with pytest.raises(UserError, match=r"run\.yaml:2: not valid YAML"):
        load_config(path)
    path.write_text(TRAIN.read_text() + "\nlearner:\n  lr: 1\n")
    with pytest.raises(
        UserError, match=r"run\.yaml:\d+: .*'learner' stands there twice, first in line"
    ):
        load_config(path)
    path.write_text(TRAIN.read_text(), encoding="utf-8-sig")
    assert load_config(path) == load_config(TRAIN)
    path.write_text("- 1\n")
    with pytest.raises(UserError, match="a mapping of keys to values"):
        load_config(path)
    tree = yaml.safe_load(TRAIN.read_text())
    del tree["policy"]["path"]
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=r"run\.yaml: key 'policy\.path' is missing"):
        load_config(path)


def test_no_section_takes_unknown_keys():
    """No free-form tree in which a typo could hide."""

    def models(model):
        yield model
        for field in model.model_fields.values():
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                yield from models(field.annotation)

    found = list(models(RunConfig))
    assert len(found) >= 8
    assert all(model.model_config.get("extra") == "forbid" for model in found)


def test_paths_are_taken_as_they_are_written(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for text, path in {
        "~/data/p.jsonl": "/home/me/data/p.jsonl",
        "/data/set #1/p.jsonl": "/data/set #1/p.jsonl",
        "'/data/a: b/p.jsonl'": "/data/a: b/p.jsonl",
        "数据/p.jsonl": "数据/p.jsonl",
    }.items():
        config = load_config(TRAIN, [f"train.prompts={text}", f"runs_dir={text}"])
        assert config.train.prompts == config.runs_dir == path
    policy = "a: [b] #1"
    assert load_config(TRAIN, with_policy([], policy)).policy.path == policy


def test_a_preset_wins_over_the_file_and_a_key_over_the_preset(tmp_path):
    keys = ["algorithm=dapo", "learner.kl_coef=0.05", "learner.lr=1e-3"]
    config = load_config(TRAIN, keys)
    assert (config.learner.loss, config.learner.clip_high) == ("dapo", 0.28)
    assert (config.learner.kl_coef, config.learner.minibatches) == (0.05, 2)
    assert config.train.resample_equal_groups == 8
    (tmp_path / "config.yaml").write_text(dump_config(config))
    again = load_config(tmp_path / "config.yaml")
    assert again == config.model_copy(update={"algorithm": None})
    assert not affects_training("algorithm")


@pytest.mark.parametrize(
    "recipe", ["shapes/train.yaml", "janus_pro/train.yaml", "janus_pro/train_1b.yaml"]
)
@pytest.mark.parametrize("preset", sorted(file.stem for file in PRESETS.glob("*.yaml")))
def test_a_preset_is_its_papers_method_over_any_configuration(recipe, preset, tmp_path):
    """Also over one that a run left behind, where every key is set."""
    plain, left = SHAPES.parent / recipe, tmp_path / "left.yaml"
    others = ["learner.clip_low=0.5", "learner.clip_high=0.6", "learner.aggregation=sample_mean"]
    others += ["learner.advantage_scale=none", "learner.minibatches=3", "train.max_staleness=2"]
    others += ["learner.advantages=gdpo", "train.resample_equal_groups=5"]
    left.write_text(dump_config(load_config(plain, others)))
    for file in (plain, left):
        config = load_config(file, [f"algorithm={preset}"])
        learner = config.learner
        if preset == "off_policy":  # of any loss
            assert (learner.importance, config.train.max_staleness) == ("truncated", 4)
            continue
        assert learner.loss == {"t2i_r1": "grpo", "gdpo": "grpo"}.get(preset, preset)
        assert vars(defaults_of(learner.loss)).items() <= vars(learner).items()
        assert learner.advantages == ("gdpo" if preset == "gdpo" else "group")
        assert learner.minibatches == {"dapo": 2, "cispo": 2, "gspo": 4}.get(preset, 1)
        assert config.train.resample_equal_groups == (8 if preset == "dapo" else 0)
        assert config.train.max_staleness == 0 or preset != "t2i_r1"


def test_a_preset_of_ones_own_lies_beside_the_configuration(tmp_path):
    (tmp_path / "algorithms").mkdir()
    (tmp_path / "algorithms" / "mine.yaml").write_text("learner: {loss: cispo}\n")
    (tmp_path / "run.yaml").write_text(TRAIN.read_text() + "\nalgorithm: mine\n")
    assert load_config(tmp_path / "run.yaml").learner.loss == "cispo"
    assert load_config(tmp_path / "run.yaml", ["algorithm=null"]).learner.loss == "grpo"
    with pytest.raises(UserError, match="no preset 'mime'; did you mean mine"):
        load_config(tmp_path / "run.yaml", ["algorithm=mime"])
