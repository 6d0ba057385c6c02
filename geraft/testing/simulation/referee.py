"""Judges a simulated cluster: what must hold after every step, at every message, at every answer, and in the end."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from geraft.app import MakeSnapshot
from geraft.core.effects import (
    Alarm,
    CancelFetch,
    ChangeEnded,
    ChangeOutcome,
    CompactLog,
    ConfigurationChanged,
    Effect,
    InstallSnapshot,
    LeaderChanged,
    Persist,
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
)
from geraft.core.election import hears_leader
from geraft.core.entries import Ballot, EntryId, EntryKind
from geraft.core.events import ChangeMembership, EntriesLoaded, Event, ReadRequested, Tick
from geraft.core.invariants import ClusterHistory, InvariantBroken
from geraft.core.membership import Configuration
from geraft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    OfferSnapshot,
    PeerMessage,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from geraft.core.raft import Raft
from geraft.core.reads import holds_lease
from geraft.storage.base import StoredState
from geraft.testing.simulation.register import Cell, Registers, number_of

if TYPE_CHECKING:
    from geraft.testing.simulation.server import SimulatedServer

SITUATIONS = (
    "acknowledgement to a deposed leader ignored",
    "answer of a numbered write forgotten",
    "app raised and was asked again",
    "append of a deposed leader answered",
    "bootstrap over state refused",
    "call forwarded to the leader",
    "call waited for a leader",
    "change done",
    "change given up",
    "change of an unknown outcome",
    "change refused",
    "change while another is under way",
    "conflict over several terms",
    "crash between two effects",
    "crash that lost a vote",
    "crash that tore what was written",
    "crash while a snapshot came",
    "damaged snapshot not used",
    "disk failed",
    "election without a winner",
    "entries loaded for a follower",
    "entry of an earlier term committed by a later one",
    "fold at the interval",
    "fold that a newer snapshot made needless",
    "fold wanted by the app",
    "forced vote granted",
    "joint configuration",
    "leader deposed with an uncommitted tail",
    "leader stepped down without its quorum",
    "leader without a vote",
    "lease granted",
    "lease refused",
    "log cut behind a snapshot",
    "log of a follower gave way to a snapshot",
    "messages let go out of order",
    "nonsense refused",
    "numbered write was repeated and answered",
    "orphaned snapshot swept",
    "pre-vote refused while a leader lives",
    "proposal refused as too much waits",
    "proposal refused during a transfer",
    "read refused by a step-down",
    "restart from a snapshot",
    "session expired",
    "snapshot asked for and made",
    "snapshot folded",
    "snapshot installed",
    "snapshot over a conflicting log",
    "snapshot recorded",
    "snapshot that came damaged refused",
    "snapshot was gone",
    "snapshot whose fetch was given up",
    "stream of a snapshot broke",
    "server that learnt of its removal",
    "transfer aborted",
    "transfer done",
    "truncation",
    "truncation of a configuration",
    "vote refused to an incomplete log",
    "write answered before it was lost sight of",
    "write with an unknown outcome",
)
"""What a campaign must have met to mean anything; Simulation.counters says how often it did."""


def term_in(state: StoredState, index: int) -> int | None:
    """The term of a stored entry; None if the store does not hold it."""
    if index == state.base.index:
        return state.base.term
    if not state.first_index <= index <= state.last_entry.index:
        return None
    return state.terms[bisect_right(state.terms, index, key=lambda start: start.first_index) - 1].term


CHANGES = {
    ChangeOutcome.DONE: "change done",
    ChangeOutcome.GIVEN_UP: "change given up",
    ChangeOutcome.UNKNOWN: "change of an unknown outcome",
    ChangeOutcome.PENDING: "change while another is under way",
}


def require(holds: bool, sentence: str) -> None:
    if not holds:
        raise InvariantBroken(sentence)


def decide(ids: Collection[str], configuration: Configuration) -> bool:
    """Whether these servers are a majority of the voters, of both sets while joint.

    Counted here once more: what is judged must not be judged by its own count.
    """
    groups = [configuration.voters, configuration.outgoing] if configuration.outgoing else [configuration.voters]
    return all(2 * sum(member.id in ids for member in group) > len(group) for group in groups)


def voters_of(configuration: Configuration) -> set[str]:
    return {member.id for group in (configuration.voters, configuration.outgoing) for member in group}


class Watched(Raft):
    """A Raft whose every step is judged.

    seen: its state after the last step, or when it was started, as far as it is compared. reads_asked: by token, what
    was committed and who led when the read came in.
    """

    server: SimulatedServer

    def __init__(self, **state: Any) -> None:
        super().__init__(**state)
        self.seen = self.compared()
        self.reads_asked: dict[int, tuple[int, int, bool]] = {}
        self.leads_since = 0.0
        self.change_began_at = 0  # the end of the log when the change was asked for that is under way
        self.configuration_told = self.log.configuration_index  # index of the one that others were told is in force
        self.removed_by = 0  # index of the configuration that it was told leaves it out

    def compared(self) -> tuple[Any, ...]:
        log = self.log
        return (
            self.commit_index,
            self.last_applied,
            log.last_entry,
            log.configuration_index,
            self.durable_index,
            self.role,
            self.term,
            self.voted_for,
        )

    def step(self, event: Event) -> list[Effect]:
        effects = super().step(event)
        self.server.world.referee.stepped(self, event, effects)
        return effects


CALM = frozenset((Tick, Heartbeat, HeartbeatReply, ReadRequested))
"""What changes nothing that is judged, as long as the compared state is the same."""


class Referee:
    """leases_hold: whether clocks differ by so little that a read under a lease must be fresh. log_step: writes down
    each step before it is judged. servers: set by the simulation. calm_for: who has no reason to campaign at present.
    nonsense: a message that no member sent.
    """

    servers: dict[str, SimulatedServer]

    def __init__(
        self, *, leases_hold: bool, log_step: Callable[[str, Event, list[Effect]], None] | None = None
    ) -> None:
        self._log_step = log_step
        self.leases_hold = leases_hold
        self.calm_for: frozenset[str] = frozenset()
        self.nonsense: PeerMessage | None = None
        self.counters: Counter[str] = Counter(dict.fromkeys(SITUATIONS, 0))
        self.history = ClusterHistory()
        self._committed = 0  # the last index that any server committed
        self._led = 0  # the last term that had a leader
        self._before: tuple[Any, ...] = ()  # what was seen of the server whose step is judged, before that
        self._silent_until: dict[str, float] = {}  # by the server's clock: what it promised to a leader
        self._offered: dict[tuple[str, str], tuple[int, EntryId]] = {}  # by leader and follower: term, what
        self._told_votes: dict[tuple[str, int], str] = {}
        self._applied: dict[int, bytes] = {}
        self._truth = Registers(lambda index, command: MakeSnapshot.NONE, self.index_of)  # what every app must come to
        self._states: list[tuple[int, bytes]] = [(0, self._truth.cells())]  # of it, after each command
        self._applied_at: dict[int, int] = {}  # index by number of the write
        self._promised_at: dict[int, int] = {}  # number of the write by index, of writes answered when committed
        self._nothing_happened: set[int] = set()
        self._floor: dict[bytes, int] = {}
        self._first_answers: dict[tuple[int, int], bytes | int] = {}  # by session and number
        self._judge_effect: dict[type[Any], Callable[[Watched, Event, Any], None]] = {
            Alarm: self._alarm,
            ReadConfirmed: self._read_confirmed,
            ReadRefused: self._read_refused,
            RoleChanged: self._role_changed,
            TransferEnded: self._transfer_ended,
            ProposalRefused: self._proposal_refused,
            TruncatedTo: self._truncated_to,
            RecordSnapshot: self._counted("snapshot recorded"),
            CompactLog: self._compact_log,
            CancelFetch: self._counted("snapshot whose fetch was given up"),
            InstallSnapshot: self._install_snapshot,
            ChangeEnded: self._change_ended,
            LeaderChanged: self._leader_changed,
            Removed: self._removed,
            ConfigurationChanged: self._configuration_changed,
        }
        self._judge_event: dict[type[Any], Callable[[Watched, Any, list[Effect]], None]] = {
            Tick: self._ticked,
            AppendEntriesReply: self._append_answered,
            ChangeMembership: self._change_asked,
            RequestVote: self._vote_asked,
            EntriesLoaded: self._entries_loaded,
            AppendEntries: self._append_asked,
            ReadRequested: self._read_asked,
            Heartbeat: self._heartbeat_answered,
        }

    # After each step --------------------------------------------------------------------------------------------------

    def stepped(self, raft: Watched, event: Event, effects: list[Effect]) -> None:
        if self._log_step is not None:
            self._log_step(raft.id, event, effects)
        log = raft.log
        before = raft.seen
        raft.seen = after = raft.compared()
        kind = type(event)
        if after != before or kind not in CALM:
            self.history.check(raft)
            if raft.leader_id and raft.leader_id != self.history.leaders.get(raft.term):
                raise InvariantBroken(
                    f"{raft.id} follows {raft.leader_id} in term {raft.term}, whose leader is not that one"
                )
            self._moved(raft, before)
        self._before = before
        judges = self._judge_effect
        for effect in effects:
            judge_effect = judges.get(type(effect))
            if judge_effect is not None:
                judge_effect(raft, event, effect)
        judge = self._judge_event.get(kind)
        if judge is not None:
            judge(raft, event, effects)
        if log.configuration_index != raft.configuration_told:
            raise InvariantBroken(
                f"{raft.id} goes by the configuration of {log.configuration_index}, and tells nobody: they know of that"
                f" of {raft.configuration_told}"
            )

    def _moved(self, raft: Watched, before: tuple[Any, ...]) -> None:
        commit_index, last_applied, _, _, durable_index, role, _, _ = before
        raft.server.term = raft.term
        if raft.commit_index < commit_index:
            raise InvariantBroken(f"{raft.id}: its commit index fell from {commit_index}")
        if raft.last_applied < last_applied:
            raise InvariantBroken(f"{raft.id}: what it applied fell from {last_applied}")
        if raft.durable_index != durable_index:
            index = raft.durable_index
            term, on_disk = raft.log.term_at(index), term_in(raft.server.disk.state, index)
            if term is not None and on_disk not in (term, None):
                raise InvariantBroken(f"{raft.id} takes {term}.{index} for durable, its disk has {on_disk}.{index}")
            if raft.server.disk.last_index < index:
                raise InvariantBroken(
                    f"{raft.id} takes {index} for durable, its disk ends at {raft.server.disk.last_index}"
                )
        if raft.commit_index > self._committed:
            self._committed = raft.commit_index
            if role is Role.LEADER and raft.log.term_at(commit_index + 1) != raft.term:
                self.counters["entry of an earlier term committed by a later one"] += 1
            self.check_committed_lasts(f"{raft.id} committed {raft.log.term_at(self._committed)}.{self._committed}")

    def check_committed_lasts(self, what_happened: str) -> None:
        """If the power failed everywhere now, nobody could be elected who lacks what is committed.

        Looks at the disks alone: who lacks the last committed entry must be behind a quorum of them.
        """
        index = self._committed
        term = self.history.committed.get(index)
        if term is None:
            return
        states = {id: server.disk.state for id, server in self.servers.items()}
        for id, state in states.items():
            if index < state.first_index or term_in(state, index) == term or not state.configurations:
                continue
            configuration = state.configurations[-1][1]
            if id not in voters_of(configuration):
                continue
            behind = {other for other, its in states.items() if its.last_entry <= state.last_entry}
            require(
                not decide(behind, configuration),
                f"{what_happened}, but {id} lacks {term}.{index} and could be elected by {sorted(behind)}"
                " if the power failed now",
            )

    def _role_changed(self, raft: Watched, event: Event, effect: RoleChanged) -> None:
        counters = self.counters
        require(raft.id not in self.calm_for, f"{raft.id} turns {effect.new.value} although nothing befell the cluster")
        if effect.old is Role.LEADER:
            counters["leader deposed with an uncommitted tail"] += raft.log.last_entry.index > raft.commit_index
            counters["leader stepped down without its quorum"] += type(event) is Tick
        elif effect.old is Role.CANDIDATE and effect.new is Role.PRE_CANDIDATE:
            counters["election without a winner"] += 1
        if effect.new is Role.LEADER:
            raft.leads_since = raft.server.world.now
            self._led = max(self._led, raft.term)
            self.counters["leader without a vote"] += raft.id not in raft.configuration.voter_ids
            self._check_election_lasts(raft)
            if self.leases_hold:
                self._check_no_lease(raft)
            raft.server.world.havoc.leads(raft.server)
        elif effect.new is Role.CANDIDATE:
            if type(event) is TimeoutNow:  # of the leader that was promised silence
                self._silent_until.pop(raft.id, None)
            elif voters_of(raft.configuration) != {raft.id}:
                self._check_silence_is_over(raft, "campaigns")
            raft.server.world.havoc.campaigns(raft.server)
        elif effect.new is Role.PRE_CANDIDATE and 0 < raft.log.configuration_index <= raft.removed_by:
            raise InvariantBroken(f"{raft.id} campaigns, although it was told that entry {raft.removed_by} removed it")

    def _heartbeat_answered(self, raft: Watched, event: Heartbeat, effects: list[Effect]) -> None:
        """What it promises counts from now on, by its own clock. A reply that waits for the disk is not looked at."""
        for effect in effects:
            if type(effect) is Send and type(effect.message) is HeartbeatReply and effect.message.silent_seconds:
                until = raft.now + effect.message.silent_seconds
                self._silent_until[raft.id] = max(until, self._silent_until.get(raft.id, until))

    def _check_silence_is_over(self, raft: Watched, what_it_does: str) -> None:
        now, until = raft.server.clock(), self._silent_until.get(raft.id, 0.0)
        require(now >= until, f"{raft.id} {what_it_does} at {now}, but promised a leader to be silent until {until}")

    def _change_ended(self, raft: Watched, event: Event, ended: ChangeEnded) -> None:
        """Who is told that a change is done finds it committed, and a joint configuration left for good."""
        self.counters[CHANGES.get(ended.outcome, "change refused")] += 1
        if ended.outcome is ChangeOutcome.DONE:
            # What the same step may have appended after it names the stores of the same members, and changes nobody.
            done = [at for index, at in raft.log.configurations if index <= raft.commit_index][-1]
            now = raft.configuration
            require(
                not done.outgoing and (done.voter_ids, set(done.members)) == (now.voter_ids, set(now.members)),
                f"{raft.id}: a change is done by {done}, with {raft.commit_index} committed, but {now} is in force",
            )

    def _removed(self, raft: Watched, event: Event, effect: Removed) -> None:
        self.counters["server that learnt of its removal"] += 1
        raft.removed_by = effect.index
        require(
            effect.index <= self._committed,
            f"{raft.id} takes itself for removed by entry {effect.index}, which nobody has committed",
        )

    def _check_election_lasts(self, raft: Watched) -> None:
        """If the power failed everywhere now, nobody else could be elected in this term: enough votes are on disks."""
        free = set()
        for id, server in self.servers.items():
            ballot = server.disk.ballot
            if ballot.term < raft.term or (ballot.term == raft.term and ballot.voted_for != raft.id):
                free.add(id)
        require(
            not decide(free, raft.configuration),
            f"{raft.id} leads term {raft.term}, but {sorted(free)} could elect another in it if the power failed now",
        )

    def _check_no_lease(self, raft: Watched) -> None:
        """Nobody who led before would still read under a lease if asked now."""
        for id, server in self.servers.items():
            other = server.raft
            if id == raft.id or other is None or other.role is not Role.LEADER or other.term >= raft.term:
                continue
            if server.paused_until > server.world.now:
                continue
            now, other.now = other.now, server.clock()
            leased = holds_lease(other)
            other.now = now
            require(not leased, f"{raft.id} leads term {raft.term}, but {id} still holds a lease of term {other.term}")

    def _ticked(self, raft: Watched, event: Tick, effects: list[Effect]) -> None:
        """Who leads hears a quorum, or stops leading; and a transfer ends."""
        server = raft.server
        now = server.world.now
        bound = server.world.patience_seconds
        while server.transfers and server.transfers[0][1].done:
            del server.transfers[0]
        if server.transfers:
            asked_at = server.transfers[0][0]
            if not (now - max(asked_at, server.awake_since) <= bound):
                raise InvariantBroken(f"{raft.id} does not end a transfer in time")
        if raft.role is not Role.LEADER:
            return
        if (
            raft.configuration.outgoing
            and raft.transfer is None
            and raft.log.configuration_index <= raft.commit_index
            and raft.log.term_at(raft.commit_index) == raft.term
        ):
            raise InvariantBroken(f"{raft.id} leads in a joint configuration that is committed, and does not leave it")
        if now - max(raft.leads_since, server.awake_since) <= bound:
            return
        heard = {id for id, at in server.heard.items() if now - at <= bound}
        heard.add(raft.id)
        if not decide(heard, raft.configuration):
            raise InvariantBroken(
                f"{raft.id} still leads term {raft.term}, although it heard only {sorted(heard)} in the last {bound} s"
            )

    def _read_asked(self, raft: Watched, event: ReadRequested, effects: list[Effect]) -> None:
        if raft.role is not Role.LEADER:
            return
        confirmed = any(type(effect) is ReadConfirmed for effect in effects)
        if event.lease:
            self.counters["lease granted" if confirmed else "lease refused"] += 1
        if not confirmed:
            raft.reads_asked[event.token] = (self._committed, self._led, event.lease)

    def _read_confirmed(self, raft: Watched, event: Event, effect: ReadConfirmed) -> None:
        """What was committed anywhere when the read was asked for is in what it will see."""
        for token in effect.tokens:
            if type(event) is ReadRequested and event.token == token:
                committed, led, lease = self._committed, self._led, event.lease
            else:
                committed, led, lease = raft.reads_asked.pop(token)
            if lease and not self.leases_hold:
                continue
            require(
                led <= raft.term,
                f"{raft.id} of term {raft.term} confirms a read that began when term {led} had a leader",
            )
            require(
                effect.read_index >= committed,
                f"{raft.id} confirms a read at {effect.read_index}; {committed} was committed before it began",
            )

    def _read_refused(self, raft: Watched, event: Event, effect: ReadRefused) -> None:
        for token in effect.tokens:
            raft.reads_asked.pop(token, None)
        if effect.reason is Reason.STEPPED_DOWN:
            self.counters["read refused by a step-down"] += len(effect.tokens)

    def _alarm(self, raft: Watched, event: Event, effect: Alarm) -> None:
        require(event is self.nonsense, f"{raft.id}: {effect.sentence}")
        self.counters["nonsense refused"] += 1

    def _transfer_ended(self, raft: Watched, event: Event, effect: TransferEnded) -> None:
        if effect.reason is None:
            self.counters["transfer done"] += 1
        elif effect.reason is Reason.TIMED_OUT:
            self.counters["transfer aborted"] += 1

    def _proposal_refused(self, raft: Watched, event: Event, effect: ProposalRefused) -> None:
        if effect.reason is Reason.OVERLOADED:
            self.counters["proposal refused as too much waits"] += 1
        elif effect.reason is Reason.TRANSFERRING:
            self.counters["proposal refused during a transfer"] += 1

    def _counted(self, situation: str) -> Callable[[Watched, Event, Any], None]:
        def count(raft: Watched, event: Event, effect: Any) -> None:
            self.counters[situation] += 1

        return count

    def _install_snapshot(self, raft: Watched, event: Event, effect: InstallSnapshot) -> None:
        self.counters["log of a follower gave way to a snapshot"] += 1
        commit_index, _, last, *_ = self._before
        there = self.history.committed.get(last.index)
        if last.index > commit_index and (last.index > effect.snapshot.index or there not in (None, last.term)):
            self.counters["snapshot over a conflicting log"] += 1

    def _compact_log(self, raft: Watched, event: Event, effect: CompactLog) -> None:
        """Trailing entries stay, for followers that are slow; and all that the app may be asked to fold."""
        self.counters["log cut behind a snapshot"] += 1
        catalogue = raft.server.disk.state.snapshots
        recorded = catalogue[-1].index if catalogue else 0
        trailing = raft.settings.trailing_entries
        require(
            effect.index <= min(recorded - trailing, raft.last_applied),
            f"{raft.id} cuts its log up to {effect.index}, with {recorded} in its newest snapshot, {raft.last_applied}"
            f" applied, and {trailing} entries to be kept behind it",
        )
        for id, progress in raft.progress.items():
            if progress.offered is not None and raft.now - progress.heard_at_seconds < 0.5:
                require(
                    effect.index <= max(progress.offered.index, progress.match_index),
                    f"{raft.id} cuts its log up to {effect.index}, while {id} fetches {progress.offered.index} from it",
                )

    def _truncated_to(self, raft: Watched, event: Event, effect: TruncatedTo) -> None:
        self.counters["truncation"] += 1
        self.counters["truncation of a configuration"] += effect.last.index < self._before[3]
        index = raft.log.configuration_index
        batches = raft.log.cached(index, index, 1)
        require(
            not batches or batches[0].kind is EntryKind.CONFIGURATION,
            f"{raft.id}: the configuration in force is that of entry {index}, which is none any more",
        )

    def _configuration_changed(self, raft: Watched, event: Event, effect: ConfigurationChanged) -> None:
        configuration = effect.configuration
        raft.configuration_told = effect.index
        self.counters["joint configuration"] += bool(configuration.outgoing)
        require(bool(configuration.voters) or not raft.log.configurations, f"{raft.id}: nobody votes any more")
        for member in configuration.members.values():
            server = self.servers.get(member.id)
            if server is not None and member.store_id not in ("", server.store_id):
                raise InvariantBroken(f"{raft.id}: {member.id} is a member with the store {member.store_id!r}")
        if raft.role is Role.LEADER:
            for other in self.servers:  # one who comes back is offered another one
                self._offered.pop((raft.id, other), None)
            self._judge_change(raft, event, configuration)
            raft.server.world.havoc.changes_configuration(raft.server)

    def _judge_change(self, raft: Watched, event: Event, configuration: Configuration) -> None:
        """A leader appends a configuration: one step, after what was before it, that can be committed (4.1, 4.2.1)."""
        if len(raft.log.configurations) < 2:
            return
        (before_index, before), (_, after) = raft.log.configurations[-2:]
        require(
            before_index <= raft.commit_index,
            f"{raft.id} appends a configuration while that of {before_index} is not committed: {after}",
        )
        require(
            raft.log.term_at(raft.commit_index) == raft.term,
            f"{raft.id} appends a configuration before anything of its term {raft.term} is committed: {after}",
        )
        if before.outgoing or voters_of(before) == voters_of(after):
            return
        server = raft.server
        began_at = raft.log.configuration_index - 1 if type(event) is ChangeMembership else raft.change_began_at
        for id in voters_of(after) - voters_of(before) - {raft.id}:
            newcomer = self.servers.get(id)
            require(newcomer is not None, f"{raft.id} makes {id} a voter, which nobody has ever started")
            assert newcomer is not None
            require(
                newcomer.disk.last_index >= began_at or newcomer.disk.ballot.term > raft.term,
                f"{raft.id} makes {id} a voter, whose log ends at {newcomer.disk.last_index};"
                f" the leader's ended at {began_at} when that was asked for",
            )
        now, bound = server.world.now, 1.1 * raft.settings.election_timeout_seconds + 0.5
        if now - max(raft.leads_since, server.awake_since) > bound:
            heard = {id for id, at in server.heard.items() if now - at <= bound} | {raft.id}
            require(
                decide(heard, after),
                f"{raft.id} appends a configuration that could not be committed: it heard only {sorted(heard)} in the"
                f" last {bound} s: {after}",
            )

    def _change_asked(self, raft: Watched, event: ChangeMembership, effects: list[Effect]) -> None:
        if raft.change is not None and raft.change.token == event.token:
            raft.change_began_at = self._before[2].index

    def _leader_changed(self, raft: Watched, event: Event, effect: LeaderChanged) -> None:
        fetch = raft.fetching
        require(
            fetch is None or effect.leader in ("", fetch.leader),
            f"{raft.id} follows {effect.leader}, and goes on fetching a snapshot from {fetch and fetch.leader}",
        )

    def _entries_loaded(self, raft: Watched, event: EntriesLoaded, effects: list[Effect]) -> None:
        self.counters["entries loaded for a follower"] += bool(event.batches)

    def _append_asked(self, raft: Watched, event: AppendEntries, effects: list[Effect]) -> None:
        self.counters["append of a deposed leader answered"] += event.term < raft.term
        if event.term == raft.term and event.sender == raft.leader_id:
            answered = any(type(effect) in (Send, Persist, Alarm) for effect in effects)
            require(answered, f"{raft.id} does not answer what its leader appends")

    def _append_answered(self, raft: Watched, reply: AppendEntriesReply, effects: list[Effect]) -> None:
        if raft.role is not Role.LEADER:
            self.counters["acknowledgement to a deposed leader ignored"] += reply.rejected is None
            return
        offered = self._offered.get((raft.id, reply.sender))
        if offered is not None and (reply.rejected is not None or reply.match_index >= offered[1].index):
            del self._offered[raft.id, reply.sender]
        if reply.rejected is not None:
            self.counters["conflict over several terms"] += reply.hint.term + 1 < reply.rejected.term

    def _vote_asked(self, raft: Watched, request: RequestVote, effects: list[Effect]) -> None:
        replies = [effect.message for effect in effects if type(effect) is Send]
        replies += [send.message for effect in effects if type(effect) is Persist for send in effect.then]
        for reply in replies:
            if type(reply) is not RequestVoteReply:
                continue
            if reply.granted:
                self.counters["forced vote granted"] += request.forced and not request.pre_vote
                if not request.forced and not request.pre_vote:
                    self._check_silence_is_over(raft, f"votes for {request.sender}")
            elif hears_leader(raft):
                self.counters["pre-vote refused while a leader lives"] += request.pre_vote
            else:
                self.counters["vote refused to an incomplete log"] += request.last_entry < raft.log.last_entry

    # At each message --------------------------------------------------------------------------------------------------

    def leaves(self, server: SimulatedServer, to: str, message: PeerMessage) -> None:
        """What a message says of its sender's term, vote and log is on the disk when it leaves (3.8)."""
        ballot = server.disk.ballot
        kind = type(message)
        if kind is AppendEntries and message.batches and server.loop._proposed:  # type: ignore[union-attr]
            raise InvariantBroken(f"{server.id} sends entries before it has noted who waits for them")
        if kind is RequestVoteReply or kind is RequestVote:
            if message.pre_vote and (kind is RequestVote or message.granted):  # type: ignore[union-attr]
                return
            if kind is RequestVote or message.granted:  # type: ignore[union-attr]
                vote = server.id if kind is RequestVote else to
                if not (ballot.term > message.term or ballot == Ballot(message.term, vote)):
                    raise InvariantBroken(
                        f"{server.id} tells of its vote for {vote} in term {message.term}, its disk holds {ballot}"
                    )
                told = self._told_votes.setdefault((server.id, message.term), vote)
                if told != vote:
                    raise InvariantBroken(f"{server.id} told {told} and {vote} of its vote in term {message.term}")
        elif kind is OfferSnapshot:
            catalogue = server.disk.state.snapshots
            if not catalogue or catalogue[-1].index < message.last_entry.index:  # type: ignore[union-attr]
                raise InvariantBroken(f"{server.id} offers snapshot {message.last_entry.index} before it is recorded")  # type: ignore[union-attr]
            self._judge_offer(server, to, message)  # type: ignore[arg-type]
        elif kind is AppendEntriesReply and message.match_index > 0 and ballot.term == message.term:  # type: ignore[union-attr]
            match_index = message.match_index  # type: ignore[union-attr]
            if server.disk.last_index < match_index:
                raise InvariantBroken(
                    f"{server.id} acknowledges {match_index}, its disk ends at {server.disk.last_index}"
                )
        if 0 < ballot.term < message.term:
            raise InvariantBroken(f"{server.id} tells of term {message.term}, its disk knows {ballot.term}")

    def _judge_offer(self, server: SimulatedServer, to: str, offer: OfferSnapshot) -> None:
        """It is the same one until the follower has it or can't get it, or it would begin anew for ever (FLAWS D5)."""
        term, entry = self._offered.get((server.id, to), (0, offer.last_entry))
        assert server.raft is not None
        require(
            term != offer.term or entry == offer.last_entry or entry.index < server.raft.log.base.index,
            f"{server.id} offers {to} snapshot {offer.last_entry.index} while that fetches {entry.index}",
        )
        self._offered[server.id, to] = offer.term, offer.last_entry

    # What callers see -------------------------------------------------------------------------------------------------

    def applied(self, server: str, index: int, command: bytes) -> None:
        """A server's app is given a command."""
        known = self._applied.get(index)
        if known is not None:
            require(known == command, f"{server} applies {command!r} at {index}, where another applied {known!r}")
            return
        number = number_of(command)
        at = self._applied_at.setdefault(number, index)
        require(at == index, f"write {number} is applied twice, at {at} and at {index}")
        require(number not in self._nothing_happened, f"write {number} is applied; its caller was told it never would")
        promised = self._promised_at.get(index, number)
        require(promised == number, f"write {promised} was answered as committed at {index}, now {number} is there")
        self._applied[index] = command
        self._truth.process_write(command, index)
        self._states.append((index, self._truth.cells()))

    def index_of(self, command: bytes) -> int:
        """Of the entry with which apps were given the command."""
        index = self._applied_at.get(number_of(command))
        if index is None:
            raise InvariantBroken(f"{command!r} is folded into a snapshot, but no app was given it")
        return index

    def _state_at(self, index: int) -> bytes:
        return self._states[bisect_right(self._states, index, key=lambda state: state[0]) - 1][1]

    def installed(self, server: str, index: int, state: bytes) -> None:
        """A server's app has become the state of a snapshot."""
        right = self._state_at(index)
        require(state == right, f"{server} becomes the state of snapshot {index}: {state!r}, but it was {right!r}")

    def saved(self, server: str, index: int, state: bytes) -> None:
        """A server has stored a snapshot: one that it made, or one that came. Its cells may stand in any order."""
        right = self._state_at(index)
        require(
            sorted(state.splitlines()) == right.splitlines(),
            f"{server} stores {state!r} as snapshot {index}, but the state was {right!r}",
        )

    def nothing_happened(self, number: int) -> None:
        """A caller was told so of its write."""
        require(number not in self._applied_at, f"write {number} is applied; its caller is told it never happened")
        self._nothing_happened.add(number)

    def floor(self, key: bytes) -> int:
        """The version that a read of the key must give at least if it begins now."""
        return self._floor.get(key, 0)

    def write_committed(self, key: bytes, number: int, index: int) -> None:
        """A caller was told that its write is the entry at index."""
        require(
            self._promised_at.setdefault(index, number) == number and self._applied_at.get(number, index) == index,
            f"write {number} is answered with index {index}, which it is not",
        )
        known = self._applied.get(index)
        require(known is None or number_of(known) == number, f"{index} holds {known!r}, not {number}")

    def write_done(self, key: bytes, number: int, cell: Cell) -> None:
        """A caller was told that the app applied its write, which left the cell so."""
        require(number in self._applied_at, f"write {number} is answered, but no app was given it")
        self._floor[key] = max(self.floor(key), cell.version)

    def numbered_write_done(
        self, name: tuple[int, int], number: int, index: int | None, answer: bytes | int | None
    ) -> None:
        """A caller was told of a write of a session, or told again: that it was applied at index, and the answer.

        None: that it was applied, but is not known any more with what answer.
        """
        applied_at = self._applied_at.get(number)
        require(applied_at is not None, f"write {number} is answered, but no app was given it")
        if answer is not None:
            require(index == applied_at, f"write {number}, applied at {applied_at}, is answered as if at {index}")
            first = self._first_answers.setdefault(name, answer)
            require(first == answer, f"write {name[1]} of session {name[0]} is answered {answer!r}, before {first!r}")

    def read_done(self, key: bytes, floor: int, cell: Cell, *, lease: bool, server: str) -> None:
        """A read gave the cell; floor: what it had to give when it began."""
        if lease and not self.leases_hold:
            return
        require(
            cell.version >= floor,
            f"a read {'under a lease ' if lease else ''}through {server} gives {key.decode()} of {cell.version},"
            f" but {floor} was known before it began",
        )
        self._floor[key] = max(self.floor(key), cell.version)
