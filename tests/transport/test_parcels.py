"""What waits for another process is packed into messages that its server takes."""

from __future__ import annotations

import pytest

from geraft.pb import geraft_pb2 as pb
from geraft.transport.carrier import PARCEL_BYTES, PARCEL_ITEMS, parcels
from geraft.transport.grpc_mode import NativeOutbox

KIND = pb.ITEM_KIND_HEARTBEAT_REQ


@pytest.mark.parametrize("size", [0, 1, 255, 256, 300, PARCEL_BYTES // 2, PARCEL_BYTES])
def test_many_items_make_no_message_beyond_the_size_of_one(size: int) -> None:
    """However small they are: message_bytes_max may exceed PARCEL_BYTES by little. Only a large item may, alone."""
    outbox = NativeOutbox()
    items = [(KIND, bytes([number % 256]) * size) for number in range(10 if size > 1000 else 3 * PARCEL_ITEMS)]
    for item in items:
        outbox.put(item, size)
    outbox.close()
    packed = list(parcels(outbox))
    records = [pb.Parcel.FromString(encoded) for encoded in packed]
    assert [(item.kind, item.message) for record in records for item in record.items] == items
    assert all(
        len(encoded) <= PARCEL_BYTES or len(record.items) == 1 for encoded, record in zip(packed, records, strict=True)
    )
    assert len(packed) <= len(items) // 1000 or size > 1000, "they go together"
