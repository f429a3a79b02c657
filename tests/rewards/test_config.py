import pytest
from pydantic import ValidationError

from policy.errors import UserError
from rewards.config import ExpertConfig, RewardsConfig
from rewards.loading import check_experts, load_expert_class
from rewards.shapes import ObjectsExpert

HERE = "tests.rewards.experts_for_tests"


def test_built_in_expert_is_found_by_its_full_name():
    assert load_expert_class("rewards.shapes:ObjectsExpert") is ObjectsExpert


@pytest.mark.parametrize(
    ("use", "complaint"),
    [
        ("rewards.shapes.ObjectsExpert", "write package.module:Class"),
        ("rewards.shapes:", "write package.module:Class"),
        (":ObjectsExpert", "write package.module:Class"),
        ("../shapes:ObjectsExpert", "write package.module:Class"),
        ("rewards.shape:ObjectsExpert", "there is no module 'rewards.shape'"),
        ("nowhere.at.all:Expert", "there is no module 'nowhere'"),
        ("rewards.shapes:ObjectExpert", "did you mean ObjectsExpert?"),
        ("rewards.shapes:Detection", "not a subclass of rewards.expert.Expert"),
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
        ("from rewards.expert import Nothing", "cannot be imported: cannot import name 'Nothing'"),
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
        check_experts(one(use="rewards.shapes:CounterExpert"))


@pytest.mark.parametrize("options", [{"counter": "x"}, {"counter": "x", "failures": 1, "colour": 3}])
def test_options_must_fit_the_constructor(options):
    with pytest.raises(UserError, match=r"rewards\.experts\.mine: options: .*(failures|colour)"):
        check_experts(one(use=f"{HERE}:FailsAtFirst", options=options))


def test_check_builds_nothing():
    check_experts(one(use=f"{HERE}:CannotStart"))


@pytest.mark.parametrize(
    "experts",
    [
        {},
        {"idle": {"use": "rewards.shapes:CountExpert", "weight": 0}},
        {"Bad-Name": {"use": "rewards.shapes:CountExpert"}},
        {"typo": {"use": "rewards.shapes:CountExpert", "wieght": 1}},
        {"negative": {"use": "rewards.shapes:CountExpert", "weight": -1}},
        {"endless": {"use": "rewards.shapes:CountExpert", "weight": float("inf")}},
    ],
)
def test_impossible_settings_are_refused(experts):
    with pytest.raises(ValidationError):
        RewardsConfig.model_validate({"experts": experts})
