"""Judges a simulated cluster: what must hold after every step, at every message, at every answer, and in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from geraft.core.effects import (
    Alarm,
    Effect,
    Persist,
    ProposalRefused,
    ReadConfirmed,
    ReadRefused,
    Reason,
    Role,
    RoleChanged,
    Send,
    TransferEnded,
    TruncatedTo,
)
from geraft.core.election import hears_leader
from geraft.core.entries import Ballot, EntryId
from geraft.core.events import EntriesLoaded, Event, Persisted, ReadRequested, Tick
from geraft.core.invariants import ClusterHistory, InvariantBroken
from geraft.core.messages import AppendEntries, AppendEntriesReply, PeerMessage, RequestVote, RequestVoteReply
from geraft.core.raft import Raft
from geraft.testing.simulation.register import Cell

if TYPE_CHECKING:
    from geraft.testing.simulation.server import SimulatedServer

SITUATIONS = (
    "acknowledgement to a deposed leader ignored",
    "append of a deposed leader answered",
    "call forwarded to the leader",
    "call waited for a leader",
    "conflict over several terms",
    "crash between two effects",
    "crash that lost a vote",
    "crash that tore what was written",
    "disk failed",
    "election without a winner",
    "entries loaded for a follower",
    "entry of an earlier term committed by a later one",
    "forced vote granted",
    "leader deposed with an uncommitted tail",
    "leader stepped down without its quorum",
    "lease granted",
    "lease refused",
    "pre-vote refused while a leader lives",
    "proposal refused as too much waits",
    "proposal refused during a transfer",
    "read refused by a step-down",
    "transfer aborted",
    "transfer done",
    "truncation",
    "truncation of a configuration",
    "truncation overtook the disk",
    "vote refused to an incomplete log",
    "write answered before it was lost sight of",
    "write with an unknown outcome",
)
"""What a campaign must have met to mean anything; Simulation.counters says how often it did."""


def require(holds: bool, sentence: str) -> None:
    if not holds:
        raise InvariantBroken(sentence)


class Watched(Raft):
    """A Raft whose every step is judged."""

    referee: Referee

    def step(self, event: Event) -> list[Effect]:
        before = (self.role, self.log.last_entry, self.log.configuration_index, self.commit_index, self.last_applied)
        effects = super().step(event)
        self.referee.stepped(self, event, effects, *before)
        return effects


class Referee:
    """leases_hold: whether clocks differ by so little that a read under a lease must be fresh. log_step: writes down
    each step before it is judged."""

    def __init__(
        self, *, leases_hold: bool, log_step: Callable[[str, Event, list[Effect]], None] | None = None
    ) -> None:
        self._log_step = log_step
        self.leases_hold = leases_hold
        self.counters: Counter[str] = Counter(dict.fromkeys(SITUATIONS, 0))
        self.history = ClusterHistory()
        self._told_votes: dict[tuple[str, int], str] = {}
        self._applied: dict[int, bytes] = {}
        self._applied_at: dict[int, int] = {}  # index by number of the write
        self._promised_at: dict[int, int] = {}  # number of the write by index, of writes answered when committed
        self._nothing_happened: set[int] = set()
        self._floor: dict[bytes, int] = {}

    # After each step --------------------------------------------------------------------------------------------------

    def stepped(
        self,
        raft: Raft,
        event: Event,
        effects: list[Effect],
        role: Role,
        last_entry: EntryId,
        configuration_index: int,
        commit_index: int,
        last_applied: int,
    ) -> None:
        if self._log_step is not None:
            self._log_step(raft.id, event, effects)
        self.history.check(raft)
        require(raft.commit_index >= commit_index, f"{raft.id}: its commit index fell from {commit_index}")
        require(raft.last_applied >= last_applied, f"{raft.id}: what it applied fell from {last_applied}")
        counters = self.counters
        kind = type(event)
        for effect in effects:
            match effect:
                case Send() | Persist():
                    pass
                case Alarm():
                    raise InvariantBroken(f"{raft.id}: {effect.sentence}")
                case RoleChanged(old=Role.LEADER):
                    counters["leader deposed with an uncommitted tail"] += last_entry.index > raft.commit_index
                    counters["leader stepped down without its quorum"] += kind is Tick
                case RoleChanged(old=Role.CANDIDATE, new=Role.PRE_CANDIDATE):
                    counters["election without a winner"] += 1
                case ReadRefused(reason=Reason.STEPPED_DOWN):
                    counters["read refused by a step-down"] += len(effect.tokens)
                case TransferEnded(reason=None):
                    counters["transfer done"] += 1
                case TransferEnded(reason=Reason.TIMED_OUT):
                    counters["transfer aborted"] += 1
                case ProposalRefused(reason=Reason.OVERLOADED):
                    counters["proposal refused as too much waits"] += 1
                case ProposalRefused(reason=Reason.TRANSFERRING):
                    counters["proposal refused during a transfer"] += 1
                case TruncatedTo():
                    counters["truncation"] += 1
                    counters["truncation of a configuration"] += effect.last.index < configuration_index
        if role is Role.LEADER and raft.commit_index > commit_index and raft.log.term_at(commit_index + 1) != raft.term:
            counters["entry of an earlier term committed by a later one"] += 1
        if kind is AppendEntriesReply:
            self._count_append_reply(raft, event)  # type: ignore[arg-type]
        elif kind is RequestVote:
            self._count_vote_request(raft, event, effects)  # type: ignore[arg-type]
        elif kind is Persisted:
            assert isinstance(event, Persisted)
            overtaken = event.last_entry is not None and event.sequence < raft.persists_count_from
            counters["truncation overtook the disk"] += overtaken
        elif kind is EntriesLoaded:
            assert isinstance(event, EntriesLoaded)
            counters["entries loaded for a follower"] += bool(event.batches)
        elif kind is AppendEntries:
            counters["append of a deposed leader answered"] += event.term < raft.term  # type: ignore[union-attr]
        elif kind is ReadRequested and event.lease and role is Role.LEADER:  # type: ignore[union-attr]
            granted = any(type(effect) is ReadConfirmed for effect in effects)
            counters["lease granted" if granted else "lease refused"] += 1

    def _count_append_reply(self, raft: Raft, reply: AppendEntriesReply) -> None:
        self.counters["acknowledgement to a deposed leader ignored"] += (
            raft.role is not Role.LEADER and reply.rejected is None
        )
        self.counters["conflict over several terms"] += (
            raft.role is Role.LEADER and reply.rejected is not None and reply.hint.term + 1 < reply.rejected.term
        )

    def _count_vote_request(self, raft: Raft, request: RequestVote, effects: list[Effect]) -> None:
        replies = [effect.message for effect in effects if type(effect) is Send]
        replies += [send.message for effect in effects if type(effect) is Persist for send in effect.then]
        for reply in replies:
            if type(reply) is not RequestVoteReply:
                continue
            if reply.granted:
                self.counters["forced vote granted"] += request.forced and not request.pre_vote
            elif hears_leader(raft):
                self.counters["pre-vote refused while a leader lives"] += request.pre_vote
            else:
                self.counters["vote refused to an incomplete log"] += request.last_entry < raft.log.last_entry

    # At each message --------------------------------------------------------------------------------------------------

    def leaves(self, server: SimulatedServer, to: str, message: PeerMessage) -> None:
        """What a message says of its sender's term, vote and log is on the disk when it leaves (3.8)."""
        ballot = server.disk.ballot
        kind = type(message)
        if kind is RequestVoteReply or kind is RequestVote:
            if message.pre_vote and (kind is RequestVote or message.granted):  # type: ignore[union-attr]
                return
            if kind is RequestVote or message.granted:  # type: ignore[union-attr]
                vote = server.id if kind is RequestVote else to
                require(
                    ballot.term > message.term or ballot == Ballot(message.term, vote),
                    f"{server.id} tells of its vote for {vote} in term {message.term}, its disk holds {ballot}",
                )
                told = self._told_votes.setdefault((server.id, message.term), vote)
                require(told == vote, f"{server.id} told {told} and {vote} of its vote in term {message.term}")
        elif kind is AppendEntriesReply and message.match_index > 0 and ballot.term == message.term:  # type: ignore[union-attr]
            match_index = message.match_index  # type: ignore[union-attr]
            require(
                server.disk.last_index >= match_index,
                f"{server.id} acknowledges {match_index}, its disk ends at {server.disk.last_index}",
            )
        if ballot.term > 0:
            require(
                ballot.term >= message.term, f"{server.id} tells of term {message.term}, its disk knows {ballot.term}"
            )

    # What callers see -------------------------------------------------------------------------------------------------

    def applied(self, server: str, index: int, command: bytes) -> None:
        """A server's app is given a command."""
        known = self._applied.get(index)
        if known is not None:
            require(known == command, f"{server} applies {command!r} at {index}, where another applied {known!r}")
            return
        number = int(command.rsplit(maxsplit=1)[-1])
        at = self._applied_at.setdefault(number, index)
        require(at == index, f"write {number} is applied twice, at {at} and at {index}")
        require(number not in self._nothing_happened, f"write {number} is applied; its caller was told it never would")
        promised = self._promised_at.get(index, number)
        require(promised == number, f"write {promised} was answered as committed at {index}, now {number} is there")
        self._applied[index] = command

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
        require(known is None or int(known.rsplit(maxsplit=1)[-1]) == number, f"{index} holds {known!r}, not {number}")

    def write_done(self, key: bytes, number: int, cell: Cell) -> None:
        """A caller was told that the app applied its write, which left the cell so."""
        require(number in self._applied_at, f"write {number} is answered, but no app was given it")
        self._floor[key] = max(self.floor(key), cell.version)

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
