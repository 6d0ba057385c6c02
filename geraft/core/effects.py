"""What the runtime must do, in the order in which Raft.step returned it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from geraft.core.entries import Ballot, EntryBatch, EntryId
from geraft.core.membership import Configuration
from geraft.core.messages import PeerMessage
from geraft.core.snapshots import Snapshot


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"

    __hash__ = object.__hash__  # looked up at every step; that of Enum is no better, and slow


class Reason(Enum):
    """Why a proposal, read or transfer was not taken or did not end well. Nothing was appended."""

    NOT_LEADER = "this node is not the leader"
    TRANSFERRING = "leadership is being handed over"
    OVERLOADED = "too many bytes wait for commitment"
    STEPPED_DOWN = "this node lost leadership before a quorum confirmed it"
    NO_TARGET = "no other voter can take leadership"
    TIMED_OUT = "the target did not take over within an election timeout"


class ChangeOutcome(Enum):
    """What became of a change of the membership."""

    DONE = "done"
    REFUSED = "refused"
    """Nothing was appended: it can't be made as it stands."""
    PENDING = "pending"
    """Nothing was appended: another change is under way."""
    GIVEN_UP = "given up"
    """A server did not catch up; those that came in by this change are out again."""
    NOT_LEADER = "not leader"
    """Nothing was appended: the leader decides."""
    UNKNOWN = "unknown"
    """Leadership was lost meanwhile: the next leader may complete the step that was under way, or drop it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send now, without waiting for the disk; may be lost, Raft sends again."""

    to: str
    message: PeerMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist:
    """Make durable, in order of `sequence` and in one atomic step: the ballot, then the batches (the store drops
    whatever it holds at or after the first index of each). Then send `then`, then tell Persisted(sequence).

    With neither ballot nor batches it only asks that `then` is sent once everything before is durable.
    reset: the log gives way to this snapshot first, in a step of its own; tell SnapshotRecorded before Persisted.
    """

    sequence: int
    ballot: Ballot | None = None
    batches: tuple[EntryBatch, ...] = ()
    then: tuple[Send, ...] = ()
    reset: Snapshot | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSnapshot:
    """Put the snapshot into the store's catalogue, after the Persists before it; then tell SnapshotRecorded."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactLog:
    """Drop about bytes_max of the oldest entries up to index, after the Persists before it; then tell LogCompacted."""

    index: int
    bytes_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSnapshot:
    """Fetch the bytes of the leader's snapshot of last_entry and make them durable, then tell SnapshotFetched; or
    SnapshotFetchFailed if that can't be. Replaces any fetch before."""

    leader: str
    last_entry: EntryId


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelFetch:
    """Give the fetch up and drop what it has brought; nothing is to be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscardSnapshot:
    """The bytes of this snapshot are of no use: delete them, unless the catalogue has a snapshot of that index.

    fetched: whether it came from a leader; then the app may have made one of the same index meanwhile, which stays.
    """

    index: int
    fetched: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallSnapshot:
    """Let the app become the state of the snapshot, in order with every Apply, then tell Applied of its index."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Feed the committed entries [first_index, last_index] to the app, then tell Applied(last_index).

    batches: the newest of them, as far as they are in memory; load what is missing before them from the store.
    """

    first_index: int
    last_index: int
    batches: tuple[EntryBatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadEntries:
    """Read entries from first_index on, at most about bytes_max, for a peer that lags; then tell EntriesLoaded."""

    peer: str
    first_index: int
    last_index: int
    bytes_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalAccepted:
    """The commands of proposal `token` are entries [first_index, first_index + count) of `term`. Comes before any
    effect that lets another server see them."""

    token: int
    term: int
    first_index: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalRefused:
    token: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """Entries [first_index, last_index] are committed; first_index of one is the last_index of the last, plus one."""

    first_index: int
    last_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitersOutcomeUnknown:
    """This server no longer leads `term`: what was proposed in it and not answered yet may or may not commit."""

    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadConfirmed:
    """Reads of these tokens may run once the app has applied read_index."""

    tokens: tuple[int, ...]
    read_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRefused:
    tokens: tuple[int, ...]
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged:
    old: Role
    new: Role
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderChanged:
    """leader: id of the leader of `term`, "" for none known."""

    leader: str
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationChanged:
    """This configuration is in force from now on. index: of its entry."""

    configuration: Configuration
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersChanged:
    """Whom to keep connections to from now on, address by id: the other members, and, on a leader, for a while those
    that it has removed, so that they hear of it."""

    addresses: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeEnded:
    """sentence: for people, why it did not come about, else empty. server: who did not catch up, if that is why."""

    token: int
    outcome: ChangeOutcome
    sentence: str = ""
    server: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """This server is no member any more, as of the committed configuration at index."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferEnded:
    """reason: None if the target took over (we saw a higher term), else why not."""

    token: int
    reason: Reason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedTo:
    """Entries after `last` were dropped from the log: they conflicted with the leader's."""

    last: EntryId


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something happened that never may in a sound cluster, and was refused. sentence: for people."""

    sentence: str


Effect = (
    Send
    | Persist
    | RecordSnapshot
    | CompactLog
    | FetchSnapshot
    | CancelFetch
    | DiscardSnapshot
    | InstallSnapshot
    | Apply
    | LoadEntries
    | ProposalAccepted
    | ProposalRefused
    | Committed
    | WaitersOutcomeUnknown
    | ReadConfirmed
    | ReadRefused
    | RoleChanged
    | LeaderChanged
    | ConfigurationChanged
    | PeersChanged
    | ChangeEnded
    | Removed
    | TransferEnded
    | TruncatedTo
    | Alarm
)
