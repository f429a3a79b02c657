import pytest
from pydantic import ValidationError

from examples.shapes.experts import ObjectsExpert
from policy.errors import UserError
from rewards.config import ExpertConfig, RewardsConfig
from rewards.expert import check_experts, constructor_options, load_expert_class

HERE = "tests.rewards.experts_for_tests"


def test_built_in_expert_is_found_by_its_full_name():
    assert load_expert_class("examples.shapes.experts:ObjectsExpert") is ObjectsExpert


@pytest.mark.parametrize(
    ("use", "complaint"),
    [
        ("examples.shapes.experts.ObjectsExpert", "write package.module:Class"),
        ("rewards.shapes:", "write package.module:Class"),
        (":ObjectsExpert", "write package.module:Class"),
        ("../shapes:ObjectsExpert", "write package.module:Class"),
        ("rewards.shape:ObjectsExpert", "there is no module 'rewards.shape'"),
        ("nowhere.at.all:Expert", "there is no module 'nowhere'"),
        ("examples.shapes.experts:ObjectExpert", "did you mean ObjectsExpert?"),
        ("examples.shapes.experts:FoundObject", "not a subclass of rewards.expert.Expert"),
        (f"{HERE}:NotAnExpert", "not a subclass of rewards.expert.Expert"),
        (f"{HERE}:Unfinished", "does not define score"),
    ],
)
def test_a_wrong_name_is_explained_in_one_line(use, complaint):
    with pytest.raises(UserError) as raised:
        load_expert_class(use)
    assert complaint in str(raised.value)
    assert use in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (
            "import a_package_that_is_missing",
            "needs a module that is missing: a_package_that_is_missing",
        ),
        (
            "from rewards.expert import Nothing",
            r"imported: broken_34.py:1: ImportError: cannot import name 'Nothing'",
        ),
        ("def (:", "cannot be imported"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(tmp_path, monkeypatch, source, complaint):
    module = f"broken_{len(source)}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=complaint):
        load_expert_class(f"{module}:Expert")


def one(**fields) -> RewardsConfig:
    return RewardsConfig(experts={"mine": ExpertConfig(**fields)})


def test_check_names_the_expert():
    with pytest.raises(UserError, match=r"rewards\.experts\.mine: .*did you mean CountExpert"):
        check_experts(one(use="examples.shapes.experts:CounterExpert"))


@pytest.mark.parametrize("options", [{"counter": "x"}, {"counter": "x", "failures": 1, "colour": 3}])
def test_options_must_fit_the_constructor(options):
    with pytest.raises(UserError, match=r"rewards\.experts\.mine: options: .*(failures|colour)"):
        check_experts(one(use=f"{HERE}:FailsAtFirst", options=options))


def test_device_and_dtype_go_to_a_constructor_that_takes_them():
    placed = {"use": f"{HERE}:Placed", "device": "cpu", "dtype": "bfloat16"}
    check_experts(one(**placed, options={"words": 3}))
    options = constructor_options(ExpertConfig(**placed, options={"words": 3}))
    assert options == {"words": 3, "device": "cpu", "dtype": "bfloat16"}
    with pytest.raises(UserError, match=r"rewards\.experts\.mine: options: .*'device'"):
        check_experts(one(use="examples.shapes.experts:CountExpert", device="cpu"))
    with pytest.raises(UserError, match="device is set, and again in options"):
        check_experts(one(**placed, options={"device": "cuda"}))


def test_only_the_name_is_checked_of_an_expert_with_packages_of_its_own():
    packed = {"runtime_env": {"pip": ["some-package"]}}
    check_experts(one(use="nowhere.to.be.found:Expert", options={"any": 1}, **packed))
    with pytest.raises(UserError, match="does not name an expert"):
        check_experts(one(use="nowhere", **packed))
    with pytest.raises(UserError, match="there is no module 'nowhere'"):
        check_experts(one(use="nowhere:Expert", runtime_env={"env_vars": {"A": "b"}}))


def test_an_expert_may_have_patience_of_its_own():
    entries = {"a": {"use": "x:X", "retries": 0, "timeout_s": 5}, "b": {"use": "x:X"}}
    config = RewardsConfig.model_validate({"experts": entries, "retries": 7, "timeout_s": 60})
    assert (config.retries_of("a"), config.timeout_of("a")) == (0, 5)
    assert (config.retries_of("b"), config.timeout_of("b")) == (7, 60)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"replicas": 2, "autoscale": {"max": 4}}, "replicas or autoscale, not both"),
        ({"autoscale": {"min": 3, "max": 2}}, r"max \(2\) is less than min \(3\)"),
        ({"normalize": {"low": 1, "high": 1}}, "low and high are the same"),
        ({"normalize": "sometimes"}, "normalize"),
        ({"on_failure": "ignore"}, "on_failure"),
        ({"resources": {"accelerator": 0}}, "greater than 0"),
        ({"labels": {"zone": "!a"}}, "letters, digits"),
        ({"runtime_env": {"py_modules": ["./mine"]}}, "./mine: Ray Serve takes addresses only"),
        ({"runtime_env": {"working_dir": "."}}, "Ray Serve takes addresses only"),
    ],
)
def test_settings_that_contradict_are_refused(fields, complaint):
    with pytest.raises(ValidationError, match=complaint):
        one(use="examples.shapes.experts:CountExpert", **fields)


def test_a_resolved_config_reads_as_itself():
    config = one(
        use="examples.shapes.experts:CountExpert", autoscale={"max": 4}, normalize={"low": 0, "high": 9}
    )
    assert RewardsConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.experts["mine"].most_replicas == 4


def test_check_builds_nothing():
    check_experts(one(use=f"{HERE}:CannotStart"))


@pytest.mark.parametrize(
    "experts",
    [
        {},
        {"idle": {"use": "examples.shapes.experts:CountExpert", "weight": 0}},
        {"Bad-Name": {"use": "examples.shapes.experts:CountExpert"}},
        {"typo": {"use": "examples.shapes.experts:CountExpert", "wieght": 1}},
        {"negative": {"use": "examples.shapes.experts:CountExpert", "weight": -1}},
        {"endless": {"use": "examples.shapes.experts:CountExpert", "weight": float("inf")}},
    ],
)
def test_impossible_settings_are_refused(experts):
    with pytest.raises(ValidationError):
        RewardsConfig.model_validate({"experts": experts})
