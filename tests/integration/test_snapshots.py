"""Snapshots between real processes: made, sent, interrupted, installed, and what a restart makes of them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster_stories import Writers, assert_nothing_lost, held

from geraft.client import Client
from geraft.kv import decode_value, get
from geraft.testing.cluster import PATIENT, Cluster, LinkedCluster, wait_until, write_surely

pytestmark = pytest.mark.slow  # real processes, started and ended for each story

COPIES = ("--snapshot-every", "100", "--trailing-entries", "20")


def write(client: Client, count: int, prefix: str, value: bytes = b"v") -> dict[str, bytes]:
    """So many keys, several at a time; what was written."""
    keys = {f"{prefix}/{number}": value + b"%d" % number for number in range(count)}
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda pair: write_surely(client, *pair), keys.items()))
    return keys


def wait_until_applied(cluster: Cluster, node: str, index: int, timeout_seconds: float = 30.0) -> None:
    wait_until(
        f"{node} to apply {index}", lambda: cluster.status(node).last_applied >= index, timeout_seconds=timeout_seconds
    )


def wait_until_cut(cluster: Cluster, node: str, index: int) -> None:
    wait_until(f"the log of {node} to be cut up to {index}", lambda: cluster.status(node).log_base_index >= index)


def snapshot_files(cluster: Cluster, node: str) -> list[str]:
    return sorted(os.listdir(cluster.data(node) / "snapshots"))


def same_snapshot_twice(client: Client, cluster: Cluster, node: str) -> int:
    """The index of the snapshot that it takes, if it is asked again and takes no other; 0 if the log grew meanwhile."""
    index = client.take_snapshot(cluster.address(node))
    return index if index == client.take_snapshot(cluster.address(node)) else 0


@pytest.mark.parametrize("patched", [0, pytest.param(3, marks=pytest.mark.long)])
def test_a_node_that_starts_after_1000_writes_and_compaction_catches_up(tmp_path: Path, patched: int) -> None:
    cluster = Cluster(tmp_path, options=COPIES, patched=patched)
    with cluster.client() as client:
        try:
            cluster.start("n1", "n2")
            written = write(client, 1000, "early")
            for node in ("n1", "n2"):
                wait_until_cut(cluster, node, 900)
            cluster.start("n3")
            late = write(client, 50, "late")
            cluster.wait_until_even()
            status = cluster.status("n3")
            assert status.log_base_index >= 900, "it came by a snapshot, and not by the log"
            assert held(cluster, "n3", "early") == written
            assert held(cluster, "n3", "late") == late
            assert "installed snapshot" in cluster.nodes["n3"].said()
            cluster.add("n4")  # one that is not among the founders
            cluster.wait_until_even()
            assert held(cluster, "n4", "early") == written
            assert "installed snapshot" in cluster.nodes["n4"].said()
        finally:
            cluster.stop()


def test_a_snapshot_made_while_a_node_is_paused_reaches_it_and_it_forms_a_quorum(tmp_path: Path) -> None:
    with Cluster(tmp_path, options=(*COPIES, *PATIENT)) as cluster, cluster.client() as client:
        write(client, 10, "before")
        leader = cluster.leader()
        paused, other = (node for node in cluster.members if node != leader)
        cluster.pause(paused)
        written = write(client, 400, "meanwhile")
        wait_until_cut(cluster, leader, 300)
        cluster.resume(paused)
        wait_until_applied(cluster, paused, 400)
        cluster.kill(other)  # now nothing is committed without the node that was paused
        write_surely(client, "quorum", b"of two")
        cluster.wait_until_even(leader, paused)
        assert held(cluster, paused, "meanwhile") == written
        cluster.kill(leader)
        cluster.start(other)
        assert cluster.leader(other_than=leader)
        assert decode_value(client.read(get("quorum"), timeout_seconds=20)) == b"of two"


def test_copies_on_every_write_and_a_restart_of_all(tmp_path: Path) -> None:
    options = ("--snapshot-every", "1", "--trailing-entries", "0")
    with Cluster(tmp_path, options=options) as cluster, cluster.client() as client:
        written = write(client, 150, "copied")
        for node in cluster.members:
            wait_until_applied(cluster, node, 150)
            wait_until_cut(cluster, node, 100)
            wait_until(f"{node} to throw old ones away", lambda node=node: len(snapshot_files(cluster, node)) <= 2)
        for node in cluster.members:
            cluster.kill(node)
        cluster.start()
        cluster.leader()
        write_surely(client, "after", b"the restart")
        cluster.wait_until_even()
        for node in cluster.members:
            assert held(cluster, node, "copied") == written
            wait_until(f"{node} to copy all", lambda node=node: cluster.status(node).snapshot_index >= 150)


def test_a_damaged_snapshot_gives_way_to_the_one_before(tmp_path: Path) -> None:
    options = ("--snapshot-every", "100", "--trailing-entries", "150")
    with Cluster(tmp_path, 1, options=options) as cluster, cluster.client() as client:
        written = write(client, 450, "kept")
        wait_until("the fourth snapshot", lambda: cluster.status("n1").snapshot_index >= 400)
        wait_until_cut(cluster, "n1", 200)
        wait_until("two of them to be kept", lambda: len(snapshot_files(cluster, "n1")) == 2)
        cluster.kill("n1")
        older, newest = snapshot_files(cluster, "n1")
        with (cluster.data("n1") / "snapshots" / newest).open("r+b") as file:
            file.seek(100)
            file.write(b"\xff\xff\xff\xff")
        cluster.start("n1")
        cluster.leader()
        wait_until_applied(cluster, "n1", 450)
        assert held(cluster, "n1", "kept") == written
        assert "can't be used" in cluster.nodes["n1"].said()
        assert older in snapshot_files(cluster, "n1")


def test_a_snapshot_is_taken_when_asked_for_and_a_killed_node_starts_from_it(tmp_path: Path) -> None:
    options = ("--trailing-entries", "5")
    with Cluster(tmp_path, options=options) as cluster, cluster.client() as client:
        written = write(client, 60, "folded")
        for node in cluster.members:
            wait_until_applied(cluster, node, 60)
            index = wait_until(
                "nothing new: the same snapshot again", lambda node=node: same_snapshot_twice(client, cluster, node)
            )
            assert index >= 60
            wait_until_cut(cluster, node, index - 20)  # whole batches go
        with Writers(cluster, "beside") as writers:
            writers.wait_for_more(20)
            assert client.take_snapshot(cluster.address(cluster.leader())) > 60
            for node in cluster.members:
                cluster.restart(node)
                writers.wait_for_more(20)
        assert_nothing_lost(cluster, writers)
        assert held(cluster, "n1", "folded") == written


def test_a_transfer_survives_the_death_of_either_side_and_of_the_stream(tmp_path: Path) -> None:
    """20 MB over a slow link: the stream is broken, the receiver killed, then the leader; the third goes on."""
    cluster = LinkedCluster(tmp_path, options=("--trailing-entries", "0", *PATIENT))
    with cluster.client(timeout_seconds=60) as client:
        try:
            cluster.start("n1", "n2")
            big = os.urandom(1 << 20)
            for number in range(20):
                write_surely(client, f"big/{number}", big + b"%d" % number)
            for node in ("n1", "n2"):
                wait_until_applied(cluster, node, 20)
                wait_until_cut(cluster, node, client.take_snapshot(cluster.address(node)))
            with cluster.links.slow([(node, "n3") for node in ("n1", "n2")], 0.02, 0.02):
                cluster.start("n3")

                def source_of_some() -> str:
                    status = cluster.status("n3")
                    return status.fetching_from if status.fetched_bytes > 2 << 20 else ""

                leader = wait_until("some of it to be there", source_of_some)
                cluster.links.reset("n3", leader)
                cluster.links.reset(leader, "n3")
                wait_until("the stream to break", lambda: "broke after" in cluster.nodes["n3"].said())
                before = cluster.status("n3").fetched_bytes
                wait_until("the fetch to go on", lambda: cluster.status("n3").fetched_bytes > before + (1 << 20))
                said = cluster.nodes["n3"].said()
                assert said.count("fetching snapshot") == 1, "it went on where it was"
                cluster.restart("n3")
                wait_until("some of it to be there again", lambda: cluster.status("n3").fetched_bytes > 1 << 20)
                cluster.kill(leader)
            wait_until("the new leader", lambda: cluster.leader(other_than=leader), 40)
            wait_until_applied(cluster, "n3", 20, timeout_seconds=40)
            write_surely(client, "quorum", b"of the other two")
            cluster.wait_until_even(*(set(cluster.members) - {leader}))
            assert len(held(cluster, "n3", "big/")) == 20
            wait_until("it to clear up", lambda: not any("temporary" in name for name in snapshot_files(cluster, "n3")))
        finally:
            cluster.stop()
