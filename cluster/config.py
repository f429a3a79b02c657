"""A run's configuration: one YAML file, `key=value` overrides, and errors that a user can act on.

Each part defines its own settings beside its code; this file nests them and adds the driver's.
"""

import os
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from actors.config import ActorsConfig
from cluster.serve_config import ServeConfig
from cluster.watch.wandb_log import WandbConfig
from cluster.yaml_text import read_yaml, write_yaml
from learner.config import LearnerConfig
from policy.config import PolicyConfig
from policy.errors import UserError
from policy.jsonl import read_text
from policy.paths import UserPath
from rewards.config import ExpertName, RewardsConfig

M = TypeVar("M", bound=BaseModel)


class TrainConfig(BaseModel):
    """The training loop: what is generated, how much, and how often results are saved."""

    model_config = ConfigDict(extra="forbid")

    prompts: UserPath
    """A file of prompts, JSON lines."""
    steps: int = Field(1600, ge=1)
    """Optimizer steps of the whole run."""
    group_size: int = Field(8, ge=2)
    """G, the samples of one prompt that are compared with each other; one alone teaches nothing."""
    groups_per_step: int = Field(8, ge=1)
    """Prompts of one optimizer step."""
    max_staleness: int = Field(0, ge=0)
    """How many optimizer steps old a sample's weights may be; 0 is synchronous and exactly
    on-policy."""
    filter_equal_groups: bool = True
    """Leave out groups whose rewards are all equal: they give no gradient but the KL term's."""
    resample_equal_groups: int = Field(0, ge=0)
    """The most further groups a step that are requested until `groups_per_step` groups have unequal
    rewards (DAPO's dynamic sampling)."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints; there is always one at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints are kept."""
    resume: Literal["auto", "never"] = "auto"
    """auto: a run that did not reach its last step goes on from its newest checkpoint. never: it is
    put aside, and a new one starts."""
    max_skipped_steps: int = Field(5, ge=1)
    """How many steps in a row may have a gradient that is not finite before the run stops."""
    max_empty_steps: int = Field(10, ge=1)
    """How many steps in a row may have no group to learn from (no scores, or all rewards equal) before
    the run stops; it warns after 3."""
    max_learner_restarts: int = Field(3, ge=0)
    """How often the learner may be lost at the same step before the run stops."""
    show_every: int = Field(20, ge=1)
    """Steps between galleries of training samples."""
    log: Literal["text", "json"] = "text"
    """Output without a terminal: lines for people, or a JSON object a line with all numbers of a step,
    for a log collector."""
    wandb: WandbConfig | None = None
    """Weights & Biases gets a copy of all numbers."""

    @model_validator(mode="after")
    def _resamples_what_is_filtered(self):
        if self.resample_equal_groups and not self.filter_equal_groups:
            raise ValueError(
                "train.resample_equal_groups replaces groups that train.filter_equal_groups leaves out:"
                " set that to true"
            )
        return self


class EvaluateConfig(BaseModel):
    """Evaluations on held-out prompts, with the same seeds every time, so that two can be compared."""

    model_config = ConfigDict(extra="forbid")

    prompts: UserPath
    """A file of held-out prompts, JSON lines."""
    every: int = Field(100, ge=1)
    """Steps between evaluations; there is always one before the first step and one after the last."""
    samples_per_prompt: int = Field(2, ge=1)
    """Images of each prompt."""
    cot_checker: str = "cluster.watch.evaluation:mentions_every_noun"
    """`package.module:function` of (prompt, CoT text) that returns whether the CoT is right."""
    benchmarks: list[str] = []
    """Names as in `bicot bench list`: public benchmarks whose scores are watched during training."""
    benchmark_prompts: int = Field(24, ge=1)
    """How many prompts of each benchmark, spread evenly over its tasks."""
    benchmark_every: int | None = Field(None, ge=1)
    """Steps between evaluations of the benchmarks; None: as `evaluate.every`. There is always one
    before the first step and one after the last."""
    benchmark_data: dict[str, UserPath] = {}
    """Benchmark -> folder with its prompt files; else data/NAME, where `bicot fetch` puts them."""
    judges: dict[ExpertName, dict[str, Any]] = {}
    """Judge -> keys of its entry that differ from the benchmark's own: options, replicas, num_gpus,
    ..."""


class RayConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    address: str | None = None
    """An existing cluster ("auto", "host:port"); None: $RAY_ADDRESS if set, else a new cluster on this
    machine, which ends with the run."""
    dashboard: bool = True
    """Whether a new cluster has Ray's dashboard."""
    object_store_mb: int | None = Field(None, ge=80)
    """Size of a new cluster's object store, in MB; None: what the model and a step's images need."""
    start_timeout_s: float = Field(300, gt=0)
    """How long to wait for resources that are in use."""
    wait_for_nodes_s: float = Field(0, ge=0)
    """How long to wait for nodes that the cluster does not have yet but an autoscaler can start. 0: a
    role that no node can hold is an error at once."""


class NamedRun(BaseModel):
    """The keys of every run: a name, a directory, a seed, a model."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("run", pattern=r"^\.*[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)
    """Names the run and its directory."""
    runs_dir: UserPath = "runs"
    """Folder of the run directories; on a cluster, a path that outlives the driver."""
    algorithm: str | None = None
    """A preset of the keys below that belong together: `algorithms/NAME.yaml` beside the configuration
    file, or of the examples. Its keys override the file's, and `key=value` overrides them."""
    seed: int = 0
    """Determines the order of prompts and which tokens are sampled."""
    policy: PolicyConfig
    """The model."""

    @property
    def folder(self) -> Path:
        return Path(self.runs_dir) / self.name


class RunConfig(NamedRun):
    """The configuration of `bicot train`."""

    actors: ActorsConfig = ActorsConfig()
    """Rollout workers, which generate samples."""
    rewards: RewardsConfig
    """Experts, which score samples."""
    learner: LearnerConfig = LearnerConfig()
    """DeepSpeed ranks, which train the model."""
    train: TrainConfig
    """The training loop."""
    evaluate: EvaluateConfig
    """Evaluations on held-out prompts."""
    serve: ServeConfig = ServeConfig()
    """The model behind an images API."""
    ray: RayConfig = RayConfig()
    """Which Ray cluster, and how long to wait for it."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply overrides ("learner.lr=1e-4"), check everything.

    Raises UserError: one line that names the file, the key, and the nearest right key.
    """
    path, tree = read_tree(path)
    chosen = [o.partition("=")[2] for o in overrides if o.startswith("algorithm=")]
    name = chosen[-1] if chosen else tree.get("algorithm")
    if name and name != "null":
        _lay_over(tree, read_preset(str(name), path))
    return validated(RunConfig, tree, str(path), overrides)


def read_tree(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """A YAML file of keys and values, with its path. Raises UserError."""
    path = Path(os.path.expanduser(path))
    tree = read_yaml(read_text(path, "configuration file"), str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys to values")
    return path, tree


def read_preset(name: str, config: Path) -> dict[str, Any]:
    """The keys that an algorithm sets in a configuration file. Raises UserError."""
    folders = config.parent / "algorithms", PRESETS
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return read_tree(folder / f"{name}.yaml")[1]
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
    raise UserError(f"algorithm: no preset {name!r}; {hint}")


PRESETS = Path(__file__).parents[1] / "examples" / "algorithms"


def _lay_over(tree: dict[str, Any], preset: dict[str, Any]) -> None:
    for key, value in preset.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _lay_over(tree[key], value)
        else:
            tree[key] = value


def validated(model: type[M], tree: dict[str, Any], where: str, overrides: Sequence[str]) -> M:
    """A configuration from the keys of `where` and overrides. Raises UserError."""
    for override in overrides:
        _apply(tree, override)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, model, where, overrides)) from None


def dump_config(config: NamedRun) -> str:
    """The resolved configuration as YAML; loading it gives the same configuration. A preset is only
    named in a comment: as a key it would override what has overridden it."""
    tree = config.model_dump(mode="json")
    algorithm = tree.pop("algorithm", None)
    comment = f"# algorithm {algorithm}: what it set stands below\n" if algorithm else ""
    return comment + write_yaml(tree)


def _apply(tree: dict[str, Any], override: str) -> None:
    where = f"override {shorten(override)}"
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{where}: write key=value, for example learner.lr=1e-4")
    value = read_yaml(text, where) if text else None
    if isinstance(value, str) and text.startswith(value):
        value = text  # not quoted: " #1", a comment in YAML, may be part of a path
    *parents, last = key.split(".")
    branch = tree
    for name in parents:
        deeper = branch.get(name)
        if deeper is None:
            deeper = branch[name] = {}
        if not isinstance(deeper, dict):
            raise UserError(f"{where}: {name!r} is a value, not a group of keys")
        branch = deeper
    branch[last] = value


def _explain(
    error: ValidationError, model: type[BaseModel], where: str, overrides: Sequence[str]
) -> str:
    """The first fault as one line; unknown keys first, for they often cause the others."""
    # A default that depends on a wrong key is no fault of its own.
    all_faults = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
    faults = sorted(all_faults, key=lambda e: e["type"] != "extra_forbidden")
    fault = faults[0]
    key = ".".join(str(part) for part in fault["loc"])
    source = next((f"override {shorten(o)}" for o in overrides if o.partition("=")[0] == key), where)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "extra_forbidden":
        near = _nearest(model, key, [*fault["loc"]])
        return f"{source}: unknown key {key!r}" + (f"; did you mean '{near}'?" if near else "") + more
    if fault["type"] == "missing":
        return f"{source}: key '{key}' is missing{more}"
    given = f", not {shorten(fault['input'])}" if isinstance(fault["input"], str | int | float) else ""
    message = re.sub(r"^(Value error, |Input )", "", fault["msg"])
    return f"{source}: '{key}': {message}{given}{more}" if key else f"{source}: {message}{more}"


def shorten(value: Any) -> str:
    """A value as Python writes it, cut to a line of readable length."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


RENAMED = {
    "learner.beta": "learner.kl_coef",
    "learner.betas": "learner.adam_betas",
    "learner.guidance": "learner.train_distribution",
    "evaluate.plan_judge": "evaluate.cot_checker",
}
"""Old key -> its new name."""


def _nearest(model: type[BaseModel], key: str, loc: list) -> str | None:
    """The likeliest right key: its new name, a sibling with a similar one, else the same elsewhere."""
    if key in RENAMED:
        return RENAMED[key]
    known = list(_keys(model, loc))
    parent = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    name = key.rpartition(".")[2]
    names = {k.rpartition(".")[2]: k for k in siblings}
    if near := get_close_matches(name, names, n=1, cutoff=0.6):
        return names[near[0]]
    if near := get_close_matches(key, known, n=1, cutoff=0.6):
        return near[0]
    return next((k for k in known if k.rpartition(".")[2] == name), None)


def _keys(model: type[BaseModel], loc: list, prefix: str = "") -> Iterator[str]:
    """All dotted keys. Inside a mapping with free names (experts), the name the user wrote is used."""
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = field.annotation
        models = [
            m for m in (inner, *_all_args(inner)) if isinstance(m, type) and issubclass(m, BaseModel)
        ]
        if not models:
            continue
        depth = prefix.count(".") + 1
        free = f".{loc[depth]}" if _is_mapping(inner) and len(loc) > depth else ""
        yield from _keys(models[0], loc, f"{prefix}{name}{free}.")


def _is_mapping(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is dict


def _all_args(annotation: Any) -> Iterator[Any]:
    for argument in get_args(annotation):
        yield argument
        yield from _all_args(argument)
