"""What servers tell each other. Every message, request or reply, names its sender, the sender's store and its term.

The cluster id and the receiver are checked by the transport before a message gets here (DESIGN rule 2).
"""

from __future__ import annotations

from dataclasses import dataclass

from geraft.core.entries import EntryBatch, EntryId


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """sender: member id. sender_store: identity of its store. term: the sender's current term, except in a pre-vote
    request and the granting reply to one, which carry the term that the candidate would campaign in."""

    sender: str
    sender_store: str
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestVote(Message):
    """Ask for a vote (Raft dissertation 3.4), or, with pre_vote, whether one would be given (9.6).

    forced: the leader itself asked for this election by TimeoutNow (3.10), so the receiver answers although it
    hears a leader; counts only for the term right after the receiver's own.
    call: a number that the receiving transport gives the request, so that the reply finds the handler that waits for
    it; never on the wire.
    """

    last_entry: EntryId
    pre_vote: bool = False
    forced: bool = False
    call: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestVoteReply(Message):
    """call: repeats the request's.

    removed_at: index of the committed configuration here, if it does not name the receiver; else 0. One whose own
    configuration is not later than that has been removed, and may stop to campaign.
    """

    granted: bool
    pre_vote: bool = False
    call: int = 0
    removed_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendEntries(Message):
    """Entries for the receiver's log, directly after `prev` (Raft dissertation 3.5). batches may be empty: a probe."""

    prev: EntryId
    batches: tuple[EntryBatch, ...]
    commit_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendEntriesReply(Message):
    """match_index: the last entry of ours that this message verified and that is durable here; 0 if rejected.

    rejected: `prev` of the request if it did not match, else None. hint then is the last entry that may match: the
    leader goes on from the last entry of its own that is not after it in term nor in index (a whole term at a time).
    """

    match_index: int
    rejected: EntryId | None = None
    hint: EntryId = EntryId(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Message):
    """The leader lives. commit_index is at most the receiver's match_index, so no log check is needed (FLAWS S1).

    round: ascending within a term; the reply repeats it, which confirms leadership for reads (6.4).
    """

    commit_index: int
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReply(Message):
    """round: repeats the request's. last_applied: how far the sender's app is.

    silent_seconds: for so long, by its own clock and from when it heard the heartbeat, the sender votes for nobody else
    and does not campaign, not even after a restart: what leases rest on. priority: how much it wants to lead.
    """

    round: int
    last_applied: int = 0
    silent_seconds: float = 0.0
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferSnapshot(Message):
    """The entries that the receiver needs next are gone here; in their place is the snapshot of last_entry, for the
    receiver to fetch. Answered by an AppendEntriesReply: match_index once it is installed, or rejected."""

    last_entry: EntryId


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutNow(Message):
    """The leader asks the receiver to start an election at once (Raft dissertation 3.10)."""


PeerMessage = (
    RequestVote
    | RequestVoteReply
    | AppendEntries
    | AppendEntriesReply
    | OfferSnapshot
    | Heartbeat
    | HeartbeatReply
    | TimeoutNow
)
