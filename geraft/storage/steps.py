"""The steps that a store on disk is made of, as protobuf, and what each does to the state (proto/file_store.proto)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from geraft.core.entries import Ballot, EntryId
from geraft.core.membership import Configuration
from geraft.core.snapshots import Snapshot
from geraft.pb import file_store_pb2 as store_pb
from geraft.pb import geraft_pb2 as pb
from geraft.records import BadRecord, decode_configuration, encode_configuration
from geraft.storage.base import Identity, StoredState, TermStart
from geraft.storage.splice import after_compact, after_forget, after_record, after_reset, after_write


class Outline(NamedTuple):
    """What a state tells of a batch: all but its commands."""

    term: int
    first_index: int
    last_index: int
    configuration: Configuration | None

    @property
    def last_entry(self) -> EntryId:
        return EntryId(self.term, self.last_index)


def after_step(state: StoredState, step: store_pb.Step, batches: Sequence[Outline]) -> StoredState:
    """The state after the step. batches: those of the step."""
    identity = _decode_identity(step.identity) if step.HasField("identity") else None
    ballot = Ballot(step.ballot.term, step.ballot.voted_for) if step.HasField("ballot") else None
    if batches or identity is not None or ballot is not None:
        state = after_write(state, identity, ballot, batches)
    if step.HasField("recorded"):
        state = after_record(state, decode_snapshot(step.recorded))
    if step.forgotten:
        state = after_forget(state, step.forgotten)
    if step.HasField("base"):
        state = after_compact(state, EntryId(step.base.term, step.base.index))
    if step.HasField("reset"):
        state = after_reset(state, decode_snapshot(step.reset))
    return state


def encode_state(state: StoredState) -> store_pb.State:
    return store_pb.State(
        identity=None if state.identity is None else encode_identity(state.identity),
        ballot=encode_ballot(state.ballot),
        base=encode_entry_id(state.base),
        last_entry=encode_entry_id(state.last_entry),
        terms=(store_pb.TermStart(first_index=each.first_index, term=each.term) for each in state.terms),
        configurations=(
            store_pb.IndexedConfiguration(
                index=index, configuration=encode_configuration(configuration).SerializeToString()
            )
            for index, configuration in state.configurations
        ),
        snapshots=map(encode_snapshot, state.snapshots),
    )


def decode_state(state: store_pb.State) -> StoredState:
    """Raises BadRecord for a configuration that can't be one."""
    return StoredState(
        identity=_decode_identity(state.identity) if state.HasField("identity") else None,
        ballot=Ballot(state.ballot.term, state.ballot.voted_for),
        first_index=state.base.index + 1,
        last_entry=EntryId(state.last_entry.term, state.last_entry.index),
        terms=tuple(TermStart(each.first_index, each.term) for each in state.terms),
        configurations=tuple((each.index, _configuration_from(each.configuration)) for each in state.configurations),
        base=EntryId(state.base.term, state.base.index),
        snapshots=tuple(map(decode_snapshot, state.snapshots)),
    )


def encode_snapshot(snapshot: Snapshot) -> store_pb.Snapshot:
    return store_pb.Snapshot(
        last_entry=encode_entry_id(snapshot.last_entry),
        configuration=encode_configuration(snapshot.configuration).SerializeToString(),
        configuration_index=snapshot.configuration_index,
        size_bytes=snapshot.size_bytes,
        checksum=snapshot.checksum,
        sessions=snapshot.sessions,
    )


def decode_snapshot(snapshot: store_pb.Snapshot) -> Snapshot:
    """Raises BadRecord for a configuration that can't be one."""
    return Snapshot(
        last_entry=EntryId(snapshot.last_entry.term, snapshot.last_entry.index),
        configuration=_configuration_from(snapshot.configuration),
        configuration_index=snapshot.configuration_index,
        size_bytes=snapshot.size_bytes,
        checksum=snapshot.checksum,
        sessions=snapshot.sessions,
    )


def encode_entry_id(entry: EntryId) -> store_pb.EntryId:
    return store_pb.EntryId(term=entry.term, index=entry.index)


def encode_ballot(ballot: Ballot) -> store_pb.Ballot:
    return store_pb.Ballot(term=ballot.term, voted_for=ballot.voted_for)


def encode_identity(identity: Identity) -> store_pb.Identity:
    return store_pb.Identity(cluster_id=identity.cluster_id, node_id=identity.node_id, store_id=identity.store_id)


def _decode_identity(identity: store_pb.Identity) -> Identity:
    return Identity(identity.cluster_id, identity.node_id, identity.store_id)


def _configuration_from(encoded: bytes) -> Configuration:
    try:
        return decode_configuration(pb.Configuration.FromString(encoded))
    except DecodeError as error:
        raise BadRecord(f"not a configuration: {error}") from None
