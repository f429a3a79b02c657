import os
import signal
import time

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import GetTimeoutError
from ray.util import remove_placement_group

from cluster.config import load_config
from cluster.experience import DrawnGroup, Experience, Harvest, cut_in_batches
from cluster.placement import reserve, roles
from cluster.rollouts import Rollouts
from policy.errors import UserError
from policy.prompts import read_prompts
from policy.records import Group, Prompt
from policy.work import Work
from tests.cluster.commands import TRAIN
from tests.conftest import ROOT


def groups_of(sizes):
    return [Group(Prompt(f"p{n}", "a red circle", "object"), size) for n, size in enumerate(sizes)]


def test_three_actors_share_sixteen_groups_in_one_round():
    """Cut by samples, they were 5, 5, 5 and 1, and one actor drew twice."""
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


def test_an_actor_that_cannot_start_says_why(local_ray):
    config = load_config(ROOT / TRAIN, ["policy.path=/nowhere", "actors.num_cpus=0.1"])
    place = reserve(roles(config)[0], config.ray)
    try:
        with pytest.raises(
            UserError, match=r"actor does not start: /nowhere: no such model directory$"
        ):
            Rollouts(config, place)
    finally:
        remove_placement_group(place)


@pytest.fixture
def experience(local_ray):
    config = load_config(ROOT / TRAIN, ["actors.num_cpus=0.1", "actors.count=2"])
    place = reserve(roles(config)[0], config.ray)
    yield Experience(config, place)
    remove_placement_group(place)


@pytest.fixture
def rollouts(experience):
    return experience.rollouts


@pytest.fixture
def batches():
    """More than there are actors, and of different sizes."""
    a, b, c, d = read_prompts(load_config(ROOT / TRAIN).train.prompts)[:4]
    return [(Group(a, 2),), (Group(b, 2), Group(c, 3)), (Group(d, 2),)]


def order(rollouts, batches):
    return rollouts.draw(batches, ray.put(Work.of(batches, None)), None)


def images(samples):
    return [[(s.id, s.image_ids.tolist()) for s in group] for group in ray.get(list(samples))]


def kill_the_foreman(rollouts):
    pid = ray.get(rollouts._foreman.__ray_call__.remote(lambda foreman: os.getpid()))
    os.kill(pid, signal.SIGKILL)


def test_batches_are_drawn_in_their_order(rollouts, batches):
    drawing = order(rollouts, batches)
    reports = rollouts.wait(drawing)
    drawn = images(ray.get(drawing.all_samples()))
    wanted = [[draw.sample_id for draw in group] for batch in batches for group in batch]
    assert [[name for name, _ in group] for group in drawn] == wanted
    assert [report.samples for report in reports] == [2, 5, 2]


def test_a_lost_foreman_costs_no_actor_and_changes_no_image(rollouts, batches):
    peace = order(rollouts, batches)
    rollouts.wait(peace)
    wanted = images(ray.get(peace.all_samples()))

    lost = order(rollouts, batches)
    ray.wait([lost.samples])
    kill_the_foreman(rollouts)
    rollouts.wait(lost)
    assert images(ray.get(lost.all_samples())) == wanted
    assert {lost.draws(n) for n in range(3)} == {2}

    drawn = order(rollouts, batches)
    rollouts.wait(drawn)
    kill_the_foreman(rollouts)
    part = drawn.part(1)
    rollouts.redraw_lost(part)
    assert rollouts.wait_for(part).samples == 5
    assert images(part.samples) == wanted[1:3]
    assert rollouts.replaced == 0


def test_a_new_actor_is_given_no_work_before_it_holds_the_model(rollouts, batches):
    lost = order(rollouts, batches)
    rollouts.redraw(lost.part(0), GetTimeoutError())
    assert rollouts.at_work() == [1]
    meanwhile = order(rollouts, batches)
    rollouts.wait(lost)
    rollouts.wait(meanwhile)
    while rollouts.at_work() == [1]:
        time.sleep(0.1)
    after = order(rollouts, batches)
    rollouts.wait(after)
    assert {meanwhile.drawn_by(n) for n in range(3)} == {1}
    assert {after.drawn_by(n) for n in range(3)} == {0, 1}
    drawn = [images(ray.get(each.all_samples())) for each in (lost, meanwhile, after)]
    assert drawn[0] == drawn[1] == drawn[2]


def test_samples_that_were_lost_since_are_drawn_again(experience, batches):
    rollouts = experience.rollouts
    peace, lost = order(rollouts, batches), order(rollouts, batches)
    rollouts.wait(peace)
    rollouts.wait(lost)
    groups = [group for batch in batches for group in batch]
    some = [DrawnGroup(groups[place], place, 0, 1, 2) for place in (3, 1)]
    wanted = experience.samples(Harvest(peace), some)
    assert [[s.id for s in group] for group in wanted] == [[d.sample_id for d in g.group] for g in some]
    assert {peace.draws(n) for n in range(3)} == {1}

    kill_the_foreman(rollouts)
    drawn = experience.samples(Harvest(lost), some)
    assert {lost.draws(n) for n in range(3)} == {2}
    assert [[s.image_ids.tolist() for s in group] for group in drawn] == [
        [s.image_ids.tolist() for s in group] for group in wanted
    ]
