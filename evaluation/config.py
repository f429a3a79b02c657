"""Configuration of a benchmark run: its prompts, generator and judges."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from actors.config import ActorsConfig, SamplingConfig
from evaluation.benchmark import Benchmark
from policy.config import PolicyConfig
from policy.hub import revision_of
from policy.paths import UserPath
from rewards.config import ExpertConfig, ExpertName, RewardsConfig


class DiffusersConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: UserPath
    """A hub id, as black-forest-labs/FLUX.1-dev, or a folder."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """The type of the weights."""
    batch_size: int = Field(1, ge=1)
    """Images that are drawn together."""
    options: dict[str, Any] = {}
    """Arguments of the call, as {guidance_scale: 3.5, num_inference_steps: 30}."""


class ApiConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: str = Field(pattern="^https?://")
    """Usually ends in /v1."""
    model: str
    """The model's name there."""
    api_key_env: str | None = None
    """Environment variable that holds the key."""
    send_seed: bool = True
    """Whether requests have the image's seed; some servers refuse that."""
    concurrent: int = Field(4, ge=1)
    """Requests at once, of one worker."""
    retries: int = Field(3, ge=0)
    """How often a request to a server that is busy or fails is tried again."""
    timeout_s: float = Field(300, gt=0)
    """How long an image may take."""
    options: dict[str, Any] = {}
    """More keys of the request, as {size: 1024x1024}."""


class BenchConfig(BaseModel):
    """One generator and the judges of one benchmark."""

    model_config = ConfigDict(extra="forbid")

    benchmark: str
    """Its name in `bicot bench list`, or package.module:Class."""
    data: UserPath | None = None
    """Folder with its prompt files; None: data/NAME, where `bicot fetch` puts them."""
    tasks: list[str] = []
    """Rows of its table; empty: all."""
    limit: int | None = Field(None, ge=1)
    """How many prompts, spread evenly over the tasks; None: all."""
    seed: int = 0
    """With an image's prompt and number it determines the image."""
    policy: PolicyConfig | None = None
    """A Janus as the generator."""
    cot: bool = True
    """Whether the policy writes a semantic CoT first."""
    actors: ActorsConfig = ActorsConfig()
    """The workers that generate: their number and resources, and how a policy samples."""
    diffusers: DiffusersConfig | None = None
    """A pipeline of diffusers as the generator."""
    api: ApiConfig | None = None
    """A server as the generator."""
    images: UserPath | None = None
    """A folder of images in the published layout, instead of a generator."""
    judges: dict[ExpertName, dict[str, Any]] = {}
    """Judge -> keys of its entry that differ from the benchmark's own: options, replicas, num_gpus,
    ..."""

    @model_validator(mode="after")
    def _one_source(self):
        named = [name for name in ("policy", "diffusers", "api", "images") if getattr(self, name)]
        if len(named) != 1:
            what = " and ".join(named) or "none"
            raise ValueError(
                f"name one source of images, policy, diffusers, api or images; here is {what}"
            )
        return self

    @property
    def generates(self) -> bool:
        return self.images is None

    def generator(self) -> dict[str, Any]:
        """What determines the images, as the run's record holds it: equal for two runs of the same
        model with the same settings."""
        if self.images is not None:
            return {"kind": "images", "path": self.images}
        if self.policy is not None:
            return policy_generator(self.policy, self.actors.sampling, self.cot)
        if self.diffusers is not None:
            found = self.diffusers.model_dump(mode="json", exclude={"batch_size"})
            return {"kind": "diffusers", **found}
        assert self.api is not None
        kept = {"concurrent", "retries", "timeout_s", "api_key_env"}
        return {"kind": "api", **self.api.model_dump(mode="json", exclude=kept)}


def policy_generator(
    policy: PolicyConfig, sampling: SamplingConfig, cot: bool = True
) -> dict[str, Any]:
    """`BenchConfig.generator` of a Janus."""
    return {
        "kind": "policy",
        **policy.model_dump(mode="json"),
        "revision": revision_of(policy.path),
        "cot": cot,
        **sampling.model_dump(mode="json", exclude=set() if cot else {"max_cot_tokens"}),
    }


def judges_of(
    benchmark: Benchmark | type[Benchmark], config: BenchConfig, names: set[str] | None = None
) -> RewardsConfig | None:
    """The benchmark's judges as experts of Ray Serve, with the configuration's changes; only those in
    `names`. None: there is none to start.

    Raises ValueError for a judge that the benchmark does not have.
    """
    if unknown := config.judges.keys() - benchmark.judges.keys():
        known = ", ".join(benchmark.judges)
        raise ValueError(f"judges.{min(unknown)}: {benchmark.name} has no such judge; it has {known}")
    entries = {
        name: ExpertConfig.model_validate(_entry(entry, config.judges.get(name, {})))
        for name, entry in benchmark.judges.items()
        if names is None or name in names
    }
    if not entries:
        return None
    return RewardsConfig(experts=entries, timeout_s=600)


def _entry(entry: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    if changes.get("use", entry["use"]) != entry["use"]:
        entry = {
            key: value for key, value in entry.items() if key != "options"
        }  # they are another class's
    return {"weight": 1.0, **merged(entry, changes)}


def merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merges nested mappings; `changes` win."""
    found = dict(tree)
    for key, value in changes.items():
        there = found.get(key)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            value = merged(there, value)
        found[key] = value
    return found
