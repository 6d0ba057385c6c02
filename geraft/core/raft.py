"""One server's Raft state and the only door to it: Raft.step(event) -> effects.

Equal state and event give equal effects. The term is settled first, then HANDLERS says who answers: a vote request is
answered in election.answer_vote_request, an append in replication.answer_append, and so on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from geraft.core import changes, compaction, election, reads, replication, transfer
from geraft.core.effects import (
    Alarm,
    Committed,
    ConfigurationChanged,
    Effect,
    LeaderChanged,
    Persist,
    Role,
    RoleChanged,
    Send,
    WaitersOutcomeUnknown,
)
from geraft.core.entries import Ballot, EntryBatch, EntryId, EntryKind
from geraft.core.events import (
    Applied,
    ChangeMembership,
    EntriesLoaded,
    Event,
    LogCompacted,
    PeerConnected,
    PeerDisconnected,
    Persisted,
    Propose,
    ReadRequested,
    SettingsChanged,
    SnapshotFetched,
    SnapshotFetchFailed,
    SnapshotMade,
    SnapshotRecorded,
    Tick,
    TransferRequested,
)
from geraft.core.failure_detector import FailureDetector
from geraft.core.log import Log
from geraft.core.membership import Configuration, refusal_of
from geraft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    OfferSnapshot,
    PeerMessage,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from geraft.core.progress import Progress

if TYPE_CHECKING:
    import random

    from geraft.core.changes import Change
    from geraft.core.compaction import Fetch
    from geraft.core.snapshots import Snapshot
    from geraft.core.transfer import Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What of a node's Config the core uses; the same names and meanings."""

    heartbeat_interval_seconds: float = 0.1
    election_timeout_seconds: float = 1.0
    phi_threshold: float = 8.0
    phi_deviation_min_seconds: float = 0.1
    acceptable_pause_seconds: float = 0.5
    clock_drift_max: float = 0.1
    append_bytes_max: int = 1 << 20
    inflight_messages_max: int = 64
    inflight_bytes_max: int = 32 << 20
    uncommitted_bytes_max: int = 128 << 20
    cache_bytes_max: int = 8 << 20
    apply_bytes_max: int = 8 << 20
    leader_priority: int = 0
    trailing_entries: int = 10_000
    compact_bytes_max: int = 1 << 20


def _detector_settings(settings: Settings) -> dict[str, float]:
    return {
        "expected_seconds": settings.heartbeat_interval_seconds,
        "deviation_min_seconds": settings.phi_deviation_min_seconds,
        "pause_seconds": settings.acceptable_pause_seconds,
        "threshold": settings.phi_threshold,
        "floor_seconds": settings.election_timeout_seconds,
    }


class Raft:
    """id, store_id: who we are. ballot, log: as the store holds them. snapshot: the newest of its catalogue; its state
    is the app's. now_seconds: of the clock that Tick tells."""

    def __init__(
        self,
        *,
        id: str,
        store_id: str,
        ballot: Ballot,
        log: Log,
        settings: Settings,
        rng: random.Random,
        now_seconds: float,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.id = id
        self.store_id = store_id
        self.settings = settings
        self.rng = rng
        self.now = now_seconds

        # Durable state, as it is in memory; what of it is on disk is told by the numbers below.
        self.term = max(ballot.term, log.last_entry.term)  # a bootstrapped log starts in a term nobody voted in
        self.voted_for = ballot.voted_for if ballot.term == self.term else ""
        self.log = log
        self.durable_term = self.term
        self.durable_index = log.last_entry.index
        self.persists_count_from = 0  # the first Persist after the last truncation: what earlier ones wrote may be gone

        # Volatile state of every server.
        self.role = Role.FOLLOWER
        self.leader_id = ""
        applied = snapshot.index if snapshot is not None else 0
        assert log.base.index <= applied <= log.last_entry.index, "the log continues the state of the app"
        self.commit_index = self.last_applied = self.handed_to_app = applied
        self.applying: deque[tuple[int, int]] = deque()  # (last index, bytes) of each Apply not yet answered
        self.applying_bytes = 0
        self.connected: set[str] = set()
        self.store_ids: dict[str, str] = {id: store_id}  # the store each member was first heard from
        self.removed_at = 0  # index of the last committed configuration known not to name us
        members = log.configuration.members
        self.addresses = {peer: members[peer].address for peer in members if peer != id}  # whom we need connections to
        self.snapshot = snapshot  # the newest that is durably recorded
        self.compacting = False  # the store is cutting the log
        self.compact_to = log.base.index  # how far the cutting goes that was begun
        self.fetching: Fetch | None = None
        self.arrived: Snapshot | None = None  # fetched, and waiting until the app has applied what it was handed

        # Of followers and candidates.
        self.detector = FailureDetector(**_detector_settings(settings), now_seconds=now_seconds)
        # Until then we vote for nobody and do not campaign: a leader's lease may rest on our silence. Before a restart
        # we may have promised it; a server that never was in a term has not. A longer election timeout that we are
        # tuned to would be forgotten in a restart, so no more than this one is ever promised.
        self.silent_seconds_after_restart = settings.election_timeout_seconds
        self.silent_until_seconds = now_seconds + (settings.election_timeout_seconds if ballot.term > 0 else 0)
        self.campaign_at_seconds: float | None = None
        self.votes: set[str] = set()
        self.forced_by = ""  # the leader that asked us to stand for election, as long as we do

        # Of the leader.
        self.progress: dict[str, Progress] = {}
        self.heartbeat_at_seconds = now_seconds
        self.round = 0
        self.rounds_sent: deque[tuple[int, float]] = deque()  # (round, when it was sent)
        self.reads_waiting: list[int] = []  # tokens that the next round will confirm
        self.reads_confirming: deque[tuple[int, tuple[int, ...], int]] = deque()  # (round, tokens, read index)
        self.noop_index = 0
        self.uncommitted: deque[tuple[int, int]] = deque()  # (last index, bytes) of our term's batches
        self.uncommitted_bytes = 0
        self.transfer: Transfer | None = None
        self.transfer_again_at_seconds = 0.0  # not earlier to a voter of higher priority
        self.lease_broken = False
        self.change: Change | None = None
        self.departing: dict[str, float] = {}  # removed servers that still get the log, and until when

        # Of the step that runs.
        self._effects: list[Effect] = []
        self._unsaved_ballot = False
        self._unsaved_reset: Snapshot | None = None
        self._unsaved_batches: list[EntryBatch] = []
        self._then: list[Send] = []
        self._persists_sent = 0
        self._persists_done = 0

        if log.configuration.voter_ids == {id} or ballot.term == 0:
            # Nobody else's leader can be disturbed: no need to wait out a silence first.
            self.campaign_at_seconds = now_seconds + rng.uniform(0, settings.heartbeat_interval_seconds)

    # The door --------------------------------------------------------------------------------------------------------

    def step(self, event: Event) -> list[Effect]:
        """What to do about the event, in order. Never raises, whatever a peer sent."""
        effects = self._effects = []
        if not isinstance(event, Message):
            HANDLERS[self.role, type(event)](self, event)
        elif self._settle(event):
            handler = HANDLERS.get((self.role, type(event)))
            if handler is not None:
                handler(self, event)
        if self._has_unsaved:
            self._persists_sent += 1
            effects.append(
                Persist(
                    sequence=self._persists_sent,
                    ballot=Ballot(self.term, self.voted_for) if self._unsaved_ballot else None,
                    batches=tuple(self._unsaved_batches),
                    then=tuple(self._then),
                    reset=self._unsaved_reset,
                )
            )
            self._unsaved_ballot = False
            self._unsaved_reset = None
            self._unsaved_batches.clear()
            self._then.clear()
        return effects

    def _settle(self, message: PeerMessage) -> bool:
        """Whether the message is to be handled, once terms are settled (Raft dissertation 3.3)."""
        if refusal_of(self.log.configuration, self.store_ids, message.sender, message.sender_store) is not None:
            return False
        if message.sender in self.log.configuration.members or not self.log.configuration.members:
            self.store_ids.setdefault(message.sender, message.sender_store)
        if isinstance(message, RequestVoteReply) and message.removed_at:
            changes.note_removal(self, message.removed_at)
        if isinstance(message, RequestVote):
            return True  # answered whatever its term; only election.answer_vote_request knows when to adopt that
        if message.term > self.term:
            if isinstance(message, RequestVoteReply) and message.pre_vote and message.granted:
                return True  # carries the term asked about, which nobody is in yet
            self.become_follower(message.term, "")
            return True
        if message.term < self.term:
            if isinstance(message, AppendEntries):  # a deposed leader: our term makes it step down
                self.reply(message.sender, self.append_reply(rejected=message.prev, hint=self.log.last_entry))
            elif isinstance(message, OfferSnapshot):
                self.reply(message.sender, self.append_reply(rejected=message.last_entry, hint=self.log.last_entry))
            elif isinstance(message, Heartbeat):
                self.reply(message.sender, self.message(HeartbeatReply, round=0))
            return False
        return True

    # What handlers use -----------------------------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        return self.log.configuration

    @property
    def peer_ids(self) -> list[str]:
        """Everyone but us who gets the log."""
        return [id for id in self.log.configuration.members if id != self.id]

    @property
    def next_persist(self) -> int:
        """The number of the Persist effect that this step ends with, if it needs one."""
        return self._persists_sent + 1

    @property
    def is_durable(self) -> bool:
        """Whether the disk has all that we know."""
        return (
            self.durable_term == self.term
            and self.durable_index == self.log.last_entry.index
            and self._persists_done == self._persists_sent
        )

    @property
    def longest_step_seconds(self) -> float:
        """Time that passes between two ticks; whatever is longer is taken for a pause of our own."""
        return min(self.settings.acceptable_pause_seconds, self.settings.election_timeout_seconds / 2)

    def message(self, kind: type[Any], **fields: Any) -> Any:
        """A message of ours in our term."""
        return kind(sender=self.id, sender_store=self.store_id, term=self.term, **fields)

    def append_reply(
        self, match_index: int = 0, rejected: EntryId | None = None, hint: EntryId = EntryId(0, 0)
    ) -> AppendEntriesReply:
        return AppendEntriesReply(
            sender=self.id,
            sender_store=self.store_id,
            term=self.term,
            match_index=match_index,
            rejected=rejected,
            hint=hint,
        )

    @property
    def _has_unsaved(self) -> bool:
        """Whether this step ends with a Persist."""
        return bool(self._unsaved_batches or self._then or self._unsaved_ballot or self._unsaved_reset)

    def emit(self, effect: Effect) -> None:
        self._effects.append(effect)

    def send(self, to: str, message: PeerMessage) -> None:
        """Send without waiting for the disk."""
        self._effects.append(Send(to=to, message=message))

    def reply(self, to: str, message: PeerMessage) -> None:
        """Send what depends on our term alone: at once if the disk has it, else behind it (3.8)."""
        if self.durable_term == self.term:
            self.send(to, message)
        else:
            self._then.append(Send(to=to, message=message))

    def send_when_durable(self, to: str, message: PeerMessage) -> None:
        """Send what depends on our vote or our log: once everything handed to the disk so far is there (3.8)."""
        if self._has_unsaved or self._persists_sent > self._persists_done:
            self._then.append(Send(to=to, message=message))
        else:
            self.send(to, message)

    def vote_for(self, candidate: str) -> None:
        self.voted_for = candidate
        self._unsaved_ballot = True

    def reset_to(self, snapshot: Snapshot) -> None:
        """Let the log on the disk give way to the snapshot; nothing written before counts as durable any more."""
        assert not self._unsaved_batches, "a log is replaced by an event of its own"
        self._unsaved_reset = snapshot
        self.persists_count_from = self.next_persist

    def append(self, batch: EntryBatch) -> None:
        """Put the batch into the log and on its way to the disk; a configuration in it is in force from now on."""
        self.log.append(batch)
        self._unsaved_batches.append(batch)
        if batch.configuration is not None:
            self.configuration_changed()

    def append_own(
        self, kind: EntryKind, commands: tuple[bytes, ...], configuration: Configuration | None = None
    ) -> int:
        """As a leader: append entries of our term; the index of the first."""
        first_index = self.log.last_entry.index + 1
        batch = EntryBatch(
            term=self.term, first_index=first_index, kind=kind, commands=commands, configuration=configuration
        )
        self.append(batch)
        self.uncommitted.append((batch.last_index, batch.size_bytes))
        self.uncommitted_bytes += batch.size_bytes
        return first_index

    def configuration_changed(self) -> None:
        """The configuration in force is another one now: by an append, or rolled back by a truncation."""
        configuration = self.log.configuration
        self.emit(ConfigurationChanged(configuration=configuration, index=self.log.configuration_index))
        for id in self.store_ids.keys() - configuration.members.keys() - {self.id}:
            del self.store_ids[id]  # one who left may be added again with another store
        if self.role is Role.LEADER:
            for id in self.peer_ids:
                if id not in self.progress or self.departing.pop(id, None) is not None:
                    # Also for one who comes back: answers of its earlier life are not to count (FLAWS S7).
                    self.progress[id] = Progress(next_index=self.log.last_entry.index + 1, now_seconds=self.now)
            for id in self.progress.keys() - configuration.members.keys() - self.departing.keys():
                self.departing[id] = math.inf  # it gets the log until it can know that it is out
        changes.tell_peers(self)

    def commit_to(self, index: int) -> None:
        """Everything up to index is committed. Never falls, never passes the end of the log."""
        index = min(index, self.log.last_entry.index)
        if index <= self.commit_index:
            return
        first_index = self.commit_index + 1
        self.commit_index = index
        uncommitted = self.uncommitted
        while uncommitted and uncommitted[0][0] <= index:
            self.uncommitted_bytes -= uncommitted.popleft()[1]
        self.emit(Committed(first_index=first_index, last_index=index))
        changes.committed(self, first_index - 1)
        if self.fetching is not None and self.fetching.last_entry.index <= index:
            compaction.cancel_fetch(self)
        replication.hand_to_app(self)

    # Roles change here and nowhere else ------------------------------------------------------------------------------

    def become_follower(self, term: int, leader_id: str) -> None:
        """Follow leader_id ("" if unknown) in term, which is at least ours."""
        assert term >= self.term, "a term never falls"
        was_leader = self.role is Role.LEADER
        old_term = self.term
        if term > self.term:
            self.term = term
            self.voted_for = ""
            self._unsaved_ballot = True
        self._change_role(Role.FOLLOWER)
        if was_leader:
            reads.refuse_all(self)
            transfer.ended(self, term > old_term)
            changes.stepped_down(self)
            self.uncommitted.clear()
            self.uncommitted_bytes = 0
            self.progress = {}
            self.emit(WaitersOutcomeUnknown(term=old_term))
            self.detector.restart(self.now)
            changes.tell_peers(self)
        self.follow(leader_id)

    def follow(self, leader_id: str) -> None:
        """Know leader_id as the leader of our term; "" for none known."""
        if leader_id == self.leader_id:
            return
        self.leader_id = leader_id
        if leader_id and leader_id != self.id:
            self.detector.restart(self.now)
            self.campaign_at_seconds = None
        if leader_id and self.fetching is not None and self.fetching.leader != leader_id:
            compaction.cancel_fetch(self)  # only from the leader we know (FLAWS X8)
        self.emit(LeaderChanged(leader=leader_id, term=self.term))
        changes.tell_peers(self)

    def become_pre_candidate(self) -> None:
        """Ask whether an election could be won before disturbing anyone with a new term (9.6)."""
        self._change_role(Role.PRE_CANDIDATE)
        self.follow("")
        election.start_pre_vote(self)

    def become_candidate(self, *, forced_by: str = "") -> None:
        """Enter the next term and ask for votes (3.4). forced_by: the leader, if it asked us to (3.10)."""
        self.term += 1
        self._change_role(Role.CANDIDATE)
        self.forced_by = forced_by
        self.follow("")
        self.vote_for(self.id)
        election.start_vote(self)

    def become_leader(self) -> None:
        """Lead our term: a no-op of its own commits whatever earlier terms left (3.6.2, 6.4)."""
        assert self.role is Role.CANDIDATE, "only a candidate wins an election"
        self._change_role(Role.LEADER)
        next_index = self.log.last_entry.index + 1
        self.progress = {id: Progress(next_index=next_index, now_seconds=self.now) for id in self.peer_ids}
        self.round = 0
        self.rounds_sent.clear()
        self.lease_broken = False
        self.follow(self.id)
        self.noop_index = self.append_own(EntryKind.NOOP, (b"",))
        replication.send_heartbeats(self)
        for id in self.progress:
            replication.send_probe(self, id)

    def _change_role(self, new: Role) -> None:
        self.votes = set()
        self.campaign_at_seconds = None
        if self.forced_by:
            self.forced_by = ""
            changes.tell_peers(self)
        if new is not self.role:
            old, self.role = self.role, new
            self.emit(RoleChanged(old=old, new=new, term=self.term))

    # Events that every role handles alike ----------------------------------------------------------------------------

    def tick(self, event: Tick) -> None:
        passed = event.now_seconds - self.now
        if passed < 0:
            return
        self.now = event.now_seconds
        paused = passed - self.longest_step_seconds
        if paused > 0:
            # We did not run, so we could not hear: the silence of the others is no news. A part of it counts all the
            # same, or a server that stumbles from pause to pause would never miss anybody.
            self.detector.forgive(paused)
            for progress in self.progress.values():
                progress.heard_at_seconds += paused
        if self.role is Role.LEADER:
            replication.tick(self)
            if self.role is Role.LEADER:
                transfer.tick(self)
            if self.role is Role.LEADER:
                changes.tick(self)
        else:
            election.tick(self)
        compaction.tick(self)

    def persisted(self, event: Persisted) -> None:
        """Part of the log or the vote is on disk: count it, ours like a follower's (10.2.1)."""
        self._persists_done = max(self._persists_done, event.sequence)
        if event.ballot is not None:
            self.durable_term = max(self.durable_term, event.ballot.term)
        if (
            event.last_entry is not None
            and event.sequence >= self.persists_count_from
            and self.log.term_at(event.last_entry.index) == event.last_entry.term
        ):
            # Of an equal last entry all before it is equal too. What was truncated since it was handed over does not
            # count, even if the same entries are back in the log: the disk may be about to drop them first.
            self.durable_index = max(self.durable_index, event.last_entry.index)
            self.log.evict(self.durable_index, self.settings.cache_bytes_max)
        if self.role is Role.LEADER:
            replication.advance_commit(self)
        elif self.role is Role.CANDIDATE and event.ballot == Ballot(self.term, self.id):
            election.count_own_vote(self)

    def settings_changed(self, event: SettingsChanged) -> None:
        """Go by other settings from now on. Silence that was promised is kept, and leases that rest on it hold."""
        settings = self.settings = event.settings
        self.detector.tune(**_detector_settings(settings))
        self.heartbeat_at_seconds = min(self.heartbeat_at_seconds, self.now + settings.heartbeat_interval_seconds)
        if self.campaign_at_seconds is not None:
            self.campaign_at_seconds = min(self.campaign_at_seconds, self.now + settings.election_timeout_seconds)

    def applied(self, event: Applied) -> None:
        self.last_applied = max(self.last_applied, event.index)
        applying = self.applying
        while applying and applying[0][0] <= event.index:
            self.applying_bytes -= applying.popleft()[1]
        if self.arrived is not None:
            compaction.install_arrived(self)
        replication.hand_to_app(self)

    def peer_connected(self, event: PeerConnected) -> None:
        self.connected.add(event.peer)
        progress = self.progress.get(event.peer)
        if progress is not None:  # what was in flight on the old stream may be lost
            progress.probe_from(progress.match_index + 1 if progress.match_index else progress.next_index)
            replication.send_probe(self, event.peer)

    def peer_disconnected(self, event: PeerDisconnected) -> None:
        self.connected.discard(event.peer)
        progress = self.progress.get(event.peer)
        if progress is not None:
            progress.probe_from(progress.match_index + 1 if progress.match_index else progress.next_index)

    def leader_committed(self) -> None:
        """As a leader: entries of our term were committed."""
        if self.transfer is not None:
            transfer.caught_up(self)
        reads.go_on(self)
        changes.advance(self)

    def follower_caught_up(self) -> None:
        """As a leader: a follower holds more of our log."""
        if self.transfer is not None:
            transfer.caught_up(self)
        elif self.change is not None:
            changes.advance(self)

    def alarm(self, sentence: str) -> None:
        """Something that must not happen did, and was refused."""
        self.emit(Alarm(sentence=sentence))


Handler = Callable[[Raft, Any], None]


def _table(rows: Iterable[tuple[Iterable[Role], type[Any], Handler]]) -> dict[tuple[Role, type[Any]], Handler]:
    return {(role, kind): handler for roles, kind, handler in rows for role in roles}


EVERY_ROLE = tuple(Role)
NOT_LEADING = (Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE)

HANDLERS: dict[tuple[Role, type[Any]], Handler] = _table(
    [
        (EVERY_ROLE, Tick, Raft.tick),
        (EVERY_ROLE, Persisted, Raft.persisted),
        (EVERY_ROLE, Applied, Raft.applied),
        (EVERY_ROLE, SettingsChanged, Raft.settings_changed),
        (EVERY_ROLE, PeerConnected, Raft.peer_connected),
        (EVERY_ROLE, PeerDisconnected, Raft.peer_disconnected),
        (EVERY_ROLE, RequestVote, election.answer_vote_request),
        ([Role.PRE_CANDIDATE], RequestVoteReply, election.count_pre_vote),
        ([Role.CANDIDATE], RequestVoteReply, election.count_vote),
        ([Role.FOLLOWER], TimeoutNow, election.campaign_now),
        (NOT_LEADING, AppendEntries, replication.answer_append),
        (NOT_LEADING, Heartbeat, replication.answer_heartbeat),
        (NOT_LEADING, OfferSnapshot, compaction.answer_offer),
        ([Role.LEADER], AppendEntriesReply, replication.count_append_reply),
        ([Role.LEADER], HeartbeatReply, reads.count_heartbeat_reply),
        (EVERY_ROLE, EntriesLoaded, replication.send_loaded),
        (EVERY_ROLE, SnapshotMade, compaction.record_made),
        (EVERY_ROLE, SnapshotRecorded, compaction.count_recorded),
        (EVERY_ROLE, LogCompacted, compaction.count_compacted),
        (EVERY_ROLE, SnapshotFetched, compaction.take_fetched),
        (EVERY_ROLE, SnapshotFetchFailed, compaction.fetch_failed),
        ([Role.LEADER], Propose, replication.append_proposal),
        (NOT_LEADING, Propose, replication.refuse_proposal),
        ([Role.LEADER], ReadRequested, reads.queue_read),
        (NOT_LEADING, ReadRequested, reads.refuse_read),
        ([Role.LEADER], TransferRequested, transfer.start),
        (NOT_LEADING, TransferRequested, transfer.refuse),
        ([Role.LEADER], ChangeMembership, changes.start),
        (NOT_LEADING, ChangeMembership, changes.refuse),
    ]
)

IGNORED: dict[tuple[Role, type[Any]], str] = {
    (Role.FOLLOWER, RequestVoteReply): "an answer to an election that is over",
    (Role.LEADER, RequestVoteReply): "votes beyond the majority change nothing",
    (Role.PRE_CANDIDATE, TimeoutNow): "a campaign runs already",
    (Role.CANDIDATE, TimeoutNow): "a campaign runs already",
    (Role.LEADER, TimeoutNow): "we lead; a leader of the same term can't exist",
    (Role.LEADER, AppendEntries): "a second leader of our term can't exist; a forged one is dropped",
    (Role.LEADER, OfferSnapshot): "a second leader of our term can't exist; a forged one is dropped",
    (Role.LEADER, Heartbeat): "a second leader of our term can't exist; a forged one is dropped",
    (Role.FOLLOWER, AppendEntriesReply): "we no longer lead",
    (Role.PRE_CANDIDATE, AppendEntriesReply): "we no longer lead",
    (Role.CANDIDATE, AppendEntriesReply): "we no longer lead",
    (Role.FOLLOWER, HeartbeatReply): "we no longer lead",
    (Role.PRE_CANDIDATE, HeartbeatReply): "we no longer lead",
    (Role.CANDIDATE, HeartbeatReply): "we no longer lead",
}
