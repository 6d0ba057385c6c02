"""What must hold after every step, of one server and of a whole cluster (Raft dissertation, figure 3.2)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from geraft.core.effects import Role
from geraft.core.entries import Ballot
from geraft.core.quorum import quorums_meet

if TYPE_CHECKING:
    from geraft.core.raft import Raft


class InvariantBroken(AssertionError):
    """A safety property does not hold; the message names it and shows the state."""


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise InvariantBroken(sentence)


def check_server(raft: Raft) -> None:
    """Indexes are in order, the log is cut behind a durable snapshot only, and a leader leads its own term."""
    log = raft.log
    installing = bool(raft.applying) and raft.applying[0][0] == log.base.index
    if not (
        (log.base.index <= raft.last_applied or installing)
        and raft.last_applied <= raft.handed_to_app <= raft.commit_index <= log.last_entry.index
        and log.base.index <= raft.handed_to_app
    ):
        raise InvariantBroken(
            f"{raft.id}: base {log.base.index} <= applied {raft.last_applied} <= handed {raft.handed_to_app}"
            f" <= committed {raft.commit_index} <= last {log.last_entry.index}"
        )
    recorded = raft.snapshot.index if raft.snapshot is not None else 0
    if recorded < log.base.index <= raft.durable_index:
        raise InvariantBroken(
            f"{raft.id}: the log begins after {log.base.index}, the newest durable snapshot is of {recorded}"
        )
    if raft.fetching is not None and raft.fetching.last_entry.index <= raft.commit_index:
        raise InvariantBroken(f"{raft.id}: fetches a snapshot of what is committed")
    if not log.configurations and log.base.index > 0:
        raise InvariantBroken(f"{raft.id}: the configuration in force was cut off with the log")
    if raft.durable_index > log.last_entry.index:
        raise InvariantBroken(f"{raft.id}: durable beyond the end of the log")
    if log.configuration_index > log.last_entry.index:
        raise InvariantBroken(
            f"{raft.id}: the configuration of entry {log.configuration_index} is in force, the log ends before it"
        )
    if log.last_entry.term > raft.term:
        raise InvariantBroken(f"{raft.id}: an entry of a later term than its own")
    if raft.role is Role.LEADER:
        if raft.leader_id != raft.id:
            raise InvariantBroken(f"{raft.id}: a leader follows {raft.leader_id!r}")
        members, departing = raft.configuration.members.keys() - {raft.id}, raft.departing.keys()
        if raft.progress.keys() != members | departing or members & departing:
            raise InvariantBroken(
                f"{raft.id}: leads {sorted(members)}, knows of {sorted(raft.progress)}, sees off {sorted(departing)}"
            )
        for id, progress in raft.progress.items():
            if not (progress.match_index < progress.next_index <= log.last_entry.index + 1):
                raise InvariantBroken(
                    f"{raft.id}: match {progress.match_index} < next {progress.next_index}"
                    f" <= {log.last_entry.index + 1} of {id}"
                )


class ClusterHistory:
    """Watches the servers of one cluster: call check() after each step of any of them."""

    def __init__(self) -> None:
        self.leaders: dict[int, str] = {}
        self.committed: dict[int, int] = {}  # term by index, of every entry that any server ever committed
        self._committed_in: dict[int, int] = {}  # the term in which the first server was seen to commit it, by index
        self._leading: dict[str, Raft] = {}  # servers that led when last seen
        self.votes: dict[tuple[str, int], str] = {}
        self._seen: dict[str, tuple[int, int]] = {}  # (commit_index, term) by server
        self._configurations_seen: dict[str, tuple[int, int]] = {}  # (index, count) by server

    def check(self, raft: Raft) -> None:
        """Election safety, one vote a term, state machine safety, leader completeness, that nothing falls, and that the
        majorities of successive configurations meet.

        Costs what is new: an entry is looked at when it commits, the whole history when a server wins an election.
        """
        check_server(raft)
        if raft.role is Role.LEADER:
            leader = self.leaders.setdefault(raft.term, raft.id)
            if leader != raft.id:
                raise InvariantBroken(f"term {raft.term} has two leaders: {leader} and {raft.id}")
        if raft.voted_for:
            vote = self.votes.setdefault((raft.id, raft.term), raft.voted_for)
            if vote != raft.voted_for:
                raise InvariantBroken(f"{raft.id} voted twice in term {raft.term}: {vote}, {raft.voted_for}")
        commit_seen, term_seen = self._seen.get(raft.id, (0, 0))
        if raft.term < term_seen:
            raise InvariantBroken(f"{raft.id}: its term fell from {term_seen} to {raft.term}")
        elected = raft.role is Role.LEADER and self._leading.get(raft.id) is not raft
        if raft.role is Role.LEADER:
            self._leading[raft.id] = raft
        else:
            self._leading.pop(raft.id, None)
        for index in range(commit_seen + 1, raft.commit_index + 1):
            term = raft.log.term_at(index)
            if term is None:
                continue
            known = self.committed.setdefault(index, term)
            if known != term:
                raise InvariantBroken(f"{raft.id} committed {term}.{index}, another server committed {known}.{index}")
            if index not in self._committed_in:
                self._committed_in[index] = raft.term
                for leader_of_now in self._leading.values():
                    self._require_complete(leader_of_now, index)
        self._seen[raft.id] = (max(commit_seen, raft.commit_index), raft.term)
        configurations = raft.log.configurations
        seen = (raft.log.configuration_index, len(configurations))
        if seen != self._configurations_seen.get(raft.id):
            self._configurations_seen[raft.id] = seen
            for (_, before), (index, after) in pairwise(configurations):
                _require(
                    quorums_meet(before.quorum_groups, after.quorum_groups),
                    f"{raft.id}: not every two majorities meet of the configuration at {index} and the one before it",
                )
        if elected:
            for index in self.committed:
                self._require_complete(raft, index)

    def _require_complete(self, leader: Raft, index: int) -> None:
        """A leader of a later term holds the entry; one that was deposed and has not heard of it may lack it."""
        term = self.committed[index]
        _require(
            leader.term < self._committed_in[index]
            or leader.log.term_at(index) == term
            or index <= leader.log.base.index,
            f"leader {leader.id} of term {leader.term} lacks committed entry {term}.{index}",
        )

    def restarted(self, id: str, ballot: Ballot) -> None:
        """A server lost its memory, and goes on with this ballot from its disk.

        Its commit index starts anew. A term or vote that had not reached the disk is forgotten, which is no harm as
        nobody was told of it.
        """
        self._leading.pop(id, None)
        self._seen[id] = (0, ballot.term)
        for server, term in list(self.votes):
            if server == id and (term > ballot.term or (term == ballot.term and not ballot.voted_for)):
                del self.votes[server, term]


def check_logs_match(servers: Iterable[Raft]) -> None:
    """Log matching: where two logs hold an equal entry, they are equal up to it."""
    servers = list(servers)
    for position, one in enumerate(servers):
        for other in servers[position + 1 :]:
            last = min(one.log.last_entry.index, other.log.last_entry.index)
            agreed = False
            for index in range(last, max(one.log.base.index, other.log.base.index), -1):
                terms = one.log.term_at(index), other.log.term_at(index)
                same = terms[0] == terms[1]
                _require(
                    same or not agreed,
                    f"{one.id} and {other.id} agree after {index} but hold terms {terms[0]} and {terms[1]} there",
                )
                agreed = agreed or same
