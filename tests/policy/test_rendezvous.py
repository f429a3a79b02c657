"""The store of a group listens on one address, and shows its keys to who knows the secret."""

from datetime import timedelta

import psutil
import pytest
import torch.distributed as dist

from policy.rendezvous import Rendezvous

pytestmark = pytest.mark.unit


def listening() -> set[tuple[str, int]]:
    connections = psutil.Process().net_connections("inet")
    return {tuple(c.laddr) for c in connections if c.status == psutil.CONN_LISTEN}


def test_a_store_listens_at_the_given_address_and_nowhere_else():
    before = listening()
    where = Rendezvous.at("127.0.0.1")
    store = where.meet(0, 1, timeout_s=10)
    assert listening() - before == {("127.0.0.1", where.port)}
    store.set("key", "value")
    assert Rendezvous(where.host, where.port, where.secret).meet(1, 1, 10).get("key") == b"value"
    stranger = dist.TCPStore(where.host, where.port, timeout=timedelta(seconds=10))
    assert not stranger.check(["key"])
    assert not Rendezvous(where.host, where.port).meet(1, 1, 10).check(["key"])
    assert where.secret not in repr(where)
