"""Computes how large Ray's object store must be for a run, so that nothing is spilled to disk.

It holds the trained weights, each version as a whole, and samples with their images. Ray begins to
spill when four fifths of it are in use (its `object_spilling_threshold`)."""

from dataclasses import dataclass

from ray._common.utils import (
    get_system_memory,
)  # private: this machine's memory as Ray itself counts it
from transformers import JanusForConditionalGeneration

from cluster.config import RayConfig, RunConfig
from cluster.estimate.gpu_memory import PROMPT_TOKENS, image_side, model_shapes, published_bytes
from policy.errors import UserError

MB = 2**20
FLOOR_MB = 512
FILLED = 0.8
"""Ray spills beyond this share."""
MEMORY_SHARE = 0.3
"""Largest share of the machine's memory; Ray's own default."""
EVALUATIONS = 3
"""Evaluations in memory: the first, the last and the current one, whose images stay mapped."""


@dataclass(frozen=True)
class StoreNeed:
    """What the store holds at once. `unknown` says why the model's sizes are not known."""

    versions: int = 0
    version_bytes: float = 0
    samples: int = 0
    sample_bytes: float = 0
    unknown: str = ""

    @property
    def mb(self) -> int:
        held = self.versions * self.version_bytes + self.samples * self.sample_bytes
        return max(FLOOR_MB, int(-(-held // (FILLED * MB))))

    def __str__(self) -> str:
        parts = [f"{self.samples} samples of {self.sample_bytes / 1e6:.2g} MB"]
        if self.versions:
            size = self.version_bytes / 1e9
            parts.insert(0, f"{self.versions} versions of {size:.3g} GB of trained weights")
        return " and ".join(parts)


def store_need(
    config: RunConfig, held_out: int, *, learn: bool = True, benchmark: int = 0
) -> StoreNeed:
    """The need of training, or of generating and scoring alone. `held_out`: prompts of an evaluation;
    `benchmark`: images of the largest benchmark that is evaluated during training.

    Weights that are broadcast count as well: when a rollout worker is replaced, they go through the
    store from then on. While a version is being published, the samples that were just learned from
    still refer to weights that are `max_staleness` + 1 versions older.
    """
    try:
        model = model_shapes(config.policy)
    except UserError as error:
        return StoreNeed(unknown=str(error))
    train, steps = config.train, config.train.max_staleness + 2
    samples = held_out * config.evaluate.samples_per_prompt
    if learn:
        samples = EVALUATIONS * samples + steps * train.group_size * train.groups_per_step + benchmark
    return StoreNeed(
        versions=steps if learn else 0,
        version_bytes=published_bytes(model, config),
        samples=samples,
        sample_bytes=_sample_bytes(model, config.actors.sampling.max_cot_tokens),
    )


def _sample_bytes(model: JanusForConditionalGeneration, max_cot_tokens: int) -> int:
    """Bytes of a policy.records.Sample with the longest CoT: ids of 8 bytes, log-probabilities of 4,
    pixels."""
    image_tokens = model.config.vq_config.num_patches**2
    ids = 2 * (PROMPT_TOKENS + max_cot_tokens) + image_tokens
    logps = max_cot_tokens + 2 * image_tokens
    return 8 * ids + 4 * logps + 3 * image_side(model) ** 2


def machine_mb() -> int:
    """The largest store that this machine should have."""
    return int(MEMORY_SHARE * get_system_memory() / MB)


def store_size(config: RayConfig, need: StoreNeed, most_mb: int) -> tuple[int, str, bool]:
    """MB of a new cluster's store, a message with the reason, and whether that is too little."""
    if config.object_store_mb is not None:
        size, small = config.object_store_mb, config.object_store_mb < need.mb
        if not small:
            return size, f"object store: {size} MB, as ray.object_store_mb says", False
        message = f"ray.object_store_mb: {size} is too small, Ray will spill to disk"
        return size, f"{message}: {need.mb} MB hold {need}", True
    if need.unknown:
        message = f"object store: {FLOOR_MB} MB, which may be too small; set ray.object_store_mb:"
        return FLOOR_MB, f"{message} {need.unknown}", True
    if need.mb > most_mb:
        size = max(FLOOR_MB, most_mb)
        message = (
            f"object store: {size} MB, {MEMORY_SHARE:.0%} of this machine's memory; Ray will spill to"
        )
        return size, f"{message} disk: {need.mb} MB hold {need}", True
    return need.mb, f"object store: {need.mb} MB, for {need}", False


def asked_of_cluster(need: StoreNeed, address: str, largest_mb: int | None = None) -> tuple[str, bool]:
    """A message on what the nodes of an existing cluster must have, and whether the largest has too
    little (None: its size is not known yet)."""
    if need.unknown:
        return f"object store: what it must hold is not known: {need.unknown}", False
    small = largest_mb is not None and largest_mb < need.mb
    has = f" but has {largest_mb} MB, so that Ray will spill to disk" if small else ""
    message = (
        f"object store: the learner's node of the cluster at {address} should have {need.mb} MB{has}"
    )
    return f"{message} (ray start --object-store-memory={need.mb * MB}), for {need}", small
