"""Three `geraft serve` processes with logs on disk are killed, halted, restarted: nothing acknowledged is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cluster_stories import Writers, assert_nothing_lost, read_there, tuned

from geraft.errors import OutcomeUnknown
from geraft.kv import decode_value, get, put
from geraft.pb import geraft_pb2 as pb
from geraft.pb.geraft_pb2_grpc import RaftStub
from geraft.testing.cluster import PATIENT, Cluster, wait_until, write_surely

pytestmark = pytest.mark.slow  # real processes, started and ended for each story: minutes together


@pytest.fixture(scope="module")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("crashes")) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Cluster:
    """All three run and hold the same log, whatever the story before did to them."""
    running_cluster.heal()
    return running_cluster


def test_the_leader_is_killed_writes_go_on_and_nothing_acknowledged_is_lost(cluster: Cluster) -> None:
    leader = cluster.leader()
    with Writers(cluster, "leader-killed") as writers:
        writers.wait_for_more()
        cluster.kill(leader)
        assert cluster.leader(other_than=leader) != leader
        writers.wait_for_more()
        cluster.start(leader)
        writers.wait_for_more()
    assert_nothing_lost(cluster, writers)


def test_a_follower_is_killed_and_catches_up_when_it_is_back(cluster: Cluster) -> None:
    with tuned(cluster, acceptable_pause_seconds=3.0):
        leader = cluster.leader()
        follower = next(node for node in cluster.members if node != leader)
        with Writers(cluster, "follower-killed") as writers:
            writers.wait_for_more()
            term = cluster.status(leader).term
            cluster.kill(follower)
            writers.wait_for_more()
            cluster.start(follower)  # by the defaults
            writers.wait_for_more()
        assert_nothing_lost(cluster, writers)
        assert cluster.status(leader).term == term, "losing a follower is no reason for an election"


def test_all_are_killed_at_once_and_restarted(cluster: Cluster) -> None:
    with Writers(cluster, "all-killed") as writers:
        writers.wait_for_more()
        for node in cluster.members:
            cluster.kill(node)
        cluster.start()
        writers.wait_for_more()
    assert_nothing_lost(cluster, writers)


def test_a_write_in_flight_when_the_quorum_is_lost_ends_as_unknown(cluster: Cluster) -> None:
    with tuned(cluster, acceptable_pause_seconds=3.0), cluster.client(timeout_seconds=30) as client:
        while True:
            leader = cluster.leader()
            term = cluster.status(leader).term
            write_surely(client, "in flight", b"before")
            for follower in set(cluster.members) - {leader}:
                cluster.pause(follower)
            status = cluster.status(leader)
            if (status.role, status.term) == ("leader", term):
                break
            cluster.heal()  # it was another one that took the write
        end = status.last_log_index
        began = time.monotonic()
        with pytest.raises(OutcomeUnknown, match="lost leadership"):  # the leader took it, and nobody else did
            client.apply(put("in flight", b"after"))
        assert time.monotonic() - began < 15, "it need not wait for its timeout to know that it does not know"
        assert cluster.status(leader).last_log_index > end
        assert cluster.status(leader).commit_index == end
        wait_until("it says why", lambda: "1 of 3 voters answers" in cluster.status(leader).explanation)
        cluster.heal()
        assert decode_value(client.read(get("in flight"))) in (b"before", b"after")


def test_two_hundred_threads_write_at_once_through_one_client(cluster: Cluster) -> None:
    with cluster.client(timeout_seconds=60) as client, ThreadPoolExecutor(200) as threads:
        all_here = threading.Barrier(200)

        def write(number: int) -> None:
            all_here.wait()
            for turn in range(5):
                write_surely(client, f"threads/{number}/{turn}", b"%d" % number, 60)

        list(threads.map(write, range(200)))
        for number in range(200):
            assert decode_value(client.read(get(f"threads/{number}/4"))) == b"%d" % number


@pytest.mark.slow
def test_a_leader_that_was_halted_for_five_seconds_steps_down_and_reads_nothing_old(cluster: Cluster) -> None:
    leader = cluster.leader()
    old_term = cluster.status(leader).term
    with cluster.client() as client, grpc.insecure_channel(cluster.address(leader)) as channel:
        write_surely(client, "halted", b"before")
        stub = RaftStub(channel)
        stub.Status(pb.StatusReq(), timeout=10)  # connects
        halted_at = time.monotonic()
        cluster.pause(leader)
        # Asked before it goes on, so the first thing that it finds to do, while it still believes that it leads.
        request = pb.ApplyReq(message=get("halted"), timeout_ms=20_000, forwarded=True)
        early_reads = [stub.RequestApply.future(request, timeout=20) for _ in range(5)]

        cluster.leader(other_than=leader)
        # The client may still find the old one, and lose its connection to it.
        write_surely(client, "halted", b"after")
        time.sleep(max(0.0, halted_at + 5 - time.monotonic()))  # the length of the halt is what this is about
        successor = cluster.leader(other_than=leader)
        term = cluster.status(successor).term
        cluster.resume(leader)

        for read in early_reads:
            try:
                answer = read.result()
            except grpc.RpcError:
                continue  # "I do not lead" is a good answer too
            assert decode_value(answer.message) == b"after"
    wait_until("the old leader follows", lambda: cluster.status(leader).role == "follower")
    wait_until("it knows the new leader", lambda: cluster.status(leader).leader_id)
    assert cluster.status(leader).term > old_term
    status = cluster.status(successor)
    assert (status.role, status.term) == ("leader", term), "its return unseats nobody"
    cluster.wait_until_even()


@pytest.mark.slow
@pytest.mark.parametrize("mib", [16, pytest.param(64, marks=pytest.mark.long)])
def test_a_large_value_reaches_all_nodes(cluster: Cluster, mib: int) -> None:
    value = bytes(range(256)) * (4 * 1024 * mib)
    with tuned(cluster, acceptable_pause_seconds=3.0), cluster.client(timeout_seconds=60) as client:
        term_before = cluster.status(cluster.leader()).term
        write_surely(client, "large", value, 60)
        cluster.wait_until_even()
        term = cluster.status(cluster.leader()).term
        assert term == term_before, "a large value is no reason for an election"
        for node in cluster.members:
            assert decode_value(client.read(get("large"), "stale", address=cluster.address(node))) == value
        write_surely(client, "large", b"small again")  # the next stories need not carry it


def test_a_peer_that_is_down_from_the_start_joins_later(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, options=PATIENT)
    try:
        cluster.start("n1", "n2")
        with cluster.client() as client:
            write_surely(client, "early", b"1")
            leader = cluster.leader()

            def says_who_lags() -> bool:
                sentence = cluster.status(leader).explanation
                return "n3 lacks" in sentence and "is not connected" in sentence

            wait_until("it says who lags", says_who_lags)
            cluster.start("n3")
            cluster.wait_until_even()
            assert decode_value(client.read(get("early"), "stale", address=cluster.address("n3"))) == b"1"
            assert cluster.leader() == leader
            even = "leads, all members are up to date"
            wait_until("it says that nobody lags", lambda: cluster.status(leader).explanation == even)
            assert decode_value(read_there(cluster.address(leader), get("early"), 10)) == b"1"
    finally:
        cluster.stop()
