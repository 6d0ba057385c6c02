"""What is encoded is decoded again, and whatever else arrives is refused as BadMessage, never as anything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geraft.core.entries import INDEX_MAX, ZERO, EntryBatch, EntryId, EntryKind
from geraft.core.membership import Configuration, Member
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
from geraft.pb import geraft_pb2 as pb
from geraft.transport import codec
from geraft.transport.codec import BadMessage

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy

names = st.text(min_size=1, max_size=8)
terms = st.integers(1, INDEX_MAX)
indexes = st.integers(0, INDEX_MAX)
members = st.builds(Member, names, names, st.text(max_size=8))
configurations = st.lists(members, min_size=1, max_size=3, unique_by=lambda member: member.id).map(
    lambda voters: Configuration(voters=tuple(sorted(voters)))
)


@st.composite
def entry_ids(draw: st.DrawFn, term_max: int = INDEX_MAX, index_max: int = INDEX_MAX) -> EntryId:
    return draw(st.just(ZERO) | st.builds(EntryId, st.integers(1, term_max), st.integers(1, index_max)))


@st.composite
def appends(draw: st.DrawFn) -> AppendEntries:
    """Batches directly after prev and after each other, in terms that never go back nor beyond the sender's."""
    term = draw(terms)
    prev = last = draw(entry_ids(term_max=term, index_max=INDEX_MAX // 2))
    batches = []
    for kind in draw(st.lists(st.sampled_from(EntryKind), max_size=4)):
        commands = tuple(draw(st.lists(st.binary(max_size=20), min_size=1, max_size=4)))
        batch = EntryBatch(
            term=draw(st.integers(max(last.term, 1), term)),
            first_index=last.index + 1,
            kind=kind,
            commands=commands if kind is EntryKind.COMMAND else (b"",),
            configuration=draw(configurations) if kind is EntryKind.CONFIGURATION else None,
        )
        last = batch.last_entry
        batches.append(batch)
    return AppendEntries(
        sender=draw(names),
        sender_store=draw(names),
        term=term,
        prev=prev,
        batches=tuple(batches),
        commit_index=draw(indexes),
    )


@st.composite
def votes(draw: st.DrawFn) -> RequestVote:
    term = draw(terms)
    return RequestVote(
        sender=draw(names),
        sender_store=draw(names),
        term=term,
        last_entry=draw(entry_ids(term_max=term)),
        pre_vote=draw(st.booleans()),
        forced=draw(st.booleans()),
    )


who: dict[str, Any] = {"sender": names, "sender_store": names}
append_replies = st.builds(
    AppendEntriesReply, term=indexes, match_index=indexes, rejected=st.none(), hint=st.just(ZERO), **who
) | st.builds(AppendEntriesReply, term=indexes, match_index=st.just(0), rejected=entry_ids(), hint=entry_ids(), **who)
vote_replies = st.builds(
    RequestVoteReply, term=indexes, granted=st.booleans(), pre_vote=st.booleans(), call=st.just(0), **who
)

# Per message: what makes one, the protobuf on the wire, and how it is decoded.
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "AppendEntries": (appends(), pb.AppendEntryReq, codec.append_entries),
    "AppendEntriesReply": (append_replies, pb.AppendEntryRep, codec.append_entries_reply),
    "Heartbeat": (
        st.builds(Heartbeat, term=terms, commit_index=indexes, round=indexes, **who),
        pb.HeartbeatReq,
        codec.heartbeat,
    ),
    "HeartbeatReply": (
        st.builds(
            HeartbeatReply,
            term=indexes,
            round=indexes,
            last_applied=indexes,
            silent_seconds=st.floats(0, allow_infinity=False, allow_nan=False),
            **who,
        ),
        pb.HeartbeatRep,
        codec.heartbeat_reply,
    ),
    "RequestVote": (votes(), pb.RequestVoteReq, lambda record: codec.request_vote(record, 0)),
    "RequestVoteReply": (vote_replies, pb.RequestVoteRep, codec.request_vote_reply),
    "TimeoutNow": (st.builds(TimeoutNow, term=terms, **who), pb.TimeoutNowReq, codec.timeout_now),
}


@pytest.mark.parametrize("kind", KINDS)
@patient
@given(data=st.data())
def test_a_message_is_the_same_after_the_wire(kind: str, data: st.DataObject) -> None:
    strategy, record_type, decode = KINDS[kind]
    message: PeerMessage = data.draw(strategy)
    record = codec.parse(record_type.FromString, codec.encode(message, "c", "r"))
    assert decode(record) == message
    assert (record.header.cluster_id, record.header.receiver) == ("c", "r")


@pytest.mark.parametrize("kind", KINDS)
@patient
@given(data=st.data())
def test_damaged_bytes_are_a_bad_message_or_a_well_formed_one(kind: str, data: st.DataObject) -> None:
    strategy, record_type, decode = KINDS[kind]
    encoded = bytearray(codec.encode(data.draw(strategy), "c", "r"))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(encoded) - 1))
        encoded[position] = data.draw(st.integers(0, 255))
    try:
        message = decode(codec.parse(record_type.FromString, bytes(encoded[: data.draw(st.integers(0, len(encoded)))])))
    except BadMessage as error:
        assert str(error)
        return
    assert message.sender and message.sender_store and 0 <= message.term <= INDEX_MAX
    if isinstance(message, AppendEntries):
        expected = message.prev.index + 1
        for batch in message.batches:
            assert batch.first_index == expected and batch.term <= message.term
            expected = batch.last_index + 1


@patient
@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_refused_or_well_formed(encoded: bytes) -> None:
    for _, record_type, decode in KINDS.values():
        try:
            decode(codec.parse(record_type.FromString, encoded))
        except BadMessage:
            pass


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_a_silence_that_nobody_can_keep_is_refused(seconds: float) -> None:
    """A lease would rest on it."""
    header = pb.Header(cluster_id="c", sender="n2", receiver="n1", sender_store="s2", term=1)
    with pytest.raises(BadMessage, match="keep silent"):
        codec.heartbeat_reply(pb.HeartbeatRep(header=header, round=1, silent_seconds=seconds))
