"""Makes Persist effects durable: all that wait in one disk sync."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from geraft.core.effects import Persist, Send
from geraft.core.entries import EntryBatch
from geraft.core.events import Persisted
from geraft.core.messages import PeerMessage
from geraft.errors import StorageError, StorageFailed
from geraft.runtime.hub import monotonic
from geraft.runtime.worker import Worker
from geraft.storage.base import RaftStorage

log = logging.getLogger(__name__)

GROUP_BYTES_MAX = 8 * 1024 * 1024
"""Of entries written with one sync; one effect may exceed it."""


class LogWriter(Worker):
    """The one native thread that opens, writes and closes the store.

    Replies that waited for the disk leave from here, without another turn of the hub: once their entries are durable
    they are true whatever has happened since. persisted: tells the node loop; any thread.
    """

    def __init__(
        self,
        storage: RaftStorage,
        send: Callable[[str, PeerMessage], None],
        persisted: Callable[[Persisted], None],
        on_crash: Callable[[BaseException], None],
    ) -> None:
        super().__init__("geraft log writer", on_crash)
        self._storage = storage
        self._send = send
        self._persisted = persisted
        self._busy_since: float | None = None

    def busy_seconds(self) -> float:
        """For how long the store has been at the present write; 0 if it is idle."""
        since = self._busy_since
        return 0.0 if since is None else max(monotonic() - since, 0.0)

    def work(self, item: Any) -> bool:
        persist: Persist = item
        ballot = persist.ballot
        batches: list[EntryBatch] = list(persist.batches)
        then: list[Send] = list(persist.then)
        size_bytes = sum(batch.size_bytes for batch in batches)
        found = None
        while size_bytes < GROUP_BYTES_MAX:
            more = self.take_more()
            if not isinstance(more, Persist):
                found = more
                break
            persist = more
            ballot = persist.ballot or ballot
            batches += persist.batches
            then += persist.then
            size_bytes += sum(batch.size_bytes for batch in persist.batches)
        if ballot is not None or batches:
            self._busy_since = monotonic()
            try:
                self._storage.write(ballot, batches)
            except StorageError:
                raise
            except Exception as error:
                raise StorageFailed(f"the log store failed to write: {error!r}") from error
            finally:
                self._busy_since = None
        for send in then:
            self._send(send.to, send.message)
        last_entry = batches[-1].last_entry if batches else None
        self._persisted(Persisted(sequence=persist.sequence, last_entry=last_entry, ballot=ballot))
        return found is not None and self._take(found)
