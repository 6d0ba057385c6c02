"""Large records are put together by hand, and must come out as protobuf would write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geraft import sessions
from geraft.core.entries import EntryBatch, EntryId, EntryKind
from geraft.core.messages import AppendEntries
from geraft.pb import geraft_pb2 as pb
from geraft.records import (
    LARGE_BYTES,
    BadRecord,
    decode_batch,
    decode_session_write,
    encode_batch,
    encode_session_write,
)
from geraft.transport import codec

LARGE = [
    (b"x" * LARGE_BYTES,),
    (b"", b"a" * 127, b"b" * 128, b"c" * 16383, b"d" * 16384, b"e" * LARGE_BYTES),
    (b"y" * (1 << 21),),
]


@pytest.mark.parametrize("commands", [(b"small", b""), *LARGE], ids=lambda commands: str(sum(map(len, commands))))
def test_a_batch_of_any_size_is_encoded_as_protobuf_does(commands: tuple[bytes, ...]) -> None:
    batch = EntryBatch(term=3, first_index=7, kind=EntryKind.COMMAND, commands=commands)
    record = pb.EntryBatch(term=3, first_index=7, kind=pb.ENTRY_KIND_COMMAND, commands=commands)
    assert encode_batch(batch) == record.SerializeToString()
    assert decode_batch(encode_batch(batch)) == batch


@pytest.mark.parametrize("commands", [(b"small", b""), *LARGE], ids=lambda commands: str(sum(map(len, commands))))
def test_an_append_of_any_size_is_encoded_as_protobuf_does(commands: tuple[bytes, ...]) -> None:
    batch = EntryBatch(term=3, first_index=7, kind=EntryKind.COMMAND, commands=commands)
    append = AppendEntries(sender="n1", sender_store="s1", term=5, prev=EntryId(3, 6), batches=(batch,), commit_index=6)
    encoded = codec.encode(append, "cluster", "n2")
    record = pb.AppendEntryReq.FromString(encoded)
    assert record.SerializeToString() == encoded
    assert codec.append_entries(record) == append


def test_a_batch_of_sessions_comes_back_and_one_that_cannot_be_decoded_is_refused_before_it_is_written() -> None:
    given = (sessions.opening(sessions.Limits()), encode_session_write(3, 7, 5, b"deposit 10"), sessions.closing(3))
    batch = EntryBatch(term=3, first_index=7, kind=EntryKind.SESSION, commands=given)
    assert decode_batch(encode_batch(batch)) == batch
    broken = EntryBatch(term=3, first_index=7, kind=EntryKind.SESSION, commands=(given[1], b"\xff"))
    with pytest.raises(BadRecord, match="not a command of a session"):
        decode_batch(encode_batch(broken))


@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 16383, 16384, 1 << 21])
def test_a_write_of_a_session_is_encoded_as_protobuf_does(length: int) -> None:
    numbers = (2**64 - 1, 7, 5)
    encoded = encode_session_write(*numbers, b"x" * length)
    session, number, answered_below = numbers
    record = pb.SessionCommand(session=session, number=number, answered_below=answered_below, command=b"x" * length)
    if length:  # protobuf leaves out what is empty
        assert encoded == record.SerializeToString()
    assert pb.SessionCommand.FromString(encoded) == record
    assert decode_session_write(encoded) == (*numbers, b"x" * length)


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda rest: encode_session_write(1, 2, 3, b"")[:-1] + rest))
def test_any_other_bytes_are_no_write_of_a_session_or_come_out_as_protobuf_reads_them(encoded: bytes) -> None:
    apart = decode_session_write(encoded)
    if apart is not None:
        record = pb.SessionCommand.FromString(encoded)
        assert (record.session, record.number, record.answered_below, record.command) == apart


def test_a_write_in_another_order_is_refused_before_it_is_written() -> None:
    encoded = pb.SessionCommand(command=b"x").SerializeToString() + pb.SessionCommand(number=1).SerializeToString()
    batch = EntryBatch(term=3, first_index=7, kind=EntryKind.SESSION, commands=(encoded,))
    with pytest.raises(BadRecord, match="not in order"):
        decode_batch(encode_batch(batch))
