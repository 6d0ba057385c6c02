"""The only greenlet that calls Raft.step, so Raft needs no locks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any, Protocol

from geraft import sessions, signals
from geraft.core.changes import is_removed
from geraft.core.effects import (
    Alarm,
    Apply,
    CancelFetch,
    ChangeEnded,
    ChangeOutcome,
    Committed,
    CompactLog,
    ConfigurationChanged,
    DiscardSnapshot,
    FetchSnapshot,
    InstallSnapshot,
    LeaderChanged,
    LoadEntries,
    PeersChanged,
    Persist,
    ProposalAccepted,
    ProposalRefused,
    ReadConfirmed,
    ReadRefused,
    Reason,
    RecordSnapshot,
    Removed,
    Role,
    RoleChanged,
    Send,
    TransferEnded,
    TruncatedTo,
    WaitersOutcomeUnknown,
)
from geraft.core.entries import EntryKind
from geraft.core.events import (
    Applied,
    ChangeMembership,
    EntriesLoaded,
    Event,
    Persisted,
    Propose,
    ReadRequested,
    SettingsChanged,
    SnapshotRecorded,
    Tick,
    TransferRequested,
)
from geraft.core.membership import Member
from geraft.core.messages import AppendEntriesReply, PeerMessage
from geraft.core.progress import Pace
from geraft.core.raft import Raft, Settings
from geraft.core.replication import agreed_index
from geraft.errors import (
    CatchUpFailed,
    GeraftError,
    MembershipPending,
    MembershipRefused,
    NoLeader,
    NotLeader,
    OutcomeUnknown,
    ProposalDropped,
    ReadTimeout,
    TransferFailed,
)
from geraft.records import encode_session_write
from geraft.runtime.applier import Applier, ApplyWork, FetchWork, InstallWork, Readers
from geraft.runtime.dispatcher import Dispatcher
from geraft.runtime.hub import Call, CallKind, Consistency, Inbox, RemoteCall, Waiter, fail, finish, monotonic
from geraft.runtime.log_writer import LogWriter
from geraft.runtime.pending import PendingReads, PendingWrites
from geraft.runtime.snapshot_fetcher import SnapshotFetch
from geraft.runtime.snapshot_keeper import SnapshotKeeper
from geraft.runtime.status import Waiting
from geraft.runtime.wishes import Change, Transfer, Wish
from geraft.storage.base import RaftStorage
from geraft.transport.pulse import RestAnswer, RestOffer
from geraft.transport.services import SnapshotSink

log = logging.getLogger(__name__)

TICK_RESOLUTION_SECONDS = 0.005
"""Raft is told the time at most this often while events pour in."""
DEFAULT_LIMITS = sessions.Limits()
SWEEP_SECONDS = 1.0
"""How often callers are looked for who stopped waiting."""
SWEEP_GRACE_SECONDS = 5.0
CHANGE_MARGIN_SECONDS = 0.5
"""How much sooner than its caller a change is given up, so that the caller hears why."""
ACKS_TO_WAIT_MAX = 8
"""Messages in flight to a peer up to which its late acknowledgements may wait."""


class Mail(Protocol):
    """What the loop needs of the transport."""

    def send(self, to: str, message: PeerMessage) -> None: ...

    def set_peers(self, peers: dict[str, str]) -> None: ...

    def forward(self, leader_id: str, calls: list[Call]) -> None: ...

    def forward_wish(self, leader_id: str, wish: Wish) -> None: ...

    def fetch_snapshot(self, leader_id: str, sink: SnapshotSink) -> None: ...


class LeaderWanted(Waiter):
    """A caller who waits for a leader to be known. deadline: of monotonic(), until when."""

    __slots__ = ("deadline",)

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self.deadline = deadline


class Tuning(Waiter):
    """A caller who wants settings changed. change: called on the loop, between two steps; gives what the caller is
    told and what the core goes by from then on. Raises ConfigError, and has changed nothing then."""

    __slots__ = ("change",)

    def __init__(self, change: Callable[[], tuple[Any, Settings]]) -> None:
        super().__init__()
        self.change = change


class TickDue:
    """The ticker's knock."""


TICK_DUE = TickDue()


class Woken:
    """Wakes a node that rests: its pulse has stopped, or calls came back to it."""


WOKEN = Woken()


class Resting(Protocol):
    """What the loop needs of a node's rest (rest.Rest), where there is one."""

    def take(self, items: list[Any]) -> list[Any]: ...

    def tick(self) -> None: ...

    def offered(self, offer: RestOffer) -> None: ...


class NodeLoop:
    """Takes all that waits in the inbox, tells Raft, and hands each effect to whoever carries it out.

    Never waits for anything but news. why_no_leader: a sentence for callers who could not be served. leader_changed:
    told the id of the leader, "" for none; must not block. why_refused: for a peer's id, why it does not hear us or we
    not it, as the end of a sentence. clock: that of the calls' deadlines. session_limits: for sessions that are opened
    while this node leads. label: what the log calls this node, by default its id.
    """

    def __init__(
        self,
        raft: Raft,
        inbox: Inbox,
        *,
        mail: Mail,
        log_writer: LogWriter,
        applier: Applier,
        readers: Readers,
        keeper: SnapshotKeeper,
        dispatcher: Dispatcher,
        storage: RaftStorage,
        append_bytes_max: int,
        session_limits: sessions.Limits = DEFAULT_LIMITS,
        why_no_leader: Callable[[], str],
        apply_stuck_seconds: float = 0.0,
        leader_changed: Callable[[str], None] = lambda leader_id: None,
        why_refused: Callable[[str], str] = lambda peer: "",
        clock: Callable[[], float] = monotonic,
        label: str = "",
    ) -> None:
        self._label = label or raft.id
        self.raft = raft
        self.inbox = inbox
        self.rest: Resting | None = None
        self._mail = mail
        self._log_writer = log_writer
        self._applier = applier
        self._readers = readers
        self._keeper = keeper
        self.fetch: SnapshotFetch | None = None
        self._dispatcher = dispatcher
        self._storage = storage
        self.append_bytes_max = append_bytes_max
        self.apply_stuck_seconds = apply_stuck_seconds
        self._app_at = 0  # the entry that the app had when it last got on
        self._app_got_on_at = clock()
        self._hand_over_at = 0.0  # not earlier, if the app is stuck
        self.session_limits = session_limits
        self._why_no_leader = why_no_leader
        self._tell_leader_changed = leader_changed
        self._why_refused = why_refused
        self._clock = clock
        self._tokens = count(1)
        self._proposed: dict[int, list[Call]] = {}
        self.writes = PendingWrites()
        self.reads = PendingReads()
        self._parked: list[Call] = []
        self._leader_wanted: list[LeaderWanted] = []
        self._transfers: dict[int, Transfer] = {}
        self._changes: dict[int, Change] = {}
        self._wishes_parked: list[Wish] = []
        self._new_writes: list[Call] = []
        self._new_session_writes: list[Call] = []
        self._new_reads: list[Call] = []
        self._ticked = False  # by this batch of news
        self._rest_offers: dict[str, RestOffer] = {}  # in it, the last one of each sender
        self._untaken: Iterator[Any] = iter(())  # of what was taken from the inbox last
        self._swept_at = clock()
        self._why_ended: Callable[[], BaseException] | None = None
        self.applied_is_urgent = False  # whether something waits for the app, so that its progress must wake the loop
        self._execute: dict[type[Any], Callable[[Any], None]] = {
            Send: self._send,
            Persist: log_writer.queue.put,
            RecordSnapshot: log_writer.queue.put,
            CompactLog: log_writer.queue.put,
            FetchSnapshot: self._fetch_snapshot,
            CancelFetch: lambda _: self.cancel_fetch(),
            DiscardSnapshot: lambda effect: keeper.discard(effect.index, fetched=effect.fetched),
            InstallSnapshot: self._install_snapshot,
            Apply: self._apply,
            LoadEntries: self._load_entries,
            ProposalAccepted: self._proposal_accepted,
            ProposalRefused: self._proposal_refused,
            Committed: self._committed,
            WaitersOutcomeUnknown: self._waiters_outcome_unknown,
            ReadConfirmed: self._read_confirmed,
            ReadRefused: self._read_refused,
            RoleChanged: self._role_changed,
            LeaderChanged: self._leader_changed,
            ConfigurationChanged: self._configuration_changed,
            PeersChanged: self._peers_changed,
            ChangeEnded: self._change_ended,
            Removed: self._removed,
            TransferEnded: self._transfer_ended,
            TruncatedTo: self._truncated_to,
            Alarm: self._alarm,
        }
        self._take: dict[type[Any], Callable[[Any], None]] = {
            TickDue: self._take_tick,
            Transfer: self._take_wish,
            Change: self._take_wish,
            LeaderWanted: self._take_leader_wanted,
            Tuning: self._take_tuning,
            SnapshotRecorded: self._take_recorded,
            RestOffer: self._take_rest_offer,
            RestAnswer: lambda _: None,  # of an offer that nobody waits for any more
            Woken: lambda _: None,
        }

    def run(self) -> None:
        inbox = self.inbox
        items = inbox.items
        while True:
            inbox.wait()
            # All that waits now, but no more: under a flood of calls the time must still be told.
            taken = [items.popleft() for _ in range(len(items))]
            if self.rest is not None:
                self._untaken = iter(taken)
                taken = self.rest.take(taken)
                if not taken:
                    continue
            now = self._clock()
            untaken = self._untaken = iter(taken)
            if now - self.raft.now >= TICK_RESOLUTION_SECONDS:
                self.step(Tick(now_seconds=now))
            for item in untaken:
                kind = type(item)
                if kind is Call or kind is RemoteCall:
                    if item.kind is CallKind.READ:
                        self._new_reads.append(item)
                    else:
                        (self._new_writes if item.session is None else self._new_session_writes).append(item)
                elif kind in self._take:
                    self._take[kind](item)
                else:
                    self.step(item)
                    if kind is Applied:
                        self._run_ready_reads()
            if self._new_writes:
                self._start_writes(self._new_writes, EntryKind.COMMAND)
            if self._new_session_writes:
                self._start_writes(self._new_session_writes, EntryKind.SESSION)
            if self._new_reads:
                self._start_reads()
            if self.rest is not None:
                self._think_of_rest(self.rest)
            self.applied_is_urgent = self.reads.waiting or self.raft.handed_to_app < self.raft.commit_index

    def step(self, event: Event) -> None:
        execute = self._execute
        for effect in self.raft.step(event):
            execute[type(effect)](effect)

    # What comes in

    def _take_tick(self, _: TickDue) -> None:
        if self._parked:
            self._sweep_parked()
        if self._wishes_parked:
            parked, self._wishes_parked = self._wishes_parked, []
            for wish in parked:
                self._take_wish(wish)
        if self._clock() - self._swept_at > SWEEP_SECONDS:
            self._sweep()
        self._watch_app()
        self._ticked = True

    def _take_rest_offer(self, offer: RestOffer) -> None:
        self._rest_offers[offer.sender] = offer

    def _think_of_rest(self, rest: Resting) -> None:
        """After all else of a batch: who rests begins nothing, and an offer that came together with its end is none."""
        if self._rest_offers:
            offers, self._rest_offers = self._rest_offers, {}
            for offer in offers.values():
                rest.offered(offer)
        if self._ticked:
            self._ticked = False
            rest.tick()

    @property
    def has_callers(self) -> bool:
        """Whether anybody waits for anything."""
        return bool(
            self._proposed
            or self._parked
            or self._leader_wanted
            or self._transfers
            or self._changes
            or self._wishes_parked
            or self.writes.count
            or self.reads.count
        )

    def _take_wish(self, wish: Wish) -> None:
        """Tell Raft if we lead; else let the leader do it, once it is known."""
        leader_id = self.raft.leader_id
        if self.raft.role is Role.LEADER:
            token = next(self._tokens)
            if isinstance(wish, Transfer):
                self._transfers[token] = wish
                self.step(TransferRequested(token=token, target=wish.target))
            elif isinstance(wish, Change):
                self._changes[token] = wish
                timeout_seconds = max(wish.deadline - self._clock() - CHANGE_MARGIN_SECONDS, 0.0)
                self.step(ChangeMembership(token=token, change=wish.change, timeout_seconds=timeout_seconds))
        elif wish.forwarded:
            fail([wish], self._not_leader())
        elif leader_id and leader_id != self.raft.id:
            self._mail.forward_wish(leader_id, wish)
        elif wish.deadline <= self._clock() or is_removed(self.raft):
            fail([wish], NoLeader(self._why_no_leader()))
        else:
            self._wishes_parked.append(wish)

    def park_wish(self, wish: Wish) -> None:
        """The leader of a moment ago leads no more: wait for the next one. Hub only."""
        if self._why_ended is not None:
            fail([wish], self._why_ended())
        elif wish.deadline <= self._clock():
            fail([wish], NoLeader(self._why_no_leader()))
        else:
            self._wishes_parked.append(wish)
            self._look_again()

    def _take_tuning(self, tuning: Tuning) -> None:
        try:
            answer, settings = tuning.change()
        except GeraftError as error:
            fail([tuning], error)
            return
        self.step(SettingsChanged(settings=settings))
        finish([tuning], [answer])

    def _take_recorded(self, event: SnapshotRecorded) -> None:
        snapshot = event.snapshot
        self.step(event)
        self._keeper.recorded(snapshot)
        log.info("%s: snapshot %d.%d is recorded, %d bytes", self._label, *snapshot.last_entry, snapshot.size_bytes)
        self._dispatcher.send(signals.snapshot_created, index=snapshot.index, size_bytes=snapshot.size_bytes)

    def _take_leader_wanted(self, wanted: LeaderWanted) -> None:
        if self.raft.leader_id:
            finish([wanted], [self.raft.leader_id])
        else:
            self._leader_wanted.append(wanted)

    def _start_writes(self, calls: list[Call], kind: EntryKind) -> None:
        """Propose what has come in of a kind, as one batch unless that would exceed the size of a message.

        A call leaves the list when it is proposed, not before: should the loop end meanwhile, the rest is found there.
        """
        if self.raft.role is not Role.LEADER:
            self._redirect(_take(calls, len(calls)))
            return
        size_bytes = position = 0
        for call in calls[:]:
            size_bytes += len(call.message)
            if size_bytes > self.append_bytes_max and position:
                self._propose(_take(calls, position), kind)
                size_bytes, position = len(call.message), 0
            position += 1
        self._propose(_take(calls, position), kind)

    def _propose(self, calls: list[Call], kind: EntryKind) -> None:
        token = next(self._tokens)
        self._proposed[token] = calls
        if kind is EntryKind.COMMAND:
            commands = tuple([call.message for call in calls])
        else:
            commands = tuple([self._session_command(call) for call in calls])
        self.step(Propose(token=token, commands=commands, kind=kind))

    def _session_command(self, call: Call) -> bytes:
        if call.kind is CallKind.OPEN_SESSION:
            return sessions.opening(self.session_limits)
        assert call.session is not None
        if call.kind is CallKind.CLOSE_SESSION:
            return sessions.closing(call.session.session)
        return encode_session_write(*call.session, call.message)

    def _start_reads(self) -> None:
        calls, self._new_reads = self._new_reads, []
        stale = [call for call in calls if call.consistency is Consistency.STALE]
        if stale:
            self._readers.read(stale)
            calls = [call for call in calls if call.consistency is not Consistency.STALE]
            if not calls:
                return
        if self.raft.role is not Role.LEADER:
            self._redirect(calls)
            return
        leased = [call for call in calls if call.consistency is Consistency.LEASE]
        calls = [call for call in calls if call.consistency is not Consistency.LEASE]
        lease_token = self.reads.add(leased) if leased else 0
        token = self.reads.add(calls) if calls else 0
        if lease_token:
            # The lease must hold at a time after the reads were asked for.
            self.step(Tick(now_seconds=self._clock()))
            self.step(ReadRequested(token=lease_token, lease=True))
        if token:
            self.step(ReadRequested(token=token))
        self._run_ready_reads()

    # Calls that this node can't serve itself

    def _redirect(self, calls: list[Call]) -> None:
        """Forward to the leader, once; without one park the calls that would wait, and fail the others."""
        leader_id = self.raft.leader_id
        if leader_id == self.raft.id:
            leader_id = ""
        forward: list[Call] = []
        for call in calls:
            if call.forwarded:
                fail([call], self._not_leader())
            elif leader_id:
                forward.append(call)
            elif call.wait_for_leader and not is_removed(self.raft):
                self._parked.append(call)
            else:
                fail([call], NoLeader(self._why_no_leader()))
        if forward:
            self._mail.forward(leader_id, forward)

    def _not_leader(self) -> NotLeader:
        leader_id = self.raft.leader_id
        member = self.raft.configuration.members.get(leader_id)
        return NotLeader(
            f"{self.raft.id} is not the leader; " + (f"{leader_id} is" if leader_id else self._why_no_leader()),
            leader_id=leader_id,
            leader_address=member.address if member is not None else "",
        )

    def app_applied(self, index: int) -> None:
        """The app has come as far as index. Any thread."""
        self.inbox.put_quietly(Applied(index=index))
        if self.applied_is_urgent:
            self.inbox.put(TICK_DUE)

    def disk_persisted(self, event: Persisted) -> None:
        """The disk has come as far as the event says. Any thread.

        Urgent only if something depends on it: an election, or a commit that lacked nothing but our own disk.
        """
        self.inbox.put_quietly(event)  # first: if the loop learns meanwhile what makes it urgent, it finds it
        raft = self.raft
        if raft.role is Role.CANDIDATE or (
            raft.role is Role.LEADER
            and event.last_entry is not None
            and agreed_index(raft, event.last_entry.index) > raft.commit_index
        ):
            self.inbox.wake()

    def message_arrived(self, message: PeerMessage) -> None:
        """A peer's message, of any thread. An acknowledgement of what is committed can wait for other news."""
        raft = self.raft
        if (
            type(message) is AppendEntriesReply
            and message.rejected is None
            and message.match_index <= raft.commit_index
            and message.term == raft.term
            and raft.transfer is None
            and (progress := raft.progress.get(message.sender)) is not None
            and progress.pace is Pace.PIPELINE
            and len(progress.inflight) <= ACKS_TO_WAIT_MAX
            and progress.next_index > raft.log.last_entry.index  # else it makes room for what is to be sent
        ):
            self.inbox.put_quietly(message)
        else:
            self.inbox.put(message)

    def park(self, calls: list[Call]) -> None:
        """Keep calls of which nothing came until a leader is known again, or their time is up. Hub only."""
        if self._why_ended is not None:
            fail(calls, self._why_ended())
        else:
            self._parked += calls
            self._look_again()

    def woken(self) -> None:
        """The node has rested: that the app had nothing to do meanwhile does not mean that it is stuck."""
        self._app_got_on_at = self._clock()

    def _look_again(self) -> None:
        """The next tick looks at what is parked; a node that rests has none until it is woken."""
        if self.rest is not None:
            self.inbox.put(WOKEN)

    def _unpark(self) -> None:
        parked: list[Waiter] = [*self._parked, *self._wishes_parked]
        self._parked, self._wishes_parked = [], []
        for waiter in parked:
            self.inbox.put(waiter)

    def _sweep_parked(self) -> None:
        # A little early: who waits knows only that the time is up, and of a write would have to take that for unknown.
        end = self._clock() + self.raft.settings.heartbeat_interval_seconds / 2
        late = [call for call in self._parked if call.deadline <= end]
        if late:
            self._parked = [call for call in self._parked if call.deadline > end]
            fail(late, NoLeader(self._why_no_leader()))
        if self.raft.leader_id:
            self._unpark()

    @property
    def waiting(self) -> Waiting:
        """How many callers wait for what. Any thread."""
        return Waiting(self.writes.count, self.reads.count, len(self._parked))

    @property
    def app_silent_seconds(self) -> float:
        """For how long the app has not got on with what it was given; 0 if it has nothing to do. Any thread."""
        return max(self._clock() - self._app_got_on_at, 0.0) if self.raft.applying else 0.0

    def _watch_app(self) -> None:
        """As a leader whose app is stuck, by an exception or a call that hangs: let one lead whose app is not."""
        now = self._clock()
        at = self._applier.position
        if not self.raft.applying or at != self._app_at:
            self._app_at, self._app_got_on_at = at, now
            self._hand_over_at = 0.0
            return
        stuck_seconds = now - self._app_got_on_at
        if (
            not self.apply_stuck_seconds
            or stuck_seconds < self.apply_stuck_seconds
            or now < self._hand_over_at
            or self.raft.role is not Role.LEADER
            or self.raft.transfer is not None
        ):
            return
        self._hand_over_at = now + self.apply_stuck_seconds
        log.error(
            "%s: the app has been stuck at entry %d for %.1f s: looking for a voter whose app is past it, to lead",
            self._label,
            at,
            stuck_seconds,
        )
        token = next(self._tokens)
        self._transfers[token] = Transfer("")
        self.step(TransferRequested(token=token, applied_index=at))

    def _sweep(self) -> None:
        """Let go of callers who stopped waiting: while the app is stuck, or no leader is found, they would pile up."""
        now = self._swept_at = self._clock()
        before = now - SWEEP_GRACE_SECONDS
        unknown = OutcomeUnknown("the write is committed, but the app was not told of it in time")
        self.writes.give_up(before, unknown)
        self.reads.give_up(before, ReadTimeout("the app did not come as far as the read needs in time"))
        if self._leader_wanted:
            late = [wanted for wanted in self._leader_wanted if wanted.deadline < before]
            self._leader_wanted = [wanted for wanted in self._leader_wanted if wanted.deadline >= before]
            fail(late, NoLeader(self._why_no_leader()))

    # What goes out

    def _send(self, effect: Send) -> None:
        self._mail.send(effect.to, effect.message)

    def _apply(self, effect: Apply) -> None:
        proposals = self.writes.take_until(effect.last_index)
        self._applier.queue.put(ApplyWork(effect.first_index, effect.last_index, effect.batches, proposals))

    def _fetch_snapshot(self, effect: FetchSnapshot) -> None:
        self.cancel_fetch()
        fetch = self.fetch = SnapshotFetch(effect.leader, effect.last_entry)
        self._applier.queue.put(FetchWork(fetch))
        self._mail.fetch_snapshot(effect.leader, fetch)

    def cancel_fetch(self) -> None:
        """Let go of a snapshot that is on its way. Any thread."""
        fetch, self.fetch = self.fetch, None
        if fetch is not None:
            fetch.cancel()

    def _install_snapshot(self, effect: InstallSnapshot) -> None:
        self.fetch = None
        proposals = self.writes.take_until(effect.snapshot.index)
        self._applier.queue.put(InstallWork(effect.snapshot, proposals))

    def _load_entries(self, effect: LoadEntries) -> None:
        def load() -> None:
            try:
                batches = self._storage.read(effect.first_index, effect.last_index, effect.bytes_max)
            except Exception:
                log.exception("entries from %d on could not be read for %s", effect.first_index, effect.peer)
                batches = []
            self.inbox.put(EntriesLoaded(peer=effect.peer, first_index=effect.first_index, batches=tuple(batches)))

        self._readers.run(load)

    def _proposal_accepted(self, effect: ProposalAccepted) -> None:
        self.writes.add(effect.term, effect.first_index, self._proposed.pop(effect.token))

    def _proposal_refused(self, effect: ProposalRefused) -> None:
        calls = self._proposed.pop(effect.token)
        if effect.reason is Reason.NOT_LEADER:
            self._redirect(calls)
        elif effect.reason is Reason.TRANSFERRING:
            waiting = [call for call in calls if call.wait_for_leader and not call.forwarded]
            self._parked_for_transfer(waiting)
            sentence = f"{effect.reason.value}: try again in a moment"
            # To the member that forwarded them: as good as not leading, so that it finds out who does.
            fail([call for call in calls if call.forwarded], NotLeader(sentence))
            fail([call for call in calls if not call.wait_for_leader and not call.forwarded], ProposalDropped(sentence))
        else:
            fail(calls, ProposalDropped(f"{effect.reason.value}: slow down, or raise uncommitted_bytes_max"))

    def _parked_for_transfer(self, calls: list[Call]) -> None:
        self._parked += calls  # the next tick finds them, and whoever leads by then

    def _committed(self, effect: Committed) -> None:
        self.writes.committed(effect.last_index)
        self._dispatcher.send(signals.committed, first_index=effect.first_index, last_index=effect.last_index)

    def _waiters_outcome_unknown(self, effect: WaitersOutcomeUnknown) -> None:
        self.writes.fail_uncommitted(
            OutcomeUnknown(
                f"{self.raft.id} lost leadership of term {effect.term} before the write was committed:"
                " it may still be, under the next leader"
            )
        )

    def _read_confirmed(self, effect: ReadConfirmed) -> None:
        for token in effect.tokens:
            self.reads.confirmed(token, effect.read_index)
        self._run_ready_reads()

    def _run_ready_reads(self) -> None:
        calls = self.reads.ready(self.raft.last_applied)
        if calls:
            self._readers.read(calls)

    def _read_refused(self, effect: ReadRefused) -> None:
        for token in effect.tokens:
            self._redirect(self.reads.take(token))

    def _role_changed(self, effect: RoleChanged) -> None:
        log.info("%s: %s -> %s in term %d", self._label, effect.old.value, effect.new.value, effect.term)
        self._dispatcher.send(
            signals.role_changed, old_role=effect.old.value, new_role=effect.new.value, term=effect.term
        )

    def _leader_changed(self, effect: LeaderChanged) -> None:
        log.info("%s: %s leads term %d", self._label, effect.leader or "nobody known", effect.term)
        self._tell_leader_changed(effect.leader)
        self._dispatcher.send(signals.leader_changed, leader_id=effect.leader, term=effect.term)
        if effect.leader or is_removed(self.raft):  # nobody tells one who was removed who leads now
            self._unpark()
        if effect.leader:
            wanted, self._leader_wanted = self._leader_wanted, []
            finish(wanted, [effect.leader] * len(wanted))

    def _configuration_changed(self, effect: ConfigurationChanged) -> None:
        def addresses(members: Iterable[Member]) -> dict[str, str]:
            return {member.id: member.address for member in members}

        self._dispatcher.send(
            signals.configuration_changed,
            voters=addresses(effect.configuration.voters),
            learners=addresses(effect.configuration.learners),
            outgoing=addresses(effect.configuration.outgoing),
            index=effect.index,
        )

    def _peers_changed(self, effect: PeersChanged) -> None:
        self._mail.set_peers(effect.addresses)

    def _change_ended(self, effect: ChangeEnded) -> None:
        change = self._changes.pop(effect.token)
        error: GeraftError
        match effect.outcome:
            case ChangeOutcome.DONE:
                finish([change], [self.raft.configuration])
                return
            case ChangeOutcome.NOT_LEADER:
                self._take_wish(change)
                return
            case ChangeOutcome.REFUSED:
                error = MembershipRefused(effect.sentence)
            case ChangeOutcome.PENDING:
                error = MembershipPending(effect.sentence)
            case ChangeOutcome.GIVEN_UP:
                error = CatchUpFailed(effect.sentence + self._why_refused(effect.server))
            case ChangeOutcome.UNKNOWN:
                error = OutcomeUnknown(f"{effect.sentence}: look at the members, and ask again if need be")
        fail([change], error)

    def _removed(self, effect: Removed) -> None:
        log.warning("%s: removed from the cluster, as of entry %d", self._label, effect.index)
        self._unpark()  # nobody will lead us any more

    def _transfer_ended(self, effect: TransferEnded) -> None:
        transfer = self._transfers.pop(effect.token)
        if effect.reason is None:
            finish([transfer], [None])
        elif effect.reason in (Reason.TRANSFERRING, Reason.NOT_LEADER) and transfer.deadline > self._clock():
            self._wishes_parked.append(transfer)  # at the next tick somebody else may lead
        else:
            log.warning("%s: leadership stays here: %s", self._label, effect.reason.value)
            fail([transfer], TransferFailed(effect.reason.value))

    def _truncated_to(self, effect: TruncatedTo) -> None:
        log.info("%s: entries after %d.%d gave way to the leader's", self._label, *effect.last)

    def _alarm(self, effect: Alarm) -> None:
        log.error("%s: %s", self._label, effect.sentence)

    # The end

    def fail_everything(
        self, unknown: BaseException, why_ended: Callable[[], BaseException], untaken: Iterable[Any]
    ) -> None:
        """The node is done, and the loop has ended: answer every caller, once. Hub only.

        unknown: for writes that may still commit; why_ended: for everything else. untaken: what is left of the inbox.
        """
        if self._why_ended is not None:
            return
        self._why_ended = why_ended
        self.cancel_fetch()
        self.writes.fail_all(unknown)
        nothing = why_ended()
        self.reads.fail_all(nothing)
        left = [*self._transfers.values(), *self._leader_wanted, *self._parked]
        for new in (self._new_writes, self._new_session_writes, self._new_reads):
            left += _take(new, len(new))
        left += self._wishes_parked
        fail(list(self._changes.values()), OutcomeUnknown(f"{unknown}; look at the members"))
        for calls in self._proposed.values():
            left += calls
        left += [item for item in [*self._untaken, *untaken] if isinstance(item, Waiter)]
        for waiting in (
            self._transfers,
            self._changes,
            self._wishes_parked,
            self._leader_wanted,
            self._parked,
            self._proposed,
        ):
            waiting.clear()
        fail(left, nothing)


def _take(calls: list[Call], count: int) -> list[Call]:
    taken = calls[:count]
    del calls[:count]
    return taken
