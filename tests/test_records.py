"""Large records are put together by hand, and must come out as protobuf would write them."""

from __future__ import annotations

import pytest

from geraft.core.entries import EntryBatch, EntryId, EntryKind
from geraft.core.messages import AppendEntries
from geraft.pb import geraft_pb2 as pb
from geraft.records import LARGE_BYTES, decode_batch, encode_batch
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
