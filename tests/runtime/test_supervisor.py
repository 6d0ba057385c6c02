"""A node starts, stops and fails cleanly, whoever asks for it and whatever hangs."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from pathlib import Path

import gevent
import pytest
from runtime_parts import QUICK, Gate, Journal, TamedStorage, in_thread, lone_node, threads, wait_until

from geraft import MemoryStorage, RaftNode, SqliteStorage, signals
from geraft.errors import (
    AddressInUse,
    BootstrapRefused,
    ConfigError,
    NodeStopped,
    NothingHappened,
    OutcomeUnknown,
    ReadTimeout,
    StorageFailed,
    StorageForeign,
    StorageLocked,
)
from geraft.runtime import supervisor
from geraft.runtime.wishes import Transfer
from geraft.testing.cluster import free_addresses

AT_ONCE_SECONDS = 2.5
"""Less than stop() waits for any one thing that hangs, more than a busy machine makes of nothing."""


def timed(run) -> float:
    began = time.monotonic()
    run()
    return time.monotonic() - began


# Start and stop


def test_a_node_lives_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "n1.db"
    for expected in (b"2", b"2", b"3"):  # the first round warms up what gRPC keeps for the process
        node = lone_node(storage=SqliteStorage(path))
        with node:
            node.wait_for_leader()
            assert int(node.apply(b"x", 30)) > int(expected)
        before = threads()
    with lone_node(storage=SqliteStorage(path)) as node:
        node.apply(b"x", 30)
    wait_until(lambda: threads() <= before)


def test_a_node_starts_once() -> None:
    node = lone_node()
    node.start()
    with pytest.raises(NodeStopped, match="make a new RaftNode"):
        node.start()
    node.stop()
    with pytest.raises(NodeStopped, match=r"was stopped.*make a new RaftNode"):
        node.start()
    with pytest.raises(NodeStopped, match="make a new RaftNode"), node:
        pass


def test_calls_before_the_start_and_after_the_end_say_so() -> None:
    node = lone_node()
    with pytest.raises(NodeStopped, match=r"call start\(\) first"):
        node.apply(b"x")
    node.stop()  # no error before the start
    with pytest.raises(NodeStopped, match="was stopped"):
        node.read(b"x")


def test_stop_can_be_called_again_and_by_several_at_once() -> None:
    node = lone_node().start()
    node.apply(b"x", 30)
    stoppers = [in_thread(node.stop) for _ in range(8)]
    for thread, outcome in stoppers:
        thread.join(20)
        assert outcome == [None]
    assert timed(node.stop) < AT_ONCE_SECONDS


def test_a_second_stopper_returns_when_the_node_has_stopped() -> None:
    app, gate, storage = Journal(), Gate(), TamedStorage()
    node = lone_node(app, storage).start()
    node.apply(b"x", 30)
    gate.close()
    app.on_write = lambda command, index: gate()
    in_thread(lambda: node.apply(b"held"))
    assert gate.held.wait(20)
    first, _ = in_thread(node.stop)
    wait_until(lambda: "is stopping" in repr(node))
    second, _ = in_thread(node.stop)
    second.join(0.2)
    assert second.is_alive() and storage.is_open
    gate.open()
    second.join(20)
    assert not second.is_alive() and not storage.is_open
    first.join(20)


def test_stop_from_a_greenlet_that_did_not_start_the_node() -> None:
    """Started in a thread without a hub, stopped in a greenlet, and the other way round."""
    node = lone_node().start()
    gevent.spawn(node.stop).get(timeout=20)
    node = lone_node()
    gevent.spawn(node.start).get(timeout=20)
    gevent.spawn(node.apply, b"x", 30.0).get(timeout=30)
    thread, outcome = in_thread(node.stop)
    thread.join(20)
    assert outcome == [None]


@pytest.mark.parametrize("where", ["process_write", "process_read", "receiver"])
def test_stop_from_inside(where: str) -> None:
    """The node's own threads may stop it: they do not wait for themselves."""
    app, storage, took = Journal(), TamedStorage(), []
    node = lone_node(app, storage, config=QUICK).start()
    node.wait_for_leader(30)

    def stop(*_: object, **__: object) -> bytes:
        took.append(timed(node.stop))
        return b"stopped"

    if where == "process_write":
        app.on_write = stop
        thread, outcome = in_thread(lambda: node.apply(b"x", 20))
    elif where == "process_read":
        app.on_read = stop
        thread, outcome = in_thread(lambda: node.read(b"x", "stale", 20))
    else:
        signals.committed.connect(stop, sender=node)
        thread, outcome = in_thread(lambda: node.apply(b"x", 20))
    thread.join(30)
    wait_until(lambda: took)
    assert took[0] < QUICK.stop_timeout_seconds / 2
    assert not storage.is_open
    if where == "process_read":
        assert outcome == [b"stopped"]
    elif where == "process_write":
        assert int(outcome[0]) >= 2
    with pytest.raises(NodeStopped):
        node.apply(b"y")


def test_a_signal_handler_stops_a_node_that_starts() -> None:
    """As SIGTERM does in the main thread: the handler returns at once, and the start gives up."""
    app, storage = Journal(), TamedStorage()
    node = lone_node(app, storage)
    took = []
    original = storage.open

    def open_and_be_interrupted():  # type: ignore[no-untyped-def]
        state = original()
        thread, _ = in_thread(lambda: took.append(timed(node.stop)))  # another thread waits for the start to end
        wait_until(lambda: node._supervisor._stop_wanted)
        waiting.append(thread)
        return state

    waiting: list[threading.Thread] = []
    storage.open = open_and_be_interrupted  # type: ignore[method-assign]
    with pytest.raises(NodeStopped, match="stopped while it started"):
        node.start()
    waiting[0].join(20)
    assert took and not storage.is_open
    assert "was stopped" in repr(node)


# Starts that fail


def test_a_taken_address_leaves_nothing_behind(tmp_path: Path) -> None:
    (address,) = free_addresses(1)
    with RaftNode(Journal(), MemoryStorage(), id="n1", bootstrap={"n1": address}) as node:
        node.wait_for_leader(30)
        before = threads()
        other = RaftNode(Journal(), SqliteStorage(tmp_path / "n2.db"), id="n2", bootstrap={"n2": address})
        with pytest.raises(AddressInUse, match=address.rpartition(":")[2]):
            other.start()
        assert timed(other.stop) < AT_ONCE_SECONDS
        SqliteStorage(tmp_path / "n2.db").open()  # not locked
        wait_until(lambda: threads() <= before)


def test_starts_that_are_refused_release_the_store(tmp_path: Path) -> None:
    path = tmp_path / "n1.db"
    with pytest.raises(BootstrapRefused, match="pass bootstrap="):
        RaftNode(Journal(), SqliteStorage(path), id="n1").start()
    with pytest.raises(ConfigError, match="does not name this node"):
        RaftNode(Journal(), SqliteStorage(path), id="n1", bootstrap={"n2": "127.0.0.1:0"}).start()
    lone_node(storage=SqliteStorage(path)).start().stop()
    with pytest.raises(BootstrapRefused, match="start without bootstrap"):
        RaftNode(Journal(), SqliteStorage(path), id="n1", bootstrap={"n1": "127.0.0.1:9"}).start()
    with pytest.raises(StorageForeign, match="a store of its own"):
        RaftNode(Journal(), SqliteStorage(path), id="n2").start()
    with RaftNode(Journal(), SqliteStorage(path), id="n1", listen="127.0.0.1:0") as node:
        assert node.apply(b"x", 30)


def test_an_app_that_does_not_start_is_told_from_a_node() -> None:
    app, storage = Journal(), TamedStorage()

    def refuse() -> None:
        raise KeyError("no table")

    app.on_install = refuse
    node = lone_node(app, storage)
    with pytest.raises(KeyError, match="no table"):
        node.start()
    assert not storage.is_open
    assert timed(node.stop) < AT_ONCE_SECONDS


def test_a_store_of_another_node_is_not_closed_by_the_start_it_refuses() -> None:
    storage = MemoryStorage()
    with lone_node(storage=storage) as node:
        node.apply(b"x", 30)
        with pytest.raises(StorageLocked):
            lone_node(storage=storage).start()
        assert node.apply(b"y", 30)


def test_a_store_that_hangs_while_it_is_opened_is_closed_when_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "TEAR_DOWN_SECONDS", 0.5)
    storage = TamedStorage()
    storage.open_gate.close()
    node = lone_node(storage=storage)
    with pytest.raises(StorageFailed, match="opening the log store took longer than"):
        node.start(timeout_seconds=0.2)
    storage.open_gate.open()
    assert node._supervisor._log_writer.wait_until_ended(20)
    assert storage.inner._opened is False  # type: ignore[attr-defined]
    lone_node(storage=storage).start().stop()


def test_a_part_that_cannot_be_put_together_does_not_hold_up_the_start() -> None:
    storage = TamedStorage()
    node = RaftNode(Journal(), storage, id="n1", listen="256.0.0.1:9", bootstrap={"n1": "127.0.0.1:0"}, config=QUICK)
    with pytest.raises(ConfigError):
        node.start()
    assert not storage.is_open


# Failing


def test_a_store_that_fails_stops_the_node_and_is_let_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = TamedStorage(SqliteStorage(tmp_path / "n1.db"))
    node = lone_node(storage=storage).start()
    node.apply(b"x", 30)
    wait_until(lambda: node.cluster_info().members[0].store_id and "waiting" not in node.status().explanation)
    storage.fail_writes = OSError(28, "No space left on device")
    with caplog.at_level(logging.CRITICAL), pytest.raises(OutcomeUnknown, match="No space left on device"):
        node.apply(b"y", 30)
    with pytest.raises(NodeStopped, match=r"failed.*No space left on device") as stopped:
        wait_until(lambda: node.apply(b"z", 30))
    assert isinstance(stopped.value.cause, StorageFailed)
    assert timed(node.stop) < 5
    storage.fail_writes = None
    with lone_node(storage=SqliteStorage(tmp_path / "n1.db")) as node:  # not locked
        node.apply(b"again", 30)


def test_a_store_that_fails_while_the_node_stops_is_closed_all_the_same() -> None:
    """The writer finds the end in its queue while it writes a group, and then the write fails."""
    storage = TamedStorage()
    node = lone_node(storage=storage).start()
    node.apply(b"x", 30)
    storage.write_gate.close()
    storage.fail_writes = OSError("broken")
    _, outcome = in_thread(lambda: node.apply(b"y", 30))
    assert storage.write_gate.held.wait(20)
    _, also = in_thread(lambda: node.apply(b"z", 30))
    stopper, stopped = in_thread(node.stop)
    wait_until(lambda: node._supervisor._log_writer._ending)
    storage.write_gate.open()
    stopper.join(20)
    assert stopped == [None] and not storage.is_open
    wait_until(lambda: outcome and also)
    assert isinstance(outcome[0], OutcomeUnknown | NodeStopped)


def test_a_store_that_hangs_ends_the_node_in_time(caplog: pytest.LogCaptureFixture) -> None:
    storage = TamedStorage()
    node = lone_node(storage=storage, config=type(QUICK)(stop_timeout_seconds=2.0)).start()
    node.apply(b"x", 30)
    node.tune(storage_stall_seconds=0.5)
    storage.write_gate.close()
    with caplog.at_level(logging.CRITICAL):
        with pytest.raises(OutcomeUnknown, match="has hung"):
            node.apply(b"y", 30)
        assert timed(node.stop) < 6  # of the default time it would take 8
    assert storage.is_open  # the hung thread has it
    storage.write_gate.open()
    wait_until(lambda: not storage.is_open)


def test_stop_ends_in_time_though_everything_hangs() -> None:
    app, storage, gate = Journal(), TamedStorage(), Gate()
    node = lone_node(app, storage).start()
    node.apply(b"x", 30)
    gate.close()
    app.on_write = lambda command, index: gate()
    reading = []
    app.on_read = lambda request: reading.append(request) or gate() or b""

    def hang(*_: object, **__: object) -> None:
        gate()

    signals.node_stopping.connect(hang, sender=node)
    applied = in_thread(lambda: node.apply(b"held", 60))[1]
    assert gate.held.wait(20)
    for number in range(QUICK.read_threads):  # one by one, or one thread would take several
        in_thread(lambda: node.read(b"", "stale", 60))
        wait_until(lambda number=number: len(reading) == number + 1)
    reads = [in_thread(lambda: node.read(b"", "stale", 60))[1] for _ in range(4)]
    queued = in_thread(lambda: node.apply(b"committed, behind the held one", 60))[1]
    wait_until(lambda: len(storage.commands()) == 3)
    storage.write_gate.close()
    unwritten = in_thread(lambda: node.apply(b"unwritten", 60))[1]
    assert storage.write_gate.held.wait(20)
    assert timed(lambda: node.stop(2.0)) < 6  # of the default time it would take 8 and more
    # Whoever is not in the hands of something that hangs has an answer.
    wait_until(lambda: queued and unwritten and all(reads))
    assert isinstance(queued[0], OutcomeUnknown) and isinstance(unwritten[0], OutcomeUnknown)
    assert all(isinstance(read[0], ReadTimeout) for read in reads)
    assert not applied
    gate.open()
    storage.write_gate.open()
    wait_until(lambda: applied and not storage.is_open)


def test_a_dead_greenlet_stops_the_node_and_every_caller_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A broken invariant in the middle of a batch: those taken from the inbox and not handled yet are told as well."""
    node = lone_node().start()
    node.apply(b"x", 30)
    supervisor = node._supervisor
    step = supervisor._raft.step

    def broken(event):  # type: ignore[no-untyped-def]
        if type(event).__name__ == "TransferRequested":
            raise AssertionError("an invariant is broken")
        return step(event)

    supervisor._raft.step = broken  # type: ignore[method-assign]
    outcomes = []

    def put_together() -> None:  # in the hub, so that the loop takes all at once
        for item in (Transfer("n2"), Transfer("n3")):
            supervisor._inbox.items.append(item)
            outcomes.append(item)

    with caplog.at_level(logging.CRITICAL):
        supervisor._hub.call(put_together)  # type: ignore[union-attr]
        wait_until(lambda: all(item.done or item.error for item in outcomes))
        assert all("an invariant is broken" in str(item.error) for item in outcomes)
        with pytest.raises(NodeStopped, match="an invariant is broken"):
            node.apply(b"y", 30)
        node.stop()


@pytest.mark.parametrize("ending", ["stop", "failure"] * 3)
def test_calls_put_in_while_the_node_ends_all_end_and_tell_the_truth(ending: str) -> None:
    """No caller who was told that nothing happened finds the command in the log, none who got a reply misses it."""
    storage = TamedStorage()
    node = lone_node(storage=storage).start()
    node.wait_for_leader(30)
    replies: list[bytes] = []
    nothing: list[bytes] = []
    unknown: list[bytes] = []
    hung: list[bytes] = []

    def call(caller: int) -> None:
        for number in range(100_000):
            command = b"%d.%d" % (caller, number)
            try:
                node.apply(command, 20)
                replies.append(command)
            except NothingHappened:
                nothing.append(command)
                return
            except OutcomeUnknown as error:
                unknown.append(command)
                if "no answer within" in str(error):
                    hung.append(command)
                return

    callers = [in_thread(partial(call, caller)) for caller in range(8)]
    greenlets = in_thread(lambda: gevent.joinall([gevent.spawn(call, caller) for caller in range(8, 16)]))
    wait_until(lambda: len(replies) > 50)
    if ending == "stop":
        node.stop()
    else:
        node._supervisor.failed(StorageFailed("told so"))
    for thread, _ in [*callers, greenlets]:
        thread.join(30)
        assert not thread.is_alive()
    node.stop()
    stored = set(storage.commands())
    assert not hung
    assert len(nothing) + len(unknown) == 16
    assert stored.isdisjoint(nothing)
    assert stored.issuperset(replies)


def test_a_caller_between_the_check_and_the_inbox_is_told() -> None:
    """The node ends after it was found running and before the call is in: the caller answers itself."""
    node = lone_node().start()
    node.apply(b"x", 30)
    inbox = node._supervisor._inbox
    put = inbox.put

    def slow_put(item: object) -> None:
        inbox.put = put  # type: ignore[method-assign]
        thread, _ = in_thread(node.stop)
        thread.join(20)
        put(item)

    inbox.put = slow_put  # type: ignore[method-assign]
    with pytest.raises(NodeStopped):
        node.apply(b"y", 5)


def test_a_forwarded_call_that_comes_back_after_the_end_is_answered() -> None:
    from geraft.runtime.hub import Call, CallKind, monotonic

    node = lone_node().start()
    node.apply(b"x", 30)
    call = Call(CallKind.APPLY, b"late", deadline=monotonic() + 20)
    node._supervisor._hub.call(node._supervisor._fall_silent, 1.0)  # type: ignore[union-attr]
    node._supervisor.resubmit([call])
    with pytest.raises(NothingHappened):
        call.result(5, lambda: AssertionError("not answered"))
    node.stop()


def test_memory_does_not_grow_while_the_app_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Committed writes whose callers gave up are let go of, and so are reads and those who wanted a leader."""
    from geraft.runtime import node_loop

    monkeypatch.setattr(node_loop, "SWEEP_SECONDS", 0.1)
    monkeypatch.setattr(node_loop, "SWEEP_GRACE_SECONDS", 0.2)
    app, gate, storage = Journal(), Gate(), TamedStorage()
    config = type(QUICK)(apply_bytes_max=1)
    node = lone_node(app, storage, config=config).start()
    node.apply(b"x", 30)
    gate.close()
    app.on_write = lambda command, index: gate()
    for number in range(20):
        with pytest.raises(OutcomeUnknown):
            node.apply(b"%d" % number, 0.02)
    with pytest.raises(ReadTimeout):
        node.read(b"", timeout_seconds=0.02)
    loop = node._supervisor._loop
    wait_until(lambda: len(storage.commands()) == 21)
    wait_until(lambda: not loop.writes._unapplied and not loop.reads._confirmed)
    gate.open()
    assert node.apply(b"y", 30)
    assert len(app.commands) == 22
    node.stop()
