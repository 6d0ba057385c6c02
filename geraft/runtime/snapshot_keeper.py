"""Keeps the snapshots of a node: has new ones recorded, folds, and throws outdated ones away. A native thread."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, overload
from zlib import crc32

from geraft.app import RaftApp
from geraft.core.entries import EntryId
from geraft.core.events import SnapshotMade
from geraft.core.snapshots import Snapshot
from geraft.errors import SnapshotFailed, StorageCorrupt, StorageError, StorageFailed
from geraft.runtime.hub import Waiter, fail, finish, native_lock
from geraft.runtime.pool import Pool
from geraft.runtime.worker import Worker
from geraft.sessions import SessionTable, commands_applied
from geraft.storage.base import RaftStorage, StoredState

log = logging.getLogger(__name__)

SNAPSHOTS_KEPT = 2
ENDED = "the node ended before the snapshot was made and recorded"
READ_BYTES = 4 * 1024 * 1024
"""Of the log, read at a time while folding."""


class Copied(NamedTuple):
    """The app has made the snapshot of snapshot_index itself."""

    snapshot_index: int
    sessions: bytes


class Fold(NamedTuple):
    """The app shall make the snapshot of snapshot_index from an older one and the log. waiting: who wants to know."""

    snapshot_index: int
    sessions: bytes
    waiting: tuple[Waiter, ...]


class Delete(NamedTuple):
    """The bytes of the snapshot of snapshot_index are of no use, unless the catalogue has it, or may be about to."""

    snapshot_index: int


class SnapshotKeeper(Worker):
    """Does with snapshots what takes long, beside the hub, the log writer and the applier.

    made: tells the node loop of a snapshot that the app holds durably. forget: takes one out of the store's catalogue,
    and then calls `forgotten`. ask_app: has the applier call back between two entries, with the index of the last one
    applied and the state of the sessions. after_writes: calls back once all is done that the store was given before, on
    any thread. The catalogue here is what the store's is, or is about to be.
    """

    def __init__(
        self,
        app: RaftApp,
        storage: RaftStorage,
        *,
        made: Callable[[SnapshotMade], None],
        forget: Callable[[int], None],
        ask_app: Callable[[Callable[[int, bytes], None]], None],
        after_writes: Callable[[Callable[[], None]], None],
        on_crash: Callable[[BaseException], None],
        pool: Pool | None = None,
    ) -> None:
        super().__init__("geraft snapshots", on_crash, pool)
        self._app = app
        self._storage = storage
        self._made = made
        self._forget = forget
        self._ask_app = ask_app
        self._after_writes = after_writes
        self._guard = native_lock()  # of what follows; held for a moment
        self._catalogue: dict[int, Snapshot] = {}
        self._leases: Counter[int] = Counter()
        self._forgetting: set[int] = set()
        self._unrecorded: set[int] = set()  # made, and on their way into the catalogue
        self._arriving: Counter[int] = Counter()  # by index: fetches of it that may yet get into the catalogue
        self._deletion = native_lock()  # held while bytes are deleted, and nothing is about to arrive in their place
        self._asking: list[Waiter] = []  # who wants a snapshot, of an index that is not known yet
        self._wanted: dict[int, list[Waiter]] = {}  # by the index of the snapshot that they wait for
        self._over = False
        self._fold_asked = False

    # For any thread ---------------------------------------------------------------------------------------------------

    @property
    def newest(self) -> Snapshot | None:
        catalogue = self._catalogue
        with self._guard:
            return catalogue[max(catalogue)] if catalogue else None

    def copied(self, index: int, sessions: bytes) -> None:
        """The app has made the snapshot of index."""
        self.queue.put(Copied(index, sessions))

    def arrives(self, index: int) -> None:
        """A fetched snapshot is about to be stored: its bytes stay as they are until it is recorded or discarded.

        Blocks while another one is being deleted, which may have that index.
        """
        with self._deletion, self._guard:
            self._arriving[index] += 1

    def discard(self, index: int, *, fetched: bool) -> None:
        """Delete the bytes of a snapshot that is not in the catalogue. fetched: it had arrived, or failed to."""
        with self._guard:
            if fetched:
                self._end_arrival(index)
            else:
                self._unrecorded.discard(index)
            is_awaited = self._may_be_recorded(index)
        if not is_awaited:
            self._end_waiting(index, discarded=True)
        self.queue.put(Delete(index))

    def _may_be_recorded(self, index: int) -> bool:
        """Whether there are bytes, made here or the leader's, of which a record is on its way. With the guard held."""
        return index in self._unrecorded or self._arriving[index] > 0

    def _end_arrival(self, index: int) -> None:
        self._arriving[index] -= 1
        if self._arriving[index] <= 0:
            del self._arriving[index]

    def recorded(self, snapshot: Snapshot) -> None:
        """The store's catalogue has it: older ones than the two newest may go."""
        with self._guard:
            self._catalogue[snapshot.index] = snapshot
            self._unrecorded.discard(snapshot.index)
            self._end_arrival(snapshot.index)
        self._end_waiting(snapshot.index)
        self._collect()

    def forgotten(self, index: int) -> None:
        """The store's catalogue no longer has it: its bytes may go."""
        with self._guard:
            self._forgetting.discard(index)
        self.queue.put(Delete(index))

    def fold(self, waiter: Waiter | None = None) -> None:
        """Make a snapshot of what the app has applied; the waiter gets its index. One at a time."""
        if waiter is None:
            if self._fold_asked:
                return
            self._fold_asked = True
        else:
            with self._guard:
                over = self._over
                if not over:
                    self._asking.append(waiter)
            if over:
                fail([waiter], SnapshotFailed(ENDED))
                return
        waiting = (waiter,) if waiter is not None else ()

        def app_told(index: int, sessions: bytes) -> None:
            # What is applied may still be on its way to our own disk, where a fold reads it.
            self._after_writes(lambda: self.queue.put(Fold(index, sessions, waiting)))

        self._ask_app(app_told)

    @contextlib.contextmanager
    def reading(self, last_entry: EntryId) -> Iterator[tuple[Snapshot, Iterator[bytes]]]:
        """A snapshot and its bytes, which stay as long as the context lasts. Raises KeyError if there is none."""
        with self._guard:
            snapshot = self._catalogue[last_entry.index]
            if snapshot.last_entry != last_entry:
                raise KeyError(last_entry)
            self._leases[snapshot.index] += 1
        try:
            yield snapshot, iter(self._app.open_snapshot(snapshot.index))
        finally:
            with self._guard:
                self._leases[snapshot.index] -= 1
            self._collect()

    def _collect(self) -> None:
        with self._guard:
            outdated = [
                index
                for index in sorted(self._catalogue)[:-SNAPSHOTS_KEPT]
                if not self._leases[index] and index not in self._forgetting
            ]
            for index in outdated:
                del self._catalogue[index]
                self._forgetting.add(index)
        for index in outdated:
            self._forget(index)

    def _end_waiting(self, index: int, *, discarded: bool = False) -> None:
        with self._guard:
            newest = max(self._catalogue, default=0)
            ended = [at for at in self._wanted if at <= newest or at == index]
            waiting = [(at, waiter) for at in ended for waiter in self._wanted.pop(at)]
        for at, waiter in waiting:
            if discarded and newest < at:
                fail([waiter], SnapshotFailed(f"the snapshot of {at} was outdated before it was recorded: ask again"))
            else:
                finish([waiter], [max(at, newest)])

    # At the start -----------------------------------------------------------------------------------------------------

    def recover(self, state: StoredState) -> tuple[Snapshot | None, list[int]]:
        """Let the app become the state of the newest snapshot that is whole, and sweep what no catalogue knows of.

        Gives that snapshot, None if there is none and the log begins at 1, and the indexes of those that are damaged.
        On the applier's thread, before anything runs. Raises StorageCorrupt if no snapshot is left that the log
        continues.
        """
        damaged: list[int] = []
        reasons: list[str] = []
        chosen = None
        for snapshot in reversed(state.snapshots):
            if not state.base.index <= snapshot.index <= state.last_entry.index:
                continue
            try:
                self._check(snapshot)
                self._app.install_snapshot(snapshot.index)
            except StorageError as error:
                log.error("snapshot %d can't be used: %s", snapshot.index, error)
                damaged.append(snapshot.index)
                reasons.append(str(error))
                continue
            chosen = snapshot
            break
        if chosen is None:
            if state.base.index > 0:
                raise StorageCorrupt(
                    f"the log begins after entry {state.base.index}, and no snapshot is left that reaches there"
                    f" ({'; '.join(reasons) or 'the catalogue has none'}). Restore the files of the snapshots, or"
                    " remove the node from the cluster and add it again under a new id with an empty store"
                )
            self._app.install_snapshot(None)
        self._catalogue = {each.index: each for each in state.snapshots if each.index not in damaged}
        for index in self._app.list_snapshots():
            if index not in self._catalogue and index not in damaged:
                log.info("snapshot %d was never recorded: it is deleted", index)
                self._delete(index)
        return chosen, damaged

    def _check(self, snapshot: Snapshot) -> None:
        size_bytes, checksum = measure(self._app.open_snapshot(snapshot.index))
        if (size_bytes, checksum) != (snapshot.size_bytes, snapshot.checksum):
            raise StorageCorrupt(
                f"snapshot {snapshot.index} has {size_bytes} bytes with checksum {checksum:08x}, recorded are"
                f" {snapshot.size_bytes} with {snapshot.checksum:08x}"
            )

    # On its own thread ------------------------------------------------------------------------------------------------

    def work(self, item: Any) -> bool:
        found = None
        match item:
            case Copied():
                while isinstance(found := self.take_more(), Copied):
                    self._delete(item.snapshot_index)  # nobody will ask for it any more
                    item = found
                self._measure(item.snapshot_index, item.sessions)
            case Fold():
                self._fold(item)
            case Delete():
                self._delete(item.snapshot_index)
            case _:
                super().work(item)
        return found is not None and self._take(found)

    def drop(self, item: Any) -> None:
        if isinstance(item, Fold):
            self._no_longer_asking(item.waiting)
            fail(item.waiting, SnapshotFailed(ENDED))

    def after_end(self) -> None:
        with self._guard:
            self._over = True
            waiting = [*self._asking, *(waiter for waiters in self._wanted.values() for waiter in waiters)]
            self._asking.clear()
            self._wanted.clear()
        fail(waiting, SnapshotFailed(ENDED))

    def _measure(self, index: int, sessions: bytes) -> None:
        """Read what the app has made, as a follower would get it, and have it recorded."""
        try:
            size_bytes, checksum = measure(self._app.open_snapshot(index))
        except Exception:
            log.exception("the snapshot of %d that the app has made can't be read: it is not used", index)
            self._end_waiting(index, discarded=True)
            self._delete(index)
            return
        with self._guard:
            self._unrecorded.add(index)
        self._made(SnapshotMade(index=index, size_bytes=size_bytes, checksum=checksum, sessions=sessions))

    def _fold(self, work: Fold) -> None:
        if not work.waiting:
            self._fold_asked = False
        self._no_longer_asking(work.waiting)
        old, index = self.newest, work.snapshot_index
        if index == 0 or (old is not None and old.index >= index):
            finish(work.waiting, [old.index if old is not None else 0] * len(work.waiting))
            return
        with self._guard:
            is_there = self._may_be_recorded(index)
            if is_there:
                self._wanted.setdefault(index, []).extend(work.waiting)
        if is_there:
            return  # its record tells of the bytes that are there: they must stay what they are
        try:
            with contextlib.ExitStack() as stack:
                if old is not None:
                    stack.enter_context(self._lease(old.index))
                requests = LoggedCommands(self._storage, old, index)
                self._app.fold_snapshot(old.index if old is not None else None, requests, index)
        except Exception as error:
            newest = self.newest
            if newest is not None and newest is not old:
                log.info("the fold up to %d was overtaken by snapshot %d", index, newest.index)
            else:
                log.exception("fold_snapshot up to %d failed; the log stays as it is", index)
            fail(work.waiting, SnapshotFailed(f"the app could not make a snapshot of {index}: {error!r}"))
            self._delete(index)
            return
        with self._guard:
            self._wanted.setdefault(index, []).extend(work.waiting)
        self._measure(index, work.sessions)

    def _no_longer_asking(self, waiting: Sequence[Waiter]) -> None:
        with self._guard:
            self._asking = [waiter for waiter in self._asking if waiter not in waiting]

    @contextlib.contextmanager
    def _lease(self, index: int) -> Iterator[None]:
        with self._guard:
            self._leases[index] += 1
        try:
            yield
        finally:
            with self._guard:
                self._leases[index] -= 1
            self._collect()

    def _delete(self, index: int) -> None:
        """Unless what is there now is recorded, or may yet be: that was put in its place meanwhile."""
        with self._deletion:
            with self._guard:
                if index in self._catalogue or index in self._forgetting or self._may_be_recorded(index):
                    return
            try:
                self._app.delete_snapshot(index)
            except Exception:
                log.exception("snapshot %d could not be deleted; the next start tries again", index)


def measure(chunks: Iterator[bytes]) -> tuple[int, int]:
    """Size in bytes and CRC-32 of what the chunks hold; keeps none of them."""
    size_bytes, checksum = 0, 0
    for chunk in chunks:
        size_bytes += len(chunk)
        checksum = crc32(chunk, checksum)
    return size_bytes, checksum


class LoggedCommands(Sequence[bytes]):
    """The commands that the app was given after a snapshot (None: from the beginning), up to the entry last_index.

    Read from the store a few MiB at a time, as often as they are gone through. A command that a client repeated is
    there once: the sessions of the snapshot tell. Raises StorageFailed if they are no longer in the log.
    """

    def __init__(self, storage: RaftStorage, after: Snapshot | None, last_index: int) -> None:
        self._storage = storage
        self._first_index = after.index + 1 if after is not None else 1
        self._sessions = after.sessions if after is not None else b""
        self._last_index = last_index
        self._length: int | None = None

    def __iter__(self) -> Iterator[bytes]:
        index, table = self._first_index, SessionTable.decode(self._sessions)
        while index <= self._last_index:
            batches = self._storage.read(index, self._last_index, READ_BYTES)
            if not batches:
                raise StorageFailed(f"entry {index} is no longer in the log")
            yield from commands_applied(table, batches)
            index = batches[-1].last_index + 1

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in self)
        return self._length

    @overload
    def __getitem__(self, key: int) -> bytes: ...

    @overload
    def __getitem__(self, key: slice) -> Sequence[bytes]: ...

    def __getitem__(self, key: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(key, slice):
            return list(self)[key]
        wanted = key if key >= 0 else len(self) + key
        for position, command in enumerate(self):
            if position == wanted:
                return command
        raise IndexError(key)
