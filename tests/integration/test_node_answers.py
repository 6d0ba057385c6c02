"""What callers get: answers, errors that say why, and at which time. Three nodes in one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
from node_stories import BRISK, PATIENT, Heard, Nodes, key_value_app, running

from geraft import Config, MakeSnapshot, MemoryRepository, MemoryStorage, RaftApp, RaftNode, signals, to_raft_app
from geraft.errors import NodeStopped, NoLeader, OutcomeUnknown, ReadFailed, ReadTimeout, TransferFailed
from geraft.kv import KeyValueApp, decode_value, get, put
from geraft.runtime.hub import monotonic
from geraft.runtime.wishes import Transfer
from geraft.testing.cluster import wait_until


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """No story that takes these may end one of them."""
    with running(config=PATIENT) as nodes:
        yield nodes


def test_a_write_is_answered_and_read_wherever_it_is_asked(nodes: Nodes) -> None:
    nodes.leader()
    for node in nodes.nodes.values():
        index = node.commit(put(f"from {node.id}", b"committed"))
        node.apply(put(f"from {node.id}", b"applied"))
        assert node.status().last_log_index > index - 1
    for node in nodes.nodes.values():
        for other in nodes.members:
            for consistency in ("linearizable", "lease"):
                assert decode_value(node.read(get(f"from {other}"), consistency)) == b"applied"


def test_a_linearizable_read_from_a_follower_sees_what_was_just_answered(nodes: Nodes) -> None:
    leader, followers = nodes.roles()
    for turn in range(100):
        leader.apply(put("turn", b"%d" % turn))
        consistency = ("linearizable", "lease")[turn % 2]
        assert decode_value(followers[turn % 2].read(get("turn"), consistency)) == b"%d" % turn


def test_a_stale_read_shows_what_this_node_has_applied(nodes: Nodes) -> None:
    nodes.leader().apply(put("soon", b"everywhere"))
    for node in nodes.nodes.values():
        wait_until("it is applied here", lambda node=node: decode_value(node.read(get("soon"), "stale")))


def test_a_read_that_the_app_refuses_says_what_the_app_said(nodes: Nodes) -> None:
    for node in nodes.nodes.values():
        with pytest.raises(ReadFailed, match="not a query"):
            node.read(b"\xff\xff")


def test_status_says_how_things_stand(nodes: Nodes) -> None:
    leader, followers = nodes.roles()
    wait_until("all are up to date", lambda: leader.status().explanation == "leads, all members are up to date")
    for follower in followers:
        assert follower.status().explanation == f"follows {leader.id}"
        assert follower.status().leader_id == leader.id
        assert {peer.id for peer in follower.status().peers} == set(nodes.members) - {follower.id}
        assert follower.cluster_info().leader_address == leader.address
        with pytest.raises(TransferFailed, match="no other voter"):  # the leader says so
            follower.transfer_leadership("n7")
    info = leader.cluster_info()
    assert {member.id: member.address for member in info.members} == nodes.members
    wait_until("their stores are known", lambda: all(m.store_id for m in leader.cluster_info().members))


def test_leadership_goes_where_it_is_sent_and_signals_tell_of_it(nodes: Nodes) -> None:
    old, (heir, other) = nodes.roles()
    with (
        Heard(signals.leader_changed, other) as leaders,
        Heard(signals.role_changed, heir) as heir_roles,
        Heard(signals.role_changed, old) as old_roles,
    ):
        old.transfer_leadership(heir.id)
        assert nodes.leader() is heir
        wait_until("the heir tells", lambda: heir_roles.told and heir_roles.told[-1]["new_role"] == "leader")
        wait_until("the old one tells", lambda: old_roles.told)
        wait_until("the third one tells", lambda: leaders.told and leaders.told[-1]["leader_id"] == heir.id)
    assert old_roles.told[0]["old_role"] == "leader"
    assert old_roles.told[0]["new_role"] == "follower"
    assert leaders.told[-1]["term"] == heir.status().term


def test_receivers_that_raise_or_block_delay_no_write(nodes: Nodes) -> None:
    leader = nodes.leader()
    let_go = threading.Event()
    called = []

    def raise_(node: RaftNode, **_: object) -> None:
        called.append("raise")
        raise RuntimeError("a receiver's own trouble")

    def block(node: RaftNode, **_: object) -> None:
        called.append("block")
        let_go.wait(30)

    signals.committed.connect(raise_, sender=leader)
    signals.committed.connect(block, sender=leader)
    try:
        for turn in range(20):
            leader.apply(put("beside slow receivers", b"%d" % turn), timeout_seconds=5)
        wait_until("both were called", lambda: {"raise", "block"} <= set(called))
        blocked_since = time.monotonic()
        while time.monotonic() - blocked_since < 6:  # blocked for longer than any election would wait
            leader.apply(put("beside slow receivers", b"again"), timeout_seconds=5)
            time.sleep(0.02)
        assert called.count("block") == 1, "the receiver still blocks"
        assert nodes.leader() is leader
    finally:
        let_go.set()
        signals.committed.disconnect(raise_)
        signals.committed.disconnect(block)


def test_committed_tells_of_every_entry_in_order(nodes: Nodes) -> None:
    leader = nodes.leader()
    with Heard(signals.committed, leader) as committed:
        first = leader.commit(put("told", b"1"))
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda number: leader.apply(put("told", b"%d" % number)), range(100)))
        last = leader.commit(put("told", b"2"))
        wait_until("the last one is told", lambda: committed.told and committed.told[-1]["last_index"] >= last)
    ranges = [(told["first_index"], told["last_index"]) for told in committed.told]
    assert ranges[0][0] <= first
    assert all(end + 1 == begin for (_, end), (begin, _) in pairwise(ranges))


class Troubled(KeyValueApp):
    """Raises when it is to write what contains "trouble", as often as `left` says."""

    left = 0

    def process_write(self, request: bytes, entry_index: int) -> bytes:
        if b"trouble" in request and self.left:
            self.left -= 1
            raise OSError("no space left")
        return super().process_write(request, entry_index)


def test_an_app_that_raises_three_times_delays_its_callers_and_costs_no_leader() -> None:
    apps: list[Troubled] = []

    def troubled() -> RaftApp:
        apps.append(Troubled())
        return to_raft_app(apps[-1], MemoryRepository())

    with running(app=troubled, config=replace(PATIENT, apply_retry_seconds=0.5)) as nodes:
        leader = nodes.leader()
        leader.apply(put("before", b"1"))
        term = leader.status().term
        dict(zip(nodes.nodes, apps[-3:], strict=True))[leader.id].left = 3
        with Heard(signals.apply_failed, leader) as told, ThreadPoolExecutor(1) as caller:
            answer = caller.submit(leader.apply, put("trouble", b"2"), 30.0)

            def says_so() -> bool:
                status = leader.status()
                return "no space left" in status.apply_error and "process_write of entry" in status.explanation

            wait_until("status says so", says_so)
            assert leader.commit(put("meanwhile", b"3"), 5.0), "consensus goes on beside it"
            answer.result(30)
            wait_until("each attempt was told", lambda: len(told.told) == 3)
        assert leader.status().apply_error == ""
        assert leader.status().explanation.startswith("leads")
        assert leader.status().term == term
        assert nodes.leader() is leader
        assert [fields["attempt"] for fields in told.told] == [1, 2, 3]
        assert len({fields["index"] for fields in told.told}) == 1
        assert decode_value(leader.read(get("meanwhile"))) == b"3"


def test_stopping_the_leader_hands_over_at_once_and_no_caller_sees_it() -> None:
    with running(config=Config(election_timeout_seconds=5.0)) as nodes:  # so long nobody else would stand for election
        leader, (follower, other) = nodes.roles()
        ending = threading.Event()
        errors: list[BaseException] = []

        def write(node: RaftNode) -> None:
            while not ending.is_set():
                try:
                    node.apply(put("during", b"stop"), timeout_seconds=20)
                except BaseException as error:
                    errors.append(error)
                    return

        followed: list[float] = []

        def note(node: RaftNode, *, leader_id: str, **_: object) -> None:
            if leader_id not in ("", leader.id):
                followed.append(time.monotonic())

        with (
            Heard(signals.node_stopping, leader) as stopping,
            signals.leader_changed.connected_to(note, sender=other),
            ThreadPoolExecutor(4) as callers,
        ):
            for node in (follower, other) * 2:
                callers.submit(write, node)
            try:
                wait_until("a write went through", lambda: decode_value(follower.read(get("during"), "stale")))
                began = time.monotonic()
                leader.stop()
                wait_until("another one leads", lambda: followed)
                successor = nodes.leader(follower.id, other.id)
                successor.apply(put("after", b"stop"))
            finally:
                ending.set()
        # Not one NoLeader, and no OutcomeUnknown either: what it had taken was committed before it let go.
        assert errors == []
        assert successor is not leader
        assert followed[0] - began < 4.0
        assert stopping.told == [{}]
        with pytest.raises(NodeStopped):
            leader.apply(put("too", b"late"))


def test_without_a_quorum_callers_are_told_how_many_voters_answer() -> None:
    with running(start=("n1", "n2")) as nodes:
        survivor, (other,) = nodes.roles()
        survivor.apply(put("settled", b"1"))
        other.stop()
        wait_until("it no longer leads", lambda: survivor.status().role != "leader" and not survivor.status().leader_id)
        wait_until("it says why", lambda: "1 of 3 voters answers" in survivor.status().explanation)

        began = time.monotonic()
        for ask in (
            lambda: survivor.apply(put("never", b"2"), wait_for_leader=False),
            lambda: survivor.commit(put("never", b"2"), wait_for_leader=False),
            lambda: survivor.read(get("settled"), wait_for_leader=False),
            lambda: survivor.read(get("settled"), "lease", wait_for_leader=False),
        ):
            with pytest.raises(NoLeader, match=r"1 of 3 voters answers .*n2|n1.* no answer"):
                ask()
        assert time.monotonic() - began < 4.0, "at once: one that waits takes 5 s"

        for patient in (
            lambda: survivor.apply(put("never", b"2"), timeout_seconds=0.7),
            lambda: survivor.read(get("settled"), timeout_seconds=0.7),
        ):
            began = time.monotonic()
            with pytest.raises((NoLeader, ReadTimeout, OutcomeUnknown), match="1 of 3 voters answers"):
                patient()
            assert 0.5 < time.monotonic() - began < 10.0
        assert decode_value(survivor.read(get("settled"), "stale")) == b"1"
        with pytest.raises(NoLeader, match="1 of 3 voters answers"):
            survivor.wait_for_leader(timeout_seconds=0.3)


def test_callers_on_a_leader_that_is_removed_are_told_as_soon_as_it_has_handed_over() -> None:
    with running() as nodes:
        leader, others = nodes.roles()
        told: list[BaseException] = []

        def write() -> None:
            try:
                while True:
                    leader.apply(put("during", b"removal"), timeout_seconds=30)
            except BaseException as error:
                told.append(error)

        with ThreadPoolExecutor(8) as callers:
            for _ in range(8):
                callers.submit(write)
            wait_until("a write went through", lambda: decode_value(leader.read(get("during"), "stale")))
            leader.remove_server(leader.id)
            began = time.monotonic()
            leader._supervisor._ticker.interval_seconds = 30.0  # it is events that end their waiting
        assert time.monotonic() - began < 20.0
        assert [type(error) for error in told if not isinstance(error, NoLeader | OutcomeUnknown)] == []
        assert len(told) == 8
        assert nodes.leader(*(node.id for node in others)) in others


def test_a_wish_that_waits_for_a_leader_is_passed_on_as_soon_as_one_is_known() -> None:
    with running(config=PATIENT) as nodes:
        leader, (heir, other) = nodes.roles()
        supervisor = other._supervisor
        supervisor._ticker.interval_seconds = 30.0
        time.sleep(0.1)  # the last tick that was under way
        wish = Transfer(leader.id, monotonic() + 25.0, forwarded=False)
        assert supervisor._hub is not None
        supervisor._hub.call(supervisor._loop.park_wish, wish, timeout_seconds=5.0)
        leader.transfer_leadership(heir.id)
        assert nodes.leader(leader.id, heir.id, other.id) is not None
        wish.result(20.0, lambda: AssertionError("it still waits"))


class Blank(RaftApp):
    """Answers everything with nothing."""

    def process_read(self, request: bytes) -> bytes:
        return b""

    def process_write(self, request: bytes, entry_index: int) -> tuple[bytes, MakeSnapshot]:
        return b"", MakeSnapshot.NONE

    def install_snapshot(self, snapshot_index: int | None) -> None: ...
    def fold_snapshot(self, old_snapshot_index: object, requests: object, snapshot_index: int) -> None: ...
    def save_snapshot(self, chunks: object, snapshot_index: int) -> None: ...
    def open_snapshot(self, snapshot_index: int) -> Iterator[bytes]:
        return iter(())

    def delete_snapshot(self, snapshot_index: int) -> None: ...


def test_a_node_alone_leads_and_says_when_it_starts_and_stops() -> None:
    node = Nodes(1, app=Blank).make("n1")
    with Heard(signals.node_started, node) as started, Heard(signals.node_stopping, node) as stopping:
        with pytest.raises(NodeStopped, match="was not started"):
            node.apply(b"too early")
        with node:
            assert node.wait_for_leader() == "n1"
            assert node.apply(b"anything") == b""
            wait_until("it told of its start", lambda: started.told)
            assert stopping.told == []
        assert stopping.told == [{}]
    node.stop()  # again is no error
    with pytest.raises(NodeStopped, match="a node starts once"):
        node.start()


def test_nodes_need_a_store_and_an_app_of_the_right_kind() -> None:
    for app, storage in ((KeyValueApp(), MemoryStorage()), (key_value_app(), "n1.db")):
        with pytest.raises(ValueError, match=r"to_raft_app|SqliteStorage"):
            RaftNode(app, storage, id="n1", config=BRISK)  # type: ignore[arg-type]
