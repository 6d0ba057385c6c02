"""GetSnapshot: the bytes arrive whole, in pieces, from where a broken stream ended, and for members alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from transport_harness import CLUSTER, Peer

from geraft.core.entries import EntryId
from geraft.core.membership import Member, Refusal, initial_configuration
from geraft.core.messages import OfferSnapshot
from geraft.core.snapshots import Snapshot
from geraft.errors import StorageCorrupt
from geraft.pb import geraft_pb2 as pb
from geraft.pb.geraft_pb2_grpc import RaftStub
from geraft.runtime.hub import Waiter, finish
from geraft.runtime.snapshot_fetcher import FetchCancelled, FetchFailed, SnapshotFetch
from geraft.runtime.snapshot_keeper import measure
from geraft.testing.cluster import wait_until
from geraft.transport.server import SNAPSHOT_PIECE_BYTES, pieces_of

ENTRY = EntryId(3, 1000)
CONTENT = random.Random(7).randbytes(5_000_001)


def record_of(content: bytes) -> Snapshot:
    size_bytes, checksum = measure(iter([content]))
    return Snapshot(
        last_entry=ENTRY,
        configuration=initial_configuration({"n1": "127.0.0.1:1", "n2": "127.0.0.1:2"}),
        configuration_index=4,
        size_bytes=size_bytes,
        checksum=checksum,
        sessions=b"table",
    )


class Holder(Peer):
    """A peer that holds the snapshot of ENTRY. break_after: of each stream, so many bytes; damaged: what it then
    raises."""

    def __init__(self, node_id: str, content: bytes = CONTENT, **options: Any) -> None:
        self.content = content
        self.snapshot = record_of(content)
        self.held = True
        self.opened: list[EntryId] = []
        self.open_now = 0
        self.break_after = 0
        self.damaged: Exception | None = None
        super().__init__(node_id, **options)

    @contextlib.contextmanager
    def reading_snapshot(self, last_entry: EntryId) -> Iterator[tuple[Snapshot, Iterator[bytes]]]:
        self.opened.append(last_entry)
        if not self.held or last_entry != ENTRY:
            raise KeyError(last_entry)
        self.open_now += 1
        try:
            yield self.snapshot, self._chunks()
        finally:
            self.open_now -= 1

    def _chunks(self) -> Iterator[bytes]:
        rng = random.Random(len(self.opened))
        start = 0
        while start < len(self.content):
            if self.damaged is not None and start > 1_000_000:
                raise self.damaged
            size = rng.choice((1, 10_000, 3_000_000))
            yield self.content[start : start + size]
            start += size

    def take_snapshot(self) -> Waiter:
        waiter = Waiter()
        finish([waiter], [77])
        return waiter


@pytest.fixture
def holder() -> Iterator[Holder]:
    with Holder("n1") as peer:
        yield peer


@pytest.fixture
def fetcher(holder: Holder) -> Iterator[Peer]:
    with Peer("n2") as peer:
        peer.transport.set_peers({"n1": holder.address})
        yield peer


def request(**changes: Any) -> pb.GetSnapshotReq:
    header = pb.Header(cluster_id=CLUSTER, sender="n2", receiver="n1", sender_store="store-n2", term=3)
    fields = {"header": header, "last_entry": pb.EntryId(term=ENTRY.term, index=ENTRY.index)}
    return pb.GetSnapshotReq(**{**fields, **changes})


def fetch_from(peer: Peer, leader: str = "n1") -> SnapshotFetch:
    fetch = SnapshotFetch(leader, ENTRY)
    peer.transport.fetch_snapshot(leader, fetch)
    return fetch


def saved(fetch: SnapshotFetch) -> tuple[Snapshot, bytes]:
    kept: list[bytes] = []
    snapshot = fetch.save(lambda chunks, index: kept.extend(chunks))
    return snapshot, b"".join(kept)


def test_a_snapshot_arrives_whole_with_its_record(holder: Holder, fetcher: Peer) -> None:
    assert saved(fetch_from(fetcher)) == (holder.snapshot, CONTENT)
    wait_until("the snapshot to be let go", lambda: holder.open_now == 0)


def test_an_empty_snapshot_arrives_too() -> None:
    with Holder("n1", b"") as holder, Peer("n2") as fetcher:
        fetcher.transport.set_peers({"n1": holder.address})
        assert saved(fetch_from(fetcher)) == (holder.snapshot, b"")


def test_an_offer_goes_down_the_replication_stream(holder: Holder, fetcher: Peer) -> None:
    offer = OfferSnapshot(sender="n2", sender_store="store-n2", term=3, last_entry=ENTRY)

    def offered() -> bool:
        fetcher.transport.send("n1", offer)
        return offer in holder.delivered

    wait_until("the offer", offered)


def test_neither_side_runs_ahead_of_an_app_that_is_slow(holder: Holder, fetcher: Peer) -> None:
    """30 MB, of which the app takes nothing at first: a few MB are read on both sides together, and no more."""
    holder.content = CONTENT * 6
    holder.snapshot = record_of(holder.content)
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        for start in range(0, len(holder.content), 100_000):
            taken = start
            yield holder.content[start : start + 100_000]

    holder._chunks = chunks  # type: ignore[method-assign]
    fetch = fetch_from(fetcher)
    wait_until("it to be full", lambda: fetch.full)
    before = -1
    while before != taken:  # until it stands still
        before = taken
        wait_until("a moment", Moment(0.3))
    assert taken < 16_000_000
    assert saved(fetch)[1] == holder.content


class Moment:
    def __init__(self, seconds: float) -> None:
        self.waiter, self.seconds = Waiter(), seconds

    def __call__(self) -> bool:
        return not self.waiter.wait(self.seconds)


def test_pieces_have_a_good_size_and_begin_where_they_are_wanted() -> None:
    chunks = [CONTENT[:1], CONTENT[1:3], CONTENT[3:2_000_000], CONTENT[2_000_000:2_000_001], CONTENT[2_000_001:]]
    for offset in (0, 1, 2, 3, 4, 1_999_999, 2_000_000, 2_000_001, len(CONTENT) - 1, len(CONTENT)):
        pieces = list(pieces_of(iter(chunks), offset))
        assert b"".join(pieces) == CONTENT[offset:]
        assert all(len(piece) >= SNAPSHOT_PIECE_BYTES // 2 for piece in pieces[:-1])
        assert all(len(piece) <= 2 * SNAPSHOT_PIECE_BYTES for piece in pieces)


def test_a_stream_begins_at_the_byte_that_is_asked_for(holder: Holder) -> None:
    with grpc.insecure_channel(holder.address) as channel:
        head, *rest = RaftStub(channel).GetSnapshot(request(offset=4_000_000), timeout=20)
    assert head.snapshot.size_bytes == len(CONTENT)
    assert head.header.sender == "n1"
    assert b"".join(reply.chunk for reply in rest) == CONTENT[4_000_000:]


def test_a_snapshot_that_is_not_held_is_not_found(holder: Holder, fetcher: Peer) -> None:
    """FLAWS X4: the original panics."""
    with grpc.insecure_channel(holder.address) as channel, pytest.raises(grpc.RpcError) as refused:
        list(RaftStub(channel).GetSnapshot(request(last_entry=pb.EntryId(term=3, index=5)), timeout=20))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    holder.held = False
    with pytest.raises(FetchFailed, match="holds no snapshot"):
        saved(fetch_from(fetcher))
    assert len(holder.opened) == 2, "it is not asked again and again"


def test_who_is_not_heard_gets_none(holder: Holder, fetcher: Peer) -> None:
    holder.refusals["n2"] = Refusal.STORE_REPLACED
    with pytest.raises(FetchFailed, match="n2"):
        saved(fetch_from(fetcher))
    assert holder.opened == []


def test_only_a_peer_is_asked_and_must_be_who_it_should_be(holder: Holder, fetcher: Peer) -> None:
    """FLAWS X8: the original pulls from whatever address a message names."""
    with pytest.raises(FetchFailed, match="no peer of ours"):
        saved(fetch_from(fetcher, "n9"))
    fetcher.transport.set_peers({"n3": holder.address})
    with pytest.raises(FetchFailed, match="this is node n1, not n3"):
        saved(fetch_from(fetcher, "n3"))
    assert holder.opened == []


@pytest.mark.parametrize(
    "changes", [{"header": None}, {"last_entry": None}, {"last_entry": pb.EntryId(term=2**63, index=1)}]
)
def test_a_request_that_is_none_is_refused(holder: Holder, changes: dict[str, Any]) -> None:
    with grpc.insecure_channel(holder.address) as channel, pytest.raises(grpc.RpcError) as refused:
        list(RaftStub(channel).GetSnapshot(request(**changes), timeout=20))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert holder.opened == []


def test_a_snapshot_that_can_not_be_read_is_told(holder: Holder, fetcher: Peer) -> None:
    holder.damaged = StorageCorrupt("its checksum is wrong")
    with pytest.raises(FetchFailed, match="its checksum is wrong"):
        saved(fetch_from(fetcher))
    wait_until("the snapshot to be let go", lambda: holder.open_now == 0)


def test_bytes_that_are_not_those_of_the_record_are_never_stored(holder: Holder, fetcher: Peer) -> None:
    holder.content = CONTENT[:-1] + b"?"
    with pytest.raises(StorageCorrupt, match="checksum"):
        saved(fetch_from(fetcher))


def test_a_fetch_that_is_given_up_ends_both_sides(holder: Holder, fetcher: Peer) -> None:
    holder.content = CONTENT * 10
    holder.snapshot = record_of(holder.content)
    fetch = fetch_from(fetcher)
    wait_until("some of it", lambda: fetch.full)
    fetch.cancel()
    with pytest.raises(FetchCancelled):
        saved(fetch)
    wait_until("the snapshot to be let go", lambda: holder.open_now == 0)


def test_another_snapshot_than_before_ends_a_fetch_that_was_broken_off() -> None:
    fetch = SnapshotFetch("n1", ENTRY)
    assert fetch.begin(record_of(b"one"))
    fetch.put(b"o")
    assert fetch.begin(record_of(b"one"))
    assert not fetch.begin(record_of(b"two"))
    assert not SnapshotFetch("n1", EntryId(3, 999)).begin(record_of(b"one"))


def test_a_snapshot_is_asked_for_by_rpc(holder: Holder) -> None:
    with grpc.insecure_channel(holder.address) as channel:
        assert RaftStub(channel).TakeSnapshot(pb.TakeSnapshotReq(timeout_ms=1000), timeout=20).index == 77


def test_members_of_a_record_survive_the_wire() -> None:
    from geraft.records import BadRecord, decode_snapshot, encode_snapshot

    snapshot = record_of(b"x")
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot
    assert snapshot.configuration.voters[0] == Member("n1", "127.0.0.1:1")
    for damage in ({"size_bytes": 2**63}, {"configuration_index": 1001}, {"last_entry": pb.EntryId()}):
        record = encode_snapshot(snapshot)
        record.MergeFrom(pb.Snapshot(**damage)) if "last_entry" not in damage else record.ClearField("last_entry")
        with pytest.raises(BadRecord):
            decode_snapshot(record)
