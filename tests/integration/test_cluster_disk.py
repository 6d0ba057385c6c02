"""The disk of one node is full: it stops and says so, the others go on, and with room again it comes back."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest
from cluster_stories import Writers, assert_nothing_lost

from geraft.kv import put
from geraft.testing.cluster import Cluster, wait_until

pytestmark = pytest.mark.slow  # real processes, started and ended for each story: minutes together

ROOM_BYTES = 128 * 1024


@pytest.fixture(scope="module")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("disk")) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Cluster:
    running_cluster.heal()
    return running_cluster


def fill_disk(cluster: Cluster, node: str) -> None:
    """No file of the node's may grow by more than ROOM_BYTES beyond the largest one from now on."""
    largest = max(path.stat().st_size for path in cluster.data(node).rglob("*") if path.is_file())
    limit = max(largest, cluster.nodes[node].log_path.stat().st_size) + ROOM_BYTES
    _, hard = resource.prlimit(cluster.nodes[node].pid, resource.RLIMIT_FSIZE)
    resource.prlimit(cluster.nodes[node].pid, resource.RLIMIT_FSIZE, (limit, hard))


@pytest.mark.parametrize("role", ["follower", "leader"])
def test_a_full_disk_stops_its_node_and_no_other(cluster: Cluster, role: str) -> None:
    leader = cluster.leader()
    full = leader if role == "leader" else next(node for node in cluster.members if node != leader)
    with Writers(cluster, f"full-{role}") as writers, cluster.client(timeout_seconds=30) as client:
        writers.wait_for_more()
        fill_disk(cluster, full)

        def ended() -> bool:
            writers.wait_for_more(1)
            client.commit(put("filler", bytes(32 * 1024)))
            return not cluster.nodes[full].running

        wait_until("the node with the full disk ends", ended, 60.0)
        assert cluster.nodes[full].wait_until_ended() == 1
        last_words = cluster.nodes[full].said().strip().splitlines()[-1]
        assert last_words.startswith("geraft: "), "one line for people at the end"
        assert "log.db" in last_words
        cluster.leader(other_than=full)
        writers.wait_for_more()
        cluster.start(full)  # with room again
        writers.wait_for_more()
    assert_nothing_lost(cluster, writers)
