"""What no member would send: each RPC refuses it with a sentence, nothing reaches the node, and the node lives on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from transport_harness import CLUSTER, Peer
from wire_messages import Messages

from geraft.pb import geraft_pb2 as pb
from geraft.pb.geraft_pb2_grpc import RaftStub
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
        reply = RaftStub(channel).RequestVote(MESSAGES.vote_record(), timeout=10)
        assert reply.granted and reply.header.receiver == "n2"


MESSAGES = Messages(CLUSTER)
header, append, heartbeat = MESSAGES.header, MESSAGES.append, MESSAGES.heartbeat
BAD_APPENDS, BAD_HEARTBEATS, BAD_VOTES = MESSAGES.bad_appends(), MESSAGES.bad_heartbeats(), MESSAGES.bad_votes()


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
