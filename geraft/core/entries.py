"""What the log is made of: ids, kinds, and batches of entries.

The unit in which entries are stored and sent is the batch: consecutive entries of one term and one kind. A write costs
its share of a batch everywhere, never an object, a row or a message of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from geraft.core.membership import Configuration

INDEX_MAX = 2**63 - 1
"""Terms and indexes fit a signed 64-bit integer, which is what SQLite stores; anything above is refused at the wire."""


class EntryId(NamedTuple):
    """Term and index of one entry. Comparing two of them *is* the up-to-date rule (Raft dissertation 3.6.1)."""

    term: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


ZERO = EntryId(0, 0)
"""What stands before the first entry of a log."""


class EntryKind(IntEnum):
    """What an entry is for; the numbers are those of proto/geraft.proto and of the log on disk."""

    NOOP = 1
    COMMAND = 2
    CONFIGURATION = 3
    SESSION = 4
    """Of a client's session: each command is what geraft.sessions makes of a write, so that it is applied once."""


HOLDING_COMMANDS = frozenset({EntryKind.COMMAND, EntryKind.SESSION})
"""Kinds whose batches may have several entries, each with a command."""


class Ballot(NamedTuple):
    """The current term and whom we voted for in it ("" for nobody); durable before any reply that depends on it."""

    term: int
    voted_for: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryBatch:
    """Consecutive entries of one term and one kind.

    commands: one per entry. Those of a NOOP or CONFIGURATION entry are empty bytes, and such a batch has one entry.
    Those of a SESSION are SessionCommands of proto/geraft.proto, which only geraft.sessions looks into.
    configuration: set if and only if kind is CONFIGURATION.
    encoded: a cache that geraft.records fills on the first encoding, so that disk and every peer share it.
    size_bytes: roughly what the entries take on the wire.
    """

    term: int
    first_index: int
    kind: EntryKind
    commands: tuple[bytes, ...]
    configuration: Configuration | None = None
    encoded: bytes | None = field(default=None, compare=False, repr=False)
    size_bytes: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size_bytes", 16 + 2 * len(self.commands) + sum(map(len, self.commands)))

    @property
    def last_index(self) -> int:
        return self.first_index + len(self.commands) - 1

    @property
    def last_entry(self) -> EntryId:
        return EntryId(self.term, self.first_index + len(self.commands) - 1)

    def slice(self, first_index: int, last_index: int) -> EntryBatch:
        """The part within [first_index, last_index]; self if that is all of it. Both ends must lie in the batch."""
        if first_index == self.first_index and last_index == self.last_index:
            return self
        start = first_index - self.first_index
        return EntryBatch(
            term=self.term,
            first_index=first_index,
            kind=self.kind,
            commands=self.commands[start : last_index - self.first_index + 1],
            configuration=self.configuration,
        )


def total_bytes(batches: Iterable[EntryBatch]) -> int:
    return sum(batch.size_bytes for batch in batches)
