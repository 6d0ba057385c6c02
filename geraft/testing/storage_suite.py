"""The tests that every log store must pass, yours too. Needs the extra `test` (pytest, hypothesis).

from geraft.testing.storage_suite import StorageSuite

class TestMyStorage(StorageSuite):
    def make_storage(self, directory):
        return MyStorage(directory / "log")
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from geraft.core.entries import ZERO, Ballot, EntryBatch, EntryId, EntryKind
from geraft.core.membership import Configuration, Member, initial_configuration
from geraft.core.snapshots import Snapshot
from geraft.errors import BootstrapRefused, CompactionRefused, LogGap, StorageFailed, StorageLocked
from geraft.storage.base import Identity, RaftStorage, StoredState, TermStart

UNLIMITED = 2**62
IDENTITY = Identity("cluster", "n1", "store-1")
MEMBERS = initial_configuration({"n1": "127.0.0.1:7001", "n2": "127.0.0.1:7002"})


def commands(term: int, first_index: int, last_index: int, command_bytes: int = 0) -> EntryBatch:
    """A batch of commands each of which tells its own term and index, filled up to command_bytes."""
    return EntryBatch(
        term=term,
        first_index=first_index,
        kind=EntryKind.COMMAND,
        commands=tuple(command_of(term, index, command_bytes) for index in range(first_index, last_index + 1)),
    )


def command_of(term: int, index: int, command_bytes: int = 0) -> bytes:
    return (b"%d.%d " % (term, index)).ljust(command_bytes, b".")


def noop(term: int, index: int) -> EntryBatch:
    return EntryBatch(term=term, first_index=index, kind=EntryKind.NOOP, commands=(b"",))


def membership(term: int, index: int, configuration: Configuration = MEMBERS) -> EntryBatch:
    return EntryBatch(
        term=term,
        first_index=index,
        kind=EntryKind.CONFIGURATION,
        commands=(b"",),
        configuration=configuration,
    )


def snapshot_of(term: int, index: int, configuration: Configuration = MEMBERS, sessions: bytes = b"") -> Snapshot:
    """The record of a snapshot whose numbers all differ."""
    return Snapshot(
        last_entry=EntryId(term, index),
        configuration=configuration,
        configuration_index=max(index - 1, 0),
        size_bytes=2**40 + index,
        checksum=2**32 - 1 - index,
        sessions=sessions,
    )


Entry = tuple[int, int, EntryKind, bytes, Configuration | None]
"""Index, term, kind, command, configuration: what a batch holds, one entry at a time."""


def entries_of(batches: Sequence[EntryBatch]) -> list[Entry]:
    return [
        (batch.first_index + offset, batch.term, batch.kind, command, batch.configuration)
        for batch in batches
        for offset, command in enumerate(batch.commands)
    ]


def entry_ids(batches: Sequence[EntryBatch]) -> list[EntryId]:
    return [EntryId(term, index) for index, term, *_ in entries_of(batches)]


class StorageSuite:
    """Subclass it under a name that begins with Test, and give make_storage.

    persistent: whether what is stored outlives the object, so that a second object made for the same directory finds
    it. If not, one object keeps its data over close() and open().
    """

    persistent = True

    def make_storage(self, directory: Path) -> RaftStorage:
        """A store, not open, that keeps what it stores in the directory; called again for the same one."""
        raise NotImplementedError

    def reopen(self, storage: RaftStorage, directory: Path) -> tuple[RaftStorage, StoredState]:
        """Close the store and open it again, as a new object if it is persistent."""
        storage.close()
        if self.persistent:
            storage = self.make_storage(directory)
        return storage, storage.open()

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[RaftStorage]:
        """An open, empty store."""
        storage = self.make_storage(tmp_path)
        storage.open()
        yield storage
        storage.close()

    # Opening ---------------------------------------------------------------------------------------------------------

    def test_a_new_store_is_empty(self, tmp_path: Path) -> None:
        storage = self.make_storage(tmp_path)
        assert storage.open() == StoredState(
            identity=None, ballot=Ballot(0), first_index=1, last_entry=ZERO, terms=(), configurations=()
        )
        assert storage.read(1, 10, UNLIMITED) == []
        storage.close()

    def test_what_was_written_is_there_after_opening_again(self, storage: RaftStorage, tmp_path: Path) -> None:
        storage.initialise(IDENTITY, [membership(1, 1)])
        storage.write(Ballot(1, "n1"), [noop(1, 2), commands(1, 3, 7)])
        storage.write(Ballot(4, "n2"), [noop(4, 8), commands(4, 9, 9)])
        storage, state = self.reopen(storage, tmp_path)
        assert state == StoredState(
            identity=IDENTITY,
            ballot=Ballot(4, "n2"),
            first_index=1,
            last_entry=EntryId(4, 9),
            terms=(TermStart(1, 1), TermStart(8, 4)),
            configurations=((1, MEMBERS),),
        )
        assert entries_of(storage.read(1, 9, UNLIMITED)) == entries_of(
            [membership(1, 1), noop(1, 2), commands(1, 3, 7), noop(4, 8), commands(4, 9, 9)]
        )
        storage.close()

    def test_a_store_is_initialised_once(self, storage: RaftStorage, tmp_path: Path) -> None:
        storage.initialise(IDENTITY, [membership(1, 1)])
        for _ in range(2):
            with pytest.raises(BootstrapRefused):
                storage.initialise(Identity("other", "n9", "store-9"), [])
            storage, state = self.reopen(storage, tmp_path)
            assert (state.identity, state.last_entry) == (IDENTITY, EntryId(1, 1))
        storage.close()

    def test_a_store_may_be_initialised_without_entries(self, storage: RaftStorage, tmp_path: Path) -> None:
        storage.initialise(IDENTITY, [])
        storage, state = self.reopen(storage, tmp_path)
        assert (state.identity, state.last_entry) == (IDENTITY, ZERO)
        storage.close()

    def test_an_open_store_is_locked(self, storage: RaftStorage, tmp_path: Path) -> None:
        storage.write(None, [commands(1, 1, 3)])
        other = self.make_storage(tmp_path) if self.persistent else storage
        with pytest.raises(StorageLocked):
            other.open()
        storage.write(None, [commands(1, 4, 5)])  # the holder goes on
        storage.close()
        assert other.open().last_entry == EntryId(1, 5)
        other.close()

    def test_closing_twice_is_no_error_and_a_closed_store_does_nothing(self, storage: RaftStorage) -> None:
        storage.close()
        storage.close()
        with pytest.raises(StorageFailed):
            storage.write(Ballot(1), [])
        with pytest.raises(StorageFailed):
            storage.initialise(IDENTITY, [])
        with pytest.raises(StorageFailed):
            storage.read(1, 1, UNLIMITED)
        with pytest.raises(StorageFailed):
            storage.record_snapshot(snapshot_of(1, 1))
        with pytest.raises(StorageFailed):
            storage.forget_snapshot(1)
        with pytest.raises(StorageFailed):
            storage.compact(0, UNLIMITED)
        with pytest.raises(StorageFailed):
            storage.reset(snapshot_of(1, 1))

    # Writing ---------------------------------------------------------------------------------------------------------

    def test_a_ballot_alone(self, storage: RaftStorage, tmp_path: Path) -> None:
        storage.write(Ballot(2**63 - 1, "n2"), [])
        storage, state = self.reopen(storage, tmp_path)
        assert state.ballot == Ballot(2**63 - 1, "n2")
        storage.write(None, [commands(3, 1, 1)])  # None leaves it as it is
        storage, state = self.reopen(storage, tmp_path)
        assert state.ballot == Ballot(2**63 - 1, "n2")
        storage.close()

    def test_a_ballot_and_batches_go_together(self, storage: RaftStorage, tmp_path: Path) -> None:
        storage.write(Ballot(1), [commands(1, 1, 2), commands(2, 3, 3), commands(2, 4, 9)])
        with pytest.raises(LogGap):
            storage.write(Ballot(5, "n5"), [commands(5, 10, 10), commands(5, 12, 12)])
        storage, state = self.reopen(storage, tmp_path)
        assert (state.ballot, state.last_entry) == (Ballot(1), EntryId(2, 9))
        assert state.terms == (TermStart(1, 1), TermStart(3, 2))
        storage.close()

    def test_recovery_gives_another_identity(self, storage: RaftStorage, tmp_path: Path) -> None:
        if type(storage).recover is RaftStorage.recover:
            pytest.skip("this kind of store can't be given another identity")
        other = IDENTITY._replace(cluster_id="another cluster")
        alone = initial_configuration({"n1": "127.0.0.1:7001"})
        storage.initialise(IDENTITY, [membership(1, 1)])
        storage.write(Ballot(3, "n2"), [commands(2, 2, 5)])
        with pytest.raises(LogGap):
            storage.recover(other, Ballot(4), membership(4, 7, alone))
        for held, last_index in ((IDENTITY, 5), (other, 6)):
            storage, state = self.reopen(storage, tmp_path)
            assert (state.identity, state.last_entry.index) == (held, last_index)
            storage.recover(other, Ballot(4), membership(4, 6, alone))  # the second time in place of the first
        storage, state = self.reopen(storage, tmp_path)
        assert (state.identity, state.ballot, state.last_entry) == (other, Ballot(4), EntryId(4, 6))
        assert state.configurations == ((1, MEMBERS), (6, alone))
        assert entry_ids(storage.read(1, 9, UNLIMITED))[1:] == [*(EntryId(2, index) for index in range(2, 6)), (4, 6)]
        storage.close()

    @pytest.mark.parametrize("first_index", [0, 7, 2**62])
    def test_a_gap_changes_nothing(self, storage: RaftStorage, first_index: int) -> None:
        storage.write(Ballot(1), [commands(1, 1, 5)])
        with pytest.raises(LogGap):
            storage.write(Ballot(2, "n2"), [commands(2, 3, 3), commands(2, first_index, first_index)])
        assert entry_ids(storage.read(1, 9, UNLIMITED)) == [EntryId(1, index) for index in range(1, 6)]
        storage.write(None, [commands(1, 6, 6)])  # and the store goes on
        assert entry_ids(storage.read(6, 9, UNLIMITED)) == [EntryId(1, 6)]

    def test_a_log_starts_at_one(self, storage: RaftStorage) -> None:
        with pytest.raises(LogGap):
            storage.write(None, [commands(1, 2, 2)])

    @pytest.mark.parametrize(
        ("cut", "what"),
        [
            (4, "at the border of a batch"),
            (6, "in the middle of a batch"),
            (7, "at the last entry of a batch"),
            (2, "in the first batch, others after it"),
            (1, "everything"),
        ],
    )
    def test_a_batch_replaces_the_tail_from_its_first_index_on(
        self, storage: RaftStorage, tmp_path: Path, cut: int, what: str
    ) -> None:
        old = [commands(1, 1, 3), commands(2, 4, 7), commands(2, 8, 9)]
        storage.write(None, old)
        storage.write(None, [commands(5, cut, cut + 1)])
        expected = [entry for entry in entries_of(old) if entry[0] < cut] + entries_of([commands(5, cut, cut + 1)])
        for _ in range(2):
            assert entries_of(storage.read(1, 99, UNLIMITED)) == expected, what
            storage, state = self.reopen(storage, tmp_path)
            assert state.last_entry == EntryId(5, cut + 1)
            kept = [start for start in (TermStart(1, 1), TermStart(4, 2)) if start.first_index < cut]
            assert state.terms == (*kept, TermStart(cut, 5))
        storage.close()

    def test_batches_of_one_write_replace_each_other_in_turn(self, storage: RaftStorage, tmp_path: Path) -> None:
        storage.write(None, [commands(1, 1, 5)])
        storage.write(
            None, [commands(2, 5, 9), membership(2, 10), commands(3, 8, 8), commands(4, 4, 6), commands(5, 6, 6)]
        )
        storage, state = self.reopen(storage, tmp_path)
        assert entry_ids(storage.read(1, 99, UNLIMITED)) == [(1, 1), (1, 2), (1, 3), (4, 4), (4, 5), (5, 6)]
        assert (state.last_entry, state.configurations) == (EntryId(5, 6), ())
        storage.close()

    def test_a_configuration_that_is_cut_off_is_forgotten(self, storage: RaftStorage, tmp_path: Path) -> None:
        three = Configuration(
            voters=MEMBERS.voters,
            learners=(Member("n3", "127.0.0.1:7003", "store-3"),),
            outgoing=(Member("n0", "127.0.0.1:7000"),),
        )
        storage.initialise(IDENTITY, [membership(1, 1)])
        storage.write(None, [commands(1, 2, 4), membership(1, 5, three), commands(1, 6, 6)])
        storage, state = self.reopen(storage, tmp_path)
        assert state.configurations == ((1, MEMBERS), (5, three))
        storage.write(None, [noop(2, 6)])  # behind it: it stays
        storage, state = self.reopen(storage, tmp_path)
        assert state.configurations == ((1, MEMBERS), (5, three))
        storage.write(None, [noop(3, 5)])
        storage, state = self.reopen(storage, tmp_path)
        assert state.configurations == ((1, MEMBERS),)
        assert state.terms == (TermStart(1, 1), TermStart(5, 3))
        storage.close()

    def test_an_entry_of_64_mib(self, storage: RaftStorage, tmp_path: Path) -> None:
        huge = random.Random(64).randbytes(64 * 1024 * 1024)
        batch = EntryBatch(term=1, first_index=2, kind=EntryKind.COMMAND, commands=(huge,))
        storage.write(None, [commands(1, 1, 1), batch, commands(1, 3, 3)])
        storage, state = self.reopen(storage, tmp_path)
        assert state.last_entry == EntryId(1, 3)
        (found,) = storage.read(2, 3, 1)
        assert found.commands[0] == huge
        storage.close()

    # Reading ---------------------------------------------------------------------------------------------------------

    def test_reads_give_exactly_what_is_asked_for(self, storage: RaftStorage) -> None:
        written = [commands(1, 1, 4), noop(2, 5), commands(2, 6, 6), commands(2, 7, 12)]
        storage.write(None, written)
        everything = entries_of(written)
        for first_index in range(1, 14):
            for last_index in range(first_index, 15):
                found = storage.read(first_index, last_index, UNLIMITED)
                assert entries_of(found) == everything[first_index - 1 : last_index], (first_index, last_index)
        for first_index in (0, 13, 2**62):
            assert storage.read(first_index, 2**62, UNLIMITED) == []
        assert storage.read(5, 4, UNLIMITED) == []

    def test_reads_are_cut_by_bytes_but_never_before_the_first_batch(self, storage: RaftStorage) -> None:
        storage.write(None, [commands(1, index, index, command_bytes=1000) for index in range(1, 21)])
        assert entry_ids(storage.read(3, 20, 1)) == [(1, 3)]
        found = entry_ids(storage.read(3, 20, 5000))
        assert found == [EntryId(1, index) for index in range(3, 3 + len(found))]
        assert 3 <= len(found) <= 5

    def test_threads_read_while_another_writes_and_cuts(self, storage: RaftStorage) -> None:
        storage.write(None, [commands(1, 1, 20)])
        written = threading.Event()
        failures: list[BaseException] = []
        reads = [0, 0, 0]

        def read(reader: int) -> None:
            rng = random.Random(reader)
            try:
                while not written.is_set() or reads[reader] < 20:
                    first_index = rng.randint(1, 250)
                    found = entries_of(storage.read(first_index, first_index + rng.randint(0, 100), 10_000))
                    for (index, term, _, command, _), expected in zip(
                        found, range(first_index, first_index + len(found)), strict=True
                    ):
                        assert (index, command) == (expected, command_of(term, index))
                    assert all(left[1] <= right[1] for left, right in pairwise(found)), "terms never fall"
                    assert found or first_index > 20, "entries 1 to 20 are always there"
                    reads[reader] += 1
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=read, args=(reader,)) for reader in range(len(reads))]
        for thread in threads:
            thread.start()
        rng = random.Random("writer")
        last_index = 20
        try:
            for term in range(2, 200):
                first_index = rng.randint(max(21, last_index - 10), last_index + 1)
                last_index = first_index + rng.randint(0, 12)
                storage.write(None, [commands(term, first_index, last_index)])
        finally:
            written.set()
            for thread in threads:
                thread.join(60)
        assert not failures
        assert min(reads) >= 20
        assert [index for _, index in entry_ids(storage.read(1, last_index, UNLIMITED))] == [*range(1, last_index + 1)]

    # Snapshots and compaction ----------------------------------------------------------------------------------------

    def test_the_catalogue_is_kept_in_order_of_index(self, storage: RaftStorage, tmp_path: Path) -> None:
        storage.write(Ballot(2), [membership(1, 1), commands(1, 2, 30)])
        storage.record_snapshot(snapshot_of(1, 20, sessions=b"\0sessions\xff" * 1000))
        storage.record_snapshot(snapshot_of(1, 10))
        replacing = snapshot_of(1, 10, sessions=b"another")
        storage.record_snapshot(replacing)
        storage, state = self.reopen(storage, tmp_path)
        assert state.snapshots == (replacing, snapshot_of(1, 20, sessions=b"\0sessions\xff" * 1000))
        assert (state.base, state.last_entry, state.ballot) == (ZERO, EntryId(1, 30), Ballot(2))  # the log stays
        storage.forget_snapshot(20)
        storage.forget_snapshot(20)
        storage.forget_snapshot(7)
        storage, state = self.reopen(storage, tmp_path)
        assert state.snapshots == (replacing,)
        storage.close()

    def test_a_log_is_cut_at_the_end_of_whole_batches(self, storage: RaftStorage, tmp_path: Path) -> None:
        other = Configuration(voters=MEMBERS.voters[:1])
        written = [membership(1, 1), commands(1, 2, 5), membership(2, 6, other), commands(2, 7, 9), commands(3, 10, 20)]
        storage.initialise(IDENTITY, [])
        storage.write(Ballot(3, "n1"), written)
        storage.record_snapshot(snapshot_of(3, 15, other))
        for index, base in ((4, (1, 1)), (4, (1, 1)), (5, (1, 5)), (3, (1, 5)), (8, (2, 6)), (15, (2, 9))):
            assert storage.compact(index, UNLIMITED) == base
            kept = [entry for entry in entries_of(written) if entry[0] > base[1]]
            assert entries_of(storage.read(base[1] + 1, 99, UNLIMITED)) == kept
            assert storage.read(base[1], 99, UNLIMITED) == []
            storage, state = self.reopen(storage, tmp_path)
            starts = {1: (1, 1), 6: (6, 2), 10: (10, 3)}
            covering = max(first for first in starts if first <= base[1] + 1)
            assert state == StoredState(
                identity=IDENTITY,
                ballot=Ballot(3, "n1"),
                base=EntryId(*base),
                first_index=base[1] + 1,
                last_entry=EntryId(3, 20),
                terms=(
                    TermStart(base[1] + 1, starts[covering][1]),
                    *(TermStart(*start) for first, start in starts.items() if first > base[1] + 1),
                ),
                configurations=((1, MEMBERS), (6, other)) if base[1] < 6 else ((6, other),),
                snapshots=(snapshot_of(3, 15, other),),
            )
        storage.close()

    def test_a_whole_log_may_go(self, storage: RaftStorage, tmp_path: Path) -> None:
        storage.write(None, [membership(1, 1), commands(4, 2, 9)])
        storage.record_snapshot(snapshot_of(4, 9))
        assert storage.compact(9, UNLIMITED) == EntryId(4, 9)
        storage, state = self.reopen(storage, tmp_path)
        assert (state.base, state.first_index, state.last_entry) == (EntryId(4, 9), 10, EntryId(4, 9))
        assert (state.terms, state.configurations) == ((), ((1, MEMBERS),))
        storage.write(None, [commands(4, 10, 12), commands(5, 13, 13)])
        storage, state = self.reopen(storage, tmp_path)
        assert (state.base, state.terms) == (EntryId(4, 9), (TermStart(10, 4), TermStart(13, 5)))
        assert entry_ids(storage.read(10, 99, UNLIMITED)) == [(4, 10), (4, 11), (4, 12), (5, 13)]
        storage.close()

    def test_a_log_is_never_cut_further_than_a_snapshot_reaches(self, storage: RaftStorage, tmp_path: Path) -> None:
        storage.write(None, [commands(1, index, index) for index in range(1, 21)])
        with pytest.raises(CompactionRefused):
            storage.compact(1, UNLIMITED)
        storage.record_snapshot(snapshot_of(1, 10))
        with pytest.raises(CompactionRefused):
            storage.compact(11, UNLIMITED)
        assert entry_ids(storage.read(1, 1, UNLIMITED)) == [(1, 1)]
        assert storage.compact(10, UNLIMITED) == EntryId(1, 10)
        storage.record_snapshot(snapshot_of(1, 15))
        storage.forget_snapshot(15)
        with pytest.raises(CompactionRefused):
            storage.compact(15, UNLIMITED)
        storage, state = self.reopen(storage, tmp_path)
        assert (state.base, state.last_entry) == (EntryId(1, 10), EntryId(1, 20))
        storage.close()

    def test_a_log_is_cut_in_bounded_steps(self, storage: RaftStorage) -> None:
        storage.write(None, [commands(1, index, index, command_bytes=1000) for index in range(1, 41)])
        storage.record_snapshot(snapshot_of(1, 40))
        bases = [0]
        while bases[-1] < 30:
            bases.append(storage.compact(30, 5000).index)
            assert 1 <= bases[-1] - bases[-2] <= 6
        assert bases[-1] == 30
        assert storage.compact(31, 1) == EntryId(1, 31), "one batch at least"

    def test_nothing_is_written_over_what_was_cut_off(self, storage: RaftStorage, tmp_path: Path) -> None:
        storage.write(None, [commands(1, 1, 5), commands(2, 6, 9)])
        storage.record_snapshot(snapshot_of(1, 5))
        storage.compact(5, UNLIMITED)
        for first_index in (1, 5, 11):
            with pytest.raises(LogGap):
                storage.write(None, [commands(3, first_index, first_index)])
        storage.write(None, [commands(3, 6, 7)])
        storage, state = self.reopen(storage, tmp_path)
        assert (state.base, state.terms) == (EntryId(1, 5), (TermStart(6, 3),))
        assert entry_ids(storage.read(6, 99, UNLIMITED)) == [(3, 6), (3, 7)]
        storage.close()

    @pytest.mark.parametrize("index", [4, 9, 100])
    def test_a_log_gives_way_to_a_snapshot(self, storage: RaftStorage, tmp_path: Path, index: int) -> None:
        other = Configuration(voters=MEMBERS.voters[:1])
        storage.initialise(IDENTITY, [membership(1, 1)])
        storage.write(Ballot(7, "n2"), [commands(2, 2, 6), commands(3, 7, 9)])
        storage.record_snapshot(snapshot_of(1, 1))
        arrived = snapshot_of(6, index, other, sessions=b"table")
        storage.reset(arrived)
        for _ in range(2):
            assert storage.read(index, 2**62, UNLIMITED) == storage.read(1, 2**62, UNLIMITED) == []
            storage, state = self.reopen(storage, tmp_path)
            assert state == StoredState(
                identity=IDENTITY,
                ballot=Ballot(7, "n2"),
                base=EntryId(6, index),
                first_index=index + 1,
                last_entry=EntryId(6, index),
                terms=(),
                configurations=((index - 1, other),),
                snapshots=(snapshot_of(1, 1), arrived),
            )
        with pytest.raises(LogGap):
            storage.write(None, [commands(7, index, index)])
        storage.write(None, [commands(7, index + 1, index + 3)])
        storage, state = self.reopen(storage, tmp_path)
        assert (state.base, state.terms) == (EntryId(6, index), (TermStart(index + 1, 7),))
        assert entry_ids(storage.read(index + 1, 2**62, UNLIMITED)) == [(7, index + 1), (7, index + 2), (7, index + 3)]
        storage.close()

    def test_a_new_store_may_begin_with_a_snapshot(self, storage: RaftStorage, tmp_path: Path) -> None:
        storage.initialise(IDENTITY, [])
        storage.reset(snapshot_of(3, 1000))
        storage, state = self.reopen(storage, tmp_path)
        assert (state.base, state.last_entry, state.identity) == (EntryId(3, 1000), EntryId(3, 1000), IDENTITY)
        storage.close()

    def test_threads_read_while_another_cuts_the_log_off_behind_them(self, storage: RaftStorage) -> None:
        storage.write(None, [commands(1, index, index + 4) for index in range(1, 2001, 5)])
        storage.record_snapshot(snapshot_of(1, 2000))
        failures: list[BaseException] = []
        cut = threading.Event()
        reads = [0, 0]

        def read(reader: int) -> None:
            rng = random.Random(reader)
            try:
                while not cut.is_set():
                    first_index = rng.randint(1, 2000)
                    found = entries_of(storage.read(first_index, first_index + 50, 10_000))
                    assert [index for index, *_ in found] == [*range(first_index, first_index + len(found))]
                    assert found or first_index <= 1990, "entries 1991 to 2000 are never cut"
                    reads[reader] += 1
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=read, args=(reader,)) for reader in range(len(reads))]
        for thread in threads:
            thread.start()
        try:
            while storage.compact(1990, 100) != EntryId(1, 1990):
                pass
        finally:
            cut.set()
            for thread in threads:
                thread.join(60)
        assert not failures
        assert entry_ids(storage.read(1991, 2000, UNLIMITED)) == [EntryId(1, index) for index in range(1991, 2001)]

    # Everything at once ----------------------------------------------------------------------------------------------

    def test_any_sequence_of_calls_agrees_with_a_list_of_entries(self) -> None:
        """Hypothesis writes, cuts, reads and reopens as it likes, beside a model that is a plain list."""

        class Machine(StorageMachine):
            suite = self

        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=40,
                stateful_step_count=20,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


indexes_back = st.integers(0, 12)
ballots = st.none() | st.builds(Ballot, st.integers(0, 2**63 - 1), st.text(max_size=3))
member_lists = st.builds(
    Configuration,
    voters=st.lists(
        st.builds(Member, st.sampled_from("abcd"), st.just("127.0.0.1:1")),
        min_size=1,
        unique_by=lambda member: member.id,
    ).map(lambda members: tuple(sorted(members))),
)
pieces = st.one_of(st.lists(st.binary(max_size=50), min_size=1, max_size=6), st.just(EntryKind.NOOP), member_lists)
"""What a batch holds: commands, nothing, or a configuration."""


class StorageMachine(RuleBasedStateMachine):
    """A store of the suite and, beside it, the list of entries that it must hold."""

    suite: StorageSuite

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="geraft-storage-"))
        self.storage = self.suite.make_storage(self.directory)
        self.storage.open()
        self.identity: Identity | None = None
        self.ballot = Ballot(0)
        self.base = ZERO
        self.base_configurations: list[tuple[int, Configuration]] = []  # the one in force at base, if any
        self.snapshots: dict[int, Snapshot] = {}
        self.entries: list[Entry] = []  # those after base

    @property
    def last_entry(self) -> EntryId:
        return EntryId(self.entries[-1][1], self.entries[-1][0]) if self.entries else self.base

    def teardown(self) -> None:
        self.storage.close()
        shutil.rmtree(self.directory)

    @rule(ballot=ballots, parts=st.lists(st.tuples(indexes_back, st.integers(1, 5), pieces), max_size=4))
    def write(
        self, ballot: Ballot | None, parts: list[tuple[int, int, list[bytes] | EntryKind | Configuration]]
    ) -> None:
        batches, self.entries = self._batches(parts)
        self.storage.write(ballot, batches)
        self.ballot = self.ballot if ballot is None else ballot

    @rule(parts=st.lists(st.tuples(indexes_back, st.integers(1, 5), pieces), max_size=2), gap=st.integers(2, 2**60))
    def write_with_a_gap(self, parts: list[tuple[int, int, list[bytes] | EntryKind | Configuration]], gap: int) -> None:
        batches, entries = self._batches(parts)
        with pytest.raises(LogGap):
            self.storage.write(Ballot(77, "nobody"), [*batches, noop(9, self.base.index + len(entries) + gap)])

    @precondition(lambda self: self.identity is None and self.last_entry == ZERO)
    @rule()
    def initialise(self) -> None:
        self.storage.initialise(IDENTITY, [membership(1, 1)])
        self.identity, self.entries = IDENTITY, entries_of([membership(1, 1)])

    @rule(back=st.integers(-2, 30), count=st.integers(0, 30), bytes_max=st.integers(0, 300))
    def read(self, back: int, count: int, bytes_max: int) -> None:
        first_index = self.last_entry.index - back
        last_index = first_index + count
        found = entries_of(self.storage.read(first_index, last_index, bytes_max))
        if not self.base.index < first_index <= self.last_entry.index:
            assert found == []
        else:
            assert found
            start = first_index - self.base.index - 1
            assert found == self.entries[start : start + count + 1][: len(found)]

    @rule(back=st.integers(0, 20), sessions=st.binary(max_size=20))
    def record(self, back: int, sessions: bytes) -> None:
        index = max(1, self.last_entry.index - back)
        self.snapshots[index] = snapshot_of(5, index, sessions=sessions)
        self.storage.record_snapshot(self.snapshots[index])

    @rule(back=st.integers(0, 20))
    def forget(self, back: int) -> None:
        index = max(1, self.last_entry.index - back)
        self.snapshots.pop(index, None)
        self.storage.forget_snapshot(index)

    @rule(back=st.integers(0, 20), bytes_max=st.sampled_from([0, 100, UNLIMITED]))
    def compact(self, back: int, bytes_max: int) -> None:
        index = max(1, self.last_entry.index - back)
        if index > max(self.snapshots, default=0):
            with pytest.raises(CompactionRefused):
                self.storage.compact(index, bytes_max)
            return
        base = self.storage.compact(index, bytes_max)
        assert base == self.base or self.base.index < base.index <= index
        count = base.index - self.base.index
        dropped, self.entries = self.entries[:count], self.entries[count:]
        if dropped:
            assert base == EntryId(dropped[-1][1], dropped[-1][0])
        changes = [(each, members) for each, *_, members in dropped if members is not None]
        self.base, self.base_configurations = base, [*self.base_configurations, *changes][-1:]

    @rule(away=st.integers(-10, 30))
    def reset(self, away: int) -> None:
        index = max(1, self.last_entry.index + away)
        snapshot = self.snapshots[index] = snapshot_of(5, index)
        self.storage.reset(snapshot)
        self.entries, self.base = [], snapshot.last_entry
        self.base_configurations = [(snapshot.configuration_index, snapshot.configuration)]

    @rule()
    def reopen(self) -> None:
        self.storage, state = self.suite.reopen(self.storage, self.directory)
        terms = [term for _, term, *_ in self.entries]
        configurations = [(index, members) for index, *_, members in self.entries if members is not None]
        assert state == StoredState(
            identity=self.identity,
            ballot=self.ballot,
            base=self.base,
            first_index=self.base.index + 1,
            last_entry=self.last_entry,
            terms=tuple(
                TermStart(index, term)
                for index, (before, term) in enumerate(pairwise([None, *terms]), self.base.index + 1)
                if term is not None and term != before
            ),
            configurations=(*self.base_configurations, *configurations),
            snapshots=tuple(self.snapshots[index] for index in sorted(self.snapshots)),
        )
        assert entries_of(self.storage.read(self.base.index + 1, 2**62, UNLIMITED)) == self.entries

    def _batches(
        self, parts: list[tuple[int, int, list[bytes] | EntryKind | Configuration]]
    ) -> tuple[list[EntryBatch], list[Entry]]:
        """The batches that the parts make, each starting somewhat before the end, and the entries after writing."""
        batches, entries = [], list(self.entries)
        for back, term, piece in parts:
            first_index = self.base.index + max(1, len(entries) + 1 - back)
            if isinstance(piece, list):
                batch = EntryBatch(term=term, first_index=first_index, kind=EntryKind.COMMAND, commands=tuple(piece))
            elif isinstance(piece, Configuration):
                batch = membership(term, first_index, piece)
            else:
                batch = noop(term, first_index)
            batches.append(batch)
            entries = entries[: first_index - 1 - self.base.index] + entries_of([batch])
        return batches, entries


__all__ = [
    "StorageMachine",
    "StorageSuite",
    "command_of",
    "commands",
    "entries_of",
    "entry_ids",
    "membership",
    "noop",
    "snapshot_of",
]
