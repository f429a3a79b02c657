"""Which experts score, with what weight, and where they run."""

from ipaddress import ip_address
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from policy.resources import CustomResources, Labels

ExpertName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class AutoscaleConfig(_Strict):
    """Bounds and target for the number of replicas, which follows the load."""

    min: int = Field(1, ge=1)
    """The fewest replicas."""
    max: int = Field(ge=1)
    """The most replicas."""
    target_queue: float = Field(2.0, gt=0)
    """Target of the requests a replica, waiting or being answered."""
    up_after_s: float = Field(5.0, ge=0)
    """How long there must be more than that before replicas are added."""
    down_after_s: float = Field(60.0, ge=0)
    """How long there must be less than that before replicas are taken away."""

    @model_validator(mode="after")
    def _in_order(self):
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is less than min ({self.min})")
        return self


class RangeConfig(_Strict):
    """An expert's own scale: `low` becomes 0 and `high` becomes 1, in a straight line that goes on
    beyond both. `high` below `low` turns a scale round where less is better."""

    low: float
    """The expert's score that becomes 0."""
    high: float
    """The expert's score that becomes 1."""

    @model_validator(mode="after")
    def _apart(self):
        if self.low == self.high:
            raise ValueError("low and high are the same")
        return self


class ExpertConfig(_Strict):
    """One expert: a class, its constructor's arguments, and the resources of its replicas."""

    use: str
    """The class, as "package.module:Class"."""
    options: dict[str, Any] = {}
    """Keyword arguments of its constructor."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """Passed to a constructor that takes `device`; None: its own default."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """Passed to a constructor that takes `dtype`; None: its own default."""
    weight: float = Field(1.0, ge=0)
    """Its weight in the reward; 0: its scores are computed and shown, but never count."""
    credits: Literal["both", "cot", "image"] = "both"
    """Which chain of thought gets credit for its score, and learns from it: both, the semantic CoT
    alone, or the image alone."""
    normalize: Literal["none", "running"] | RangeConfig = "none"
    """How a score enters the reward: as it is; less the mean and over the standard deviation of all
    of the expert's scores in the run so far; or with a fixed range as 0 to 1."""
    on_failure: Literal["drop", "leave_out"] = "drop"
    """What happens when it gives no answer: drop the group of samples that it should score, or leave
    the expert out of the rewards of the whole step."""
    replicas: int = Field(1, ge=1)
    """How many processes serve it, each with an expert of its own."""
    autoscale: AutoscaleConfig | None = None
    """Instead of `replicas`: bounds between which Ray Serve chooses."""
    num_cpus: float = Field(0.1, ge=0)
    """CPUs that Ray reserves for each replica."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs that Ray reserves for each replica; a fraction shares one."""
    resources: CustomResources = {}
    """Custom resources of Ray that each replica takes, by name; only some nodes have them."""
    labels: Labels = {}
    """Labels of the nodes that are meant for the expert."""
    runtime_env: dict[str, Any] = {}
    """A Ray runtime environment of its own, e.g. {pip: [...]} or {env_vars: {...}}."""
    batch_size: int = Field(64, ge=1)
    """Most images of one call of the expert. Waiting requests are combined, larger ones are cut."""
    batch_wait_s: float = Field(0.0, ge=0)
    """How long an idle expert waits for more images to fill a batch."""
    max_ongoing_requests: int = Field(16, ge=1)
    """Requests a replica holds at once: it fetches images for some while it scores others."""
    retries: int | None = Field(None, ge=0)
    """None: as `rewards.retries`."""
    timeout_s: float | None = Field(None, gt=0)
    """None: as `rewards.timeout_s`."""

    @model_validator(mode="after")
    def _one_way_to_scale(self):
        if self.autoscale and "replicas" in self.model_fields_set and self.replicas != 1:
            raise ValueError("set replicas or autoscale, not both")
        return self

    @field_validator("runtime_env")
    @classmethod
    def _ships_no_folders(cls, env: dict[str, Any]) -> dict[str, Any]:
        """Refuses local folders: Ray Serve accepts such an environment, and then fails at every status
        call."""
        modules = env.get("py_modules") or []
        for path in [env.get("working_dir"), *(modules if isinstance(modules, list) else [modules])]:
            if path is not None and "://" not in str(path):
                raise ValueError(
                    f"{path}: Ray Serve takes addresses only, such as s3://... or, for a file that is"
                    " on every machine, file:///path/to/package.whl"
                )
        return env

    @property
    def most_replicas(self) -> int:
        return self.autoscale.max if self.autoscale else self.replicas

    @property
    def fewest_replicas(self) -> int:
        return self.autoscale.min if self.autoscale else self.replicas

    @property
    def has_own_packages(self) -> bool:
        """Whether its environment differs from the driver's, so that the driver cannot load the
        class."""
        return bool(self.runtime_env.keys() - {"env_vars", "config"})


class HttpConfig(_Strict):
    """An HTTP address that serves requests, and its limits."""

    key: ClassVar[str]
    """Its key in a run's configuration."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs a token."""
    port: int = Field(8000, ge=0, le=65535)
    """0: any free port."""
    token_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the bearer token to ask for; None: no token is needed."""
    max_body_mb: float = Field(16, gt=0)
    """Largest request body, in MiB."""
    body_timeout_s: float = Field(30, gt=0)
    """How long a body may take to arrive."""
    max_concurrent: int = Field(32, ge=1)
    """Requests that are handled at once; further ones get status 429."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @model_validator(mode="after")
    def _no_open_door(self):
        if not self.is_local and self.token_env is None:
            raise ValueError(
                f"host {self.host} can be reached from other machines: set token_env to the name of "
                "an environment variable that holds a token"
            )
        return self


class GatewayConfig(HttpConfig):
    """The experts' HTTP gateway, and its limits."""

    key: ClassVar[str] = "rewards.gateway"

    max_pixels: int = Field(4096 * 4096, ge=1)
    """Most pixels that the images of one request may have together."""
    max_images: int = Field(256, ge=1)
    """Most images of one request."""
    decode_timeout_s: float = Field(10, gt=0)
    """How long the images of one request may take to decode."""


class RewardsConfig(_Strict):
    """All experts by name. A name is part of URLs and of metric names."""

    experts: dict[ExpertName, ExpertConfig]
    """At least one of them must have a weight above 0."""
    retries: int = Field(2, ge=0)
    """How often a failed call of an expert is tried again."""
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

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each expert."""
        return {name: entry.weight for name, entry in self.experts.items()}

    @property
    def credits(self) -> dict[str, str]:
        """Which CoT gets credit for each expert's score: both, cot or image."""
        return {name: entry.credits for name, entry in self.experts.items()}

    @property
    def longest_answer_s(self) -> float:
        """How long the answer of all experts may take: all tries, and the pauses between them."""
        tries = {name: 1 + self.retries_of(name) for name in self.experts}
        return max(n * self.timeout_of(name) + 2**n for name, n in tries.items()) + 10

    def retries_of(self, expert: str) -> int:
        own = self.experts[expert].retries
        return self.retries if own is None else own

    def timeout_of(self, expert: str) -> float:
        own = self.experts[expert].timeout_s
        return self.timeout_s if own is None else own
