"""RocksdbStorage: a log, a vote and an identity in a RocksDB. Needs the extra `rocksdb`.

    e INDEX     one batch of entries, under its first index (8 bytes, the highest first, so that keys stand in order)
    m ballot    current term and vote
    m state     whose state this is, what was cut off, where terms change, configurations, catalogue (State)

A call is one WriteBatch, synced. RocksDB's own checksums cover its files; each value carries one more, which begins
with that of its key, so that nothing passes for another thing. PATH.lock says who holds it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from google.protobuf.message import DecodeError

from geraft.core.entries import INDEX_MAX, ZERO, Ballot, EntryBatch, EntryId
from geraft.core.snapshots import Snapshot
from geraft.errors import (
    BootstrapRefused,
    ConfigError,
    StorageCorrupt,
    StorageError,
    StorageFailed,
    StorageForeign,
    StorageFormatTooNew,
    StorageLocked,
)
from geraft.pb import file_store_pb2 as pb
from geraft.records import BadRecord, decode_batch, encode_batch
from geraft.storage.base import FORMAT_VERSION, Identity, RaftStorage, StoredState
from geraft.storage.holding import (
    RESTORE_ADVICE,
    Lock,
    add_holder,
    advice_for,
    check_process,
    make_directory,
    remove_holder,
    sync,
    take_lock,
)
from geraft.storage.splice import (
    EMPTY,
    after_compact,
    after_forget,
    after_record,
    after_reset,
    after_write,
    check_compaction,
    check_no_gap,
    settle,
)
from geraft.storage.steps import decode_state, encode_ballot, encode_state

if TYPE_CHECKING:
    from rocksdict import Rdict, WriteBatch

BALLOT_KEY: Final = b"mballot"
STATE_KEY: Final = b"mstate"
MARK: Final = "geraft-format"
"""A file beside RocksDB's own: that this is a geraft store, and of which format."""
MARK_TEXT: Final = "geraft log store in RocksDB, format "
WRITE_BUFFER_BYTES: Final = 16 * 1024 * 1024


class RocksdbStorage(RaftStorage):
    """A durable store in a RocksDB of its own, made where there is none. Needs `pip install geraft[rocksdb]`.

    One process at a time, told by an flock on PATH.lock: use a local file system. To copy a store close it first.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        given = os.fspath(path)
        if not isinstance(given, str) or not given:
            raise ConfigError(f"path must name a directory, not {given!r}")
        self._synced: Final = _synced()  # says now if rocksdict is missing
        self.path: Final = os.path.realpath(given)
        self._lock: Lock | None = None
        self._pid = 0
        self._database: Rdict | None = None
        self._state: StoredState | None = None
        self._failure: BaseException | None = None
        self._cuts = 0  # odd while one is under way, so that readers can tell a cut log from a damaged one

    # What RaftStorage asks for ---------------------------------------------------------------------------------------

    def open(self) -> StoredState:
        if self._database is not None and self._pid == os.getpid():
            raise StorageLocked(
                f"{self.path} is open already in this object (process {self._pid}): close it first", path=self.path
            )
        with self._errors("opening it"):
            exists = _check_mark(self.path)  # before the lock, which leaves a file beside what may not be ours
            lock = take_lock(self.path + ".lock", self.path)
            try:
                if not exists and not _check_mark(self.path):
                    _create(self.path)
                self._sync_what_a_crash_left()
                database = _open_database(self.path)
                try:
                    state = self._inspect(database)
                except BaseException:
                    database.close()
                    raise
            except BaseException:
                lock.release()
                raise
        self._lock, self._database, self._pid, self._failure = lock, database, os.getpid(), None
        self._state, self._cuts = state, 0
        add_holder(self)
        return state

    def initialise(self, identity: Identity, batches: Sequence[EntryBatch]) -> None:
        _, state = self._usable()
        if state.identity is not None or state.last_entry != ZERO:
            raise BootstrapRefused(
                f"{self.path} already holds the state of {state.identity or 'a log without identity'}"
            )
        self._put(state, identity, None, batches)

    def recover(self, identity: Identity, ballot: Ballot, batch: EntryBatch) -> None:
        _, state = self._usable()
        self._put(state, identity, ballot, [batch])

    def write(self, ballot: Ballot | None, batches: Sequence[EntryBatch]) -> None:
        _, state = self._usable()
        if ballot is not None or batches:
            self._put(state, None, ballot, batches)

    def read(self, first_index: int, last_index: int, bytes_max: int) -> list[EntryBatch]:
        check_process(self.path, self._pid)
        cuts, state, database = self._cuts, self._state, self._database
        if state is None or database is None:
            raise StorageFailed(f"{self.path} is not open", path=self.path)
        last_index = min(last_index, state.last_entry.index)
        if not state.first_index <= first_index <= last_index:
            return []
        with self._errors(f"reading entries {first_index} to {last_index}"):
            selected, complete = self._select(database, first_index, last_index, bytes_max)
        if not complete and not cuts % 2 and cuts == self._cuts:
            # No cut took them, so the file lost them.
            missing = selected[-1].last_index + 1 if selected else first_index
            raise self._corrupt(f"entry {missing} is gone, though the log reaches to {last_index}")
        return selected

    def record_snapshot(self, snapshot: Snapshot) -> None:
        _, state = self._usable()
        self._commit(_new_batch(), state, after_record(state, snapshot))

    def forget_snapshot(self, index: int) -> None:
        _, state = self._usable()
        after = after_forget(state, index)
        if after.snapshots != state.snapshots:
            self._commit(_new_batch(), state, after)

    def compact(self, index: int, bytes_max: int) -> EntryId:
        database, state = self._usable()
        check_compaction(state, index, path=self.path)
        base, bytes_taken = state.base, 0
        with self._errors("looking for entries to drop"):
            for batch in self._batches_from(database, state.first_index):
                bytes_taken += batch.size_bytes
                if batch.last_index > index or (base != state.base and bytes_taken > bytes_max):
                    break
                base = batch.last_entry
        if base != state.base:
            changes = _new_batch()
            changes.delete_range(_entry_key(0), _entry_key(base.index + 1))
            self._commit(changes, state, after_compact(state, base), cuts=True)
        return base

    def reset(self, snapshot: Snapshot) -> None:
        _, state = self._usable()
        changes = _new_batch()
        changes.delete_range(_entry_key(0), _entry_key(INDEX_MAX))
        self._commit(changes, state, after_reset(state, snapshot), cuts=True)

    def close(self) -> None:
        database, lock = self._database, self._lock
        self._database = self._lock = self._state = None
        if database is None or lock is None or self._pid != os.getpid():
            return
        with contextlib.suppress(Exception):  # what fails here has been acknowledged before, and is in the WAL
            database.close()
        lock.release()
        remove_holder(self)

    def let_go_after_fork(self) -> None:
        if self._lock is not None:
            self._lock.release()
        _left_to_the_parent.append((self, self._database))

    # Writing ---------------------------------------------------------------------------------------------------------

    def _put(
        self, state: StoredState, identity: Identity | None, ballot: Ballot | None, batches: Sequence[EntryBatch]
    ) -> None:
        check_no_gap(state, batches, path=self.path)
        settled = settle(batches)
        after = after_write(state, identity, ballot, settled)
        changes = _new_batch()
        cuts = bool(settled) and settled[0].first_index <= state.last_entry.index
        if cuts:
            self._truncate(changes, settled[0].first_index)
        if ballot is not None:
            changes.put(BALLOT_KEY, _sealed(BALLOT_KEY, encode_ballot(ballot).SerializeToString()))
        for batch in settled:
            key = _entry_key(batch.first_index)
            changes.put(key, _sealed(key, encode_batch(batch)))
        self._commit(changes, state, after, cuts=cuts)

    def _truncate(self, changes: WriteBatch, cut: int) -> None:
        """Drop the entries from index `cut` on; of the batch in which the cut falls the head stays."""
        database, _ = self._usable()
        with self._errors("looking for entries to cut"):
            iterator = database.iter()
            iterator.seek_for_prev(_entry_key(cut - 1))
            changes.delete_range(_entry_key(cut), _entry_key(INDEX_MAX))
            if iterator.valid() and iterator.key()[:1] == b"e":
                batch = self._batch_at(iterator.key(), iterator.value())
                if batch.last_index >= cut:
                    key = _entry_key(batch.first_index)
                    changes.put(key, _sealed(key, encode_batch(batch.slice(batch.first_index, cut - 1))))

    def _commit(self, changes: WriteBatch, before: StoredState, after: StoredState, *, cuts: bool = False) -> None:
        """Make the changes in one durable step, after which the store holds `after`. cuts: entries go."""
        database, _ = self._usable()
        if not _same_outline(before, after):
            changes.put(STATE_KEY, _sealed(STATE_KEY, encode_state(_outline_of(after)).SerializeToString()))
        self._cuts += cuts
        try:
            database.write(changes, self._synced)
        except BaseException as error:
            # Whether the disk holds it is open until the store is opened again; in memory nothing changed.
            self._failure = self._storage_error("writing", error) if type(error) is Exception else error
            if self._failure is error:
                raise
            raise self._failure from error
        self._state = after
        self._cuts += cuts

    def _usable(self) -> tuple[Rdict, StoredState]:
        check_process(self.path, self._pid)
        if self._database is None or self._state is None:
            raise StorageFailed(f"{self.path} is not open", path=self.path)
        if self._failure is not None:
            raise StorageFailed(
                f"{self.path} takes no writes any more: {self._failure}", path=self.path
            ) from self._failure
        return self._database, self._state

    # Reading ---------------------------------------------------------------------------------------------------------

    def _batches_from(self, database: Rdict, first_index: int) -> Iterator[EntryBatch]:
        """The batches from the one that holds first_index on, as they are at this moment."""
        iterator = database.iter()
        iterator.seek_for_prev(_entry_key(first_index))
        if not iterator.valid() or iterator.key()[:1] != b"e":
            iterator.seek(_entry_key(first_index))
        while iterator.valid() and iterator.key()[:1] == b"e":
            yield self._batch_at(iterator.key(), iterator.value())
            iterator.next()
        iterator.status()  # raises what kept the iterator from going on

    def _select(
        self, database: Rdict, first_index: int, last_index: int, bytes_max: int
    ) -> tuple[list[EntryBatch], bool]:
        """The batches asked for, and whether nothing is missing but what bytes_max cut off."""
        selected: list[EntryBatch] = []
        next_index = first_index
        for batch in self._batches_from(database, first_index):
            if not batch.first_index <= next_index <= batch.last_index:
                break
            part = batch.slice(next_index, min(batch.last_index, last_index))
            bytes_max -= part.size_bytes
            if selected and bytes_max < 0:
                return selected, True
            selected.append(part)
            next_index = part.last_index + 1
            if next_index > last_index:
                return selected, True
        return selected, False

    def _batch_at(self, key: bytes, value: bytes) -> EntryBatch:
        """Raises StorageCorrupt unless it is what was written."""
        index = int.from_bytes(key[1:], "big")
        try:
            batch = decode_batch(self._unsealed(key, value))
        except BadRecord as error:
            raise self._corrupt(f"the entries from {index} on can't be read: {error}") from None
        if batch.first_index != index:
            raise self._corrupt(f"the entries from {index} on are others than their key tells of")
        return batch

    def _unsealed(self, key: bytes, value: bytes) -> bytes:
        content = value[4:]
        if crc32(content, crc32(key)) != int.from_bytes(value[:4], "little"):
            raise self._corrupt(f"the checksum of the value of {key!r} is wrong")
        return content

    # Opening ---------------------------------------------------------------------------------------------------------

    def _sync_what_a_crash_left(self) -> None:
        """Wait for the disk to have what is about to be read: what a killed process wrote may be in memory only."""
        for name in os.listdir(self.path):
            if name.endswith(".log"):
                sync(os.path.join(self.path, name))

    def _inspect(self, database: Rdict) -> StoredState:
        """What the store holds. Raises StorageCorrupt unless it all fits together."""
        ballot_value, state_value = database.get(BALLOT_KEY), database.get(STATE_KEY)
        if state_value is None or ballot_value is None:
            raise self._corrupt("its state or its vote is gone")
        try:
            told = decode_state(pb.State.FromString(self._unsealed(STATE_KEY, state_value)))
            ballot = pb.Ballot.FromString(self._unsealed(BALLOT_KEY, ballot_value))
        except (BadRecord, DecodeError) as error:
            raise self._corrupt(f"its state can't be read: {error}") from None
        iterator = database.iter()
        iterator.seek_for_prev(_entry_key(INDEX_MAX))
        last_entry, ends = told.base, []
        if iterator.valid() and iterator.key()[:1] == b"e":
            ends.append(self._batch_at(iterator.key(), iterator.value()))
            ends.insert(0, next(self._batches_from(database, 0)))
            last_entry = ends[1].last_entry
        starts = [start.first_index for start in told.terms]
        if (
            bool(ends) != bool(starts)
            or (ends and (ends[0].first_index != told.first_index or starts[0] != told.first_index))
            or (ends and (starts[-1] > last_entry.index or told.terms[-1].term != last_entry.term))
            or any(index > last_entry.index for index, _ in told.configurations)
        ):
            raise self._corrupt(
                f"it holds entries {ends[0].first_index if ends else 'none'} to {last_entry.index}, and its state tells"
                f" of another log (base {told.base.index}, terms from {starts[:1]} to {starts[-1:]})"
            )
        return replace(told, ballot=Ballot(ballot.term, ballot.voted_for), last_entry=last_entry)

    # Errors ----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageFailed(
                f"{self.path}: {doing} failed: {error}. {advice_for(error)}, then open the store again", path=self.path
            ) from error
        except Exception as error:
            if type(error) is not Exception:  # RocksDB's have no class of their own
                raise
            raise self._storage_error(doing, error) from error

    def _storage_error(self, doing: str, error: BaseException) -> StorageError:
        text = str(error)
        if text.startswith("Corruption"):
            return self._corrupt(f"{doing}: {text}")
        advice = "Check the disk, its free space and the limits of the process"
        if "No space left" in text or "quota" in text:
            advice = "Free space on the disk"
        if "Read-only" in text or "Permission denied" in text:
            advice = "Make the directory and the files in it readable and writable"
        return StorageFailed(
            f"{self.path}: {doing} failed: {text}. {advice}, then open the store again", path=self.path
        )

    def _corrupt(self, what: str) -> StorageCorrupt:
        return StorageCorrupt(f"{self.path} is damaged: {what}. {RESTORE_ADVICE}", path=self.path)


def _outline_of(state: StoredState) -> StoredState:
    """What is kept under STATE_KEY: not the ballot, and not how far the log reaches, which its last batch tells."""
    return replace(state, ballot=Ballot(0), last_entry=ZERO)


def _same_outline(before: StoredState, after: StoredState) -> bool:
    """Most writes leave it as it is: the same objects, so nothing need be compared."""
    return (
        after.terms is before.terms
        and after.configurations is before.configurations
        and after.identity is before.identity
        and after.base == before.base
        and after.snapshots is before.snapshots
    )


def _entry_key(index: int) -> bytes:
    return b"e" + index.to_bytes(8, "big")


def _sealed(key: bytes, content: bytes) -> bytes:
    return crc32(content, crc32(key)).to_bytes(4, "little") + content


# RocksDB --------------------------------------------------------------------------------------------------------------


def _rocksdict() -> Any:
    try:
        import rocksdict
    except ImportError as error:
        raise ConfigError(f"RocksdbStorage needs rocksdict ({error}): pip install geraft[rocksdb]") from error
    return rocksdict


def _new_batch() -> WriteBatch:
    return _rocksdict().WriteBatch(raw_mode=True)  # type: ignore[no-any-return]


def _synced() -> Any:
    options = _rocksdict().WriteOptions()
    options.sync = True
    return options


def _open_database(path: str) -> Rdict:
    rocksdict = _rocksdict()
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_paranoid_checks(True)
    # A crash tears the last record of the WAL; a damaged one before that is told, and not taken for the end.
    options.set_wal_recovery_mode(rocksdict.DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_compression_type(rocksdict.DBCompressionType.none())  # the log is short-lived, and stays readable
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_log_file_size(1024 * 1024)
    options.set_keep_log_file_num(2)
    return rocksdict.Rdict(path, options)  # type: ignore[no-any-return]


def _create(path: str) -> None:
    """Make an empty store under a name of its own, then give it its name: a crash leaves a whole store or none."""
    temporary = path + ".geraft-new"
    shutil.rmtree(temporary, ignore_errors=True)
    make_directory(os.path.dirname(path))
    database = _open_database(temporary)
    changes = _new_batch()
    changes.put(BALLOT_KEY, _sealed(BALLOT_KEY, encode_ballot(EMPTY.ballot).SerializeToString()))
    changes.put(STATE_KEY, _sealed(STATE_KEY, encode_state(EMPTY).SerializeToString()))
    database.write(changes, _synced())
    database.close()
    with open(os.path.join(temporary, MARK), "w", encoding="ascii") as mark:
        mark.write(f"{MARK_TEXT}{FORMAT_VERSION}\n")
    for name in os.listdir(temporary):
        sync(os.path.join(temporary, name))
    sync(temporary)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)  # one that is empty
    os.replace(temporary, path)
    sync(os.path.dirname(path))


def _check_mark(path: str) -> bool:
    """Whether there is a store at path. Raises StorageError if there is something else."""
    if not os.path.exists(path):
        return False
    if not os.path.isdir(path):
        raise StorageForeign(f"{path} is no directory: name another path", path=path)
    if not os.listdir(path):
        return False
    try:
        with open(os.path.join(path, MARK), encoding="ascii", errors="replace") as file:
            mark = file.read(100)
    except FileNotFoundError:
        if os.path.exists(path + ".lock"):
            raise StorageCorrupt(f"{path}/{MARK} is gone. {RESTORE_ADVICE}", path=path) from None
        raise StorageForeign(f"{path} holds other files than a geraft store: name another path", path=path) from None
    version = mark.removeprefix(MARK_TEXT).strip()
    if not mark.startswith(MARK_TEXT) or not version.isdigit():
        raise StorageCorrupt(f"{path}/{MARK} is damaged. {RESTORE_ADVICE}", path=path)
    if int(version) > FORMAT_VERSION:
        raise StorageFormatTooNew(
            f"{path} has format {version} and this geraft knows formats up to {FORMAT_VERSION}:"
            " install the newer geraft",
            path=path,
        )
    return True


_left_to_the_parent: list[object] = []
"""Databases of a parent process: closing one in its child would touch its files."""
