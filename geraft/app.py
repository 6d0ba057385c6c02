"""What users write: their state machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum


class MakeSnapshot(Enum):
    """What process_write may ask for beside its answer."""

    NONE = "none"
    COPY = "copy"
    """The app has just made the snapshot of this index itself."""
    FOLD = "fold"
    """Rebuild a snapshot from the last one and the log, beside the normal work."""


class RaftApp(ABC):
    """The state machine that every node runs over the same log. Seven plain blocking methods, and an optional one.

    process_write, install_snapshot and save_snapshot are called by one thread of the node, one at a time;
    process_read by a few others, at any time beside it; fold_snapshot, open_snapshot and delete_snapshot by others
    again. Guard what they share with a lock. None is ever called on the hub, so blocking delays no heartbeat.

    The same log must give the same state on every node: process_write may depend on nothing but the state, the command
    and the index (no clock, no random numbers, no set order).
    """

    @abstractmethod
    def process_read(self, request: bytes) -> bytes:
        """Answer a read; must not change the state. What it raises reaches the caller as ReadFailed."""

    @abstractmethod
    def process_write(self, request: bytes, entry_index: int) -> tuple[bytes, MakeSnapshot]:
        """Apply the command at entry_index (ascending, with gaps where the log holds entries of geraft's own).

        Answers (reply, snapshot wish). "No" is a reply like any other. An exception means that this node can't apply
        the entry *now* (a full disk, a lost database): it is retried with growing pauses until it succeeds, while the
        node goes on voting and replicating. A command that can never be applied must be answered, not raised about.
        """

    @abstractmethod
    def install_snapshot(self, snapshot_index: int | None) -> None:
        """Become the state of the snapshot; None: become the empty state, from which the log is applied anew."""

    @abstractmethod
    def fold_snapshot(self, old_snapshot_index: int | None, requests: Sequence[bytes], snapshot_index: int) -> None:
        """Make the snapshot of snapshot_index out of an older one and the commands applied since."""

    @abstractmethod
    def save_snapshot(self, chunks: Iterable[bytes], snapshot_index: int) -> None:
        """Store the snapshot that arrives in chunks."""

    @abstractmethod
    def open_snapshot(self, snapshot_index: int) -> Iterator[bytes]:
        """Give the stored snapshot in chunks."""

    @abstractmethod
    def delete_snapshot(self, snapshot_index: int) -> None:
        """Drop the stored snapshot; none there is no error."""

    def list_snapshots(self) -> Sequence[int]:
        """The indexes of all stored snapshots: at its start a node deletes those that it never came to record.

        This one names none, so that what a crash left behind stays.
        """
        return ()
