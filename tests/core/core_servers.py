"""Short ways to make servers, entries and messages for the tests of the core.

The server under test is "1" of the voters "1", "2", "3". Messages come from another one, whose store is "s" + its id.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from geraft.core.effects import Effect, Persist, Role, Send
from geraft.core.entries import Ballot, EntryBatch, EntryKind
from geraft.core.events import Event, Persisted, Tick
from geraft.core.invariants import check_server
from geraft.core.log import Log
from geraft.core.membership import Configuration, Member
from geraft.core.messages import AppendEntriesReply, RequestVoteReply
from geraft.core.raft import Raft, Settings
from geraft.core.snapshots import Snapshot

E = TypeVar("E")


def members(ids: str) -> tuple[Member, ...]:
    return tuple(Member(id, f"{id}.test:1", f"s{id}") for id in ids)


def configuration(voters: str = "123", learners: str = "", outgoing: str = "") -> Configuration:
    return Configuration(voters=members(voters), learners=members(learners), outgoing=members(outgoing))


def batch(term: int, first_index: int, *commands: bytes) -> EntryBatch:
    """Commands, by default one, at first_index and after."""
    return EntryBatch(term=term, first_index=first_index, kind=EntryKind.COMMAND, commands=commands or (b"x",))


def noop(term: int, index: int) -> EntryBatch:
    return EntryBatch(term=term, first_index=index, kind=EntryKind.NOOP, commands=(b"",))


def configuration_batch(term: int, index: int, value: Configuration) -> EntryBatch:
    return EntryBatch(term=term, first_index=index, kind=EntryKind.CONFIGURATION, commands=(b"",), configuration=value)


def log_of(terms: Sequence[int] = (), first: Configuration | None = None) -> Log:
    """Entry 1 is the configuration, of term 1; terms are those of the entries after it."""
    log = Log()
    log.append(configuration_batch(1, 1, first or configuration()))
    for term in terms:
        log.append(batch(term, log.last_entry.index + 1))
    return log


def make_raft(
    terms: Sequence[int] = (),
    ballot: Ballot = Ballot(2),  # noqa: B008  # a NamedTuple never changes
    *,
    now: float = 100.0,
    log: Log | None = None,
    snapshot: Snapshot | None = None,
    **settings: Any,
) -> Raft:
    """A follower that has been up long enough to be free of promises, and knows no leader."""
    raft = Raft(
        id="1",
        store_id="s1",
        ballot=ballot,
        log=log or log_of(terms),
        settings=Settings(**settings),
        rng=random.Random(1),
        now_seconds=now - 50,
        snapshot=snapshot,
    )
    raft.now = now
    raft.detector.restart(now)
    return raft


def tell(raft: Raft, event: Event) -> list[Effect]:
    """Step, and check what must hold after every step."""
    effects = raft.step(event)
    check_server(raft)
    return effects


def write(raft: Raft, effects: Sequence[Effect]) -> list[Effect]:
    """The disk finishes every Persist among the effects; what that leads to."""
    after: list[Effect] = []
    for effect in effects:
        if isinstance(effect, Persist):
            last_entry = effect.batches[-1].last_entry if effect.batches else None
            after += tell(raft, Persisted(sequence=effect.sequence, last_entry=last_entry, ballot=effect.ballot))
    return after


def from_peer(kind: type[E], sender: str = "2", **fields: Any) -> E:
    return kind(sender=sender, sender_store=f"s{sender}", **fields)  # type: ignore[call-arg]


def ours(kind: type[E], **fields: Any) -> E:
    return from_peer(kind, "1", **fields)


def only(effects: Sequence[Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(effects: Sequence[Effect], kind: type[E], to: str = "") -> list[E]:
    """The messages of that kind that leave at once."""
    return [
        effect.message
        for effect in effects
        if isinstance(effect, Send) and isinstance(effect.message, kind) and to in ("", effect.to)
    ]


def make_candidate(terms: Sequence[int] = (), **settings: Any) -> Raft:
    """A candidate of term 3 whose own vote is durable."""
    raft = make_raft(terms, **settings)
    raft.become_pre_candidate()
    effects = tell(raft, from_peer(RequestVoteReply, term=3, granted=True, pre_vote=True))
    write(raft, effects)
    assert (raft.role, raft.term) == (Role.CANDIDATE, 3)
    return raft


def make_leader(terms: Sequence[int] = (), *, matched: str = "23", **settings: Any) -> Raft:
    """The leader of term 3. Its no-op is durable on itself and on those of `matched`, so it is committed."""
    raft = make_candidate(terms, **settings)
    write(raft, tell(raft, from_peer(RequestVoteReply, term=3, granted=True)))
    assert raft.role is Role.LEADER
    before = raft.noop_index - 1
    for peer in matched:
        acknowledge(raft, before, peer)  # the probe
        acknowledge(raft, raft.noop_index, peer)
    return raft


def acknowledge(raft: Raft, match_index: int, peer: str = "2") -> list[Effect]:
    return tell(raft, from_peer(AppendEntriesReply, peer, term=raft.term, match_index=match_index))


def pass_time(raft: Raft, seconds: float, step_seconds: float = 0.05) -> list[Effect]:
    effects: list[Effect] = []
    for _ in range(round(seconds / step_seconds)):
        effects += tell(raft, Tick(now_seconds=raft.now + step_seconds))
    return effects
