"""Which experts judge, with what weight, and where they run."""

import inspect
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from policy.errors import UserError
from rewards.expert import Expert

ExpertName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ExpertConfig(_Strict):
    """One expert: a class, what it is built with, and what its replicas may use."""

    use: str
    """The class, as "package.module:Class"."""
    options: dict[str, Any] = {}
    """Keyword arguments of its constructor."""
    weight: float = Field(1.0, ge=0)
    """Its share in the reward; 0: it is asked and shown, but never counts."""
    replicas: int = Field(1, ge=1)
    """How many processes answer for it, each with an expert of its own."""
    num_cpus: float = Field(0.1, ge=0)
    """CPUs that Ray reserves for each replica."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs that Ray reserves for each replica; a fraction shares one."""
    max_ongoing_requests: int = Field(4, ge=1)
    """Requests a replica holds at once: it fetches images for one while it scores another."""


class GatewayConfig(_Strict):
    """The HTTP door to the experts, and what it lets in."""

    host: str = "127.0.0.1"
    """Address to listen on. There is no authentication: think before opening it to a network."""
    port: int = Field(8000, ge=0, le=65535)
    """0: any free port."""
    max_body_mb: float = Field(16, gt=0)
    """Largest request body, in MiB."""
    max_pixels: int = Field(4096 * 4096, ge=1)
    """Most pixels that the images of one request may have together."""


class RewardsConfig(_Strict):
    """All experts by name. A name is part of URLs and of metric names."""

    experts: dict[ExpertName, ExpertConfig]
    """At least one of them must weigh more than 0."""
    retries: int = Field(2, ge=0)
    """How often an expert that failed is asked again before its group of samples is given up."""
    timeout_s: float = Field(120, gt=0)
    """How long one answer may take, waiting included. A replica stuck for longer is replaced."""
    gateway: GatewayConfig | None = None
    """None: no HTTP at all."""

    @field_validator("experts")
    @classmethod
    def _something_weighs(cls, experts: dict[str, ExpertConfig]) -> dict[str, ExpertConfig]:
        if not any(entry.weight > 0 for entry in experts.values()):
            raise ValueError("at least one expert with a weight above 0 is needed")
        return experts


def load_expert_class(use: str) -> type[Expert]:
    """The class that "package.module:Class" names. Raises UserError with one line on what is wrong."""
    module_name, colon, class_name = use.partition(":")
    if not (colon and class_name.isidentifier() and all(map(str.isidentifier, module_name.split(".")))):
        raise UserError(f"{use!r} does not name an expert: write package.module:Class")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"{use}: there is no module {error.name!r} on the Python path") from error
        raise UserError(f"{use}: {module_name} needs a module that is missing: {error.name}") from error
    except (ImportError, SyntaxError) as error:
        raise UserError(f"{use}: {module_name} cannot be imported: {error}") from error

    found = getattr(module, class_name, None)
    if found is None:
        experts = [name for name, value in vars(module).items() if _is_expert(value)]
        near = get_close_matches(class_name, experts, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{use}: {module_name} has no class {class_name}{hint}")
    if not _is_expert(found):
        raise UserError(f"{use}: {class_name} is not a subclass of rewards.expert.Expert")
    if missing := sorted(found.__abstractmethods__):
        raise UserError(f"{use}: {class_name} does not define {', '.join(missing)}")
    return found


def _is_expert(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Expert)


def check_experts(config: RewardsConfig) -> None:
    """Load every class and hold its options against its constructor, but build nothing.

    For a driver that must refuse a bad config before it starts. Raises UserError naming the expert.
    """
    for name, entry in config.experts.items():
        try:
            found = load_expert_class(entry.use)
            inspect.signature(found).bind(**entry.options)
        except (UserError, TypeError) as error:
            what = f"options: {error}" if isinstance(error, TypeError) else str(error)
            raise UserError(f"rewards.experts.{name}: {what}") from error
