"""What can happen to a server: any message of a peer, and the events below. Raft.step is told one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from geraft.core.entries import Ballot, EntryBatch, EntryId, EntryKind
from geraft.core.membership import MembershipChange
from geraft.core.messages import PeerMessage
from geraft.core.snapshots import Snapshot

if TYPE_CHECKING:
    from geraft.core.raft import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed. now_seconds: a monotonic clock, of which only differences count.

    Tell it before the events that came in meanwhile: a silence that we promise begins when we say so, and a lease must
    hold at a time after the read was asked for, so a pause of the process must be known before the read is answered.
    """

    now_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Propose:
    """Callers want these commands appended, as one batch. token: names the proposal in ProposalAccepted/Refused.

    kind: COMMAND or SESSION.
    """

    token: int
    commands: tuple[bytes, ...]
    kind: EntryKind = EntryKind.COMMAND


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequested:
    """Callers want a read index. token: names the request in ReadConfirmed/ReadRefused. lease: a lease is enough."""

    token: int
    lease: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Persisted:
    """Every Persist effect up to number `sequence` is durable.

    last_entry: the last entry of that effect's batches, or None. ballot: its ballot, or None.
    """

    sequence: int
    last_entry: EntryId | None
    ballot: Ballot | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The app has applied every entry up to `index`."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EntriesLoaded:
    """The answer to LoadEntries: batches from first_index on; empty if the store no longer has them."""

    peer: str
    first_index: int
    batches: tuple[EntryBatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConnected:
    """The streams to a peer were (re)opened: what was in flight on the old ones may be lost."""

    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDisconnected:
    """The streams to a peer broke: nothing in flight will be answered."""

    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRequested:
    """Hand leadership over. target: a voter's id, or "" for the most caught-up one. token: names it in
    TransferEnded. applied_index: without a target, only to a voter whose app is known to have come so far."""

    token: int
    target: str = ""
    applied_index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsChanged:
    """These settings are in force from now on. What was promised under the old ones is kept."""

    settings: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeMembership:
    """Somebody wants other members. token: names the change in ChangeEnded.

    timeout_seconds: for how long servers may catch up; then the change is taken back.
    """

    token: int
    change: MembershipChange
    timeout_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotMade:
    """The app holds a durable snapshot of its state after entry `index`, which was handed to it before.

    size_bytes, checksum: of its bytes (CRC-32). sessions: the encoded session table at that index.
    """

    index: int
    size_bytes: int
    checksum: int
    sessions: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecorded:
    """The snapshot stands in the store's catalogue."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCompacted:
    """The answer to CompactLog. base: the store's, now."""

    base: EntryId


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFetched:
    """The bytes of the snapshot have come from `leader`, are verified, and durable with the app."""

    leader: str
    snapshot: Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFetchFailed:
    """The snapshot of last_entry can't be had from `leader`."""

    leader: str
    last_entry: EntryId


Event = (
    PeerMessage
    | Tick
    | Propose
    | ReadRequested
    | Persisted
    | Applied
    | EntriesLoaded
    | PeerConnected
    | PeerDisconnected
    | TransferRequested
    | SettingsChanged
    | ChangeMembership
    | SnapshotMade
    | SnapshotRecorded
    | LogCompacted
    | SnapshotFetched
    | SnapshotFetchFailed
)
