"""The default store: a log, a vote and an identity in one SQLite file that any SQL tool can read.

Three files belong together: PATH, and while it is open PATH-wal and PATH-shm. PATH.lock says who holds them.

    meta            whose state this is
    ballot          current term and vote
    log             one row per batch of entries
    terms           where the term changes
    configurations  the entries that changed the members, and the one in force at the base
    base            the entry directly before the oldest one that the log still holds, and how many snapshots there are
    snapshots       the catalogue of snapshots, whose bytes the app keeps
    checkpoint      how far the log reached when its pages were last moved from the WAL into PATH

For people there are the views `batches` and `entries` (sqlite_views.py); geraft does not read them.

Every row carries a checksum, so damage to the disk is refused and never served. SQLite checks its WAL itself, but takes
whatever follows a damaged frame for the torn end of a crash and drops it; `_check_wal` tells the two apart. A B-tree
page that lost its last rows looks like a shorter log; the checkpoint row tells.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn
from urllib.parse import quote
from zlib import crc32

from google.protobuf.message import DecodeError

from geraft.core.entries import ZERO, Ballot, EntryBatch, EntryId
from geraft.core.membership import Configuration
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
from geraft.pb import geraft_pb2 as pb
from geraft.records import BadRecord, decode_batch, decode_configuration, encode_batch, encode_configuration
from geraft.storage.base import FORMAT_VERSION, Identity, RaftStorage, StoredState, TermStart
from geraft.storage.holding import RESTORE_ADVICE, Lock, add_holder, check_process, remove_holder, sync, take_lock
from geraft.storage.splice import (
    after_compact,
    after_forget,
    after_record,
    after_reset,
    after_write,
    check_compaction,
    check_no_gap,
    settle,
)
from geraft.storage.sqlite_views import VIEWS

if TYPE_CHECKING:
    from sqlite_utils import Database

Synchronous = Literal["FULL", "NORMAL", "OFF"]

APPLICATION_ID: Final = 0x67726674
"""PRAGMA application_id of a geraft store: "grft"."""

PAGE_BYTES: Final = 4096
WAL_BYTES_MAX: Final = 4 * 1024 * 1024
"""After so much has gone to the WAL its pages are moved into the file. More makes a single move longer (it delays the
write that sets it off), less makes pages that are written again and again move more often."""
WAL_BYTES_KEPT: Final = 16 * 1024 * 1024
"""A WAL that one huge entry has blown up is cut back to this."""
BUSY_TIMEOUT_SECONDS: Final = 5.0
"""How long a write waits for a SQL tool that holds the file."""

# What the device or the system did, as opposed to bytes that can't be right.
DEVICE_ERRORS: Final = {
    sqlite3.SQLITE_FULL: "Free space on the disk",
    sqlite3.SQLITE_IOERR: "Check the disk, its free space and the limits of the process",
    sqlite3.SQLITE_READONLY: "Make the file, its directory and the files beside it writable",
    sqlite3.SQLITE_CANTOPEN: "Make the file, its directory and the files beside it readable and writable",
    sqlite3.SQLITE_PERM: "Make the file, its directory and the files beside it readable and writable",
    sqlite3.SQLITE_AUTH: "Make the file, its directory and the files beside it readable and writable",
    sqlite3.SQLITE_BUSY: "Close the SQL tool that holds the file",
    sqlite3.SQLITE_LOCKED: "Close the SQL tool that holds the file",
    sqlite3.SQLITE_NOMEM: "The process has run out of memory",
    sqlite3.SQLITE_TOOBIG: "A batch may take 1 GB at most",
    sqlite3.SQLITE_MISUSE: "The store was closed meanwhile",
}
DAMAGE_ERRORS: Final = {sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS}

INSERT_BATCH: Final = (
    "INSERT INTO log (first_index, last_index, term, kind, checksum, entries) VALUES (?, ?, ?, ?, ?, ?)"
)
INSERT_CONFIGURATION: Final = "INSERT INTO configurations (entry_index, checksum, configuration) VALUES (?, ?, ?)"
UPDATE_BASE: Final = "UPDATE base SET term = ?, entry_index = ?, snapshots = ?, checksum = ?"
INSERT_SNAPSHOT: Final = (
    "INSERT OR REPLACE INTO snapshots (snapshot_index, term, size_bytes, bytes_checksum, configuration_index,"
    " configuration, sessions, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
SELECT_SNAPSHOTS: Final = (
    "SELECT snapshot_index, term, size_bytes, bytes_checksum, configuration_index, configuration, sessions, checksum"
    " FROM snapshots ORDER BY snapshot_index"
)
SELECT_BATCHES: Final = "SELECT first_index, last_index, term, kind, checksum, entries FROM log "
SELECT_RANGE: Final = (
    SELECT_BATCHES + "WHERE first_index >= ifnull((SELECT max(first_index) FROM log WHERE first_index <= ?), 0)"
    " AND first_index <= ? ORDER BY first_index"
)


class SqliteStorage(RaftStorage):
    """A durable store in one SQLite file, made where there is none; its directory too.

    synchronous: "FULL" waits for the disk in every write, which is what Raft asks for. "NORMAL" and "OFF" survive a
    crash of the process but not one of the machine: a node may then forget a vote or an acknowledged entry, and must
    not come back under its old id.

    One process at a time, told by an flock on PATH.lock: use a local file system. To copy a store close it first, or
    use SQLite's backup.
    """

    def __init__(self, path: str | os.PathLike[str], *, synchronous: Synchronous = "FULL") -> None:
        if synchronous not in ("FULL", "NORMAL", "OFF"):
            raise ConfigError(f'synchronous must be "FULL", "NORMAL" or "OFF", not {synchronous!r}')
        given = os.fspath(path)
        if not isinstance(given, str) or not given or given == ":memory:":
            raise ConfigError(f"path must name a file, not {given!r}: MemoryStorage is the store without one")
        self.path: Final = os.path.realpath(given)
        self._synchronous: Final = synchronous
        self._lock: Lock | None = None
        self._pid = 0
        self._writer: sqlite3.Connection | None = None
        self._idle_readers: list[sqlite3.Connection] = []  # shared by threads: append and pop are atomic
        self._state: StoredState | None = None
        self._failure: BaseException | None = None
        self._cuts = 0  # odd while one is under way, so that readers can tell a cut log from a damaged one
        self._wal_bytes = 0
        self._checkpoint_index = 0

    # What RaftStorage asks for ---------------------------------------------------------------------------------------

    def open(self) -> StoredState:
        if self._writer is not None and self._pid == os.getpid():
            raise StorageLocked(
                f"{self.path} is open already in this object (process {self._pid}): close it first", path=self.path
            )
        if os.path.exists(self.path):
            _check_header(self.path)  # before the lock, which leaves a file beside what may not be ours
        else:
            _check_no_orphan(self.path)
        lock = take_lock(self.path + ".lock", self.path)
        try:
            if not os.path.exists(self.path):
                _create(self.path)
            _check_header(self.path)
            with self._errors("opening it"):
                self._sync_what_a_crash_left()
                with contextlib.closing(self._connect("ro")) as reader:  # closing this one writes nothing
                    self._check_wal(reader)
                    state = self._inspect(reader)
                writer = self._connect("rw")
                try:
                    writer.execute(f"PRAGMA synchronous = {self._synchronous}")
                    writer.execute("PRAGMA fullfsync = ON")  # where fsync alone does not reach the disk
                    writer.execute("PRAGMA wal_autocheckpoint = 0")  # it would swallow the errors of the disk
                    writer.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
                    writer.execute("PRAGMA secure_delete = OFF")
                    writer.execute("BEGIN IMMEDIATE")
                    writer.execute("UPDATE meta SET id = id")  # tells now if nothing can be written
                    writer.execute("ROLLBACK")
                except BaseException:
                    writer.close()
                    raise
        except BaseException:
            lock.release()
            raise
        self._lock, self._writer, self._pid, self._failure = lock, writer, os.getpid(), None
        self._state, self._cuts, self._wal_bytes = state, 0, WAL_BYTES_MAX // 2
        add_holder(self)
        return state

    def initialise(self, identity: Identity, batches: Sequence[EntryBatch]) -> None:
        writer, state = self._usable()
        if state.identity is not None or state.last_entry != ZERO:
            raise BootstrapRefused(
                f"{self.path} already holds the state of {state.identity or 'a log without identity'}"
            )
        self._write(writer, state, identity, None, batches)

    def recover(self, identity: Identity, ballot: Ballot, batch: EntryBatch) -> None:
        writer, state = self._usable()
        self._write(writer, state, identity, ballot, [batch])

    def write(self, ballot: Ballot | None, batches: Sequence[EntryBatch]) -> None:
        writer, state = self._usable()
        if ballot is not None or batches:
            self._write(writer, state, None, ballot, batches)

    def read(self, first_index: int, last_index: int, bytes_max: int) -> list[EntryBatch]:
        check_process(self.path, self._pid)
        cuts, state = self._cuts, self._state
        if state is None:
            raise StorageFailed(f"{self.path} is not open", path=self.path)
        last_index = min(last_index, state.last_entry.index)
        if not state.first_index <= first_index <= last_index:
            return []
        with self._errors(f"reading entries {first_index} to {last_index}"):
            selected, complete = self._select(first_index, last_index, bytes_max)
        if not complete and not cuts % 2 and cuts == self._cuts:
            # No cut took them, so the file lost them.
            missing = selected[-1].last_index + 1 if selected else first_index
            raise StorageCorrupt(
                f"{self.path}: entry {missing} is gone, though the log reaches to {last_index}. {RESTORE_ADVICE}",
                path=self.path,
            )
        return selected

    def record_snapshot(self, snapshot: Snapshot) -> None:
        _, state = self._usable()
        row, after = _snapshot_row(snapshot), after_record(state, snapshot)
        wal_bytes = 3 * PAGE_BYTES + len(snapshot.sessions)
        with self._transaction(after=after, cuts=False, wal_bytes=wal_bytes) as writer:
            writer.execute(INSERT_SNAPSHOT, row)
            writer.execute(UPDATE_BASE, _base_row(after))

    def forget_snapshot(self, index: int) -> None:
        _, state = self._usable()
        after = after_forget(state, index)
        if after.snapshots != state.snapshots:
            with self._transaction(after=after, cuts=False, wal_bytes=3 * PAGE_BYTES) as writer:
                writer.execute("DELETE FROM snapshots WHERE snapshot_index = ?", (index,))
                writer.execute(UPDATE_BASE, _base_row(after))

    def compact(self, index: int, bytes_max: int) -> EntryId:
        writer, state = self._usable()
        check_compaction(state, index, path=self.path)
        base, bytes_taken = state.base, 0
        with self._errors("looking for entries to drop"):
            for last_index, term, size_bytes in writer.execute(
                "SELECT last_index, term, length(entries) FROM log ORDER BY first_index"
            ):
                bytes_taken += size_bytes
                if last_index > index or (base != state.base and bytes_taken > bytes_max):
                    break
                base = EntryId(term, last_index)
        if base == state.base:
            return base
        after = after_compact(state, base)
        with self._transaction(after=after, cuts=True, wal_bytes=8 * PAGE_BYTES + bytes_taken // 8) as writer:
            writer.execute("DELETE FROM log WHERE first_index <= ?", (base.index,))
            self._rewrite_outline(writer, after)
        return base

    def reset(self, snapshot: Snapshot) -> None:
        _, state = self._usable()
        after = after_reset(state, snapshot)
        row = _snapshot_row(snapshot)
        with self._transaction(after=after, cuts=True, wal_bytes=WAL_BYTES_MAX) as writer:
            writer.execute("DELETE FROM log")
            writer.execute(INSERT_SNAPSHOT, row)
            self._rewrite_outline(writer, after)
            if self._checkpoint_index > snapshot.index:
                self._note_checkpoint(writer, snapshot.index)

    def close(self) -> None:
        writer, lock, state = self._writer, self._lock, self._state
        self._writer = self._lock = self._state = None
        if writer is None or lock is None or self._pid != os.getpid():
            return
        if self._failure is None and state is not None:
            # What fails here has been acknowledged before, and is in the WAL.
            with contextlib.suppress(sqlite3.Error):
                self._note_checkpoint(writer, state.last_entry.index)
        self._close_idle_readers()
        writer.close()  # moves the WAL into the file and removes it, unless a reader is still at work
        lock.release()
        remove_holder(self)

    def let_go_after_fork(self) -> None:
        if self._lock is not None:
            self._lock.release()
        _left_to_the_parent.append((self, self._writer, list(self._idle_readers)))
        self._idle_readers = []

    # Writing ---------------------------------------------------------------------------------------------------------

    def _write(
        self,
        writer: sqlite3.Connection,
        state: StoredState,
        identity: Identity | None,
        ballot: Ballot | None,
        batches: Sequence[EntryBatch],
    ) -> None:
        check_no_gap(state, batches, path=self.path)
        settled = settle(batches)
        rows = [_row_of(batch) for batch in settled]
        after = after_write(state, identity, ballot, settled)
        truncates = bool(settled) and settled[0].first_index <= state.last_entry.index
        # Most writes are one row and nothing else. One statement is a transaction by itself, for a quarter less CPU.
        alone = len(rows) == 1 and not truncates and identity is None and ballot is None and after.terms is state.terms
        alone = alone and after.configurations is state.configurations
        self._cuts += truncates
        try:
            execute = writer.execute
            if not alone:
                execute("BEGIN IMMEDIATE")
            if identity is not None:
                execute(
                    "UPDATE meta SET cluster_id = ?, node_id = ?, store_id = ?, checksum = ?",
                    (*identity, _checksum(FORMAT_VERSION, *identity)),
                )
            if ballot is not None:
                execute("UPDATE ballot SET term = ?, voted_for = ?, checksum = ?", (*ballot, _checksum(*ballot)))
            if truncates:
                self._truncate(writer, settled[0].first_index)
            for row in rows:
                execute(INSERT_BATCH, row)
            if rows:
                self._insert_outline(writer, state, after, settled[0].first_index)
            if not alone:
                execute("COMMIT")
        except BaseException as error:
            self._raise_failed(writer, error)
        self._state = after
        self._cuts += truncates
        self._wal_bytes += sum(len(row[-1]) for row in rows) + 2 * PAGE_BYTES
        if self._wal_bytes >= WAL_BYTES_MAX:
            self._checkpoint(writer, after.last_entry.index)

    def _raise_failed(self, writer: sqlite3.Connection, error: BaseException) -> NoReturn:
        """Give up a transaction, and all writing.

        Whether the disk holds it is open until the file is read again; in memory nothing has changed.
        """
        self._failure = self._storage_error("writing", error) if isinstance(error, sqlite3.Error) else error
        with contextlib.suppress(sqlite3.Error):
            writer.execute("ROLLBACK")
        if self._failure is error:
            raise error
        raise self._failure from error

    @contextlib.contextmanager
    def _transaction(self, *, after: StoredState, cuts: bool, wal_bytes: int) -> Iterator[sqlite3.Connection]:
        """Run the body's statements in one durable step, after which the store holds `after`.

        cuts: entries go. wal_bytes: roughly what the step adds to the WAL.
        """
        writer, _ = self._usable()
        self._cuts += cuts
        try:
            writer.execute("BEGIN IMMEDIATE")
            yield writer
            writer.execute("COMMIT")
        except BaseException as error:
            self._raise_failed(writer, error)
        self._state = after
        self._cuts += cuts
        self._wal_bytes += wal_bytes
        if self._wal_bytes >= WAL_BYTES_MAX:
            self._checkpoint(writer, after.last_entry.index)

    def _truncate(self, writer: sqlite3.Connection, cut: int) -> None:
        """Drop the entries from index `cut` on; of the batch in which the cut falls the head stays."""
        row = writer.execute(
            SELECT_BATCHES + "WHERE first_index < ? ORDER BY first_index DESC LIMIT 1", (cut,)
        ).fetchone()
        if row is not None and row[1] >= cut:
            head = self._batch_of(row)
            writer.execute("DELETE FROM log WHERE first_index >= ?", (head.first_index,))
            writer.execute(INSERT_BATCH, _row_of(head.slice(head.first_index, cut - 1)))
        else:
            writer.execute("DELETE FROM log WHERE first_index >= ?", (cut,))
        writer.execute("DELETE FROM terms WHERE first_index >= ?", (cut,))
        writer.execute("DELETE FROM configurations WHERE entry_index >= ?", (cut,))
        if self._checkpoint_index >= cut:
            self._note_checkpoint(writer, cut - 1)

    def _insert_outline(self, writer: sqlite3.Connection, before: StoredState, after: StoredState, start: int) -> None:
        """Write the terms and configurations that begin at or after index `start`; most writes have none."""
        if after.terms is not before.terms:
            for term_start in after.terms:
                if term_start.first_index >= start:
                    writer.execute("INSERT INTO terms VALUES (?, ?, ?)", (*term_start, _checksum(*term_start)))
        if after.configurations is not before.configurations:
            for index, configuration in after.configurations:
                if index >= start:
                    writer.execute(INSERT_CONFIGURATION, _configuration_row(index, configuration))

    def _rewrite_outline(self, writer: sqlite3.Connection, after: StoredState) -> None:
        """Write base, terms and configurations anew: there are few of them, and none was changed but the oldest."""
        writer.execute(UPDATE_BASE, _base_row(after))
        writer.execute("DELETE FROM terms")
        writer.executemany("INSERT INTO terms VALUES (?, ?, ?)", [(*each, _checksum(*each)) for each in after.terms])
        writer.execute("DELETE FROM configurations")
        writer.executemany(INSERT_CONFIGURATION, [_configuration_row(*pair) for pair in after.configurations])

    def _checkpoint(self, writer: sqlite3.Connection, last_index: int) -> None:
        """Move what the WAL holds into the file, so that the WAL starts over. Waits for no reader and no SQL tool.

        An error is told by the next write: the last one is durable.
        """
        try:
            self._note_checkpoint(writer, last_index)
            writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self._wal_bytes = 0
        except sqlite3.Error as error:
            self._failure = self._storage_error("moving the WAL into the file", error)

    def _note_checkpoint(self, writer: sqlite3.Connection, last_index: int) -> None:
        if last_index != self._checkpoint_index:
            writer.execute("UPDATE checkpoint SET last_index = ?, checksum = ?", (last_index, _checksum(last_index)))
            self._checkpoint_index = last_index

    def _usable(self) -> tuple[sqlite3.Connection, StoredState]:
        check_process(self.path, self._pid)
        if self._writer is None or self._state is None:
            raise StorageFailed(f"{self.path} is not open", path=self.path)
        if self._failure is not None:
            raise StorageFailed(
                f"{self.path} takes no writes any more: {self._failure}",
                path=self.path,
            ) from self._failure
        return self._writer, self._state

    # Reading ---------------------------------------------------------------------------------------------------------

    def _select(self, first_index: int, last_index: int, bytes_max: int) -> tuple[list[EntryBatch], bool]:
        """The batches asked for, and whether nothing is missing but what bytes_max cut off.

        What is read is one snapshot of the file.
        """
        try:
            reader = self._idle_readers.pop()
        except IndexError:
            reader = self._connect("ro")
        try:
            selected: list[EntryBatch] = []
            next_index, bytes_left, complete = first_index, bytes_max, False
            cursor = reader.execute(SELECT_RANGE, (first_index, last_index))
            for row in cursor:
                batch = self._batch_of(row)
                if not batch.first_index <= next_index <= batch.last_index:
                    break
                if selected and batch.first_index != next_index:
                    self._raise_corrupt(f"the entries from {batch.first_index} on are there twice")
                part = batch.slice(next_index, min(batch.last_index, last_index))
                bytes_left -= part.size_bytes
                if selected and bytes_left < 0:
                    complete = True
                    break
                selected.append(part)
                next_index = part.last_index + 1
            cursor.close()
        except BaseException:
            reader.close()
            raise
        self._idle_readers.append(reader)
        if self._writer is None:
            self._close_idle_readers()
        return selected, complete or next_index > last_index

    def _batch_of(self, row: tuple[int, int, int, int, int, bytes]) -> EntryBatch:
        """The batch that a row of `log` holds. Raises StorageCorrupt unless it is what was written."""
        first_index, last_index, term, kind, checksum, entries = row
        if not isinstance(entries, bytes) or crc32(entries) != checksum:
            self._raise_corrupt(f"the checksum of the entries from {first_index} on is wrong")
        try:
            batch = decode_batch(entries)
        except BadRecord as error:
            self._raise_corrupt(f"the entries from {first_index} on can't be read: {error}")
        if (batch.first_index, batch.last_index, batch.term, int(batch.kind)) != (first_index, last_index, term, kind):
            self._raise_corrupt(f"the entries from {first_index} on are not those that their row tells of")
        return batch

    def _close_idle_readers(self) -> None:
        while self._idle_readers:
            with contextlib.suppress(IndexError):  # another thread was faster
                self._idle_readers.pop().close()

    # Opening ---------------------------------------------------------------------------------------------------------

    def _connect(self, mode: Literal["ro", "rw"]) -> sqlite3.Connection:
        return _connect(f"file:{quote(os.fsencode(self.path))}?mode={mode}", uri=True)

    def _inspect(self, reader: sqlite3.Connection) -> StoredState:
        """Check everything that can be checked without reading the whole log."""
        (version,) = reader.execute("PRAGMA user_version").fetchone()
        if version > FORMAT_VERSION:
            _raise_too_new(self.path, version)
        (meta,) = self._checked(reader, "meta", "format_version, cluster_id, node_id, store_id", rows=1)
        if meta[0] != version:
            self._raise_corrupt(f"its two format versions differ ({meta[0]} and {version})")
        (ballot,) = self._checked(reader, "ballot", "term, voted_for", rows=1)
        ((checkpoint_index,),) = self._checked(reader, "checkpoint", "last_index", rows=1)
        terms = tuple(TermStart(*row) for row in self._checked(reader, "terms", "first_index, term"))
        configurations = tuple(self._configurations(reader))
        ((*base_id, snapshot_count),) = self._checked(reader, "base", "term, entry_index, snapshots", rows=1)
        base = EntryId(*base_id)
        snapshots = tuple(self._snapshots(reader))
        if len(snapshots) != snapshot_count:
            self._raise_corrupt(f"its catalogue has {len(snapshots)} snapshots instead of {snapshot_count}")

        first_index, last_entry = base.index + 1, base
        ends = [
            self._batch_of(row)
            for order in ("ASC", "DESC")
            for row in reader.execute(SELECT_BATCHES + f"ORDER BY first_index {order} LIMIT 1")
        ]
        if ends:
            first_index, last_entry = ends[0].first_index, ends[1].last_entry
        starts = [start.first_index for start in terms]
        if (
            last_entry.index < checkpoint_index
            or first_index != base.index + 1
            or bool(ends) != bool(terms)
            or starts != sorted(set(starts))
            or (ends and (starts[0] != first_index or starts[-1] > last_entry.index))
            or (ends and (terms[0].term != ends[0].term or terms[-1].term != last_entry.term))
            or any(index > last_entry.index for index, _ in configurations)
            or any(index < first_index for index, _ in configurations[bool(base.index) :])
        ):
            self._raise_corrupt(
                f"it holds entries {first_index} to {last_entry.index}, the last of term {last_entry.term}; its other"
                f" tables tell of another log (base {base.index}, checkpoint {checkpoint_index}, terms from"
                f" {starts[:1]} to {starts[-1:]})"
            )
        self._checkpoint_index = checkpoint_index
        return StoredState(
            identity=Identity(*meta[1:]) if meta[3] else None,
            ballot=Ballot(*ballot),
            first_index=first_index,
            last_entry=EntryId(*last_entry),
            terms=terms,
            configurations=configurations,
            base=base,
            snapshots=snapshots,
        )

    def _checked(
        self, reader: sqlite3.Connection, table: str, columns: str, rows: int | None = None
    ) -> list[tuple[Any, ...]]:
        """The rows of a small table in the order of their key. Raises StorageCorrupt for a wrong checksum."""
        found = reader.execute(f"SELECT {columns}, checksum FROM {table} ORDER BY rowid").fetchall()
        if rows is not None and len(found) != rows:
            self._raise_corrupt(f"its table {table} has {len(found)} rows instead of {rows}")
        for *values, checksum in found:
            if _checksum(*values) != checksum:
                self._raise_corrupt(f"a checksum in its table {table} is wrong")
        return [tuple(row[:-1]) for row in found]

    def _configurations(self, reader: sqlite3.Connection) -> Iterable[tuple[int, Configuration]]:
        for index, checksum, encoded in reader.execute(
            "SELECT entry_index, checksum, configuration FROM configurations ORDER BY entry_index"
        ):
            if not isinstance(encoded, bytes) or crc32(encoded) != checksum:
                self._raise_corrupt(f"the checksum of the configuration at {index} is wrong")
            yield index, self._decoded_configuration(index, encoded)

    def _decoded_configuration(self, index: int, encoded: bytes) -> Configuration:
        try:
            return decode_configuration(pb.Configuration.FromString(encoded))
        except (BadRecord, DecodeError) as error:
            self._raise_corrupt(f"the configuration at {index} can't be read: {error}")

    def _snapshots(self, reader: sqlite3.Connection) -> Iterable[Snapshot]:
        for *values, configuration, sessions, checksum in reader.execute(SELECT_SNAPSHOTS):
            index, term, size_bytes, bytes_checksum, configuration_index = values
            if (
                not isinstance(configuration, bytes)
                or not isinstance(sessions, bytes)
                or _snapshot_checksum(values, configuration, sessions) != checksum
            ):
                self._raise_corrupt(f"the checksum of the record of snapshot {index} is wrong")
            yield Snapshot(
                last_entry=EntryId(term, index),
                configuration=self._decoded_configuration(configuration_index, configuration),
                configuration_index=configuration_index,
                size_bytes=size_bytes,
                checksum=bytes_checksum,
                sessions=sessions,
            )

    def _sync_what_a_crash_left(self) -> None:
        """Wait for the disk to have what is about to be read.

        A process that was killed between a write and its sync leaves a transaction that only the system's memory holds.
        It will be acted upon, so a failure of the power must not take it back.
        """
        if self._synchronous == "FULL":
            with contextlib.suppress(FileNotFoundError):
                sync(self.path + "-wal")

    def _check_wal(self, reader: sqlite3.Connection) -> None:
        """Raises StorageCorrupt if SQLite dropped transactions from the WAL that were complete.

        A crash tears the last transaction at most: every one before was on the disk when it began (synchronous=FULL).
        So a frame of this WAL beyond a commit that SQLite did not accept means that bytes have changed since.
        Source: https://www.sqlite.org/walformat.html, sections 2.1 and 4.
        """
        if self._synchronous != "FULL":
            return
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # makes SQLite read the WAL
        try:
            with open(self.path + "-wal", "rb") as wal, open(self.path + "-shm", "rb") as index:
                header, index_header = wal.read(32), index.read(20)
                wal_bytes = os.fstat(wal.fileno()).st_size
                if wal_bytes <= 32 or len(index_header) < 20:
                    return
                if not _is_wal_header(header):
                    self._raise_corrupt("the header of its WAL is damaged, so the newest entries are lost")
                (valid_frames,) = struct.unpack_from("=I", index_header, 16)
                salts, frame_bytes = header[16:24], 24 + int.from_bytes(header[8:12], "big")
                frames = (wal_bytes - 32) // frame_bytes
                committed = False
                for frame in range(valid_frames, frames):
                    wal.seek(32 + frame * frame_bytes)
                    frame_header = wal.read(24)
                    if frame_header[8:16] != salts:
                        continue
                    if committed:
                        self._raise_corrupt(
                            f"frame {valid_frames + 1} of its WAL is damaged, so the newest entries are lost"
                        )
                    committed = frame_header[4:8] != b"\0\0\0\0"
        except FileNotFoundError:
            return

    # Errors ----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Any:
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # the last: SQLite's sentence quotes damaged text
            raise self._storage_error(doing, error) from error

    def _storage_error(self, doing: str, error: BaseException) -> StorageError:
        code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        advice = DEVICE_ERRORS.get(code & 0xFF)
        if isinstance(error, OSError | sqlite3.ProgrammingError | sqlite3.InterfaceError):
            advice = "Check the disk and the limits of the process"
        if advice is None or code in DAMAGE_ERRORS:
            return StorageCorrupt(f"{self.path} is damaged ({doing}: {error}). {RESTORE_ADVICE}", path=self.path)
        return StorageFailed(
            f"{self.path}: {doing} failed: {error}. {advice}, then open the store again", path=self.path
        )

    def _raise_corrupt(self, what: str) -> NoReturn:
        raise StorageCorrupt(f"{self.path} is damaged: {what}. {RESTORE_ADVICE}", path=self.path)


def _connect(database: str, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(
        database, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False, uri=uri
    )


def _row_of(batch: EntryBatch) -> tuple[int, int, int, int, int, bytes]:
    entries = encode_batch(batch)
    return batch.first_index, batch.last_index, batch.term, int(batch.kind), crc32(entries), entries


def _configuration_row(index: int, configuration: Configuration) -> tuple[int, int, bytes]:
    encoded = encode_configuration(configuration).SerializeToString()
    return index, crc32(encoded), encoded


def _base_row(state: StoredState) -> tuple[int, int, int, int]:
    values = (*state.base, len(state.snapshots))
    return *values, _checksum(*values)


def _snapshot_row(snapshot: Snapshot) -> tuple[int | bytes, ...]:
    values = (
        snapshot.index,
        snapshot.last_entry.term,
        snapshot.size_bytes,
        snapshot.checksum,
        snapshot.configuration_index,
    )
    configuration = encode_configuration(snapshot.configuration).SerializeToString()
    sessions = snapshot.sessions
    return *values, configuration, sessions, _snapshot_checksum(values, configuration, sessions)


def _snapshot_checksum(values: Iterable[int], configuration: bytes, sessions: bytes) -> int:
    return crc32(sessions, crc32(configuration, _checksum(*values, len(configuration))))


def _checksum(*values: object) -> int:
    return crc32("\0".join(map(str, values)).encode("utf-8", "surrogatepass"))


# The file and its format ----------------------------------------------------------------------------------------------


def _create_format_1(database: Database) -> None:
    # Entries stand last in their row, so that SQL over the other columns need not walk through them.
    database.table("meta").create(
        {"id": int, "format_version": int, "cluster_id": str, "node_id": str, "store_id": str, "checksum": int},
        pk="id",
        not_null={"format_version", "cluster_id", "node_id", "store_id", "checksum"},
    ).insert(
        {
            "id": 1,
            "format_version": 1,
            "cluster_id": "",
            "node_id": "",
            "store_id": "",
            "checksum": _checksum(1, "", "", ""),
        }
    )
    database.table("ballot").create(
        {"id": int, "term": int, "voted_for": str, "checksum": int}, pk="id", not_null={"term", "voted_for", "checksum"}
    ).insert({"id": 1, "term": 0, "voted_for": "", "checksum": _checksum(0, "")})
    database.table("checkpoint").create(
        {"id": int, "last_index": int, "checksum": int}, pk="id", not_null={"last_index", "checksum"}
    ).insert({"id": 1, "last_index": 0, "checksum": _checksum(0)})
    database.table("log").create(
        {"first_index": int, "last_index": int, "term": int, "kind": int, "checksum": int, "entries": bytes},
        pk="first_index",
        not_null={"last_index", "term", "kind", "checksum", "entries"},
    )
    database.table("terms").create(
        {"first_index": int, "term": int, "checksum": int}, pk="first_index", not_null={"term", "checksum"}
    )
    database.table("configurations").create(
        {"entry_index": int, "checksum": int, "configuration": bytes},
        pk="entry_index",
        not_null={"checksum", "configuration"},
    )
    database.table("base").create(
        {"id": int, "term": int, "entry_index": int, "snapshots": int, "checksum": int},
        pk="id",
        not_null={"term", "entry_index", "snapshots", "checksum"},
    ).insert({"id": 1, "term": 0, "entry_index": 0, "snapshots": 0, "checksum": _checksum(0, 0, 0)})
    database.table("snapshots").create(
        {
            "snapshot_index": int,
            "term": int,
            "size_bytes": int,
            "bytes_checksum": int,
            "configuration_index": int,
            "configuration": bytes,
            "sessions": bytes,
            "checksum": int,
        },
        pk="snapshot_index",
        not_null={
            "term",
            "size_bytes",
            "bytes_checksum",
            "configuration_index",
            "configuration",
            "sessions",
            "checksum",
        },
    )
    for name, select in VIEWS.items():
        database.create_view(name, select)


MIGRATIONS: Final[tuple[Callable[[Database], None], ...]] = (_create_format_1,)
"""MIGRATIONS[n] turns a file of format n into one of format n + 1; 0 is an empty file."""


def _create(path: str) -> None:
    """Make an empty store under a name of its own, then give it its name: a crash leaves a whole store or none."""
    # Takes a quarter of a second to import and is needed here alone.
    from sqlite_utils import Database

    directory = os.path.dirname(path)
    temporary = path + ".new"
    try:
        for leftover in (temporary, temporary + "-journal", temporary + "-wal", temporary + "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover)
        with contextlib.closing(_connect(temporary)) as connection:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            database = Database(connection, execute_plugins=False)
            with database.atomic():
                for migrate in MIGRATIONS:
                    migrate(database)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
        sync(temporary)
        os.replace(temporary, path)
        sync(directory)
    except (sqlite3.Error, OSError) as error:
        raise StorageFailed(
            f"can't create {path}: {error}. Check the directory, its free space and who may write there", path=path
        ) from error


def _check_header(path: str) -> None:
    """Raises unless the file begins like a geraft store of a format that we know. Reads, and touches nothing else.

    Source: https://www.sqlite.org/fileformat2.html, section 1.3.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(100)
    except OSError as error:
        raise StorageFailed(f"can't read {path}: {error}", path=path) from error
    if not header:
        raise StorageCorrupt(
            f"{path} is empty, which a geraft store never is. {RESTORE_ADVICE}. If it never was one, delete the file",
            path=path,
        )
    is_sqlite = header[:16] == b"SQLite format 3\0"
    is_ours = header[68:72] == APPLICATION_ID.to_bytes(4, "big")
    if not is_sqlite and (is_ours or os.path.exists(path + ".lock")):
        raise StorageCorrupt(f"{path} is damaged: its header is no longer that of SQLite. {RESTORE_ADVICE}", path=path)
    if not is_ours:
        kind = "a SQLite file of another program" if is_sqlite else "no SQLite file"
        raise StorageForeign(f"{path} is {kind}, not a geraft store: name another path", path=path)
    if len(header) < 100 or header[18:20] != b"\2\2":
        # With other bytes SQLite would ignore the WAL, and with it the newest entries.
        raise StorageCorrupt(f"{path} is damaged: its header does not ask for a WAL. {RESTORE_ADVICE}", path=path)
    version = int.from_bytes(header[60:64], "big")
    if version > FORMAT_VERSION:
        _raise_too_new(path, version)


def _check_no_orphan(path: str) -> None:
    """Raises if the file is gone while its WAL is there: a new file would mix with it."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.getsize(path + "-wal") > 0:
            raise StorageCorrupt(
                f"{path} is gone and {path}-wal, which belongs to it, is still there. {RESTORE_ADVICE}", path=path
            )


def _raise_too_new(path: str, version: int) -> NoReturn:
    raise StorageFormatTooNew(
        f"{path} has format {version} and this geraft knows formats up to {FORMAT_VERSION}: install the newer geraft",
        path=path,
    )


def _is_wal_header(header: bytes) -> bool:
    """Whether the 32 bytes carry the checksum that SQLite gave them (walformat.html, section 4.1)."""
    order = ">" if header[3] & 1 else "<"
    first = second = 0
    for left, right in struct.iter_unpack(order + "II", header[:24]):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return header[:3] == b"\x37\x7f\x06" and header[24:] == struct.pack(">II", first, second)


_left_to_the_parent: list[object] = []
"""Connections of a parent process: closing one in its child would touch its files."""
