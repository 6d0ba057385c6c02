"""Who may take part: one node per store and per address, in the cluster that its store knows, with the store it had."""

from __future__ import annotations

import logging
import shutil
import socket
from pathlib import Path

import pytest
from node_stories import BRISK, PATIENT, Nodes, key_value_app, running

from geraft import MemoryStorage, RaftNode, RaftStorage, SqliteStorage
from geraft.errors import AddressInUse, BootstrapRefused, StorageForeign, StorageLocked
from geraft.kv import decode_value, get, put
from geraft.testing.cluster import free_addresses, wait_until

pytestmark = pytest.mark.slow  # real processes, started and ended for each story: minutes together


def alone(path: Path, **changes: object) -> RaftNode:
    """A node that is a cluster by itself, with its log at the path."""
    arguments = {"id": "n1", "listen": "127.0.0.1:0", "bootstrap": {"n1": "127.0.0.1:1"}, "config": BRISK, **changes}
    return RaftNode(key_value_app(), SqliteStorage(path), **arguments)  # type: ignore[arg-type]


def test_a_taken_port_is_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = alone(tmp_path / "log.db", listen=address)
        with pytest.raises(AddressInUse, match=address):
            refused.start()
    with alone(tmp_path / "log.db") as node:  # the store is free again
        node.wait_for_leader()
        with pytest.raises(AddressInUse):
            alone(tmp_path / "other.db", listen=node.address).start()
        node.apply(put("unharmed", b"1"))


def test_a_second_node_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with alone(tmp_path / "log.db") as node:
        node.wait_for_leader()
        with pytest.raises(StorageLocked, match=r"log\.db"):
            alone(tmp_path / "log.db").start()
        node.apply(put("unharmed", b"1"))


def test_bootstrap_founds_once_and_is_refused_over_other_state(tmp_path: Path) -> None:
    with pytest.raises(BootstrapRefused, match="no voters are given"):
        alone(tmp_path / "log.db", bootstrap=None).start()
    with alone(tmp_path / "log.db") as node:
        node.wait_for_leader()
        node.apply(put("kept", b"1"))
        cluster_id = node.status().cluster_id
    for same in ({"n1": "127.0.0.1:1"}, None):
        with alone(tmp_path / "log.db", bootstrap=same) as node:
            node.wait_for_leader()
            assert decode_value(node.read(get("kept"))) == b"1"
            assert node.status().cluster_id == cluster_id
    for changes in (
        {"bootstrap": {"n1": "127.0.0.1:1", "n2": "127.0.0.1:2"}},
        {"bootstrap": {"n1": "127.0.0.1:2"}},
        {"cluster_name": "another"},
    ):
        with pytest.raises(BootstrapRefused, match=cluster_id):
            alone(tmp_path / "log.db", **changes).start()
    with pytest.raises(StorageForeign, match="'n1'"):
        alone(tmp_path / "log.db", id="n2", bootstrap=None).start()
    with alone(tmp_path / "log.db") as node:
        node.wait_for_leader()
        assert decode_value(node.read(get("kept"))) == b"1"


@pytest.mark.parametrize("kind", ["a disk that was wiped", "a store in memory"])
def test_a_node_that_lost_its_state_is_refused_under_its_old_id(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def storage(node: str) -> RaftStorage:
        return SqliteStorage(tmp_path / node / "log.db") if kind == "a disk that was wiped" else MemoryStorage()

    with running(storage=storage, config=PATIENT) as nodes, caplog.at_level(logging.ERROR, "geraft"):
        leader, (follower, lost) = nodes.roles()
        leader.apply(put("promised", b"1"))
        # A leader writes down whose store is whose, once it has heard of each.
        wait_until("all stores are known", lambda: all(m.store_id for m in follower.cluster_info().members))
        term = leader.status().term
        lost.stop()
        shutil.rmtree(tmp_path / lost.id, ignore_errors=True)
        nodes.start(lost.id)
        back = nodes[lost.id]

        def refused(node: RaftNode, peer: str) -> bool:
            sentence = {peer.id: peer.refusal for peer in node.status().peers}[peer]
            return "can't come back under its old id" in sentence and f"node {back.id}" in sentence

        wait_until("the leader says so", lambda: refused(leader, back.id))
        wait_until("it says so itself", lambda: refused(back, leader.id))
        wait_until("it says why it has no leader", lambda: "can't come back" in back.status().explanation)
        for node in (leader, back):
            assert any(
                record.getMessage().startswith(f"{node.id}:") and "can't come back" in record.getMessage()
                for record in caplog.records
            )
        # It got nothing, votes for nobody, and disturbs nobody.
        assert back.status().last_log_index == 1
        for turn in range(50):
            leader.apply(put("promised", b"%d" % turn))
        assert decode_value(follower.read(get("promised"))) == b"49"
        assert leader.status().term == term
        assert back.status().term <= term
        assert nodes.leader(leader.id, follower.id) is leader
        # Two of three that remain are a quorum; without one of them the newcomer's vote must not count.
        follower.stop()
        wait_until("one of three leads nobody", lambda: leader.status().role != "leader")


def test_two_clusters_with_crossed_addresses_refuse_each_other_and_live_on() -> None:
    a1, a2, a3, b1, b2, b3 = free_addresses(6)
    red = Nodes(members={"n1": a1, "n2": a2, "n3": b3}, config=PATIENT)  # where the other cluster's third node listens
    blue = Nodes(members={"n1": b1, "n2": b2, "n3": a3}, config=PATIENT)
    try:
        for nodes, address in ((red, a3), (blue, b3)):
            nodes.start("n1", "n2")
            nodes.leader()  # before the third one comes: it could lead, for it finds the others where it looks for them
            nodes.make("n3", listen=address).start()
        for nodes, other in ((red, blue), (blue, red)):
            leader = nodes.leader("n1", "n2")
            leader.apply(put("whose", nodes["n1"].status().cluster_id.encode()))

            def sentence(nodes: Nodes = nodes) -> str:
                leader = nodes.leader("n1", "n2")
                return next(peer.refusal for peer in leader.status().peers if peer.id == "n3")

            said = wait_until("the leader is refused by the stranger", sentence)
            assert "belongs to cluster" in said
            assert other["n1"].status().cluster_id in said
            assert nodes["n3"].status().last_log_index == 1, "the strangers sent it nothing that it took"
        for nodes in (red, blue):
            leader = nodes.leader("n1", "n2")
            assert decode_value(leader.read(get("whose"))) == leader.status().cluster_id.encode()
    finally:
        red.stop()
        blue.stop()
