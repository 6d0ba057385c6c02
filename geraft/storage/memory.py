"""A log in memory: for tests, and for nodes that may forget."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence

from geraft.core.entries import ZERO, Ballot, EntryBatch, EntryId
from geraft.core.snapshots import Snapshot
from geraft.errors import BootstrapRefused, StorageFailed, StorageLocked
from geraft.storage.base import Identity, RaftStorage, StoredState
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


class MemoryStorage(RaftStorage):
    """Keeps its promises as long as the object lives: close() and open() again, and everything is still there.

    A new object has no identity, so a node that restarts with one is told by the others that it lost its state.
    """

    def __init__(self) -> None:
        self._state = EMPTY
        # Readers hold on to the list that they found: it only grows, and a cut puts another in its place.
        self._batches: list[EntryBatch] = []
        self._opened = False

    @property
    def state(self) -> StoredState:
        """What open() would tell now, open or not."""
        return self._state

    def open(self) -> StoredState:
        if self._opened:
            raise StorageLocked(f"this MemoryStorage is open already, in this process ({os.getpid()}): close it first")
        self._opened = True
        return self._state

    def initialise(self, identity: Identity, batches: Sequence[EntryBatch]) -> None:
        self._check_open()
        if self._state.identity is not None or self._state.last_entry != ZERO:
            raise BootstrapRefused(f"this MemoryStorage already holds the state of {self._state.identity}")
        self._write(identity, None, batches)

    def recover(self, identity: Identity, ballot: Ballot, batch: EntryBatch) -> None:
        self._check_open()
        self._write(identity, ballot, [batch])

    def write(self, ballot: Ballot | None, batches: Sequence[EntryBatch]) -> None:
        self._check_open()
        self._write(None, ballot, batches)

    def read(self, first_index: int, last_index: int, bytes_max: int) -> list[EntryBatch]:
        self._check_open()
        batches = self._batches
        at = bisect_right(batches, first_index, key=_first_index) - 1
        selected: list[EntryBatch] = []
        bytes_taken = 0
        while 0 <= at < len(batches):
            batch = batches[at]
            start, end = max(batch.first_index, first_index), min(batch.last_index, last_index)
            if start > end:
                break
            part = batch.slice(start, end)
            bytes_taken += part.size_bytes
            if selected and bytes_taken > bytes_max:
                break
            selected.append(part)
            at += 1
        return selected

    def record_snapshot(self, snapshot: Snapshot) -> None:
        self._check_open()
        self._state = after_record(self._state, snapshot)

    def forget_snapshot(self, index: int) -> None:
        self._check_open()
        self._state = after_forget(self._state, index)

    def compact(self, index: int, bytes_max: int) -> EntryId:
        self._check_open()
        check_compaction(self._state, index)
        count, bytes_taken = 0, 0
        for batch in self._batches:
            bytes_taken += batch.size_bytes
            if batch.last_index > index or (count and bytes_taken > bytes_max):
                break
            count += 1
        if count:
            base = self._batches[count - 1].last_entry
            self._batches = self._batches[count:]
            self._state = after_compact(self._state, base)
        return self._state.base

    def reset(self, snapshot: Snapshot) -> None:
        self._check_open()
        self._batches = []
        self._state = after_reset(self._state, snapshot)

    def close(self) -> None:
        self._opened = False

    def _check_open(self) -> None:
        if not self._opened:
            raise StorageFailed("this MemoryStorage is not open")

    def _write(self, identity: Identity | None, ballot: Ballot | None, batches: Sequence[EntryBatch]) -> None:
        check_no_gap(self._state, batches)
        settled = settle(batches)
        if settled and settled[0].first_index <= self._state.last_entry.index:
            kept = list(self._batches)
            while kept and kept[-1].first_index >= settled[0].first_index:
                kept.pop()
            if kept and kept[-1].last_index >= settled[0].first_index:
                kept[-1] = kept[-1].slice(kept[-1].first_index, settled[0].first_index - 1)
            self._batches = [*kept, *settled]
        else:
            self._batches.extend(settled)
        self._state = after_write(self._state, identity, ballot, settled)


def _first_index(batch: EntryBatch) -> int:
    return batch.first_index
