"""What must hold for any input: compared with the plain definition, or sent at a server in any role."""

from __future__ import annotations

import random
from itertools import groupby

import pytest
from core_servers import (
    batch,
    configuration,
    configuration_batch,
    log_of,
    make_candidate,
    make_leader,
    make_raft,
    members,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from geraft import records
from geraft.core.effects import Role
from geraft.core.entries import INDEX_MAX, ZERO, EntryBatch, EntryId, EntryKind
from geraft.core.events import (
    Applied,
    ChangeMembership,
    EntriesLoaded,
    Event,
    PeerConnected,
    PeerDisconnected,
    Persisted,
    Propose,
    ReadRequested,
    Tick,
    TransferRequested,
)
from geraft.core.invariants import check_server
from geraft.core.log import Log
from geraft.core.membership import (
    AddServer,
    ChangeRefused,
    Configuration,
    DemoteServer,
    Member,
    MembershipChange,
    PromoteServer,
    Refusal,
    RemoveServer,
    ReplaceMembers,
    changed,
    next_step,
    refusal_of,
)
from geraft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    PeerMessage,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from geraft.core.quorum import agreed_value, is_quorum
from geraft.core.raft import Raft
from geraft.pb import geraft_pb2 as pb

# Quorum arithmetic ----------------------------------------------------------------------------------------------------

ids = st.sampled_from("1234567")
voters = st.frozensets(ids, min_size=1)
groups = st.lists(voters, min_size=1, max_size=2)


@given(st.frozensets(ids), groups)
def test_a_quorum_is_more_than_half_of_every_group(agreeing: frozenset[str], groups: list[frozenset[str]]) -> None:
    assert is_quorum(agreeing, groups) == all(len(agreeing & group) > len(group) / 2 for group in groups)


@given(st.frozensets(ids), st.frozensets(ids), voters)
def test_two_quorums_always_meet(one: frozenset[str], other: frozenset[str], voters: frozenset[str]) -> None:
    if is_quorum(one, [voters]) and is_quorum(other, [voters]):
        assert one & other & voters


@given(st.dictionaries(ids, st.integers(0, 9)), groups)
def test_the_agreed_value_is_the_highest_that_a_quorum_has_reached(
    values: dict[str, int], groups: list[frozenset[str]]
) -> None:
    def reached_by_quorum(value: int) -> bool:
        return is_quorum({id for id in "1234567" if values.get(id, 0) >= value}, groups)

    agreed = agreed_value(lambda id: values.get(id, 0), groups)
    assert agreed == max(filter(reached_by_quorum, range(10)))


# Logs -----------------------------------------------------------------------------------------------------------------

terms = st.lists(st.integers(1, 5), max_size=12).map(sorted)


def log_with(terms: list[int], batch_sizes: random.Random) -> Log:
    """A log whose entry at index i is of terms[i - 1], in batches of any size."""
    log = Log()
    for term, run in groupby(terms):
        left = len(list(run))
        while left:
            size = batch_sizes.randint(1, left)
            log.append(batch(term, log.last_entry.index + 1, *[b"x"] * size))
            left -= size
    return log


@given(terms, st.randoms(use_true_random=False))
def test_the_term_of_an_index(terms: list[int], rng: random.Random) -> None:
    log = log_with(terms, rng)
    assert [log.term_at(index) for index in range(-1, len(terms) + 2)] == [None, 0, *terms, None]


@given(terms, st.randoms(use_true_random=False), st.integers(1, 5), st.integers(1, 14), st.integers(1, 6))
def test_the_first_conflict_is_the_first_index_not_held_with_that_term(
    terms: list[int], rng: random.Random, term: int, first_index: int, size: int
) -> None:
    other = batch(term, first_index, *[b"x"] * size)
    held = {index + 1 for index, known in enumerate(terms) if known == term}
    expected = next(
        (index for index in range(first_index, other.last_index + 1) if index not in held), other.last_index + 1
    )
    assert log_with(terms, rng).first_conflict(other) == expected


@given(terms, st.randoms(use_true_random=False), st.integers(0, 6), st.integers(0, 14))
def test_the_last_possible_match_is_the_last_entry_not_after_the_other(
    terms: list[int], rng: random.Random, term: int, index: int
) -> None:
    candidates = [ZERO] + [EntryId(known, position) for position, known in enumerate(terms, 1)]
    expected = max(entry for entry in candidates if entry.term <= term and entry.index <= index)
    assert log_with(terms, rng).last_possible_match(EntryId(term, index)) == expected


@given(terms, terms)
def test_hints_find_where_two_logs_part_in_as_many_questions_as_they_have_terms(
    ours: list[int], theirs: list[int]
) -> None:
    """The leader asks from its end, the follower answers with a hint, as in replication.py; no entry is skipped."""
    leader, follower = log_with(ours, random.Random(1)), log_with(theirs, random.Random(2))
    pairs = zip(ours, theirs, strict=False)
    common = next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(theirs)))
    asked, questions = leader.last_entry, 1
    while asked.index > 0 and follower.term_at(asked.index) != asked.term:
        hint = follower.last_possible_match(asked)
        found = leader.last_possible_match(hint)
        asked = EntryId(leader.term_at(min(found.index, asked.index - 1)) or 0, min(found.index, asked.index - 1))
        questions += 1
    if leader_and_follower_may_coexist(ours, theirs):
        assert asked.index == common
        assert questions <= len(set(ours)) + len(set(theirs)) + 1


def leader_and_follower_may_coexist(ours: list[int], theirs: list[int]) -> bool:
    """Log matching: where they hold an equal entry, they are equal up to it."""
    agreed = [one == other for one, other in zip(ours, theirs, strict=False)]
    return agreed == sorted(agreed, reverse=True)


@given(terms, st.randoms(use_true_random=False), st.data())
def test_truncation_leaves_the_log_that_would_have_been(
    terms: list[int], rng: random.Random, data: st.DataObject
) -> None:
    log = log_with(terms, rng)
    log.evict(data.draw(st.integers(0, len(terms))), 0)
    index = data.draw(st.integers(0, len(terms)))
    log.truncate_to(index)
    assert [log.term_at(position) for position in range(1, len(terms) + 1)] == [
        *terms[:index],
        *[None] * (len(terms) - index),
    ]
    cached = log.cached(log.cached_from, index, 10**6) or ()
    assert sum(len(part.commands) for part in cached) == index + 1 - log.cached_from
    assert (log.cached_bytes == 0) == (not cached)


# Records --------------------------------------------------------------------------------------------------------------

names = st.text("ab1:/\u00e9", min_size=1, max_size=6)
member_lists = st.lists(st.builds(Member, names, names, st.sampled_from(["", "s1", "s2"])), max_size=4).map(
    lambda listed: list({member.id: member for member in listed}.values())
)
configurations = st.builds(
    lambda voters, learners, outgoing: Configuration(
        voters=tuple(sorted(voters)), learners=tuple(sorted(learners)), outgoing=tuple(sorted(outgoing))
    ),
    member_lists.filter(bool),
    member_lists,
    member_lists,
)
any_term = st.integers(1, INDEX_MAX)
any_index = st.integers(1, INDEX_MAX - 100)
command_batches = st.builds(
    lambda term, first_index, commands: EntryBatch(
        term=term, first_index=first_index, kind=EntryKind.COMMAND, commands=tuple(commands)
    ),
    any_term,
    any_index,
    st.lists(st.binary(max_size=30), min_size=1, max_size=5),
)
batches = st.one_of(
    command_batches,
    st.builds(configuration_batch, any_term, any_index, configurations),
    st.builds(
        lambda term, index: EntryBatch(term=term, first_index=index, kind=EntryKind.NOOP, commands=(b"",)),
        any_term,
        any_index,
    ),
)


@given(batches)
def test_a_batch_survives_its_encoding(value: EntryBatch) -> None:
    encoded = records.encode_batch(value)
    decoded = records.decode_batch(encoded)
    assert decoded == value
    assert records.encode_batch(decoded) == encoded
    assert records.encode_batch(value) is encoded, "made once"


@given(command_batches, st.data())
def test_a_part_of_a_batch_survives_too(value: EntryBatch, data: st.DataObject) -> None:
    records.encode_batch(value)
    first = data.draw(st.integers(value.first_index, value.last_index))
    last = data.draw(st.integers(first, value.last_index))
    part = value.slice(first, last)
    decoded = records.decode_batch(records.encode_batch(part))
    assert decoded == part
    assert (decoded.first_index, decoded.last_index) == (first, last)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_record_are_refused_by_a_typed_error(encoded: bytes) -> None:
    try:
        decoded = records.decode_batch(encoded)
    except records.BadRecord:
        return
    assert decoded.commands


@pytest.mark.parametrize(
    "record",
    [
        pb.EntryBatch(term=1, first_index=1, kind=2),  # no entries
        pb.EntryBatch(term=0, first_index=1, kind=2, commands=[b"x"]),
        pb.EntryBatch(term=1, first_index=0, kind=2, commands=[b"x"]),
        pb.EntryBatch(term=2**63, first_index=1, kind=2, commands=[b"x"]),
        pb.EntryBatch(term=1, first_index=2**63 - 1, kind=2, commands=[b"x", b"y"]),
        pb.EntryBatch(term=1, first_index=1, kind=99, commands=[b"x"]),  # type: ignore[arg-type]
        pb.EntryBatch(term=1, first_index=1, kind=1, commands=[b"x"]),  # a no-op with a command
        pb.EntryBatch(term=1, first_index=1, kind=3, commands=[b""]),  # a configuration without one
        pb.EntryBatch(term=1, first_index=1, kind=2, commands=[b"x"], configuration=pb.Configuration()),
    ],
)
def test_a_record_that_we_would_not_write_is_refused(record: pb.EntryBatch) -> None:
    with pytest.raises(records.BadRecord):
        records.decode_batch(record.SerializeToString())


@given(configurations, st.dictionaries(names, st.just("s1"), max_size=3), names, st.sampled_from(["s1", "s2"]))
def test_who_is_listened_to(value: Configuration, heard: dict[str, str], sender: str, store: str) -> None:
    refusal = refusal_of(value, heard, sender, store)
    member = value.members.get(sender)
    known_store = (member.store_id if member is not None else "") or heard.get(sender, store)
    assert refusal is (None if store == known_store else Refusal.STORE_REPLACED)


ids = st.sampled_from("12345")
some_members = st.sets(ids, max_size=5).map(lambda chosen: tuple(Member(id, f"{id}:1") for id in sorted(chosen)))
changes_wanted = st.one_of(
    st.builds(AddServer, id=ids, address=ids.map(lambda id: f"{id}:1"), learner=st.booleans()),
    st.builds(RemoveServer, id=ids),
    st.builds(PromoteServer, id=ids),
    st.builds(DemoteServer, id=ids),
    st.builds(ReplaceMembers, voters=some_members, learners=some_members),
)
settled = st.builds(
    lambda voters, learners: Configuration(
        voters=voters, learners=tuple(member for member in learners if member not in voters)
    ),
    some_members.filter(bool),
    some_members,
)


@given(settled, changes_wanted)
def test_each_step_of_a_change_is_safe_and_leads_to_its_end(now: Configuration, wanted: MembershipChange) -> None:
    """Majorities before and after any step meet, and nobody votes who was not a learner before (4.1, 4.2.1, 4.3)."""
    try:
        target = changed(now, wanted)
    except ChangeRefused:
        return
    assert target.voters
    assert not target.voter_ids & {member.id for member in target.learners}
    start, steps = now, 0
    while (step := next_step(now, target, target.voter_ids)) != now:
        assert step is not None
        steps += 1
        assert steps <= 3
        assert step.voter_ids <= now.members.keys(), "who votes was a member before"
        before, after = now.quorum_groups, step.quorum_groups
        assert set(before) & set(after) or len(before[0] ^ after[0]) == 1, "so that every two majorities meet"
        now = step
    assert (now.voters, now.learners, now.outgoing) == (target.voters, target.learners, ())
    if steps and target.voter_ids - start.voter_ids - {member.id for member in start.learners}:
        assert next_step(start, target, ()) != target, "newcomers do not vote at once"


# Any event, in any role -----------------------------------------------------------------------------------------------
# Fields are arbitrary within what transport/codec.py lets through, which is checked in tests/transport.


def a_term(rng: random.Random) -> int:
    return rng.choice([1, 2, 3, 3, 3, 4, 5, INDEX_MAX - 1, INDEX_MAX])


def an_index(rng: random.Random) -> int:
    return rng.choice([*range(10), INDEX_MAX - 1, INDEX_MAX])


def an_entry(rng: random.Random, term_max: int = INDEX_MAX) -> EntryId:
    return ZERO if rng.random() < 0.2 else EntryId(min(a_term(rng), term_max), max(an_index(rng), 1))


def an_append(rng: random.Random) -> AppendEntries:
    """Batches follow prev and each other without a gap, and terms rise to the sender's: so much the codec checks."""
    sender, term = rng.choice("2349"), a_term(rng)
    prev = an_entry(rng, term)
    if prev.index > 100:
        prev = EntryId(prev.term, 4)
    last, chosen = prev, list[EntryBatch]()
    for _ in range(rng.randrange(4)):
        entry_term = max(last.term, 1) + rng.choice([0, 0, 1])
        if entry_term > term:
            break
        if rng.random() < 0.2:
            value = configuration(
                *rng.choice([("123",), ("1234",), ("23", "1"), ("1",), ("14", "", "123"), ("34", "", "12")])
            )
            chosen.append(configuration_batch(entry_term, last.index + 1, value))
        else:
            chosen.append(batch(entry_term, last.index + 1, *[b"x"] * rng.randint(1, 3)))
        last = chosen[-1].last_entry
    return AppendEntries(
        sender=sender,
        sender_store=f"s{sender}",
        term=term,
        prev=prev,
        batches=tuple(chosen),
        commit_index=an_index(rng),
    )


def a_message(rng: random.Random) -> PeerMessage:
    sender = rng.choice("2349")
    head = {"sender": sender, "sender_store": rng.choice([f"s{sender}"] * 5 + ["other"]), "term": a_term(rng)}
    yes = rng.random() < 0.5
    match rng.randrange(7):
        case 0:
            last_entry = an_entry(rng, head["term"])
            return RequestVote(**head, last_entry=last_entry, pre_vote=yes, forced=rng.random() < 0.5)
        case 1:
            removed_at = an_index(rng) if rng.random() < 0.1 else 0
            return RequestVoteReply(**head, granted=yes, pre_vote=rng.random() < 0.5, removed_at=removed_at)
        case 2:
            rejected = an_entry(rng) if yes else None
            return AppendEntriesReply(**head, match_index=an_index(rng), rejected=rejected, hint=an_entry(rng))
        case 3:
            return Heartbeat(**head, commit_index=an_index(rng), round=an_index(rng))
        case 4:
            return HeartbeatReply(**head, round=an_index(rng))
        case 5:
            return TimeoutNow(**head)
        case _:
            return an_append(rng)


def a_local_event(rng: random.Random, raft: Raft) -> Event:
    """What the runtime may tell: it reports on effects that it was given."""
    peer, last = rng.choice("239"), raft.log.last_entry
    match rng.randrange(11):
        case 0:
            return Propose(token=1, commands=(b"x",) * rng.randint(1, 3))
        case 1:
            return ReadRequested(token=2, lease=rng.random() < 0.5)
        case 2:
            return Persisted(
                sequence=rng.randint(1, raft.next_persist),
                last_entry=last if last.index and rng.random() < 0.5 else None,
                ballot=None,
            )
        case 3:
            return Applied(index=rng.randint(0, raft.handed_to_app))
        case 4:
            first_index = rng.randint(1, max(last.index, 1))
            part = batch(raft.log.term_at(first_index) or 1, first_index, *[b"x"] * rng.randint(1, 2))
            return EntriesLoaded(peer=peer, first_index=first_index, batches=(part,) if rng.random() < 0.7 else ())
        case 5:
            return PeerConnected(peer=peer)
        case 6:
            return PeerDisconnected(peer=peer)
        case 7:
            return TransferRequested(token=3, target=rng.choice(["", "1", "2", "9"]))
        case 8 | 9:
            return ChangeMembership(token=4, change=a_change(rng), timeout_seconds=rng.uniform(0, 5))
        case _:
            return Tick(now_seconds=raft.now + rng.uniform(-1, 3))


def a_change(rng: random.Random) -> MembershipChange:
    id = rng.choice("12349")
    match rng.randrange(5):
        case 0:
            return AddServer(id=id, address=f"{id}.test:1", learner=rng.random() < 0.5)
        case 1:
            return RemoveServer(id=id)
        case 2:
            return PromoteServer(id=id)
        case 3:
            return DemoteServer(id=id)
        case _:
            return ReplaceMembers(voters=members(rng.choice(["1", "12", "145", "23"])), learners=members("9"))


def server_in(role: Role, start: list[int]) -> Raft:
    if role is Role.LEADER:
        return make_leader(start, matched="")
    if role is Role.CANDIDATE:
        return make_candidate(start)
    raft = make_raft(start)
    if role is Role.PRE_CANDIDATE:
        raft.become_pre_candidate()
    return raft


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(Role), st.integers(0, 2**32))
def test_rule_11_no_event_in_any_role_ever_raises_or_breaks_an_invariant(role: Role, seed: int) -> None:
    """Nor does a term or a commit index ever fall."""
    rng = random.Random(seed)
    raft = server_in(role, sorted(rng.randint(1, 2) for _ in range(rng.randrange(6))))
    for _ in range(15):
        term, commit_index = raft.term, raft.commit_index
        raft.step(a_message(rng) if rng.random() < 0.7 else a_local_event(rng, raft))
        check_server(raft)
        assert term <= raft.term <= INDEX_MAX
        assert commit_index <= raft.commit_index


def test_the_helpers_reach_every_role() -> None:
    assert [server_in(role, [2]).role for role in Role] == list(Role)
    assert log_of([2]).last_entry == EntryId(2, 2)
