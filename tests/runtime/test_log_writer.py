"""Many effects, one disk sync; nothing that depends on the disk leaves before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from runtime_parts import TamedStorage, wait_until

from geraft.core.effects import CompactLog, Persist, RecordSnapshot, Send
from geraft.core.entries import Ballot, EntryBatch, EntryId, EntryKind
from geraft.core.events import LogCompacted, Persisted, SnapshotRecorded
from geraft.core.membership import initial_configuration
from geraft.core.messages import TimeoutNow
from geraft.core.snapshots import Snapshot
from geraft.errors import CompactionRefused, StorageError, StorageFailed, StorageLocked
from geraft.runtime import log_writer
from geraft.runtime.log_writer import ForgetSnapshot, LogWriter
from geraft.storage.base import Identity


def batch(index: int, command: bytes = b"x", term: int = 1) -> EntryBatch:
    return EntryBatch(term=term, first_index=index, kind=EntryKind.COMMAND, commands=(command,))


def reply(number: int) -> Send:
    return Send(to="n2", message=TimeoutNow(sender="n1", sender_store="s1", term=number))


class Desk:
    """A log writer over a tamed store; notes what it sends and tells, in order."""

    def __init__(self) -> None:
        self.storage = TamedStorage()
        self.storage.open()
        self.storage.initialise(Identity("c1", "n1", "s1"), [batch(1)])
        self.said: list[Any] = []
        self.crashes: list[BaseException] = []
        self.writer = LogWriter(
            self.storage,
            lambda to, message: self.said.append(message.term),
            self.said.append,
            self.said.append,
            self.said.append,
            self.crashes.append,
        )
        self.writer.start()

    def hold(self) -> None:
        """Let the writer be in the middle of a write."""
        self.storage.write_gate.close()
        self.writer.queue.put(Persist(sequence=0, ballot=Ballot(1, "")))
        assert self.storage.write_gate.held.wait(20)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.storage.write_gate.open()
    assert desk.writer.stop(20)


def test_what_waits_is_written_together_and_in_order(desk: Desk) -> None:
    desk.hold()
    for number in range(2, 102):
        desk.writer.queue.put(Persist(sequence=number, batches=(batch(number),), then=(reply(number),)))
    desk.writer.queue.put(Persist(sequence=102, ballot=Ballot(3, "n2"), then=(reply(102),)))
    desk.writer.queue.put(Persist(sequence=103, then=(reply(103),)))
    desk.storage.write_gate.open()
    wait_until(lambda: 103 in desk.said)
    (_, (ballot, batches)) = desk.storage.writes
    assert ballot == Ballot(3, "n2")
    assert [written.first_index for written in batches] == list(range(2, 102))
    wait_until(lambda: len(desk.said) == 104)
    told = Persisted(sequence=103, last_entry=EntryId(1, 101), ballot=Ballot(3, "n2"))
    assert desk.said[1:] == [*range(2, 104), told]


def test_a_group_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "GROUP_BYTES_MAX", 1000)
    desk.hold()
    for number in range(2, 12):
        desk.writer.queue.put(Persist(sequence=number, batches=(batch(number, bytes(400)),)))
    desk.storage.write_gate.open()
    wait_until(lambda: len(desk.storage.writes) == 5)
    assert [len(batches) for _, batches in desk.storage.writes] == [0, 3, 3, 3, 1]


def test_what_needs_no_disk_goes_out_without_a_write(desk: Desk) -> None:
    desk.writer.queue.put(Persist(sequence=1, then=(reply(1),)))
    wait_until(lambda: len(desk.said) == 2)
    assert desk.said == [1, Persisted(sequence=1, last_entry=None, ballot=None)]
    assert desk.storage.writes == []


def test_the_time_of_a_hung_write_is_measured(desk: Desk) -> None:
    assert desk.writer.busy_seconds() == 0
    desk.hold()
    wait_until(lambda: desk.writer.busy_seconds() > 0.05)
    desk.storage.write_gate.open()
    wait_until(lambda: desk.writer.busy_seconds() == 0)


@pytest.mark.parametrize(
    ("raised", "told"), [(OSError(28, "disk full"), StorageFailed), (StorageLocked("locked"), StorageLocked)]
)
def test_a_failed_write_is_told_once_and_nothing_follows(
    desk: Desk, raised: Exception, told: type[StorageError]
) -> None:
    desk.hold()
    desk.storage.fail_writes = raised
    for number in range(2, 5):
        desk.writer.queue.put(Persist(sequence=number, batches=(batch(number),), then=(reply(number),)))
    desk.storage.write_gate.open()
    wait_until(lambda: desk.crashes)
    desk.storage.fail_writes = None
    desk.writer.queue.put(Persist(sequence=5, batches=(batch(2),), then=(reply(5),)))
    assert [type(crash) for crash in desk.crashes] == [told]
    desk.writer.end_soon(last=desk.storage.close)
    assert desk.writer.wait_until_ended(20)
    assert desk.said == [] and desk.storage.writes == []
    assert not desk.storage.is_open


def test_the_end_is_found_by_a_group_that_fails(desk: Desk) -> None:
    """The end lies in the queue behind what is written: the write that fails has taken it already."""
    desk.hold()
    desk.writer.queue.put(Persist(sequence=1, batches=(batch(2),)))
    desk.writer.end_soon(last=desk.storage.close)
    desk.storage.fail_writes = OSError("broken")
    desk.storage.write_gate.open()
    assert desk.writer.wait_until_ended(20)
    assert not desk.storage.is_open


def record(index: int) -> Snapshot:
    return Snapshot(
        last_entry=EntryId(1, index),
        configuration=initial_configuration({"n1": "127.0.0.1:1"}),
        configuration_index=1,
        size_bytes=0,
        checksum=0,
    )


def test_snapshots_and_cuts_come_in_order_with_writes(desk: Desk) -> None:
    desk.hold()
    put = desk.writer.queue.put
    put(Persist(sequence=1, batches=(batch(2), batch(3)), then=(reply(1),)))
    put(RecordSnapshot(snapshot=record(3)))
    put(Persist(sequence=2, batches=(batch(4),), then=(reply(2),)))
    put(CompactLog(index=3, bytes_max=2**30))
    put(ForgetSnapshot(2))
    desk.storage.write_gate.open()
    wait_until(lambda: desk.said.count(2) == 2)
    after_hold = desk.said[1:]
    assert [told for told in after_hold if not isinstance(told, Persisted)] == [
        1,
        SnapshotRecorded(snapshot=record(3)),
        2,
        LogCompacted(base=EntryId(1, 3)),
        2,
    ]


def test_a_log_gives_way_before_what_comes_after_it_is_written(desk: Desk) -> None:
    desk.hold()
    put = desk.writer.queue.put
    put(Persist(sequence=1, batches=(batch(2),)))
    put(Persist(sequence=2, reset=record(50), then=(reply(9),)))
    put(Persist(sequence=3, batches=(batch(51),), ballot=Ballot(7)))
    desk.storage.write_gate.open()
    wait_until(lambda: any(isinstance(told, Persisted) and told.sequence == 3 for told in desk.said))
    recorded = desk.said.index(SnapshotRecorded(snapshot=record(50)))
    assert desk.said[recorded + 1] == 9, "what waited for it leaves once it is there"
    assert desk.said[-1] == Persisted(sequence=3, last_entry=EntryId(1, 51), ballot=Ballot(7))
    assert desk.storage.read(51, 51, 1) == [batch(51)]
    assert desk.storage.read(2, 2, 1) == []


def test_a_cut_that_the_store_refuses_ends_the_writer(desk: Desk) -> None:
    desk.writer.queue.put(CompactLog(index=1, bytes_max=1))
    wait_until(lambda: desk.crashes)
    assert isinstance(desk.crashes[0], CompactionRefused)
