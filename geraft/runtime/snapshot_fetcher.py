"""Fetches a snapshot from the leader: bytes stream from the network into the app, never all of them in memory."""

from __future__ import annotations

import logging
from _queue import SimpleQueue
from collections.abc import Callable, Iterator
from zlib import crc32

from geraft.core.entries import EntryId
from geraft.core.snapshots import Snapshot
from geraft.errors import StorageCorrupt
from geraft.runtime.hub import monotonic

log = logging.getLogger(__name__)

PIPE_BYTES_MAX = 4 * 1024 * 1024
"""Between the network and the app; the network waits while so much has not been taken."""
PROGRESS_SECONDS = 5.0
"""How often the log tells how far a fetch is."""


class FetchCancelled(Exception):
    """Raised into save_snapshot while it waits for bytes of a fetch that was given up."""


class FetchFailed(Exception):
    """Raised into save_snapshot: the rest can't be had."""


class SnapshotFetch:
    """One snapshot on its way from the leader.

    The transport puts in what comes, from wherever it runs; one native thread, the applier's, takes it out.
    offset: how many bytes have come, so from where a broken stream is taken up again.
    """

    def __init__(self, leader: str, last_entry: EntryId) -> None:
        self.leader = leader
        self.last_entry = last_entry
        self.snapshot: Snapshot | None = None
        self.offset = 0
        self.cancelled = False
        self.ended = False
        self._taken_bytes = 0
        self._checksum = 0
        self._pipe: SimpleQueue[Snapshot | bytes | Exception | None] = SimpleQueue()
        self._told_at = monotonic()

    # The transport's end ----------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether the app shall take some of it first."""
        return self.offset - self._taken_bytes > PIPE_BYTES_MAX

    @property
    def size_bytes(self) -> int:
        """Of the whole snapshot; 0 until its record has come."""
        return self.snapshot.size_bytes if self.snapshot is not None else 0

    @property
    def complete(self) -> bool:
        return self.snapshot is not None and self.offset == self.snapshot.size_bytes

    def begin(self, snapshot: Snapshot) -> bool:
        """The record, at the head of every stream; False if it is another one than before: then it can't go on."""
        if self.snapshot is None:
            if snapshot.last_entry != self.last_entry:
                return False
            self.snapshot = snapshot
            self._pipe.put(snapshot)
            log.info("fetching snapshot %d.%d from %s: %d bytes", *self.last_entry, self.leader, snapshot.size_bytes)
        return snapshot == self.snapshot

    def put(self, chunk: bytes) -> None:
        snapshot = self.snapshot
        assert snapshot is not None, "the record comes first"
        self.offset += len(chunk)
        self._pipe.put(chunk)
        now = monotonic()
        if now - self._told_at >= PROGRESS_SECONDS:
            self._told_at = now
            log.info("snapshot %d.%d: %d of %d bytes", *self.last_entry, self.offset, snapshot.size_bytes)

    def finish(self) -> None:
        """All of it was put."""
        self._pipe.put(None)

    def fail(self, sentence: str) -> None:
        """The rest can't be had."""
        self.ended = True
        self._pipe.put(FetchFailed(sentence))

    def cancel(self) -> None:
        """Give it up. Any thread; again is no error."""
        self.cancelled = self.ended = True
        self._pipe.put(FetchCancelled())

    # The app's end ----------------------------------------------------------------------------------------------------

    def save(self, save_snapshot: Callable[[Iterator[bytes], int], None]) -> Snapshot:
        """Let the app store it, and give its record. Blocks until all has come, or raises what went wrong."""
        snapshot = self._pipe.get()
        if not isinstance(snapshot, Snapshot):
            assert isinstance(snapshot, Exception), "the record comes first"
            raise snapshot
        chunks = self._chunks(snapshot)
        save_snapshot(chunks, snapshot.index)
        for _ in chunks:  # an app that stops before the end has not seen whether the bytes are right
            raise StorageCorrupt(f"save_snapshot of {snapshot.index} left some of the bytes")
        if self.cancelled:
            raise FetchCancelled
        return snapshot

    def _chunks(self, snapshot: Snapshot) -> Iterator[bytes]:
        while (item := self._pipe.get()) is not None:
            if not isinstance(item, bytes):
                assert isinstance(item, Exception), "the record comes once"
                raise item
            self._taken_bytes += len(item)
            self._checksum = crc32(item, self._checksum)
            yield item
        if (self._taken_bytes, self._checksum) != (snapshot.size_bytes, snapshot.checksum):
            raise StorageCorrupt(
                f"snapshot {snapshot.index} of {self.leader} arrived with {self._taken_bytes} bytes and checksum"
                f" {self._checksum:08x}, its record says {snapshot.size_bytes} and {snapshot.checksum:08x}"
            )
