"""What a log store must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from geraft.core.entries import Ballot, EntryBatch, EntryId
from geraft.core.membership import Configuration

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

    first_index: of the oldest entry held, last_entry.index + 1 if none is. terms: ascending by first_index; the first
    one covers first_index. configurations: each with the index of its entry, ascending.
    """

    identity: Identity | None
    ballot: Ballot
    first_index: int
    last_entry: EntryId
    terms: tuple[TermStart, ...]
    configurations: tuple[tuple[int, Configuration], ...]


class RaftStorage(ABC):
    """A durable log, vote and identity. Plain blocking methods, never called on the hub.

    open, initialise, write and close are called by one thread at a time; read may be called by several others, at any
    time between open and close. Every method raises StorageFailed if the device does not do what it is asked to.
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
        ballot: None to leave it as it is. Raises LogGap, and changes nothing, if a batch starts after last_index + 1.
        """

    @abstractmethod
    def read(self, first_index: int, last_index: int, bytes_max: int) -> list[EntryBatch]:
        """The entries [first_index, last_index] in order, cut after about bytes_max but never before the first batch.

        Empty if first_index is not held. Raises StorageCorrupt for bytes that are not what was written.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the store. Closing twice is no error."""
