"""Members of real clusters come and go, while others write, die and return."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import grpc
import pytest
from cluster_stories import SLOW_TO_ELECT, Writers, assert_nothing_lost, held, tune, voters, wait_until_voters

from geraft.cli.serve import LOG_NAMES
from geraft.errors import CatchUpFailed, MembershipRefused
from geraft.kv import decode_value, get, put
from geraft.pb import geraft_pb2 as pb
from geraft.pb.geraft_pb2_grpc import RaftStub
from geraft.testing.cluster import Cluster, DidNotStart, NodeProcess, free_addresses, wait_until, write_surely
from geraft.transport.failures import error_from_rpc

pytestmark = pytest.mark.slow


def geraft(*arguments: str) -> str:
    """What the command prints; its last line of complaint if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "geraft", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout if done.returncode == 0 else done.stdout + "failed: " + done.stderr


def ask_through(cluster: Cluster, node: str, message: bytes, *, mutation: bool) -> bytes:
    """What this very node answers, which passes on what is the leader's; a Client would go straight to the leader.

    Again if the outcome is unknown, so the same write twice must be no harm.
    """
    address = cluster.address(node)
    asked = pb.ApplyReq(message=message, mutation=mutation, timeout_ms=30_000, wait_for_leader=True)
    with grpc.insecure_channel(address) as channel:

        def answer() -> tuple[bytes]:
            try:
                return (RaftStub(channel).RequestApply(asked, timeout=30).message,)
            except grpc.RpcError as error:
                raise error_from_rpc(error, address) from None

        return wait_until(f"{node} answers", answer)[0]


def write_through_every_node(cluster: Cluster, prefix: str, count: int = 20) -> None:
    """Many writes through each node at once; all of them are on each node afterwards."""
    done: list[str] = []

    def write(node: str) -> None:
        for number in range(count):
            ask_through(cluster, node, put(f"{prefix}/{node}/{number}", b"%d" % number), mutation=True)
            done.append(node)

    threads = [threading.Thread(target=write, args=(node,)) for node in cluster.members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == count * len(cluster.members)
    for node in cluster.members:
        wait_until(f"{node} holds all of it", lambda node=node: len(held(cluster, node, prefix)) == len(done))


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, 1) as cluster:
        yield cluster


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", [5, pytest.param(8, marks=pytest.mark.long)])
def test_one_node_grows_step_by_step_and_all_survive_a_power_cut(one: Cluster, size: int) -> None:
    """Each joins through another one. What is written meanwhile is on all of them, and so is the membership."""
    cluster = one
    with cluster.client(30) as client, Writers(cluster, "growing", callers=2) as writers:
        write_through_every_node(cluster, "of-1")
        for number in range(2, size + 1):
            cluster.add(f"n{number}", join=[f"n{number - 1}"])
            if number in (3, 5, 8):
                wait_until_voters(client, *cluster.members)
                write_through_every_node(cluster, f"of-{number}")
        for _ in range(100):
            client.add_server("n2", cluster.address("n2"))
        assert voters(client) == set(cluster.members)
        for node in cluster.members:
            cluster.kill(node)
        cluster.start()
        writers.wait_for_more()
        assert voters(client) == set(cluster.members)
    assert_nothing_lost(cluster, writers)


def test_who_never_answers_is_named_and_the_cluster_goes_on(one: Cluster) -> None:
    cluster, nobody = one, free_addresses(1)[0]
    with cluster.client(30) as client, Writers(cluster, "going-on", callers=2) as writers:
        with pytest.raises(CatchUpFailed, match=f"n9 at {nobody} never answered"):
            client.add_server("n9", nobody)
        writers.wait_for_more()
        info = client.cluster_info()
        assert [member.id for member in info.members] == ["n1"], "as before"
        with pytest.raises(MembershipRefused, match="without a voter"):
            client.remove_server("n1")
        with pytest.raises(MembershipRefused, match="no member is called 'n9'"):
            client.remove_server("n9")


def test_a_read_replica_serves_stale_reads_and_passes_on_the_others(one: Cluster) -> None:
    cluster = one
    with cluster.client() as client:
        write_surely(client, "color", b"green")
        cluster.add("n2", options=["--learner"])
        cluster.wait_until_even()
        replica = cluster.address("n2")
        assert decode_value(client.read(get("color"), "stale", address=replica)) == b"green"
        ask_through(cluster, "n2", put("color", b"red"), mutation=True)
        assert decode_value(ask_through(cluster, "n2", get("color"), mutation=False)) == b"red"
        wait_until("it says what it is", lambda: cluster.status("n2").explanation == "follows n1 as a learner")
        assert cluster.status("n2").membership == "learner"
        assert voters(client) == {"n1"}
        cluster.pause("n2")
        write_surely(client, "color", b"blue")  # nobody waits for a learner
        cluster.resume("n2")
        cluster.wait_until_even()
        promoted = geraft("promote", "n2", "--seeds", cluster.address("n1"))
        assert any(f"n2  {replica}  {role}" in promoted for role in ("voter", "leader")), promoted
        assert "n2  " + replica + "  learner" in geraft("demote", "n2", "--seeds", replica)


def test_a_leader_is_removed_and_comes_back_over_another_store(tmp_path: Path) -> None:
    with Cluster(tmp_path, options=SLOW_TO_ELECT) as cluster, cluster.client(30) as client:
        leader = cluster.leader()
        others = [node for node in cluster.members if node != leader]
        with Writers(cluster, "removed", callers=2) as writers:
            writers.wait_for_more()
            term = cluster.status(leader).term
            client.remove_server(leader)
            began = time.monotonic()
            heir = cluster.leader(other_than=leader)
            other = next(node for node in others if node != heir)
            client.transfer_leadership(other)
            seconds = time.monotonic() - began
            assert cluster.leader(other_than=leader) == other
            assert seconds < 4.0, "nobody waits for an election timeout"
            assert cluster.status(other).term == term + 2, "one election for each"
            print(f"removed, and leadership moved on again, within {seconds * 1000:.0f} ms")
            status = cluster.status(leader)
            assert status.membership == "removed"
            assert "start it over an empty store" in status.explanation
            tune([cluster.address(leader)], election_timeout_seconds=1.0)
            time.sleep(2.0)  # for two of its election timeouts it stays quiet
            assert cluster.status(other).term == term + 2

            cluster.kill(leader)
            address = cluster.address(leader)
            cluster.members.pop(leader)
            with pytest.raises(DidNotStart, match="holds old state"):
                cluster.add(leader, address=address)
            cluster.forget(leader)
            cluster.add(leader, address=address)
            wait_until_voters(client, *cluster.members)
            writers.wait_for_more()
        assert_nothing_lost(cluster, writers)
        wait_until(
            "the heir leads again",
            lambda: f"{heir} leads" in geraft("timeout-now", cluster.address(heir)) and cluster.leader() == heir,
        )
        moved_to = free_addresses(1)[0]
        follower = next(node for node in cluster.members if node != heir)
        cluster.kill(follower)
        cluster.add(follower, address=moved_to, options=["--advertise", moved_to])
        wait_until(
            "the others know its new address",
            lambda: any(member.address == moved_to for member in client.cluster_info().members),
        )
        write_surely(client, "moved", b"1")
        cluster.wait_until_even()


@pytest.mark.parametrize(
    "storage", ["sqlite", *(pytest.param(other, marks=pytest.mark.long) for other in ("file", "rocksdb"))]
)
def test_a_cluster_that_lost_two_of_three_is_recovered(tmp_path: Path, storage: str) -> None:
    if storage == "rocksdb" and find_spec("rocksdict") is None:
        pytest.skip("the extra rocksdb is not installed")
    kind = ["--storage", storage]
    with Cluster(tmp_path, options=kind) as cluster:
        with cluster.client() as client:
            for number in range(20):
                write_surely(client, f"kept/{number}", b"%d" % number)
        cluster.wait_until_even()
        data = ["--data-dir", str(cluster.data("n1"))]
        assert f"{LOG_NAMES[storage]} is in use" in geraft("recover", *data), "not while it runs"
        for node in cluster.members:
            cluster.kill(node)
        looked = geraft("recover", *data)
        assert "ALSO IF IT WAS ACKNOWLEDGED" in looked
        assert "nothing was changed" in looked
        done = geraft("recover", *data, "--yes-i-accept-that-acknowledged-writes-may-be-lost")
        assert "What to do next" in done, done
        assert (" ".join(kind) in done) is (storage != "sqlite"), "how to start it again"

        address = cluster.address("n1")
        old = {node: cluster.members.pop(node) for node in ("n2", "n3")}
        with pytest.raises(DidNotStart, match="without bootstrap"):
            cluster.start("n1")  # its bootstrap list names the old cluster
        recovered = NodeProcess("n1", ["--id", "n1", "--listen", address, *data, *kind], tmp_path / "n1.log")
        cluster.nodes["n1"] = recovered
        recovered.start()
        recovered.wait_until_ready()
        cluster.leader()
        wait_until("all that n1 held is there", lambda: len(held(cluster, "n1", "kept")) == 20)
        for node in old:
            cluster.nodes[node].start()
            cluster.nodes[node].wait_until_ready()
        with cluster.client() as client:
            write_surely(client, "kept/more", b"1")
            time.sleep(1.5)
            assert voters(client) == {"n1"}, "the old members stay a cluster of their own"
            assert cluster.status("n1").role == "leader"
            for node in old:
                cluster.members[node] = old[node]
                cluster.forget(node)
                cluster.add(node, join=["n1"], address=old[node])
            wait_until_voters(client, *cluster.members)
            cluster.wait_until_even()
            assert len(held(cluster, "n3", "kept")) == 21


@pytest.mark.long
def test_a_cluster_of_sixteen(tmp_path: Path) -> None:
    with Cluster(tmp_path, 16) as cluster:
        cluster.leader(timeout_seconds=120)
        write_through_every_node(cluster, "of-16")
