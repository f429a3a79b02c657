"""The pool of a run's rollout workers: started together, replaced one by one when they are lost; and
how groups are dealt to them."""

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.rollout import RolloutWorker
from cluster.config import RunConfig
from policy.errors import UserError, in_one_line
from policy.records import Group, GroupBatch
from policy.starting import wait_for

log = logging.getLogger(__name__)


class RolloutWorkers:
    """`handles[n]` is the current worker n; `replaced` counts the workers lost so far."""

    def __init__(self, count: int, start: Callable[[int], ActorHandle], *, load_timeout_s: float):
        """Start the workers and wait until each holds the model.

        Args:
            start: starts worker n; called again when it is lost. load_timeout_s: how long loading the
            model may take.

        Raises:
            UserError: a worker cannot start, with its own message.
        """
        self._start = start
        self._load_timeout_s = load_timeout_s
        self.handles = [start(number) for number in range(count)]
        self._loading: dict[int, ObjectRef] = {}
        self.replaced = 0
        try:
            loading = {f"worker {n}": h.ready.remote() for n, h in enumerate(self.handles)}
            wait_for(loading, ray.wait, ray.get, load_timeout_s)
        except RayActorError as error:
            raise UserError(f"a rollout worker does not start: {in_one_line(error)}") from error
        except GetTimeoutError as error:
            raise UserError(
                f"the rollout workers have not loaded the model within actors.load_timeout_s"
                f" ({load_timeout_s:g} s)"
            ) from error

    @classmethod
    def placed(cls, config: RunConfig, placement: PlacementGroup) -> "RolloutWorkers":
        """The workers that a configuration asks for, one in each bundle of the placement group."""
        actors = config.actors
        options: dict[str, Any] = {"num_cpus": actors.num_cpus, "num_gpus": actors.num_gpus}
        if actors.resources:
            options["resources"] = actors.resources

        def start(number: int) -> ActorHandle:
            place = PlacementGroupSchedulingStrategy(placement, number)
            worker = ray.remote(RolloutWorker).options(**options, scheduling_strategy=place)
            return worker.remote(config.policy, actors, config.seed, number)

        return cls(actors.count, start, load_timeout_s=actors.load_timeout_s)

    def __len__(self) -> int:
        return len(self.handles)

    def ready(self) -> list[int]:
        """The numbers of the workers that hold the model; of all workers if none does."""
        if self._loading:
            loaded, _ = ray.wait([*self._loading.values()], num_returns=len(self._loading), timeout=0)
            self._loading = {n: ref for n, ref in self._loading.items() if ref not in loaded}
        everyone = range(len(self.handles))
        return [n for n in everyone if n not in self._loading] or list(everyone)

    def wait_for_loading(self, numbers: Iterable[int]) -> None:
        """Wait until these workers hold the model: loading has a time limit of its own, apart from
        generating. A worker that cannot load fails its calls."""
        if loading := [self._loading.pop(n) for n in numbers if n in self._loading]:
            ray.wait(loading, num_returns=len(loading), timeout=self._load_timeout_s)

    def replace(self, number: int, lost: ActorHandle, why: Exception) -> None:
        """Start worker `number` anew, unless that has happened since it was `lost`."""
        if self.handles[number] is not lost:
            return
        kind = "hangs" if isinstance(why, GetTimeoutError) else "is lost"
        log.warning(
            "rollout worker %d %s; its groups are generated again, a new one starts", number, kind
        )
        ray.kill(lost)
        self.handles[number] = self._start(number)
        self._loading[number] = self.handles[number].ready.remote()
        self.replaced += 1


def cut_in_batches(groups: Sequence[Group], workers: int, batch_size: int) -> list[GroupBatch]:
    """Cut groups, in their order, into batches of whole groups, at most `batch_size` samples each; a
    group that is larger is a batch of its own.

    The workers take the batches in turns, so a round costs as much as its largest batch. There are as
    few rounds as possible, and all batches differ by one group at most.
    """
    if not groups:
        return []
    rounds = max(1, -(-sum(map(len, groups)) // (workers * batch_size)))
    while True:
        number = min(len(groups), rounds * workers)
        size, larger = divmod(len(groups), number)
        rest = iter(groups)
        batches = [tuple(islice(rest, size + (n < larger))) for n in range(number)]
        if all(len(batch) == 1 or sum(map(len, batch)) <= batch_size for batch in batches):
            return batches
        rounds += 1
