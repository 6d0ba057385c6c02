"""The situations that the original's integration tests play, as far as no other story here plays them.

docs/parity.md lists all of them, each with the test that plays it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_stories import SLOW_TO_ELECT, Writers, assert_nothing_lost, held, tune

from geraft import Config
from geraft.client import Client
from geraft.errors import NoLeader, OutcomeUnknown, ReadTimeout, Unreachable
from geraft.kv import decode_value, get, put
from geraft.testing.cluster import PATIENT, Cluster, wait_until, write_surely

pytestmark = pytest.mark.slow  # real processes, started and ended for each story

LARGE = os.urandom(1000) * 100_000  # 100 MB
HAND_OVER_SECONDS = 0.1
"""On a machine with nothing else to do, so a long test: those run alone."""
WITHOUT_WAITING_SECONDS = 4.0
"""Nothing in it waited for an election timeout, which is SLOW_TO_ELECT, or for somebody to be suspected."""


@pytest.mark.timeout(300)
def test_one_node_is_started_and_stopped_ten_times(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 1)
    with cluster.client() as client:
        try:
            for turn in range(10):
                cluster.start()
                write_surely(client, f"turn/{turn}", b"%d" % turn)
                assert len(held(cluster, "n1", "turn/")) == turn + 1
                cluster.nodes["n1"].terminate()
                assert cluster.nodes["n1"].wait_until_ended() == 0
        finally:
            cluster.stop()


def test_a_node_that_is_paused_is_silent_and_answers_again_afterwards(tmp_path: Path) -> None:
    with Cluster(tmp_path, 1) as cluster, cluster.client() as client:
        address = cluster.address("n1")
        write_surely(client, "a", b"before")
        cluster.pause("n1")
        began = time.monotonic()
        with pytest.raises((ReadTimeout, Unreachable)):
            client.read(get("a"), timeout_seconds=0.5)
        with pytest.raises((ReadTimeout, Unreachable)):
            client.status(address, timeout_seconds=0.5)
        with pytest.raises((OutcomeUnknown, Unreachable)):
            client.apply(put("a", b"meanwhile"), timeout_seconds=0.5)
        assert time.monotonic() - began < 15.0, "each in its time"
        cluster.resume("n1")
        assert decode_value(client.read(get("a"), timeout_seconds=20)) in (b"before", b"meanwhile")
        write_surely(client, "a", b"after")
        assert decode_value(client.read(get("a"))) == b"after"
        wait_until("it says so to this client", lambda: client.status(address).role == "leader")


def told_that_nobody_leads(ask: Callable[[int], object]) -> int:
    """Asks with 1, 2 and so on until that is the answer; gives the number that was refused so.

    On a slow machine silence may end an attempt before: then nobody knows what comes of it.
    """
    for attempt in range(1, 9):
        try:
            answer = ask(attempt)
        except NoLeader as error:
            assert "no leader" in str(error)
            return attempt
        except (Unreachable, ReadTimeout, OutcomeUnknown):
            continue
        pytest.fail(f"answered without a leader: {answer!r}")
    pytest.fail("never told that there is no leader")


def test_with_two_of_three_down_nothing_is_committed_and_once_they_are_back_nothing_is_lost(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, cluster.client() as client:
        for number in range(50):
            write_surely(client, f"kept/{number}", b"%d" % number)
        cluster.wait_until_even()
        leader = cluster.leader()
        down = [node for node in cluster.members if node != leader]
        for node in down:
            cluster.kill(node)
        wait_until("it says why nothing goes on", lambda: "1 of 3 voters answers" in cluster.status(leader).explanation)
        committed = cluster.status(leader).commit_index
        refused = told_that_nobody_leads(lambda attempt: client.apply(put(f"never/{attempt}", b"1"), 5.0))
        with Client(cluster.address(leader)) as alone:
            told_that_nobody_leads(lambda _: alone.read(get("kept/1"), timeout_seconds=5.0))
        assert cluster.status(leader).commit_index == committed
        cluster.start(*down)
        write_surely(client, "again", b"1")
        cluster.wait_until_even()
        for node in cluster.members:
            assert held(cluster, node, "kept/") == {f"kept/{number}": b"%d" % number for number in range(50)}
            assert held(cluster, node, f"never/{refused}") == {}, "it was told to have failed"


@pytest.mark.parametrize("seconds", [2.0, pytest.param(5.0, marks=pytest.mark.long)])
def test_a_slow_node_that_is_paused_four_times_under_2000_writes_catches_up(tmp_path: Path, seconds: float) -> None:
    with Cluster(tmp_path, options=PATIENT) as cluster:
        leader = cluster.leader()
        slow = next(node for node in cluster.members if node != leader)
        tune([cluster.address(slow)], acceptable_pause_seconds=Config().acceptable_pause_seconds)
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


@pytest.mark.long
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


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(WITHOUT_WAITING_SECONDS, id="without waiting"),
        pytest.param(HAND_OVER_SECONDS, id="100 ms", marks=pytest.mark.long),
    ],
)
def test_the_leader_is_removed_and_leadership_moves_on_again_within_100_ms(tmp_path: Path, seconds: float) -> None:
    """From the answer to the removal to that of a transfer, which finds the heir by itself, with writes going on.

    A machine that has other things to do may take longer once, but not each time. Beside other tests it is only seen
    that no timeout had to pass.
    """
    took: list[float] = []
    with Cluster(tmp_path, 5, options=SLOW_TO_ELECT) as cluster, cluster.client(30) as client:
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
        assert max(took) < WITHOUT_WAITING_SECONDS, "nobody waits for an election timeout"
