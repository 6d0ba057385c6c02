"""Log entries and configurations as bytes: the one encoding, shared by the wire and every store."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from geraft.core.entries import HOLDING_COMMANDS, INDEX_MAX, EntryBatch, EntryId, EntryKind
from geraft.core.membership import Configuration, Member
from geraft.core.snapshots import Snapshot
from geraft.pb import geraft_pb2 as pb

LARGE_BYTES = 128 * 1024
"""From here on protobuf's several copies cost more than putting the bytes together ourselves, with one."""


class BadRecord(ValueError):
    """Bytes that are no record of ours."""


def encode_bytes_field(number: int, values: Iterable[bytes]) -> list[bytes]:
    """A repeated bytes field as protobuf writes it, in pieces to be joined: for values too large to be copied often.

    While bytes are copied the interpreter stands still, heartbeats included.
    """
    pieces: list[bytes] = []
    for value in values:
        length, prefix = len(value), bytearray([number << 3 | 2])
        while length > 0x7F:
            prefix.append(length & 0x7F | 0x80)
            length >>= 7
        prefix.append(length)
        pieces += (bytes(prefix), value)
    return pieces


def encode_batch(batch: EntryBatch) -> bytes:
    """The batch as bytes; made once, then kept with the batch."""
    encoded = batch.encoded
    if encoded is None:
        large = sum(map(len, batch.commands)) >= LARGE_BYTES
        record = pb.EntryBatch(
            term=batch.term,
            first_index=batch.first_index,
            kind=int(batch.kind),  # type: ignore[arg-type]  # the enum's numbers are the wire's
            commands=() if large else batch.commands,
        )
        if batch.configuration is not None:
            record.configuration.CopyFrom(encode_configuration(batch.configuration))
        encoded = record.SerializeToString()
        if large:  # of the fields of a command batch, the commands come last
            encoded = b"".join([encoded, *encode_bytes_field(pb.EntryBatch.COMMANDS_FIELD_NUMBER, batch.commands)])
        object.__setattr__(batch, "encoded", encoded)  # a cache: it is no part of the value
    return encoded


def decode_batch(encoded: bytes) -> EntryBatch:
    """Raises BadRecord for anything that encode_batch could not have made."""
    try:
        record = pb.EntryBatch.FromString(encoded)
    except DecodeError as error:
        raise BadRecord(f"not an entry batch: {error}") from None
    commands = tuple(record.commands)
    if not commands:
        raise BadRecord("an entry batch without entries")
    if not 1 <= record.first_index <= INDEX_MAX - len(commands) or not 1 <= record.term <= INDEX_MAX:
        raise BadRecord(f"term {record.term} or index {record.first_index} is out of bounds")
    try:
        kind = EntryKind(record.kind)
    except ValueError:
        raise BadRecord(f"unknown kind of entry {record.kind}: a newer geraft wrote it") from None
    configuration = None
    if kind not in HOLDING_COMMANDS and commands != (b"",):
        raise BadRecord(f"a {kind.name} batch holds one empty command")
    if (kind is EntryKind.CONFIGURATION) != record.HasField("configuration"):
        raise BadRecord("a configuration belongs to an entry of that kind, and to no other")
    if kind is EntryKind.CONFIGURATION:
        configuration = decode_configuration(record.configuration)
    elif kind is EntryKind.SESSION:
        _check_session_commands(commands)
    return EntryBatch(
        term=record.term,
        first_index=record.first_index,
        kind=kind,
        commands=commands,
        configuration=configuration,
        encoded=encoded,
    )


def _check_session_commands(commands: Iterable[bytes]) -> None:
    """What can't be decoded is refused before it is written, not when it is to be applied."""
    for command in commands:
        if not _command_start(command):
            try:
                record = pb.SessionCommand.FromString(command)
            except DecodeError as error:
                raise BadRecord(f"not a command of a session: {error}") from None
            if record.number:
                raise BadRecord("a write of a session whose fields are not in order")


# A write of a session, as protobuf writes it, but in a tenth of the time: its numbers have a fixed width.

_SHORT_WRITE = struct.Struct("<BQBQBQBB")
_LONG_WRITE = struct.Struct("<BQBQBQB")
_TAGS = (1 << 3 | 1, 2 << 3 | 1, 3 << 3 | 1, 4 << 3 | 2)
"""Of session, number, answered_below and command: the number of the field and how it is written."""
_SESSION, _NUMBER, _ANSWERED_BELOW, _COMMAND = _TAGS


def encode_session_write(session: int, number: int, answered_below: int, command: bytes) -> bytes:
    """The SessionCommand that has the app apply a command, once for each number of the session."""
    length = len(command)
    if length < 0x80:
        head = (_SESSION, session, _NUMBER, number, _ANSWERED_BELOW, answered_below, _COMMAND, length)
        return _SHORT_WRITE.pack(*head) + command
    numbers = _LONG_WRITE.pack(_SESSION, session, _NUMBER, number, _ANSWERED_BELOW, answered_below, _COMMAND)
    return b"".join([numbers[:-1], *encode_bytes_field(pb.SessionCommand.COMMAND_FIELD_NUMBER, [command])])


def decode_session_write(encoded: bytes) -> tuple[int, int, int, bytes] | None:
    """Session, number, answered_below and command; None for another SessionCommand."""
    start = _command_start(encoded)
    if not start:
        return None
    _, session, _, number, _, answered_below, _ = _LONG_WRITE.unpack_from(encoded)
    return session, number, answered_below, encoded[start:]


def _command_start(encoded: bytes) -> int:
    """Where the command of a write begins, which is all the rest; 0 if this is not what encode_session_write makes."""
    size = len(encoded)
    place = _LONG_WRITE.size
    if size <= place or (encoded[0], encoded[9], encoded[18], encoded[27]) != _TAGS:
        return 0
    if encoded[place] + place + 1 == size and size <= place + 0x80:
        return place + 1
    length = shift = 0
    while place < size and shift < 64:
        byte = encoded[place]
        place += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return place if place + length == size else 0
    return 0


def encode_configuration(configuration: Configuration) -> pb.Configuration:
    return pb.Configuration(
        voters=map(_encode_member, configuration.voters),
        learners=map(_encode_member, configuration.learners),
        outgoing=map(_encode_member, configuration.outgoing),
    )


def decode_configuration(record: pb.Configuration) -> Configuration:
    """Raises BadRecord if there is no voter, or a member without id or address, or one twice."""
    configuration = Configuration(
        voters=_decode_members(record.voters),
        learners=_decode_members(record.learners),
        outgoing=_decode_members(record.outgoing),
    )
    if not configuration.voters:
        raise BadRecord("a configuration without voters")
    return configuration


def encode_snapshot(snapshot: Snapshot) -> pb.Snapshot:
    return pb.Snapshot(
        last_entry=pb.EntryId(term=snapshot.last_entry.term, index=snapshot.last_entry.index),
        configuration=encode_configuration(snapshot.configuration),
        configuration_index=snapshot.configuration_index,
        size_bytes=snapshot.size_bytes,
        checksum=snapshot.checksum,
        sessions=snapshot.sessions,
    )


def decode_snapshot(record: pb.Snapshot) -> Snapshot:
    """Raises BadRecord for what encode_snapshot could not have made."""
    term, index = record.last_entry.term, record.last_entry.index
    if not (1 <= term <= INDEX_MAX and 1 <= index <= INDEX_MAX and record.size_bytes <= INDEX_MAX):
        raise BadRecord(f"a snapshot of term {term}, index {index} and {record.size_bytes} bytes")
    if not 1 <= record.configuration_index <= index:
        raise BadRecord(f"the snapshot of {index} names a configuration of {record.configuration_index}")
    return Snapshot(
        last_entry=EntryId(term, index),
        configuration=decode_configuration(record.configuration),
        configuration_index=record.configuration_index,
        size_bytes=record.size_bytes,
        checksum=record.checksum,
        sessions=record.sessions,
    )


def _encode_member(member: Member) -> pb.Member:
    return pb.Member(id=member.id, address=member.address, store_id=member.store_id)


def _decode_members(records: Iterable[pb.Member]) -> tuple[Member, ...]:
    members = tuple(sorted(Member(record.id, record.address, record.store_id) for record in records))
    if len({member.id for member in members}) < len(members):
        raise BadRecord("a member stands twice in one configuration")
    if any(not member.id or not member.address for member in members):
        raise BadRecord("a member without id or address")
    return members
