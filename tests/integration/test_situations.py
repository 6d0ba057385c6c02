"""The situations that the original's integration tests play, as far as no other story here plays them.

docs/parity.md lists all of them, each with the test that plays it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from cluster_stories import Writers, assert_nothing_lost, held

from geraft.client import Client
from geraft.errors import NoLeader, OutcomeUnknown, ReadTimeout, Unreachable
from geraft.kv import decode_value, get, put
from geraft.testing.cluster import Cluster, wait_until

pytestmark = pytest.mark.slow  # real processes, started and ended for each story

LARGE = os.urandom(1000) * 100_000  # 100 MB
HAND_OVER_SECONDS = 0.1
"""On a machine with nothing else to do, so a long test: those run alone."""
WITHOUT_WAITING_SECONDS = 0.5
"""Nothing in it waited for an election timeout, which is 1 s, or for somebody to be suspected."""


def test_one_node_is_started_and_stopped_ten_times(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 1)
    with cluster.client() as client:
        try:
            for turn in range(10):
                cluster.start()
                client.apply(put(f"turn/{turn}", b"%d" % turn), timeout_seconds=20)
                assert len(held(cluster, "n1", "turn/")) == turn + 1
                cluster.nodes["n1"].terminate()
                assert cluster.nodes["n1"].wait_until_ended() == 0
        finally:
            cluster.stop()


def test_a_node_that_is_paused_is_silent_and_answers_again_afterwards(tmp_path: Path) -> None:
    with Cluster(tmp_path, 1) as cluster, cluster.client() as client:
        address = cluster.address("n1")
        client.apply(put("a", b"before"), timeout_seconds=20)
        cluster.pause("n1")
        began = time.monotonic()
        with pytest.raises((ReadTimeout, Unreachable)):
            client.read(get("a"), timeout_seconds=0.5)
        with pytest.raises((ReadTimeout, Unreachable)):
            client.status(address, timeout_seconds=0.5)
        with pytest.raises((OutcomeUnknown, Unreachable)):
            client.apply(put("a", b"meanwhile"), timeout_seconds=0.5)
        assert time.monotonic() - began < 5.0, "each in its time"
        cluster.resume("n1")
        assert decode_value(client.read(get("a"), timeout_seconds=20)) in (b"before", b"meanwhile")
        client.apply(put("a", b"after"), timeout_seconds=20)
        assert decode_value(client.read(get("a"))) == b"after"
        assert client.status(address).role == "leader"


def test_with_two_of_three_down_nothing_is_committed_and_once_they_are_back_nothing_is_lost(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, cluster.client() as client:
        for number in range(50):
            client.apply(put(f"kept/{number}", b"%d" % number))
        cluster.wait_until_even()
        leader = cluster.leader()
        down = [node for node in cluster.members if node != leader]
        for node in down:
            cluster.kill(node)
        wait_until("it says why nothing goes on", lambda: "1 of 3 voters answers" in cluster.status(leader).explanation)
        committed = cluster.status(leader).commit_index
        with pytest.raises(NoLeader, match="no leader"):
            client.apply(put("never", b"1"), timeout_seconds=1.0)
        with Client(cluster.address(leader)) as alone, pytest.raises(NoLeader, match="no leader"):
            alone.read(get("kept/1"), timeout_seconds=1.0)
        assert cluster.status(leader).commit_index == committed
        cluster.start(*down)
        client.apply(put("again", b"1"), timeout_seconds=30)
        cluster.wait_until_even()
        for node in cluster.members:
            assert held(cluster, node, "kept/") == {f"kept/{number}": b"%d" % number for number in range(50)}
            assert held(cluster, node, "never") == {}, "it was told to have failed"


@pytest.mark.parametrize("seconds", [2.0, pytest.param(5.0, marks=pytest.mark.long)])
def test_a_slow_node_that_is_paused_four_times_under_2000_writes_catches_up(tmp_path: Path, seconds: float) -> None:
    with Cluster(tmp_path) as cluster:
        leader = cluster.leader()
        slow = next(node for node in cluster.members if node != leader)
        term = cluster.status(leader).term
        with Writers(cluster, "slow") as writers:
            for _ in range(4):
                cluster.pause(slow)
                time.sleep(seconds)  # longer than it takes to suspect a leader: this is what the story is about
                cluster.resume(slow)
                writers.wait_for_more(100)
            writers.wait_for_more(max(2000 - len(writers.acknowledged), 0))
        assert_nothing_lost(cluster, writers)
        assert len(writers.acknowledged) >= 2000
        assert (cluster.leader(), cluster.status(leader).term) == (leader, term), "its return unseats nobody"


@pytest.mark.long
@pytest.mark.parametrize("size", [1, 3])
def test_a_value_of_100_mb_goes_through_replication_and_through_a_snapshot(tmp_path: Path, size: int) -> None:
    with Cluster(tmp_path, size, options=("--trailing-entries", "0")) as cluster, cluster.client(90) as client:

        def write_large(key: str) -> None:
            """Again if its outcome is unknown: on a busy machine the leader may step down meanwhile."""

            def written() -> bool:
                client.apply(put(key, LARGE))
                return True

            wait_until(f"{key} is written", written, 120.0)

        def assert_held(node: str, key: str) -> None:
            assert decode_value(client.read(get(key), "stale", address=cluster.address(node))) == LARGE, (node, key)

        write_large("first")
        cluster.wait_until_even()
        for node in cluster.members:
            assert_held(node, "first")
            index = client.take_snapshot(cluster.address(node), timeout_seconds=90)
            wait_until("the log is cut", lambda node=node, index=index: cluster.status(node).log_base_index >= index)
        cluster.restart("n1")
        cluster.leader()
        assert_held("n1", "first")
        cluster.add("newcomer")
        cluster.wait_until_even()
        assert "installed snapshot" in cluster.nodes["newcomer"].said()
        assert_held("newcomer", "first")
        client.apply(put("first", b""))  # 100 MB are enough to hold
        write_large("second")
        cluster.wait_until_even()
        assert_held("newcomer", "second")


def test_eight_nodes_elect_another_leader_and_again_another(tmp_path: Path) -> None:
    with Cluster(tmp_path, 8) as cluster:
        dead: list[str] = []
        with Writers(cluster, "eight") as writers:
            for _ in range(2):
                writers.wait_for_more()
                dead.append(cluster.leader())
                cluster.kill(dead[-1])
                assert cluster.leader(other_than=dead[-1]) not in dead
                writers.wait_for_more()
            cluster.start(*dead)
            writers.wait_for_more()
        assert_nothing_lost(cluster, writers)


@pytest.mark.parametrize("seconds", [WITHOUT_WAITING_SECONDS, pytest.param(HAND_OVER_SECONDS, marks=pytest.mark.long)])
def test_the_leader_is_removed_and_leadership_moves_on_again_within_100_ms(tmp_path: Path, seconds: float) -> None:
    """From the answer to the removal to that of a transfer, which finds the heir by itself, with writes going on.

    A machine that has other things to do may take longer once, but not each time. Beside other tests it is only seen
    that no timeout had to pass.
    """
    took: list[float] = []
    with Cluster(tmp_path, 5) as cluster, cluster.client(30) as client:
        with Writers(cluster, "removed", callers=2) as writers:
            for _ in range(3):
                writers.wait_for_more()
                leader = cluster.leader()
                term = cluster.status(leader).term
                client.remove_server(leader)
                began = time.monotonic()
                client.transfer_leadership()
                took.append(time.monotonic() - began)
                successor = cluster.leader(other_than=leader)
                assert cluster.status(successor).term == term + 2, "one election for the heir, one for the transfer"
                assert cluster.status(leader).membership == "removed"
                cluster.forget(leader)
        assert_nothing_lost(cluster, writers)
        shown = ", ".join(f"{each * 1000:.0f}" for each in took)
        print(f"removed, and leadership moved on again, within {shown} ms")
        assert min(took) < seconds, shown
        assert max(took) < 1.0, "nobody waits for an election timeout"
