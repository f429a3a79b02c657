"""The rollout actor: a sampler in a process of its own, which pulls the weights it is told to use."""

import time

import ray
import torch

from actors.config import ActorsConfig
from actors.make import make_sampler
from actors.report import DrawReport
from policy.broadcast import Broadcast, Meeting
from policy.janus import PolicyConfig
from policy.records import Sample
from policy.weights import Manifest, PublishedWeights, unpack
from policy.work import Work


class RolloutActor:
    """Draws groups of samples. Keeps nothing but weights, so a lost actor costs only its last batch."""

    def __init__(self, policy: PolicyConfig, config: ActorsConfig, run_seed: int, number: int = 0):
        """`number` counts the actors of a run."""
        torch.set_num_threads(1)
        self.number = number
        self.sampler = make_sampler(policy, config, run_seed)
        self.device = "cuda:0" if config.num_gpus > 0 else "cpu"
        self._timeline = 0

    def ready(self) -> bool:
        return True

    def draw(self, work: Work, which: int | None = None) -> list[list[Sample] | DrawReport]:
        """Draw one of the batches (None: the one of its own number, so that a call need not say) with
        exactly the weights that it is to be drawn with.

        Returns one list of samples a group and, last, a DrawReport; call it with `num_returns` of one
        more than the batch has groups, so that each group is an object of its own.
        """
        groups = work.batch(self.number if which is None else which)
        pull_s = self._pull(work.weights)
        started = time.perf_counter()
        samples = self.sampler.draw([sample for group in groups for sample in group])
        draw_s = time.perf_counter() - started
        rest = iter(samples)
        drawn = [[next(rest) for _ in group] for group in groups]
        report = DrawReport(
            weights_version=self.sampler.weights_version,
            samples=len(samples),
            cot_tokens=sum(len(s.cot_ids) for s in samples),
            cots_stopped=sum(s.finish_reason == "stop" for s in samples),
            image_tokens=sum(len(s.image_ids) for s in samples),
            pull_s=pull_s,
            draw_s=draw_s,
            group_tokens=tuple(sum(len(s.cot_ids) + len(s.image_ids) for s in g) for g in drawn),
        )
        return [*drawn, report]

    def _pull(self, weights: PublishedWeights | None) -> float:
        """Bring the sampler to a version. All buckets are here before the first weight is replaced, so
        a transfer that breaks leaves the version in place whole."""
        if weights is None or (weights.timeline, weights.version) == self._held:
            return 0.0
        started = time.perf_counter()
        if weights.parts is None:
            raise RuntimeError(
                f"weights version {weights.version} was broadcast, and this actor, which has"
                f" {self.sampler.weights_version}, was not there"
            )
        manifest, *buckets = ray.get(ray.get(weights.parts))
        specs = [spec for bucket in manifest for spec in bucket]
        self.sampler.load_weights(weights.version, unpack(manifest, buckets), specs)
        self._timeline = weights.timeline
        return time.perf_counter() - started

    @property
    def _held(self) -> tuple[int, int]:
        return self._timeline, self.sampler.weights_version

    # --- weights by broadcast, instead of pulling ---

    def join_broadcast(self, meeting: Meeting, rank: int, manifest: Manifest) -> None:
        """Be one of the receivers of all versions to come; waits for the others."""
        self._manifest = manifest
        self._broadcast = Broadcast(meeting, rank, self.device)

    def receive(self, version: int, timeline: int = 0) -> None:
        """Take part in the broadcast of a version. All receivers call it, and the sender sends."""
        specs = [spec for bucket in self._manifest for spec in bucket]
        self.sampler.load_weights(version, self._broadcast.receive(self._manifest), specs)
        self._timeline = timeline
