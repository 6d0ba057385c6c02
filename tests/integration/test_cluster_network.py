"""What one node says does not arrive at another, though the other way round it does; then the network heals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import grpc
import pytest
from cluster_stories import Writers, assert_nothing_lost, read_there, terms, tune, tuned

from geraft import Config
from geraft.kv import decode_value, get
from geraft.testing.cluster import Cluster, LinkedCluster, wait_until, write_surely

pytestmark = pytest.mark.slow  # real processes, started and ended for each story: minutes together

NODES = ("n1", "n2", "n3")


class Network:
    """A cluster with links between its nodes, and what they lose just now."""

    def __init__(self, cluster: LinkedCluster) -> None:
        self.cluster = cluster
        self._cuts = contextlib.ExitStack()

    def lose(self, *links: tuple[str, str]) -> None:
        """Of each (sender, receiver) nothing arrives from now on."""
        self._cuts.close()
        self._cuts.enter_context(self.cluster.links.cut(links))


@pytest.fixture(scope="module")
def running_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with LinkedCluster(tmp_path_factory.mktemp("network")) as cluster:
        yield Network(cluster)


@pytest.fixture
def network(running_network: Network) -> Iterator[Network]:
    running_network.lose()
    running_network.cluster.heal()
    yield running_network
    running_network.lose()


@pytest.mark.parametrize(
    "lost", ["what the leader says", pytest.param("what the follower says", marks=pytest.mark.slow)]
)
def test_a_follower_that_is_half_cut_off_disturbs_nobody_and_catches_up(network: Network, lost: str) -> None:
    cluster = network.cluster
    with tuned(cluster, election_timeout_seconds=3.0):  # so that the other two hold no election of their own
        leader = cluster.leader()
        follower = next(node for node in NODES if node != leader)
        tune([cluster.address(follower)], election_timeout_seconds=Config().election_timeout_seconds)
        term = cluster.status(leader).term
        network.lose((leader, follower) if lost == "what the leader says" else (follower, leader))
        # Nothing is written yet, so its log is as good as any: the third node might well vote for it. Long enough for a
        # follower that hears nothing to ask for it again and again.
        wait_until("the silence lasted for three election timeouts", silence_of(cluster, leader, follower, 3.0))
        status = cluster.status(leader)
        assert (status.role, status.term) == ("leader", term)

        with Writers(cluster, lost) as writers:

            def left_behind() -> bool:
                status = cluster.status(leader)
                peer = next(peer for peer in status.peers if peer.id == follower)
                return peer.match_index < status.commit_index - 50

            wait_until("the follower lags in the leader's eyes", left_behind)
            writers.wait_for_more()
            network.lose()
        assert_nothing_lost(cluster, writers)
        assert cluster.leader() == leader
        assert terms(cluster) == dict.fromkeys(NODES, term)


def silence_of(cluster: Cluster, leader: str, follower: str, seconds: float) -> Callable[[], bool]:
    def silent() -> bool:
        heard = {
            peer.id: peer.heard_seconds_ago
            for node, other in ((leader, follower), (follower, leader))
            for peer in cluster.status(node).peers
            if peer.id == other
        }
        return any(ago is not None and ago > seconds for ago in heard.values())

    return silent


@pytest.mark.parametrize("lost", ["what it says", "what it hears"])
def test_a_leader_that_is_half_cut_off_gives_way_and_reads_nothing_old(network: Network, lost: str) -> None:
    cluster = network.cluster
    leader = cluster.leader()
    others = [node for node in NODES if node != leader]
    with Writers(cluster, f"leader {lost}") as writers, cluster.client() as client:
        write_surely(client, "half", b"before")
        writers.wait_for_more()
        links = [(leader, other) for other in others]
        network.lose(*(links if lost == "what it says" else [(other, leader) for leader, other in links]))

        # The cluster goes on without it, and while it is alone it answers no read with what it has.
        successor = cluster.leader(other_than=leader)
        # Callers may still find the old one, which takes a write, loses its leadership, and says that it is unknown.
        write_surely(client, "half", b"after")
        with contextlib.suppress(grpc.RpcError):
            assert decode_value(read_there(cluster.address(leader), get("half"), 1.0)) == b"after"
        wait_until("it stepped down", lambda: cluster.status(leader).role != "leader")
        writers.wait_for_more()
        assert successor in others

        network.lose()
        wait_until("it follows", lambda: cluster.status(leader).role == "follower" and cluster.status(leader).leader_id)
    assert_nothing_lost(cluster, writers)
