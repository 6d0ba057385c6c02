"""What a log store must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from geraft.core.entries import ZERO, Ballot, EntryBatch, EntryId
from geraft.core.membership import Configuration
from geraft.core.snapshots import Snapshot
from geraft.errors import StorageError

FORMAT_VERSION = 1
"""Of what stores write; a store with a higher one is refused, one with a lower one migrated."""


class Identity(NamedTuple):
    """Whose state a store holds.

    store_id: drawn at random when the store was initialised. Members know each other's, so a node whose state was
    lost can't come back under its old id (Raft dissertation 3.8).
    """

    cluster_id: str
    node_id: str
    store_id: str


class TermStart(NamedTuple):
    """Entries from first_index on are of `term`, up to the next TermStart."""

    first_index: int
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """All that a node must know of its store before it can start; small however long the log is.

    base: the entry directly before the oldest one held, ZERO for a log that begins at 1. first_index: base.index + 1.
    terms: ascending; the first one begins at first_index, and there is none if no entry is held. configurations: each
    with the index of its entry, ascending; the first is the one in force at base, even if its entry was dropped.
    snapshots: the catalogue, ascending by index.
    """

    identity: Identity | None
    ballot: Ballot
    first_index: int
    last_entry: EntryId
    terms: tuple[TermStart, ...]
    configurations: tuple[tuple[int, Configuration], ...]
    base: EntryId = ZERO
    snapshots: tuple[Snapshot, ...] = ()


class RaftStorage(ABC):
    """A durable log, vote and identity. Plain blocking methods, never called on the hub.

    All methods but read are called by one thread at a time; read may be called by several others, at any time between
    open and close. Every method raises StorageFailed if the device does not do what it is asked to.
    """

    @abstractmethod
    def open(self) -> StoredState:
        """Take hold of the store, check it and tell what it holds. An empty store is made where there is none.

        Raises StorageLocked, StorageCorrupt, StorageForeign, StorageFormatTooNew, each naming the file and what to do.
        Nothing is changed by an open that raises.
        """

    @abstractmethod
    def initialise(self, identity: Identity, batches: Sequence[EntryBatch]) -> None:
        """Write the identity and the first entries of a log, in one atomic durable step.

        The store must hold neither yet, else BootstrapRefused.
        """

    @abstractmethod
    def write(self, ballot: Ballot | None, batches: Sequence[EntryBatch]) -> None:
        """Store ballot and batches in one atomic step that is durable on return.

        Each batch in turn first drops whatever is stored at or after its first index, then takes its place.
        ballot: None to leave it as it is. Raises LogGap, and changes nothing, if a batch starts after last_index + 1
        or not after base.
        """

    @abstractmethod
    def read(self, first_index: int, last_index: int, bytes_max: int) -> list[EntryBatch]:
        """The entries [first_index, last_index] in order, cut after about bytes_max but never before the first batch.

        Empty if first_index is not held. Raises StorageCorrupt for bytes that are not what was written.
        """

    @abstractmethod
    def record_snapshot(self, snapshot: Snapshot) -> None:
        """Put the snapshot into the catalogue, durable on return; one of the same index is replaced.

        The app's bytes must be durable before. The log stays as it is.
        """

    @abstractmethod
    def forget_snapshot(self, index: int) -> None:
        """Take the snapshot of that index out of the catalogue, durable on return; none there is no error.

        Comes before its bytes are deleted, so that a crash between the two leaves an orphan and no gap.
        """

    @abstractmethod
    def compact(self, index: int, bytes_max: int) -> EntryId:
        """Drop whole batches that end at or before index, oldest first, in one atomic durable step; gives the new base.

        About bytes_max of them at most, but at least one if any ends there: call it again until base no longer moves.
        Raises CompactionRefused, and changes nothing, if no snapshot of the catalogue reaches to index.
        """

    @abstractmethod
    def reset(self, snapshot: Snapshot) -> None:
        """Let the whole log give way to the snapshot, in one atomic step that is durable on return.

        No entry is left, base and last_entry are the snapshot's, the only configuration is its own, and it stands in
        the catalogue. Ballot and identity stay. For a log that conflicts with what was committed (Raft dissertation
        5.1).
        """

    def recover(self, identity: Identity, ballot: Ballot, batch: EntryBatch) -> None:
        """Give the store another identity, and write ballot and batch as write does, in one atomic durable step.

        For recovery after the loss of a quorum, and nothing else. Every store of geraft's can; one of yours that can't
        raises StorageError.
        """
        raise StorageError(f"{type(self).__name__} can't be given another identity: recover with another kind of store")

    @abstractmethod
    def close(self) -> None:
        """Let go of the store. Closing twice is no error."""
