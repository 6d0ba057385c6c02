"""What is kept of snapshots, what is thrown away and when, and in which order the store and the app are told."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from geraft.app import MakeSnapshot, RaftApp
from geraft.core.entries import EntryBatch, EntryId, EntryKind
from geraft.core.events import SnapshotMade
from geraft.core.membership import initial_configuration
from geraft.core.snapshots import Snapshot
from geraft.errors import SnapshotFailed, StorageFailed
from geraft.records import encode_session_write
from geraft.runtime.hub import Waiter
from geraft.runtime.snapshot_keeper import LoggedCommands, SnapshotKeeper, measure
from geraft.sessions import Limits, SessionTable, commands_applied, opening
from geraft.storage import MemoryStorage


class Shelf(RaftApp):
    """Holds snapshots by index, and notes what it is told to do."""

    def __init__(self) -> None:
        self.held: dict[int, bytes] = {}
        self.said: list[tuple[str, int]] = []
        self.before_open: Callable[[int], object] = lambda index: None

    def process_read(self, request: bytes) -> bytes:
        return b""

    def process_write(self, request: bytes, entry_index: int) -> tuple[bytes, MakeSnapshot]:
        return b"", MakeSnapshot.NONE

    def install_snapshot(self, snapshot_index: int | None) -> None:
        self.said.append(("install", snapshot_index or 0))

    def fold_snapshot(self, old_snapshot_index: int | None, requests: Sequence[bytes], snapshot_index: int) -> None:
        self.held[snapshot_index] = self.held.get(old_snapshot_index or 0, b"") + b"".join(requests)

    def save_snapshot(self, chunks: Iterable[bytes], snapshot_index: int) -> None:
        self.held[snapshot_index] = b"".join(chunks)

    def open_snapshot(self, snapshot_index: int) -> Iterator[bytes]:
        self.before_open(snapshot_index)
        return iter([self.held[snapshot_index]])

    def delete_snapshot(self, snapshot_index: int) -> None:
        self.said.append(("delete", snapshot_index))
        self.held.pop(snapshot_index, None)

    def list_snapshots(self) -> Sequence[int]:
        return sorted(self.held)


class Desk:
    """A keeper whose store forgets when the test says so."""

    def __init__(self) -> None:
        self.app = Shelf()
        self.storage = MemoryStorage()
        self.storage.open()
        self.made: list[SnapshotMade] = []
        self.crashes: list[BaseException] = []
        self.applied = 0
        self.answer_at_once = True
        self.after_writes: Callable[[Callable[[], None]], object] = lambda then: then()
        self.keeper = SnapshotKeeper(
            self.app,
            self.storage,
            made=self.made.append,
            forget=lambda index: self.app.said.append(("forget", index)),
            ask_app=self.ask_app,
            after_writes=lambda then: self.after_writes(then),
            on_crash=self.crashes.append,
        )
        self.keeper.start()

    def ask_app(self, answer: Callable[[int, bytes], None]) -> None:
        if self.answer_at_once:
            answer(self.applied, b"sessions")

    def record(self, index: int) -> Snapshot:
        """As the node loop does it, once the store has it."""
        size_bytes, checksum = measure(iter([self.app.held[index]]))
        snapshot = Snapshot(
            last_entry=EntryId(1, index),
            configuration=initial_configuration({"n1": "127.0.0.1:1"}),
            configuration_index=1,
            size_bytes=size_bytes,
            checksum=checksum,
        )
        self.keeper.recorded(snapshot)
        return snapshot

    def settle(self) -> None:
        """Until the keeper has done all that it was given."""
        self.keeper.run(lambda: None, 20, lambda: TimeoutError("the keeper hangs"))


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    assert desk.keeper.stop(20)
    assert not desk.crashes


def test_the_two_newest_stay_and_the_store_forgets_before_the_bytes_go(desk: Desk) -> None:
    for index in (10, 20, 30):
        desk.app.held[index] = b"%d" % index
        desk.record(index)
    desk.settle()
    assert desk.app.said == [("forget", 10)], "its record is still on the disk"
    assert sorted(desk.app.held) == [10, 20, 30]
    desk.keeper.forgotten(10)
    desk.settle()
    assert desk.app.said == [("forget", 10), ("delete", 10)]
    assert sorted(desk.app.held) == [20, 30]


def test_a_snapshot_that_is_being_read_stays(desk: Desk) -> None:
    """FLAWS D5: the original deletes the file under a follower that reads it."""
    desk.app.held[10] = b"ten"
    first = desk.record(10)
    with desk.keeper.reading(first.last_entry) as (snapshot, chunks):
        for index in (20, 30, 40):
            desk.app.held[index] = b"newer"
            desk.record(index)
        desk.settle()
        assert desk.app.said == [("forget", 20)]
        assert (snapshot, b"".join(chunks)) == (first, b"ten")
    desk.settle()
    assert desk.app.said == [("forget", 20), ("forget", 10)]
    with pytest.raises(KeyError), desk.keeper.reading(first.last_entry):
        pass
    with pytest.raises(KeyError), desk.keeper.reading(EntryId(2, 40)):
        pass


def test_of_copies_that_wait_only_the_newest_is_read(desk: Desk) -> None:
    begun, gate = threading.Event(), threading.Event()

    def before_open(index: int) -> None:
        if index == 1:
            begun.set()
            gate.wait(20)

    desk.app.before_open = before_open
    for index in range(1, 6):
        desk.app.held[index] = b"%d" % index
        desk.keeper.copied(index, b"s%d" % index)
        if index == 1:
            assert begun.wait(20)
    gate.set()
    desk.settle()
    assert [(made.index, made.sessions) for made in desk.made] == [(1, b"s1"), (5, b"s5")]
    assert desk.made[1].size_bytes == 1
    assert sorted(desk.app.held) == [1, 5]


def test_a_fetched_one_that_comes_too_late_does_not_take_the_apps_own_with_it(desk: Desk) -> None:
    desk.app.held[10] = b"made here"
    desk.keeper.copied(10, b"")
    desk.settle()
    desk.keeper.discard(10, fetched=True)
    desk.settle()
    assert 10 in desk.app.held, "it is on its way into the catalogue"
    desk.record(10)
    desk.keeper.discard(10, fetched=False)
    desk.settle()
    assert 10 in desk.app.held, "it is in the catalogue"
    desk.app.held[20] = b"fetched"
    desk.keeper.discard(20, fetched=True)
    desk.app.held[30] = b"made, and outdated"
    desk.keeper.copied(30, b"")
    desk.settle()
    desk.keeper.discard(30, fetched=False)
    desk.settle()
    assert sorted(desk.app.held) == [10]


def commands(first_index: int, *given: bytes, kind: EntryKind = EntryKind.COMMAND) -> EntryBatch:
    return EntryBatch(term=1, first_index=first_index, kind=kind, commands=given)


def test_a_fold_reads_the_commands_since_the_last_one_and_no_others(desk: Desk) -> None:
    desk.storage.write(
        None, [commands(1, b"a", b"b"), commands(3, b"", kind=EntryKind.NOOP), commands(4, b"c", b"d", b"e")]
    )
    desk.applied = 4
    desk.keeper.fold()
    desk.settle()
    assert desk.app.held == {4: b"abc"}
    assert [(made.index, made.sessions) for made in desk.made] == [(4, b"sessions")]
    desk.record(4)
    desk.applied = 6
    desk.keeper.fold()
    desk.settle()
    assert desk.app.held[6] == b"abcde"


def test_a_write_that_a_client_repeated_is_folded_once(desk: Desk) -> None:
    """Its first attempt may be part of the older snapshot, whose sessions tell of it."""
    opened = opening(Limits(sessions_max=10, writes_max=10, answer_bytes_max=1000))
    first, second = (encode_session_write(1, number, 1, b"write %d;" % number) for number in (1, 2))
    desk.storage.write(
        None,
        [
            commands(1, opened, first, kind=EntryKind.SESSION),
            commands(3, b"plain;"),
            commands(4, first, second, second, kind=EntryKind.SESSION),
        ],
    )
    assert list(LoggedCommands(desk.storage, None, 6)) == [b"write 1;", b"plain;", b"write 2;"]
    table = SessionTable()
    commands_applied(table, desk.storage.read(1, 2, 10**9))
    desk.app.held[2] = b"write 1;"
    older = dataclasses.replace(desk.record(2), sessions=table.encode())
    assert list(LoggedCommands(desk.storage, older, 6)) == [b"plain;", b"write 2;"]


def test_commands_that_are_cut_off_under_a_fold_end_it(desk: Desk) -> None:
    desk.storage.write(None, [commands(1, b"a"), commands(2, b"b"), commands(3, b"c")])
    requests = LoggedCommands(desk.storage, None, 3)
    assert list(requests) == list(requests) == [b"a", b"b", b"c"]
    assert (len(requests), requests[1], requests[-1], requests[:2]) == (3, b"b", b"c", [b"a", b"b"])
    with pytest.raises(IndexError):
        requests[3]
    desk.app.held[2] = b""
    desk.storage.record_snapshot(desk.record(2))
    desk.storage.compact(2, 10**9)
    with pytest.raises(StorageFailed, match="no longer in the log"):
        list(requests)


def test_a_fold_of_what_was_copied_leaves_the_copy_alone(desk: Desk) -> None:
    """The record of the copy is on its way to the store: other bytes, or none, must not take its place.

    Found by the simulator: a fold that failed took the copy with it, and the node could not start again.
    """
    desk.app.held[3] = b"copied"
    desk.keeper.copied(3, b"sessions")
    desk.settle()
    desk.applied = 3
    waiter = Waiter()
    desk.keeper.fold(waiter)  # of commands that the store does not have
    desk.settle()
    assert desk.app.held == {3: b"copied"}
    assert not waiter.done
    desk.record(3)
    assert waiter.result(20, TimeoutError) == 3
    assert len(desk.made) == 1


def fold_what_arrives(desk: Desk) -> Waiter:
    """Of entry 3: the app has become the state of what was fetched, whose record is not in the catalogue yet."""
    desk.keeper.arrives(3)
    desk.app.held[3] = b"the leader's"
    desk.applied = 3
    waiter = Waiter()
    desk.keeper.fold(waiter)  # the log before it is gone by then
    desk.settle()
    assert desk.app.held == {3: b"the leader's"}
    assert not waiter.done and not desk.made
    return waiter


def test_a_fold_leaves_alone_what_has_come_from_the_leader(desk: Desk) -> None:
    """Found by the simulator: it failed, took the bytes along, and the catalogue told of a snapshot without any."""
    waiter = fold_what_arrives(desk)
    desk.record(3)
    assert waiter.result(20, TimeoutError) == 3


def test_who_waits_for_what_arrives_is_told_when_it_is_discarded(desk: Desk) -> None:
    waiter = fold_what_arrives(desk)
    desk.keeper.discard(3, fetched=True)
    with pytest.raises(SnapshotFailed, match="ask again"):
        waiter.result(20, TimeoutError)
    desk.settle()
    assert not desk.app.held


def test_who_waits_is_not_told_so_while_another_fetch_of_it_is_under_way(desk: Desk) -> None:
    waiter = fold_what_arrives(desk)
    desk.keeper.arrives(3)
    desk.keeper.discard(3, fetched=True)  # the first
    desk.record(3)
    assert waiter.result(20, TimeoutError) == 3


def test_what_is_fetched_again_outlives_the_end_of_the_fetch_before(desk: Desk) -> None:
    desk.keeper.arrives(3)
    desk.app.held[3] = b"of one leader"
    desk.keeper.arrives(3)
    desk.keeper.discard(3, fetched=True)  # the first
    desk.app.held[3] = b"of another one"
    desk.settle()
    assert desk.app.held == {3: b"of another one"}
    desk.record(3)
    desk.keeper.arrives(3)
    desk.keeper.discard(3, fetched=True)  # a third one that was given up
    desk.settle()
    assert desk.app.held == {3: b"of another one"}
    for index in (20, 30):
        desk.app.held[index] = b"newer"
        desk.record(index)
    desk.keeper.forgotten(3)
    desk.settle()
    assert sorted(desk.app.held) == [20, 30]


def test_nothing_arrives_while_the_one_before_is_being_deleted(desk: Desk) -> None:
    deleting, gate = threading.Event(), threading.Event()
    delete = desk.app.delete_snapshot

    def delete_slowly(index: int) -> None:
        deleting.set()
        gate.wait(20)
        delete(index)

    desk.app.delete_snapshot = delete_slowly  # type: ignore[method-assign]
    desk.app.held[3] = b"of no use"
    desk.keeper.discard(3, fetched=True)
    assert deleting.wait(20)

    def fetch() -> None:
        desk.keeper.arrives(3)
        desk.app.held[3] = b"fetched"

    fetching = threading.Thread(target=fetch)
    fetching.start()
    fetching.join(0.05)
    assert fetching.is_alive()
    gate.set()
    fetching.join(20)
    desk.settle()
    assert desk.app.held == {3: b"fetched"}


def test_a_snapshot_that_is_made_again_outlives_the_damaged_one_of_its_index(desk: Desk) -> None:
    """The app asks for one at the same entry when it is replayed; the store forgets the damaged one meanwhile."""
    desk.app.held[10] = b"made again"
    desk.keeper.copied(10, b"")
    desk.settle()
    desk.keeper.forgotten(10)
    desk.settle()
    assert desk.app.held == {10: b"made again"}


def test_a_fold_comes_after_the_writes_that_wait_for_the_disk(desk: Desk) -> None:
    """What is committed and applied need not be on this node's disk yet. Found by the simulator."""
    desk.applied = 3
    waiting: list[Callable[[], None]] = []
    desk.after_writes = waiting.append
    waiter = Waiter()
    desk.keeper.fold(waiter)
    desk.settle()
    assert not waiter.done
    desk.storage.write(None, [commands(1, b"a", b"b", b"c")])
    for then in waiting:
        then()
    desk.settle()
    assert desk.app.held == {3: b"abc"}


def test_who_asked_for_a_snapshot_is_told_that_the_node_ends() -> None:
    """Wherever the wish is by then: with the applier, at the disk, or not handed on at all."""
    desk = Desk()
    at_the_applier, at_the_disk, too_late = Waiter(), Waiter(), Waiter()
    desk.answer_at_once = False
    desk.keeper.fold(at_the_applier)
    desk.answer_at_once = True
    desk.after_writes = lambda then: None
    desk.keeper.fold(at_the_disk)
    assert desk.keeper.stop(20)
    desk.keeper.fold(too_late)
    for waiter in (at_the_applier, at_the_disk, too_late):
        with pytest.raises(SnapshotFailed, match="the node ended"):
            waiter.result(0, TimeoutError)


def test_what_can_not_be_deleted_is_left_for_the_next_start(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(desk.app, "delete_snapshot", fail)
    desk.keeper.discard(5, fetched=False)
    desk.settle()
    assert not desk.crashes
