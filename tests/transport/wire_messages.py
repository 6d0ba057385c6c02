"""Messages of a member as they go over the wire, right ones and such as no member would send."""

from __future__ import annotations

from typing import Any

from geraft.core.entries import INDEX_MAX, EntryBatch, EntryKind
from geraft.pb import geraft_pb2 as pb
from geraft.records import encode_batch

UNKNOWN_KIND = pb.EntryBatch(term=1, first_index=1, kind=9, commands=[b"x"]).SerializeToString()  # type: ignore[arg-type]


def entries(first_index: int = 1, term: int = 1) -> bytes:
    return encode_batch(EntryBatch(term=term, first_index=first_index, kind=EntryKind.COMMAND, commands=(b"x",)))


class Messages:
    """From n2 to n1, in term 3 of this cluster and group."""

    def __init__(self, cluster_id: str, group: str = "") -> None:
        self.cluster_id = cluster_id
        self.group = group

    def header(self, **changes: Any) -> pb.Header:
        fields: dict[str, Any] = {
            "cluster_id": self.cluster_id,
            "sender": "n2",
            "receiver": "n1",
            "sender_store": "store-n2",
            "term": 3,
            "group": self.group,
        }
        return pb.Header(**{**fields, **changes})

    def append(self, **changes: Any) -> bytes:
        fields: dict[str, Any] = {"header": self.header(), "batches": [entries()]}
        return pb.AppendEntryReq(**{**fields, **changes}).SerializeToString()

    def heartbeat(self, **changes: Any) -> bytes:
        return pb.HeartbeatReq(**{"header": self.header(), "round": 1, **changes}).SerializeToString()

    def vote_record(self, **changes: Any) -> pb.RequestVoteReq:
        fields: dict[str, Any] = {"header": self.header(), "last_entry": pb.EntryId(term=1, index=1)}
        return pb.RequestVoteReq(**{**fields, **changes})

    def vote(self, **changes: Any) -> bytes:
        return self.vote_record(**changes).SerializeToString()

    def rest(self, **changes: Any) -> bytes:
        fields: dict[str, Any] = {"header": self.header(), "last_entry": pb.EntryId(term=1, index=1), "number": 1}
        return pb.RestReq(**{**fields, **changes}).SerializeToString()

    def bad_headers(self) -> dict[str, pb.Header | None]:
        """Of any message of a candidate or leader."""
        return {
            "no header": None if not self.group else pb.Header(group=self.group),
            "no cluster": self.header(cluster_id=""),
            "no sender": self.header(sender=""),
            "no receiver": self.header(receiver=""),
            "no store": self.header(sender_store=""),
            "a name without end": self.header(sender="n" * 2000),
            "term 2^64-1": self.header(term=2**64 - 1),
            "term 0": self.header(term=0),
        }

    def bad_appends(self) -> dict[str, bytes]:
        append = self.append
        return {name: append(header=header) for name, header in self.bad_headers().items()} | {
            "no protobuf": b"\xff\xff\xff",
            "commit 2^64-1": append(commit_index=2**64 - 1),
            "prev beyond the last index": append(prev=pb.EntryId(term=1, index=INDEX_MAX + 1)),
            "prev of a later term": append(prev=pb.EntryId(term=4, index=1), batches=[]),
            "prev of term 0": append(prev=pb.EntryId(term=0, index=5), batches=[]),
            "a batch that is none": append(batches=[b"\xff"]),
            "an empty batch": append(batches=[b""]),
            "an unknown kind of entry": append(batches=[UNKNOWN_KIND]),
            "a gap": append(batches=[entries(1), entries(3)]),
            "an overlap": append(batches=[entries(1), entries(1)]),
            "a gap after prev": append(prev=pb.EntryId(term=1, index=5)),
            "terms going back": append(batches=[entries(1, term=2), entries(2, term=1)]),
            "a batch of a later term": append(batches=[entries(1, term=4)]),
        }

    def bad_heartbeats(self) -> dict[str, bytes]:
        return {name: self.heartbeat(header=header) for name, header in self.bad_headers().items()} | {
            "no protobuf": b"\x0a\xff",
            "round 2^64-1": self.heartbeat(round=2**64 - 1),
            "commit 2^64-1": self.heartbeat(commit_index=2**64 - 1),
        }

    def bad_votes(self) -> dict[str, bytes]:
        return {name: self.vote(header=header) for name, header in self.bad_headers().items()} | {
            "no protobuf": b"\xff",
            "an entry of a later term": self.vote(last_entry=pb.EntryId(term=9, index=1)),
            "an entry of term 0": self.vote(last_entry=pb.EntryId(term=0, index=1)),
        }

    def bad_rests(self) -> dict[str, bytes]:
        return {name: self.rest(header=header) for name, header in self.bad_headers().items()} | {
            "no protobuf": b"\xff",
            "offer 2^64-1": self.rest(number=2**64 - 1),
            "an entry of term 0": self.rest(last_entry=pb.EntryId(term=0, index=1)),
            "an entry beyond the last index": self.rest(last_entry=pb.EntryId(term=1, index=INDEX_MAX + 1)),
        }
