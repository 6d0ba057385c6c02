"""Core messages as protobuf and back. What this module lets through is well-formed: nothing else reaches the core."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Record

from geraft import records
from geraft.config import Config, is_same_on_all, is_tunable
from geraft.core.entries import INDEX_MAX, EntryId
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
from geraft.core.snapshots import Snapshot
from geraft.pb import geraft_pb2 as pb
from geraft.transport.pulse import Pulse, RestOffer

NAME_CHARACTERS_MAX = 1000
"""Of an id in a header; a longer one is no id of ours."""

R = TypeVar("R", bound=Record)


class BadMessage(ValueError):
    """Bytes that no member could have sent; the message says what is wrong with them."""


def encode(message: PeerMessage, cluster_id: str, receiver: str, group: str = "") -> bytes:
    """The message as it goes over the wire. Batches are encoded once, for the disk and every peer."""
    header = pb.Header(
        cluster_id=cluster_id,
        sender=message.sender,
        receiver=receiver,
        sender_store=message.sender_store,
        term=message.term,
        group=group,
    )
    record: Any
    match message:
        case AppendEntries():
            batches = [records.encode_batch(batch) for batch in message.batches]
            if sum(map(len, batches)) >= records.LARGE_BYTES:
                before = pb.AppendEntryReq(header=header, prev=_entry_id(message.prev)).SerializeToString()
                after = pb.AppendEntryReq(commit_index=message.commit_index).SerializeToString()
                number = pb.AppendEntryReq.BATCHES_FIELD_NUMBER
                return b"".join([before, *records.encode_bytes_field(number, batches), after])
            record = pb.AppendEntryReq(
                header=header,
                prev=_entry_id(message.prev),
                batches=batches,
                commit_index=message.commit_index,
            )
        case AppendEntriesReply():
            record = pb.AppendEntryRep(header=header, match_index=message.match_index)
            if message.rejected is not None:
                record.rejected.CopyFrom(_entry_id(message.rejected))
                record.hint.CopyFrom(_entry_id(message.hint))
        case OfferSnapshot():
            record = pb.AppendEntryReq(header=header, snapshot=_entry_id(message.last_entry))
        case Heartbeat():
            record = pb.HeartbeatReq(header=header, commit_index=message.commit_index, round=message.round)
        case HeartbeatReply():
            record = pb.HeartbeatRep(
                header=header,
                round=message.round,
                last_applied=message.last_applied,
                silent_seconds=message.silent_seconds,
                priority=message.priority,
            )
        case RequestVote():
            record = pb.RequestVoteReq(
                header=header,
                last_entry=_entry_id(message.last_entry),
                pre_vote=message.pre_vote,
                forced=message.forced,
            )
        case RequestVoteReply():
            record = pb.RequestVoteRep(
                header=header, granted=message.granted, pre_vote=message.pre_vote, removed_at=message.removed_at
            )
        case TimeoutNow():
            record = pb.TimeoutNowReq(header=header)
    encoded: bytes = record.SerializeToString()
    return encoded


def header_of(record: Any) -> pb.Header:
    """The header, with every name present and the term within bounds. Raises BadMessage."""
    if not record.HasField("header"):
        raise BadMessage("the header is missing")
    header: pb.Header = record.header
    check_header(header)
    return header


def rest_offer(record: pb.RestReq, pulse: Pulse) -> RestOffer:
    """pulse: of the process that it came from."""
    header = header_of(record)
    return RestOffer(
        sender=header.sender,
        term=_campaign_term(header),
        last_entry=_checked_entry_id(record.last_entry),
        number=_checked_index(record.number),
        pulse=pulse,
    )


def check_header(header: pb.Header) -> None:
    for name in (header.cluster_id, header.sender, header.receiver, header.sender_store):
        if not name:
            raise BadMessage("a name in the header is empty: cluster_id, sender, receiver and sender_store are needed")
        if len(name) > NAME_CHARACTERS_MAX:
            raise BadMessage(f"a name in the header is longer than {NAME_CHARACTERS_MAX} characters")
    if header.term > INDEX_MAX:
        raise BadMessage(f"term {header.term} is out of bounds")


def parse(parser: Callable[[bytes], R], encoded: bytes) -> R:
    """Raises BadMessage if the bytes are no protobuf of that kind."""
    try:
        return parser(encoded)
    except DecodeError:
        raise BadMessage("the bytes are not the message that this call takes") from None


def append_entries(record: pb.AppendEntryReq) -> AppendEntries | OfferSnapshot:
    """Raises BadMessage, also if a batch is damaged, or the batches leave a gap or go back in term."""
    header = header_of(record)
    term = _campaign_term(header)
    if record.HasField("snapshot"):
        last_entry = _checked_entry_id(record.snapshot)
        if last_entry.index == 0 or last_entry.term > term or record.batches:
            raise BadMessage(f"a leader of term {term} can't offer a snapshot of {last_entry}, nor entries beside one")
        return OfferSnapshot(sender=header.sender, sender_store=header.sender_store, term=term, last_entry=last_entry)
    prev = _checked_entry_id(record.prev)
    if prev.term > term:
        raise BadMessage(f"prev is of term {prev.term}, later than the sender's term {term}")
    last = prev
    batches = []
    for encoded in record.batches:
        try:
            batch = records.decode_batch(encoded)
        except records.BadRecord as error:
            raise BadMessage(f"a batch is damaged: {error}") from None
        if batch.first_index != last.index + 1:
            raise BadMessage(f"a batch starts at {batch.first_index}, directly after {last.index}")
        if not last.term <= batch.term <= term:
            raise BadMessage(f"a batch of term {batch.term} after one of {last.term} from a leader of term {term}")
        last = batch.last_entry
        batches.append(batch)
    return AppendEntries(
        sender=header.sender,
        sender_store=header.sender_store,
        term=term,
        prev=prev,
        batches=tuple(batches),
        commit_index=_checked_index(record.commit_index),
    )


def append_entries_reply(record: pb.AppendEntryRep) -> AppendEntriesReply:
    header = header_of(record)
    return AppendEntriesReply(
        sender=header.sender,
        sender_store=header.sender_store,
        term=header.term,
        match_index=_checked_index(record.match_index),
        rejected=_checked_entry_id(record.rejected) if record.HasField("rejected") else None,
        hint=_checked_entry_id(record.hint),
    )


def heartbeat(record: pb.HeartbeatReq) -> Heartbeat:
    header = header_of(record)
    return Heartbeat(
        sender=header.sender,
        sender_store=header.sender_store,
        term=_campaign_term(header),
        commit_index=_checked_index(record.commit_index),
        round=_checked_index(record.round),
    )


def heartbeat_reply(record: pb.HeartbeatRep) -> HeartbeatReply:
    header = header_of(record)
    if not 0 <= record.silent_seconds < math.inf:
        raise BadMessage(f"nobody can keep silent for {record.silent_seconds} s")
    return HeartbeatReply(
        sender=header.sender,
        sender_store=header.sender_store,
        term=header.term,
        round=_checked_index(record.round),
        last_applied=_checked_index(record.last_applied),
        silent_seconds=record.silent_seconds,
        priority=record.priority,
    )


def request_vote(record: pb.RequestVoteReq, call: int) -> RequestVote:
    header = header_of(record)
    last_entry = _checked_entry_id(record.last_entry)
    term = _campaign_term(header)
    if last_entry.term > term:
        raise BadMessage(f"a candidate of term {term} can't hold an entry of term {last_entry.term}")
    return RequestVote(
        sender=header.sender,
        sender_store=header.sender_store,
        term=term,
        last_entry=last_entry,
        pre_vote=record.pre_vote,
        forced=record.forced,
        call=call,
    )


def request_vote_reply(record: pb.RequestVoteRep) -> RequestVoteReply:
    header = header_of(record)
    return RequestVoteReply(
        sender=header.sender,
        sender_store=header.sender_store,
        term=header.term,
        granted=record.granted,
        pre_vote=record.pre_vote,
        removed_at=_checked_index(record.removed_at),
    )


def snapshot_request(record: pb.GetSnapshotReq) -> tuple[EntryId, int]:
    """The last entry of the snapshot that is asked for, and from which byte on."""
    header_of(record)
    last_entry = _checked_entry_id(record.last_entry)
    if last_entry.index == 0:
        raise BadMessage("no snapshot is named")
    return last_entry, _checked_index(record.offset)


def snapshot_head(record: pb.GetSnapshotRep) -> Snapshot:
    """The record at the head of a stream. Raises BadMessage."""
    header_of(record)
    try:
        return records.decode_snapshot(record.snapshot)
    except records.BadRecord as error:
        raise BadMessage(f"the record of the snapshot is damaged: {error}") from None


def timeout_now(record: pb.TimeoutNowReq) -> TimeoutNow:
    header = header_of(record)
    return TimeoutNow(sender=header.sender, sender_store=header.sender_store, term=_campaign_term(header))


def settings(config: Config) -> list[pb.Setting]:
    """Every field of the config, with what may be done to it."""
    return [
        pb.Setting(
            name=setting.name,
            value=getattr(config, setting.name),
            tunable=is_tunable(setting),
            cluster=is_same_on_all(setting),
        )
        for setting in fields(config)
    ]


def _entry_id(entry: EntryId) -> pb.EntryId:
    return pb.EntryId(term=entry.term, index=entry.index)


def _checked_entry_id(record: pb.EntryId) -> EntryId:
    """Both within bounds, and both zero or neither: the log starts at term 1, index 1."""
    term, index = record.term, record.index
    if term > INDEX_MAX or index > INDEX_MAX or (term == 0) != (index == 0):
        raise BadMessage(f"no entry can have term {term} and index {index}")
    return EntryId(term, index)


def _checked_index(index: int) -> int:
    if index > INDEX_MAX:
        raise BadMessage(f"index {index} is out of bounds")
    return index


def _campaign_term(header: pb.Header) -> int:
    """The term of a message that only a candidate or leader sends."""
    if header.term < 1:
        raise BadMessage("a candidate or leader of term 0: terms start at 1")
    return header.term
