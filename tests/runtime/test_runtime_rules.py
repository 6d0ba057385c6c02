"""The rules of safety, as far as the runtime keeps them: real nodes over real gRPC, on stores that hang and fail."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import gevent
import pytest
from runtime_parts import PATIENT, Gate, Journal, TamedStorage, in_thread, lone_node, wait_until

from geraft import Config, RaftNode
from geraft.core.effects import Persist
from geraft.core.entries import EntryBatch, EntryKind
from geraft.errors import GeraftError, NodeStopped, OutcomeUnknown
from geraft.runtime.hub import native_ident
from geraft.testing.cluster import free_addresses


class Servers:
    """Nodes n1, n2, ... of one cluster, in this process; not started."""

    def __init__(self, count: int, config: Config = PATIENT) -> None:
        ids = [f"n{number}" for number in range(1, count + 1)]
        voters = dict(zip(ids, free_addresses(count), strict=True))
        self.stores = [TamedStorage() for _ in ids]
        self.apps = [Journal() for _ in ids]
        self.nodes = [
            RaftNode(app, store, id=id, bootstrap=voters, config=config)
            for id, app, store in zip(ids, self.apps, self.stores, strict=True)
        ]

    def leader(self, *among: int) -> int:
        """The number, from 0, of the one that leads; waits until one does."""

        def find() -> list[int]:
            return [number for number in among or range(len(self.nodes)) if self.role(number) == "leader"]

        return wait_until(find)[0]  # type: ignore[no-any-return]

    def role(self, number: int) -> str:
        try:
            return self.nodes[number].status().role
        except GeraftError:
            return "none"

    def close(self) -> None:
        for store in self.stores:
            store.write_gate.open()
        for node in self.nodes:
            node.stop(5.0)


@pytest.fixture
def two() -> Iterator[Servers]:
    servers = Servers(2)
    yield servers
    servers.close()


def test_rule_01_one_greenlet_alone_steps_the_core(two: Servers) -> None:
    """Callers in threads and greenlets, peers, timers, disks and the app all at once: who steps is always the same."""
    steppers: list[set[tuple[int, int]]] = [set(), set()]
    overlaps: list[int] = []
    for number, node in enumerate(two.nodes):
        node.start()
        raft, inside = node._supervisor._raft, [0]
        step = raft.step

        def noted(event, step=step, inside=inside, who=steppers[number]):  # type: ignore[no-untyped-def]
            inside[0] += 1
            if inside[0] != 1:
                overlaps.append(1)
            who.add((native_ident(), id(gevent.getcurrent())))
            try:
                return step(event)
            finally:
                inside[0] -= 1

        raft.step = noted  # type: ignore[method-assign]
    two.leader()

    def call() -> None:
        for _ in range(30):
            for node in two.nodes:
                node.apply(b"x", 30)
                node.read(b"", "lease", 30)
                node.status()

    callers = [in_thread(call) for _ in range(4)]
    callers.append(in_thread(lambda: gevent.joinall([gevent.spawn(call) for _ in range(4)], raise_error=True)))
    for thread, outcome in callers:
        thread.join(60)
        assert not isinstance(outcome[0], BaseException)
    assert overlaps == []
    assert [len(who) for who in steppers] == [1, 1]


def test_rule_05_a_vote_is_given_once_it_is_on_disk(two: Servers) -> None:
    """n2's disk hangs: its vote, without which nobody of two can lead, does not arrive before it comes back."""
    n1, n2 = two.nodes
    two.stores[1].write_gate.close()
    n2.start()
    n1.start()
    assert two.stores[1].write_gate.held.wait(30)
    hung_since = time.monotonic()
    while time.monotonic() - hung_since < 1.0:
        assert two.role(0) != "leader" and two.role(1) != "leader"
        time.sleep(0.01)
    two.stores[1].write_gate.open()
    two.leader()


def test_rule_05_entries_are_acknowledged_once_they_are_on_disk(two: Servers) -> None:
    """Each disk in turn hangs, the follower's and the leader's own: nothing is committed that only one of two holds."""
    for node in two.nodes:
        node.start()
    leader = two.leader()
    two.nodes[leader].apply(b"x", 30)
    for number in (1 - leader, leader):
        two.stores[number].write_gate.close()
        _, outcome = in_thread(lambda: two.nodes[leader].commit(b"y", 30))
        assert two.stores[number].write_gate.held.wait(20)
        time.sleep(0.3)
        assert outcome == []
        assert two.role(leader) == "leader", "a slow disk does not silence a leader"
        two.stores[number].write_gate.open()
        wait_until(lambda: outcome)  # noqa: B023
        assert isinstance(outcome[0], int)


def test_rule_05_a_node_whose_write_fails_stops_and_sends_no_more(two: Servers) -> None:
    for node in two.nodes:
        node.start()
    leader = two.leader()
    two.nodes[leader].apply(b"x", 30)
    before = two.stores[1 - leader].commands()
    two.stores[leader].fail_writes = OSError(5, "Input/output error")
    with pytest.raises((OutcomeUnknown, NodeStopped), match="Input/output error"):
        two.nodes[leader].apply(b"y", 30)
    with pytest.raises(NodeStopped, match="Input/output error"):
        wait_until(lambda: two.nodes[leader].apply(b"z", 30))
    wait_until(lambda: two.role(1 - leader) != "follower")  # it hears no leader any more
    assert set(two.stores[1 - leader].commands()) <= {*before, b"y"}
    assert b"y" not in two.apps[leader].commands + two.apps[1 - leader].commands


def test_rule_05_a_node_whose_write_hangs_steps_down_and_what_it_sent_later_is_durable() -> None:
    """The disk of the leader of three hangs: the others elect another one, and when it comes back it says nothing."""
    servers = Servers(3)
    with ExitStack() as ending:
        ending.callback(servers.close)
        for node in servers.nodes:
            node.start()
        old = servers.leader()
        others = [number for number in range(3) if number != old]
        servers.nodes[old].apply(b"x", 30)
        servers.nodes[old].tune(storage_stall_seconds=1.0)  # not of the others: their disks may be slow
        transport = servers.nodes[old]._supervisor._transport
        assert transport is not None
        servers.stores[old].write_gate.close()
        in_thread(lambda: servers.nodes[old].apply(b"y", 20))
        with pytest.raises(NodeStopped, match="has hung"):
            wait_until(lambda: servers.nodes[old].status() is None)
        new = servers.leader(*others)
        assert servers.nodes[new].apply(b"z", 30)
        wait_until(lambda: (silent := servers.nodes[old]._supervisor._silent) is not None and silent.is_set())
        assert transport._links == {} and transport.connected_peers() == frozenset()
        wait_until(lambda: transport.handlers.sessions == 0)
        term = servers.nodes[new].status().term
        servers.stores[old].write_gate.open()
        assert servers.nodes[new].apply(b"again", 30)
        wait_until(
            lambda: servers.stores[old].writes[-1:] and not servers.nodes[old]._supervisor._log_writer.busy_seconds()
        )
        assert servers.leader(*others) == new and servers.nodes[new].status().term == term


def test_rule_10_callers_are_registered_before_anyone_can_see_their_entries() -> None:
    store = TamedStorage()
    node = lone_node(storage=store).start()
    node.apply(b"x", 30)
    loop, found = node._supervisor._loop, []

    def look(batches: Sequence[EntryBatch]) -> None:
        for batch in batches:
            if batch.kind is EntryKind.COMMAND:
                waiting = {(proposal.term, proposal.first_index) for proposal in list(loop.writes._uncommitted)}
                found.append((batch.term, batch.first_index) in waiting)

    store.on_write = look
    persist = loop._execute[Persist]

    def persist_and_let_the_disk_win(effect: Persist) -> None:
        persist(effect)
        time.sleep(0.01)  # if the callers were registered after this, the disk would be first

    loop._execute[Persist] = persist_and_let_the_disk_win
    for _ in range(10):
        node.apply(b"y", 30)
    node.stop()
    assert found == [True] * 10


def test_rule_10_a_write_that_waits_when_leadership_is_lost_is_unknown(two: Servers) -> None:
    for node in two.nodes:
        node.start()
    leader = two.leader()
    two.nodes[leader].apply(b"x", 30)
    two.stores[1 - leader].write_gate.close()
    _, outcome = in_thread(lambda: two.nodes[leader].apply(b"y", 60))
    assert two.stores[1 - leader].write_gate.held.wait(20)
    wait_until(lambda: two.nodes[leader].status().writes_waiting == 1)
    two.nodes[1 - leader]._supervisor.failed(OSError("told so"))
    wait_until(lambda: outcome)
    assert isinstance(outcome[0], OutcomeUnknown) and "lost leadership" in str(outcome[0])


def test_rule_10_an_exception_of_the_app_is_retried_and_a_rejection_is_an_answer() -> None:
    app, asked = Journal(), []

    def raise_twice(command: bytes, index: int) -> None:
        asked.append(index)
        if command == b"raise" and len(asked) < 3:
            raise OSError("not now")

    app.on_write = raise_twice
    with lone_node(app) as node:
        index = int(node.apply(b"raise", 30))
        assert asked == [index] * 3
        assert int(node.apply(b"fine", 30)) > index
    assert app.commands == [b"raise", b"fine"]


def test_rule_10_every_call_ends_though_the_loop_dies_in_the_middle_of_a_proposal() -> None:
    node = lone_node().start()
    node.apply(b"x", 30)
    raft = node._supervisor._raft
    step = raft.step

    def broken(event):  # type: ignore[no-untyped-def]
        if type(event).__name__ == "Propose" and b"last straw" in event.commands:
            raise AssertionError("an invariant is broken")
        return step(event)

    raft.step = broken  # type: ignore[method-assign]
    calls = [in_thread(lambda: node.apply(b"last straw", 60)) for _ in range(5)]
    began = time.monotonic()
    for thread, outcome in calls:
        thread.join(30)
        assert isinstance(outcome[0], NodeStopped) and "an invariant is broken" in str(outcome[0])
    assert time.monotonic() - began < 20
    node.stop()


def test_rule_11_entries_that_cannot_be_read_for_a_peer_delay_that_peer_alone() -> None:
    """An error of the device while old entries are read for n3: the leader lives on, and n3 gets them later."""
    servers = Servers(3, dataclasses.replace(PATIENT, cache_bytes_max=1))
    with ExitStack() as ending:
        ending.callback(servers.close)
        for node in servers.nodes[:2]:
            node.start()
        leader = servers.leader(0, 1)
        for number in range(20):
            last_index = int(servers.nodes[leader].apply(b"%d" % number, 30))
        store = servers.stores[leader]
        failed = threading.Event()
        read = store.read

        def read_and_tell(*args: int) -> list[EntryBatch]:
            try:
                return read(*args)
            except OSError:
                failed.set()
                raise

        store.read = read_and_tell  # type: ignore[method-assign]
        store.fail_reads_below = last_index
        servers.nodes[2].start()
        assert failed.wait(30)
        assert servers.nodes[leader].apply(b"goes on", 30)
        assert b"0" not in servers.apps[2].commands
        store.fail_reads_below = 0
        wait_until(lambda: servers.apps[2].commands[-1:] == [b"goes on"])
        assert servers.apps[2].commands == servers.apps[leader].commands


def test_rule_11_an_app_that_answers_nonsense_ends_one_call_and_not_the_node() -> None:
    app, gate = Journal(), Gate()
    app.on_read = lambda request: 7
    with lone_node(app) as node:
        with pytest.raises(GeraftError, match="must give bytes, not int"):
            node.read(b"", timeout_seconds=30)
        app.on_read = lambda request: gate() or b"well"
        assert node.read(b"", timeout_seconds=30) == b"well"
        assert node.apply(b"x", 30)
