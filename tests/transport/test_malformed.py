"""What no member would send: each RPC refuses it with a sentence, nothing reaches the node, and the node lives on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from transport_harness import CLUSTER, Peer

from geraft.core.entries import INDEX_MAX, EntryBatch, EntryKind
from geraft.pb import geraft_pb2 as pb
from geraft.pb.geraft_pb2_grpc import RaftStub
from geraft.records import encode_batch
from geraft.transport.failures import FAILURE_KEY

PATH = "/geraft.Raft/"


@pytest.fixture(scope="module")
def node() -> Iterator[Peer]:
    with Peer("n1") as peer:
        yield peer


@pytest.fixture
def channel(node: Peer) -> Iterator[grpc.Channel]:
    node.delivered.clear()
    with grpc.insecure_channel(node.address) as channel:
        yield channel
        # The node lives, heard nothing of what was wrong, and still hears what is right.
        assert node.delivered == []
        reply = RaftStub(channel).RequestVote(vote(), timeout=10)
        assert reply.granted and reply.header.receiver == "n2"


def header(**changes: Any) -> pb.Header:
    fields = {"cluster_id": CLUSTER, "sender": "n2", "receiver": "n1", "sender_store": "store-n2", "term": 3}
    return pb.Header(**{**fields, **changes})


def vote() -> pb.RequestVoteReq:
    return pb.RequestVoteReq(header=header(), last_entry=pb.EntryId(term=1, index=1))


def entries(first_index: int = 1, term: int = 1) -> bytes:
    return encode_batch(EntryBatch(term=term, first_index=first_index, kind=EntryKind.COMMAND, commands=(b"x",)))


def append(**changes: Any) -> bytes:
    fields: dict[str, Any] = {"header": header(), "batches": [entries()]}
    return pb.AppendEntryReq(**{**fields, **changes}).SerializeToString()


def heartbeat(**changes: Any) -> bytes:
    return pb.HeartbeatReq(**{"header": header(), "round": 1, **changes}).SerializeToString()


UNKNOWN_KIND = pb.EntryBatch(term=1, first_index=1, kind=9, commands=[b"x"]).SerializeToString()  # type: ignore[arg-type]

BAD_APPENDS = {
    "no protobuf": b"\xff\xff\xff",
    "no header": append(header=None),
    "no cluster": append(header=header(cluster_id="")),
    "no sender": append(header=header(sender="")),
    "no receiver": append(header=header(receiver="")),
    "no store": append(header=header(sender_store="")),
    "a name without end": append(header=header(sender="n" * 2000)),
    "term 2^64-1": append(header=header(term=2**64 - 1)),
    "term 0": append(header=header(term=0)),
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
BAD_HEARTBEATS = {
    "no protobuf": b"\x0a\xff",
    "no header": heartbeat(header=None),
    "term 2^64-1": heartbeat(header=header(term=2**64 - 1)),
    "round 2^64-1": heartbeat(round=2**64 - 1),
    "commit 2^64-1": heartbeat(commit_index=2**64 - 1),
}
BAD_VOTES = {
    "no protobuf": b"\xff",
    "no header": pb.RequestVoteReq(last_entry=pb.EntryId(term=1, index=1)).SerializeToString(),
    "term 2^64-1": pb.RequestVoteReq(header=header(term=2**64 - 1)).SerializeToString(),
    "term 0": pb.RequestVoteReq(header=header(term=0)).SerializeToString(),
    "an entry of a later term": pb.RequestVoteReq(
        header=header(), last_entry=pb.EntryId(term=9, index=1)
    ).SerializeToString(),
}


def refused(error: Any, status: grpc.StatusCode, kind: str = "Rejected") -> str:
    """The sentence of the refusal, whose status and failure are as expected."""
    assert error.code() is status, error
    [failure] = [pb.Failure.FromString(value) for key, value in error.trailing_metadata() if key == FAILURE_KEY]
    assert failure.error == kind
    assert failure.message
    return str(failure.message)


def stream_error(channel: grpc.Channel, method: str, requests: list[bytes], **options: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.stream_stream(PATH + method)(iter(requests), timeout=20, **options))
    return caught.value


@pytest.mark.parametrize("case", BAD_APPENDS)
def test_a_bad_append_ends_its_stream(channel: grpc.Channel, case: str) -> None:
    refused(stream_error(channel, "SendAppendEntry", [BAD_APPENDS[case]]), grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize("case", BAD_HEARTBEATS)
def test_a_bad_heartbeat_ends_its_stream(channel: grpc.Channel, case: str) -> None:
    refused(stream_error(channel, "SendHeartbeat", [BAD_HEARTBEATS[case]]), grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize("case", BAD_VOTES)
def test_a_bad_vote_request_is_refused(channel: grpc.Channel, case: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(PATH + "RequestVote")(BAD_VOTES[case], timeout=20)
    refused(caught.value, grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize("method", ["SendAppendEntry", "SendHeartbeat"])
def test_an_empty_stream_is_refused(channel: grpc.Channel, method: str) -> None:
    sentence = refused(stream_error(channel, method, []), grpc.StatusCode.INVALID_ARGUMENT)
    assert "without a message" in sentence


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"cluster_id": "c2"}, "belongs to cluster c1"), ({"receiver": "n9"}, "this is node n1, not n9")],
)
def test_a_message_for_someone_else_is_refused(channel: grpc.Channel, changes: Any, sentence: str) -> None:
    error = stream_error(channel, "SendAppendEntry", [append(header=header(**changes))])
    assert sentence in refused(error, grpc.StatusCode.FAILED_PRECONDITION)
    error = stream_error(channel, "SendHeartbeat", [heartbeat(header=header(**changes))])
    assert sentence in refused(error, grpc.StatusCode.FAILED_PRECONDITION)
    with pytest.raises(grpc.RpcError) as caught:
        RaftStub(channel).TimeoutNow(pb.TimeoutNowReq(header=header(**changes)), timeout=20)
    assert sentence in refused(caught.value, grpc.StatusCode.FAILED_PRECONDITION)


def test_a_stream_is_refused_when_it_opens_for_someone_else(channel: grpc.Channel) -> None:
    opening = header(cluster_id="c2").SerializeToString()
    error = stream_error(channel, "SendAppendEntry", [], metadata=(("geraft-header-bin", opening),))
    assert "belongs to cluster" in refused(error, grpc.StatusCode.FAILED_PRECONDITION)
    error = stream_error(channel, "SendAppendEntry", [], metadata=(("geraft-header-bin", b"\xff"),))
    refused(error, grpc.StatusCode.INVALID_ARGUMENT)


def test_unary_calls_that_are_no_messages_are_refused(channel: grpc.Channel) -> None:
    for method in ("RequestApply", "RequestCommit", "RequestClusterInfo", "Status", "TimeoutNow"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(PATH + method)(b"\xff\xff", timeout=20)
        refused(caught.value, grpc.StatusCode.INVALID_ARGUMENT)
    unknown = pb.ApplyReq(consistency=9).SerializeToString()  # type: ignore[arg-type]
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(PATH + "RequestApply")(unknown, timeout=20)
    assert "unknown consistency" in refused(caught.value, grpc.StatusCode.INVALID_ARGUMENT)


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(PATH + "NoSuchThing")(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_calls_that_are_no_messages_end_the_stream_and_unknown_kinds_only_themselves(channel: grpc.Channel) -> None:
    refused(stream_error(channel, "Call", [b"\xff"]), grpc.StatusCode.INVALID_ARGUMENT)
    calls = pb.CallReq()
    calls.calls.add(number=1, kind=77, message=b"a")  # type: ignore[arg-type]
    calls.calls.add(number=2, kind=pb.CALL_KIND_READ, consistency=77, message=b"b")  # type: ignore[arg-type]
    calls.calls.add(number=3, kind=pb.CALL_KIND_APPLY, message=b"c")
    answers = {}
    for record in RaftStub(channel).Call(iter([calls]), timeout=20):
        answers.update({answer.number: answer for answer in record.answers})
    assert answers[1].failure.error == answers[2].failure.error == "Rejected"
    assert answers[3].message == b"echo c"
