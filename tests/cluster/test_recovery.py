"""What counts as a lost learner, and what is a fault that would only come again."""

import pytest
import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from cluster.recovery import LearnerLost, learner_at_work, train_with_recovery
from policy.errors import UserError

pytestmark = pytest.mark.ray


@ray.remote(num_cpus=0)
def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error", [NameError("name 'x' is not defined"), TypeError("two arguments")])
def test_a_fault_of_the_code_is_raised_as_it_is_and_not_tried_again(local_ray, error):
    tries = []

    def loop(stop) -> None:
        tries.append(stop)
        with learner_at_work():
            ray.get(fail.remote(error))

    with pytest.raises(RayTaskError, match=str(error)):
        train_with_recovery(None, loop)  # type: ignore[arg-type]  # it is never rolled back
    assert len(tries) == 1


def test_a_message_for_people_stays_one(local_ray):
    with pytest.raises(UserError, match="lower the rate"), learner_at_work():
        ray.get(fail.remote(UserError("lower the rate")))


@pytest.mark.parametrize("error", [RuntimeError("a peer is gone"), OSError("no space")])
def test_what_another_start_may_mend_is_a_lost_learner(local_ray, error):
    with pytest.raises(LearnerLost, match=str(error)), learner_at_work():
        ray.get(fail.remote(error))


def test_a_step_that_takes_too_long_is_a_lost_learner():
    with pytest.raises(LearnerLost, match=r"learner\.timeout_s"), learner_at_work():
        raise GetTimeoutError("late")
