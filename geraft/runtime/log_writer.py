"""Makes Persist effects durable: all that wait in one disk sync."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from geraft.core.effects import CompactLog, Persist, RecordSnapshot, Send
from geraft.core.entries import EntryBatch
from geraft.core.events import LogCompacted, Persisted, SnapshotRecorded
from geraft.core.messages import PeerMessage
from geraft.errors import StorageError, StorageFailed
from geraft.runtime.hub import monotonic
from geraft.runtime.pool import Pool
from geraft.runtime.worker import Worker
from geraft.storage.base import RaftStorage

log = logging.getLogger(__name__)

GROUP_BYTES_MAX = 8 * 1024 * 1024
"""Of entries written with one sync; one effect may exceed it."""


class ForgetSnapshot(NamedTuple):
    """Take the snapshot of snapshot_index out of the store's catalogue."""

    snapshot_index: int


class LogWriter(Worker):
    """The one native thread that opens, writes and closes the store.

    Replies that waited for the disk leave from here, without another turn of the hub: once their entries are durable
    they are true whatever has happened since. persisted, changed, forgotten: tell of what was written; any thread.
    """

    def __init__(
        self,
        storage: RaftStorage,
        send: Callable[[str, PeerMessage], None],
        persisted: Callable[[Persisted], None],
        changed: Callable[[SnapshotRecorded | LogCompacted], None],
        forgotten: Callable[[int], None],
        on_crash: Callable[[BaseException], None],
        pool: Pool | None = None,
    ) -> None:
        super().__init__("geraft log writer", on_crash, pool)
        self._storage = storage
        self._send = send
        self._persisted = persisted
        self._changed = changed
        self._forgotten = forgotten
        self._busy_since: float | None = None

    def busy_seconds(self) -> float:
        """For how long the store has been at the present write; 0 if it is idle."""
        since = self._busy_since
        return 0.0 if since is None else max(monotonic() - since, 0.0)

    def work(self, item: Any) -> bool:
        if not isinstance(item, Persist):
            self._change(item)
            return False
        persist = item
        reset = persist.reset
        ballot = persist.ballot
        batches: list[EntryBatch] = list(persist.batches)
        then: list[Send] = list(persist.then)
        size_bytes = sum(batch.size_bytes for batch in batches)
        found = None
        while size_bytes < GROUP_BYTES_MAX:
            more = self.take_more()
            if not isinstance(more, Persist) or more.reset is not None:
                found = more
                break
            persist = more
            ballot = persist.ballot or ballot
            batches += persist.batches
            then += persist.then
            size_bytes += sum(batch.size_bytes for batch in persist.batches)
        if reset is not None:
            self._store(lambda: self._storage.reset(reset))
            self._changed(SnapshotRecorded(snapshot=reset))
        if ballot is not None or batches:
            self._store(lambda: self._storage.write(ballot, batches))
        for send in then:
            self._send(send.to, send.message)
        last_entry = batches[-1].last_entry if batches else reset.last_entry if reset is not None else None
        self._persisted(Persisted(sequence=persist.sequence, last_entry=last_entry, ballot=ballot))
        return found is not None and self._take(found)

    def _change(self, item: Any) -> None:
        """What is done alone: it changes more of the store than its end."""
        storage = self._storage
        match item:
            case RecordSnapshot(snapshot=snapshot):
                self._store(lambda: storage.record_snapshot(snapshot))
                self._changed(SnapshotRecorded(snapshot=snapshot))
            case CompactLog():
                base = self._store(lambda: storage.compact(item.index, item.bytes_max))
                self._changed(LogCompacted(base=base))
            case ForgetSnapshot():
                self._store(lambda: storage.forget_snapshot(item.snapshot_index))
                self._forgotten(item.snapshot_index)
            case _:
                super().work(item)

    def _store(self, change: Callable[[], Any]) -> Any:
        self._busy_since = monotonic()
        try:
            return change()
        except StorageError:
            raise
        except Exception as error:
            raise StorageFailed(f"the log store failed to write: {error!r}") from error
        finally:
            self._busy_since = None
