"""The learner's settings, and DeepSpeed's over sensible defaults."""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from learner.deepspeed_check import check_deepspeed
from learner.kernels import check_kernels
from learner.loss_defaults import Aggregation, Span, defaults_of
from policy.config import PolicyConfig
from policy.errors import UserError
from policy.jsonl import read_object
from policy.paths import UserPath
from policy.resources import CustomResources, Labels

if TYPE_CHECKING:  # reading a configuration needs no torch
    from torch import nn


class LoraSettings(BaseModel):
    """Adapters in the language model; everything else stays as it is, whatever `freeze` says."""

    model_config = ConfigDict(extra="forbid")

    rank: int = Field(32, ge=1)
    """Inner dimension of an adapter."""
    alpha: float = Field(64.0, gt=0)
    """The adapter is scaled by alpha / rank."""
    target_modules: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )
    """Linear modules of the language model, by the last part of their name."""


def _own(key: str) -> Callable[[dict[str, Any]], Any]:
    """The default of a key that depends on the loss."""

    def default(settings: dict[str, Any]) -> Any:
        return getattr(defaults_of(settings["loss"], settings["gspo_span"]), key)

    return default


class LearnerConfig(BaseModel):
    """One GRPO update over both CoTs. Defaults are T2I-R1's where the paper gives a number."""

    model_config = ConfigDict(extra="forbid")

    ranks: int = Field(1, ge=1)
    """DeepSpeed ranks: learner workers, a Ray actor each."""
    num_cpus: float = Field(1.0, ge=0)
    """CPUs that Ray reserves for one rank."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs that Ray reserves for one rank."""
    resources: CustomResources = {}
    """Custom resources of Ray that one rank takes, by name; only some nodes have them."""
    labels: Labels = {}
    """Labels of the nodes that are meant for the learner."""

    lr: float = Field(1e-6, gt=0)
    """AdamW's learning rate, where its schedule is highest."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls to 0 over `train.steps`, if it does."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0 before that."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, ge=0)
    """0: gradients are not clipped."""

    loss: str = "grpo"
    """A name in `learner.losses.LOSSES`, or `package.module:function` of your own."""
    gspo_span: Span = "each"
    """What has one ratio with `loss: gspo`: each CoT, or both together."""
    kl_coef: float = Field(0.01, ge=0)
    """Weight of the KL divergence from the reference model; 0: no reference model is loaded."""
    kl_target: float | None = Field(None, gt=0)
    """Target of the KL divergence a token, the mean of both CoTs: kl_coef is adapted towards it from
    step to step. None: kl_coef stays."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of an entropy bonus at each token of both CoTs."""
    entropy_target: dict[Literal["cot", "image"], PositiveFloat] = {}
    """Target of each CoT's entropy a token, in nats: its entropy_coef is adapted towards it from step
    to step. A CoT that is not named keeps its own."""
    reference: Literal["copy", "sharded", "offload", "none"] | None = None
    """Where the reference model is: a copy on every rank, sharded over the ranks (ZeRO-3), or in host
    memory. None: a copy; nowhere if kl_coef is 0. With `lora` it is always the model with its adapters
    off."""
    reference_path: UserPath | None = None
    """Another model as the reference, a folder or a hub id; None: `policy.path`, with which training
    begins. With `lora` it is a second model."""
    lora: LoraSettings | None = None
    """Train adapters instead of the model."""
    clip_low: float = Field(default_factory=_own("clip_low"), ge=0)
    """The probability ratio is clipped at 1 - clip_low from below. Not set: the loss's own, for grpo
    0.2."""
    clip_high: float = Field(default_factory=_own("clip_high"), ge=0)
    """The probability ratio is clipped at 1 + clip_high from above. Not set: the loss's own, for grpo
    0.2."""
    aggregation: Aggregation = Field(default_factory=_own("aggregation"))
    """What the loss is a mean over: all tokens of the step; each sample's tokens, then samples; each
    CoT's tokens, then CoTs; or constant: samples, each one's sum over loss_length. Not set: the loss's
    own, for grpo token_mean."""
    loss_length: float = Field(1024.0, gt=0)
    """What `aggregation: constant` divides a sample's sum by: about the tokens of its two CoTs."""
    advantages: Literal["group", "gdpo"] = "group"
    """How rewards become advantages: the mean of all experts compared within a group, or each expert
    compared on its own (GDPO)."""
    advantage_scale: Literal["std", "none"] = Field(default_factory=_own("advantage_scale"))
    """A reward less its group's mean is divided by the group's standard deviation (std), or kept. Not
    set: the loss's own, for grpo std."""
    old_logps: Literal["sampler", "learner"] = "sampler"
    """What the ratio is taken against: the sampler's log-probabilities, or the learner's own before the
    first update of a batch, which makes it exactly 1 there."""
    importance: Literal["none", "truncated", "masked"] = "none"
    """Weight of a token whose probability differs between sampler and learner (rounding, staleness): 1
    (none), their ratio up to a cap (truncated), or 0 beyond the cap (masked)."""
    importance_cap: float = Field(2.0, gt=1)
    """The cap, of the ratio and of its inverse."""
    updates_per_batch: int = Field(1, ge=1)
    """How many times a step's samples are learned from."""
    minibatches: int = Field(1, ge=1)
    """Parts of a step's groups, with an optimizer step each."""
    train_distribution: Literal["conditional", "guided"] = "conditional"
    """Train the conditional distribution (as published), or the guided one that images were sampled
    from."""
    cot_weight: float = Field(1.0, ge=0)
    """Weight of the semantic CoT's tokens in the one token mean."""
    image_weight: float = Field(1.0, ge=0)
    """Weight of the image's tokens in the one token mean."""

    freeze: list[str] = [
        "model.vision_model",
        "model.aligner",
        "model.vqmodel",
        "model.generation_embeddings",
        "model.generation_aligner",
        "model.generation_head",
    ]
    """Module names whose parameters stay as they are; the paper trains the language model alone."""

    micro_batch_tokens: int = Field(16384, ge=1)
    """Upper bound on the padded tokens of one forward and backward pass, which holds a group's samples
    or some of them, at least one."""
    logprob_chunk_tokens: int = Field(512, ge=1)
    """Positions whose logits exist at one time; backward computes them again."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input for backward, and compute the layer again: about a third more
    compute, and far less memory."""
    kernels: Literal["none", "liger", "compile"] = "none"
    """Faster kernels for the trunk: Liger's, on GPUs (`pip install "bicot[liger]"`), or each layer
    compiled by torch, which takes minutes at the first step and wants a C++ compiler."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed's ZeRO shards over the ranks: nothing, optimizer states, also gradients, also
    parameters."""
    deepspeed: dict[str, Any] | UserPath | None = None
    """DeepSpeed's own settings, or a JSON file of them, passed through over the defaults."""
    transport: Literal["auto", "store", "broadcast"] = "auto"
    """How weights reach the rollout workers: through Ray's object store, or broadcast, by NCCL between
    GPUs (gloo between CPUs). auto: broadcast where each rollout and learner worker has a GPU of its
    own."""
    bucket_mb: float = Field(64.0, gt=0)
    """Size of a bucket when weights are published."""
    broadcast_timeout_s: float = Field(30.0, gt=0)
    """How long one bucket may take to all rollout workers, before the broadcast is given up and the
    object store carries the weights."""
    load_timeout_s: float = Field(1800.0, gt=0)
    """How long the ranks may take to load the model, a download included."""
    timeout_s: float = Field(600.0, gt=0)
    """How long a step of the learner, a fetch of its samples or a publish may take, and how long a rank
    waits for the others, before the learner counts as lost."""

    @model_validator(mode="after")
    def _reference_makes_sense(self):
        if self.reference == "none" and self.kl_coef > 0:
            raise ValueError(
                f"learner.kl_coef {self.kl_coef:g} needs a reference model: set learner.kl_coef=0, or"
                " learner.reference=copy (or sharded, or offload)"
            )
        if self.reference not in (None, "none") and self.kl_coef == 0:
            raise ValueError(
                f"learner.kl_coef 0 uses no reference model, and learner.reference is {self.reference}:"
                " set learner.reference=null"
            )
        return self

    @model_validator(mode="after")
    def _targets_have_coefficients(self):
        if self.reference_path is not None and self.kl_coef == 0:
            raise ValueError(
                "learner.kl_coef 0 uses no reference model: set learner.reference_path=null"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError(
                "learner.kl_target adapts learner.kl_coef, which is 0: set both, or neither"
            )
        if self.entropy_target and self.entropy_coef == 0:
            raise ValueError(
                "learner.entropy_target adapts learner.entropy_coef, which is 0: set both, or neither"
            )
        return self

    @property
    def reference_kind(self) -> Literal["copy", "sharded", "offload", "lora-off", "none"]:
        """`reference` with None resolved."""
        if self.kl_coef == 0:
            return "none"
        if self.lora and self.reference_path is None:
            return "lora-off"
        return self.reference or "copy"


def deepspeed_settings(config: LearnerConfig, dtype: str) -> dict[str, Any]:
    """The settings DeepSpeed is started with: defaults, then the user's, key by key.

    `managed_gradient_accumulation: false` leaves the division of the loss to this code (see
    `Trainer._backward`). Raises UserError for a file that is missing or is not a JSON object."""
    defaults = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "zero_allow_untested_optimizer": True,
        # An offloaded optimizer is torch's too: fused, it takes the time of DeepSpeed's own, which must
        # be compiled on each machine.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == "bfloat16"},
        "fp16": {"enabled": dtype == "float16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    return _merge(defaults, _user_settings(config.deepspeed))


def check_learner(config: LearnerConfig, policy: PolicyConfig) -> None:
    """Checks what a driver can refuse before it starts ranks: GPUs that ranks would share, DeepSpeed's
    settings, an unknown loss, kernels that are not installed, and names of modules to freeze or to
    adapt.

    Raises UserError.
    """
    from learner.losses import check_loss
    from policy.model import meta_model, trunk_of

    check_loss(config)
    if config.ranks > 1 and 0 < config.num_gpus < 1:
        raise UserError(
            f"learner.num_gpus {config.num_gpus:g}: NCCL wants a GPU of its own for each of"
            f" {config.ranks} ranks; set learner.num_gpus: 1, or learner.ranks: 1"
        )
    settings = deepspeed_settings(config, policy.dtype)
    user = _user_settings(config.deepspeed)
    if "scheduler" in user and (config.schedule != "constant" or config.warmup_steps):
        raise UserError(
            "learner.deepspeed.scheduler: learner.schedule and warmup_steps set the learning rate too;"
            " leave out one of them"
        )
    check_deepspeed(user, settings, policy.dtype, on_gpu=config.num_gpus > 0)
    stage = settings["zero_optimization"]["stage"]
    if config.kernels == "compile" and (stage == 3 or config.reference in ("sharded", "offload")):
        raise UserError(
            "learner.kernels: compile wants each layer's weights to stay in place: set"
            " learner.kernels=none, or learner.zero_stage below 3 and learner.reference=copy"
        )
    check_kernels(config.kernels)
    if config.reference_path is not None:
        check_reference(policy, config.reference_path)
    model = meta_model(policy)
    if model is None:
        return
    if config.lora:
        check_targets(trunk_of(model), config.lora.target_modules)
    for name in config.freeze:
        frozen_module(model, name)


def check_reference(policy: PolicyConfig, path: str) -> None:
    """Raises UserError for a reference model that is not there, or has other tokens than the policy."""
    from policy.model import check_policy, meta_model

    other = policy.model_copy(update={"path": path})
    try:
        check_policy(other)
    except UserError as error:
        raise UserError(f"learner.reference_path: {error}") from None
    mine, theirs = meta_model(policy), meta_model(other)
    if mine is None or theirs is None:
        return  # a hub model that is not downloaded yet
    for part, key in (("text_config", "vocab_size"), ("vq_config", "num_embeddings")):
        here, there = (getattr(getattr(m.config, part), key) for m in (mine, theirs))
        if here != there:
            raise UserError(
                f"learner.reference_path: {path} has {there} tokens ({part}.{key}) where the policy has"
                f" {here}: a reference must know the same tokens"
            )


def frozen_module(model: "nn.Module", name: str) -> "nn.Module":
    """The module that an entry of `freeze` names, or UserError with the nearest right name."""
    modules = dict(model.named_modules())
    if name not in modules:
        near = get_close_matches(name, modules, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"learner.freeze: the model has no module {name!r}{hint}")
    return modules[name]


def check_targets(trunk: "nn.Module", targets: list[str]) -> None:
    """Raises UserError for a LoRA target that names no linear module of the language model."""
    from torch import nn

    linear = {name for name, m in trunk.named_modules() if isinstance(m, nn.Linear)}
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise UserError(
                f"learner.lora.target_modules: the language model has no linear module {target!r};"
                f" it has {', '.join(known)}"
            )


def _user_settings(source: dict[str, Any] | str | None) -> dict[str, Any]:
    if not isinstance(source, str):
        return source or {}
    try:
        return read_object(Path(source))
    except UserError as error:
        raise UserError(f"learner.deepspeed: {error}") from None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged
