"""What a server knows of a snapshot: the record beside the log, not the app's bytes (Raft dissertation 5.1)."""

from __future__ import annotations

from dataclasses import dataclass, field

from geraft.core.entries import EntryId
from geraft.core.membership import Configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The app's state after last_entry, and what else a server needs to go on from there.

    configuration: the one in force at last_entry; configuration_index: of its entry. size_bytes, checksum: of the
    app's bytes (CRC-32), which the app keeps. sessions: the encoded session table at last_entry; only the applier
    knows what it says.
    """

    last_entry: EntryId
    configuration: Configuration
    configuration_index: int
    size_bytes: int
    checksum: int
    sessions: bytes = field(default=b"", repr=False)

    @property
    def index(self) -> int:
        return self.last_entry.index
