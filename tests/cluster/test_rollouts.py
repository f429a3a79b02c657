import pytest
from ray.util import remove_placement_group

from cluster.config import load_config
from cluster.placement import reserve, roles
from cluster.rollouts import Rollouts
from policy.errors import UserError
from tests.cluster.commands import TRAIN
from tests.conftest import ROOT


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
