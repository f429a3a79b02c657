import os
import signal
import time

import numpy as np
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import GetTimeoutError, ObjectLostError
from ray.util import remove_placement_group

from cluster.config import load_config
from cluster.placement import reserve, roles
from cluster.rollout_workers import RolloutWorkers, cut_in_batches
from cluster.rollouts import RolloutManager
from policy.errors import UserError
from policy.prompts import read_prompts
from policy.records import Group, Prompt, PublishedWeights
from rewards.expert import ExpertResult, ExpertScores, GroupResults
from tests.cluster.commands import TRAIN
from tests.conftest import ROOT

pytestmark = pytest.mark.ray


def groups_of(sizes):
    return [Group(Prompt(f"p{n}", "a red circle", "object"), size) for n, size in enumerate(sizes)]


def test_three_workers_share_sixteen_groups_in_one_round():
    """Cut by samples, they were 5, 5, 5 and 1, and one worker generated twice."""
    assert list(map(len, cut_in_batches(groups_of([8] * 16), 3, 48))) == [6, 5, 5]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 40))
def test_batches_are_even_small_enough_and_in_as_few_rounds_as_can_be(sizes, actors, batch_size):
    groups = groups_of(sizes)
    batches = cut_in_batches(groups, actors, batch_size)
    assert [group for batch in batches for group in batch] == groups
    counts = list(map(len, batches))
    assert max(counts) - min(counts) <= 1
    for batch in batches:
        assert len(batch) == 1 or sum(map(len, batch)) <= batch_size
    of_one_actor = [sum(counts[n::actors]) for n in range(actors)]
    assert max(of_one_actor) == -(-len(groups) // actors)
    if len(set(sizes)) == 1:
        in_one = max(1, batch_size // sizes[0])
        assert -(-len(batches) // actors) == -(-len(groups) // (actors * in_one))


@pytest.mark.parametrize("actors", [1, 3])
def test_no_groups_make_no_batches(actors):
    assert cut_in_batches([], actors, 8) == []


def test_a_worker_that_cannot_start_says_why(local_ray):
    config = load_config(ROOT / TRAIN, ["policy.path=/nowhere", "actors.num_cpus=0.1"])
    place = reserve(roles(config)[0], config.ray)
    try:
        with pytest.raises(
            UserError, match=r"worker does not start: /nowhere: no such model directory$"
        ):
            RolloutWorkers.placed(config, place)
    finally:
        remove_placement_group(place)


class Scorer:
    """Stands for the reward worker: says whether it could have each group's samples."""

    def score_groups(self, samples, work):
        found = []
        for ref in samples:
            try:
                found.append([sample.id for sample in ray.get(ref)])
            except ObjectLostError:
                found.append(None)
        return found


def two_workers():
    return load_config(ROOT / TRAIN, ["actors.num_cpus=0.1", "actors.count=2", "actors.batch_size=3"])


@pytest.fixture(scope="module")
def workers(local_ray):
    config = two_workers()
    place = reserve(roles(config)[0], config.ray)
    yield RolloutWorkers.placed(config, place)
    remove_placement_group(place)


@pytest.fixture
def rollouts(workers):
    """A manager of two workers that are well; those that the test before it lost were replaced."""
    workers.wait_for_loading(range(2))
    workers.replaced = 0
    scorer = ray.remote(num_cpus=0)(Scorer).remote()
    return RolloutManager(two_workers(), workers, lambda: scorer)


@pytest.fixture
def groups():
    """Three batches of two workers, of different sizes."""
    a, b, c, d = read_prompts(load_config(ROOT / TRAIN).train.prompts)[:4]
    return [Group(a, 2), Group(b, 2), Group(c, 3), Group(d, 2)]


def generated(rollouts, pending, indices=range(4)):
    """Ids and image tokens of some groups, when all are generated."""
    rollouts._wait(pending)
    return [
        [(s.id, s.image_ids.tolist()) for s in group]
        for group in rollouts.samples(pending, list(indices))
    ]


class Holder:
    def put(self):
        return [ray.put(np.zeros(2**18))]  # too large to travel inside the reference


def had(ref):
    try:
        ray.get(ref)
    except ObjectLostError:
        return False
    return True


def lose(pending, index):
    """Put a reference in place of a group's whose object is gone, with the process that held it."""
    holder = ray.remote(num_cpus=0)(Holder).remote()
    [ref] = ray.get(holder.put.remote())
    ray.kill(holder)
    while had(ref):  # the news of its end takes a moment
        time.sleep(0.05)
    for batch in pending.batches:
        if index < len(batch.samples):
            batch.samples[index] = ref
            return
        index -= len(batch.samples)


def test_groups_that_nobody_scores_come_the_same_although_a_worker_is_lost(rollouts, groups):
    wanted = generated(rollouts, rollouts.request(groups, None))
    ray.kill(rollouts.workers.handles[0])
    drawn = rollouts.draw(groups, None)
    assert [[(s.id, s.image_ids.tolist()) for s in group] for group in drawn] == wanted
    assert rollouts.workers.replaced == 1


def test_groups_come_in_their_order(rollouts, groups):
    pending = rollouts.request(groups, None)
    stats = rollouts._wait(pending)
    wanted = [[request.sample_id for request in group] for group in groups]
    assert [[name for name, _ in group] for group in generated(rollouts, pending)] == wanted
    assert [[g.prompt.id for g in batch.groups] for batch in pending.batches] == [
        [g.prompt.id] for g in groups
    ]
    assert [each.samples for each in stats] == [2, 2, 3, 2]
    assert [batch.worker for batch in pending.batches] == [0, 1, 0, 1]


def test_a_killed_worker_is_replaced_and_its_groups_come_out_the_same(rollouts, groups):
    peace = generated(rollouts, rollouts.request(groups, None))
    before = list(rollouts.workers.handles)
    pid = ray.get(before[0].__ray_call__.remote(lambda worker: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    pending = rollouts.request(groups, None)
    os.kill(pid, signal.SIGKILL)
    assert generated(rollouts, pending) == peace
    assert rollouts.workers.replaced == 1
    assert rollouts.workers.handles[0] is not before[0]
    assert [batch.attempts for batch in pending.batches] == [2, 1, 2, 1]
    assert {batch.worker for batch in pending.batches} == {1}


def test_a_new_worker_is_given_no_work_before_it_holds_the_model(rollouts, groups):
    rollouts.workers.replace(0, rollouts.workers.handles[0], GetTimeoutError())
    assert rollouts.workers.ready() == [1]
    meanwhile = rollouts.request(groups, None)
    assert {batch.worker for batch in meanwhile.batches} == {1}
    found = generated(rollouts, meanwhile)
    while rollouts.workers.ready() == [1]:
        time.sleep(0.1)
    after = rollouts.request(groups, None)
    assert {batch.worker for batch in after.batches} == {0, 1}
    assert generated(rollouts, after) == found


def test_samples_that_were_lost_are_generated_again(rollouts, groups):
    """Before they were scored, and after; the workers are well, and stay."""
    peace = generated(rollouts, rollouts.request(groups, None))
    pending = rollouts.request(groups, None)
    rollouts._wait(pending)
    ray.get(pending.results)
    lose(pending, 2)
    assert generated(rollouts, pending, [3, 2]) == [peace[3], peace[2]]
    assert [batch.attempts for batch in pending.batches] == [1, 1, 2, 1]

    lose(pending, 0)
    rollouts.ensure(pending, [0])
    assert [batch.attempts for batch in pending.batches] == [2, 1, 2, 1]
    assert ray.get(pending.samples) == pending.sample_refs()
    assert generated(rollouts, pending) == peace

    pending.results = ray.put([None, ["scored"], ["scored"], None])  # lost to the reward worker
    lose(pending, 3)
    ids = [[name for name, _ in group] for group in peace]
    assert rollouts._results(pending) == [ids[0], ["scored"], ["scored"], ids[3]]
    assert rollouts.workers.replaced == 0


class CallCounter:
    """Stands for the reward worker: its n-th call gives every sample the score n."""

    def __init__(self):
        self.calls = 0

    def score_groups(self, samples, work):
        self.calls += 1
        found = []
        for ref in samples:
            ids = tuple(sample.id for sample in ray.get(ref))
            scores = ExpertScores(np.full(len(ids), self.calls, np.float32))
            found.append(GroupResults(ids, {"count": ExpertResult(scores, 0.0, 0, 0.5)}))
        return found


def test_groups_that_are_learned_from_have_the_scores_of_the_samples_that_are_there(rollouts, groups):
    """Generated again, samples may be others: the scores of the lost ones are not theirs."""
    scorer = ray.remote(num_cpus=0)(CallCounter).remote()
    rollouts._reward_worker = scorer
    rollout = rollouts.collect(rollouts.request(groups, None))
    before = generated(rollouts, rollout.pending)
    assert [group.scores.rewards[0] for group in rollout.groups] == [1, 1, 1, 1]
    lose(rollout.pending, 2)
    rollouts.repeat(rollout, [2])
    assert [group.scores.rewards[0] for group in rollout.groups] == [1, 1, 2, 1]
    assert [len(group.scores.rewards) for group in rollout.groups] == [2, 2, 3, 2]
    assert [group.attempts for group in rollout.groups] == [1, 1, 2, 1]
    assert [group.index for group in rollout.groups] == [0, 1, 2, 3]
    assert generated(rollouts, rollout.pending) == before


def test_a_group_that_is_lost_too_often_ends_the_run(rollouts, groups):
    pending = rollouts.request(groups, None)
    rollouts._wait(pending)
    rollouts.config.actors.max_redraws = 1
    rollouts.ensure(pending, [0])
    with pytest.raises(ObjectLostError):
        rollouts.ensure(pending, [0])


def test_groups_of_a_version_that_was_broadcast_come_from_the_newest_and_say_so(rollouts, groups):
    """It cannot be had any more when their samples are lost, whether a worker was replaced or not."""

    class Sync:
        def pullable(self):
            return None  # as loaded: version 0

    pending = rollouts.request(groups, None)
    rollouts._wait(pending)
    pending.weights = PublishedWeights(3)
    rollouts.weight_sync = Sync()
    rollouts.ensure(pending, [1])
    stats = rollouts._wait(pending)
    assert [each.weights_version for each in stats] == [0, 0, 0, 0]
    assert pending.weights is None


@pytest.mark.slow
def test_a_reward_worker_that_hangs_is_replaced_and_its_groups_are_scored_again(rollouts, groups):
    """Also those of a request that was made before; none of them stops for long."""
    rewards = rollouts.config.rewards
    rewards.timeout_s, rewards.retries = 0.5, 0
    rollouts._start_reward_worker = ray.remote(num_cpus=0)(Scorer).remote
    hung = rollouts._reward_worker
    os.kill(ray.get(hung.__ray_call__.remote(lambda worker: os.getpid())), signal.SIGSTOP)
    first, second = rollouts.request(groups, None), rollouts.request(groups, None)
    for pending in (first, second):
        ids = [[name for name, _ in group] for group in generated(rollouts, pending)]
        assert rollouts._results(pending) == ids
        assert pending.reward_worker is not hung
    assert first.reward_worker is second.reward_worker is rollouts._reward_worker
