"""Callers' calls over the wire: unary, streamed, and forwarded between members."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from transport_harness import Peer, wait_until

from geraft import errors
from geraft.errors import GeraftError, NotLeader, OutcomeUnknown, ProposalDropped, Unreachable
from geraft.pb import geraft_pb2 as pb
from geraft.pb.geraft_pb2_grpc import RaftStub
from geraft.runtime.hub import Call, CallKind, Consistency, SessionWrite, finish, monotonic
from geraft.transport import calls as calls_module
from geraft.transport.calls import CallStream
from geraft.transport.failures import FAILURE_KEY, error_from_failure, failure_from_error
from geraft.transport.grpc_mode import LazyChannel, mode_for
from geraft.transport.peer import channel_options


@pytest.fixture
def node() -> Iterator[Peer]:
    with Peer("n1") as peer:
        yield peer


def channel_to(peer: Peer) -> grpc.Channel:
    return grpc.insecure_channel(peer.address)


@contextmanager
def stream_to(peer: Peer) -> Iterator[CallStream]:
    channel = LazyChannel(peer.address, channel_options(256 * 1024 * 1024))
    stream = CallStream(channel, mode_for(peer.hub), peer.node_id)
    yield stream
    stream.close()
    mode_for(peer.hub).call(channel.close)


def call(message: bytes = b"m", kind: CallKind = CallKind.APPLY, seconds: float = 20.0) -> Call:
    return Call(kind, message, deadline=monotonic() + seconds)


def result(waiting: Call) -> Any:
    return waiting.result(20.0, lambda: AssertionError("the call did not end"))


# Errors over the wire


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, GeraftError)]
)
def test_every_error_of_ours_survives_the_wire(kind: type[GeraftError]) -> None:
    there = error_from_failure(failure_from_error(kind("a sentence")))
    assert type(there) is kind
    assert str(there) == "a sentence"


def test_not_leader_keeps_its_hint() -> None:
    there = error_from_failure(failure_from_error(NotLeader("no", leader_id="n2", leader_address="h:2")))
    assert isinstance(there, NotLeader)
    assert (there.leader_id, there.leader_address) == ("n2", "h:2")


def test_an_error_nobody_knows_is_read_with_care() -> None:
    assert isinstance(error_from_failure(pb.Failure(error="FromTheFuture", message="x")), OutcomeUnknown)
    assert isinstance(error_from_failure(pb.Failure(error="Exception", message="x")), OutcomeUnknown)
    assert failure_from_error(KeyError("x")).error == "OutcomeUnknown"

    class Mine(ProposalDropped):
        pass

    assert failure_from_error(Mine("x")).error == "ProposalDropped"


# Unary calls


def test_unary_calls_are_answered(node: Peer) -> None:
    with channel_to(node) as channel:
        stub = RaftStub(channel)
        assert stub.RequestApply(pb.ApplyReq(message=b"w", mutation=True), timeout=10).message == b"echo w"
        read = pb.ApplyReq(message=b"r", consistency=pb.CONSISTENCY_LEASE, timeout_ms=700, wait_for_leader=True)
        assert stub.RequestApply(read, timeout=10).message == b"echo r"
        assert stub.RequestCommit(pb.CommitReq(message=b"c", forwarded=True), timeout=10).index == 3
        assert stub.RequestClusterInfo(pb.ClusterInfoReq(), timeout=10).cluster_id == "c1"
        assert stub.Status(pb.StatusReq(), timeout=10).id == "n1"
    write, lease, commit = node.calls
    assert (write.kind, lease.kind, commit.kind) == (CallKind.APPLY, CallKind.READ, CallKind.COMMIT)
    assert lease.consistency is Consistency.LEASE and lease.wait_for_leader and not write.wait_for_leader
    assert commit.forwarded and not write.forwarded
    assert lease.deadline - monotonic() < 0.7 < write.deadline - monotonic()


def test_sessions_over_unary_calls(node: Peer) -> None:
    with channel_to(node) as channel:
        stub = RaftStub(channel)
        assert stub.OpenSession(pb.OpenSessionReq(wait_for_leader=True), timeout=10).session == 1
        write = pb.ApplyReq(message=b"w", mutation=True, session=1, number=7, answered_below=5)
        assert stub.RequestApply(write, timeout=10).message == b"echo w"
        commit = pb.CommitReq(message=b"c", session=1, number=8, answered_below=5, forwarded=True)
        assert stub.RequestCommit(commit, timeout=10).index == 3
        stub.CloseSession(pb.CloseSessionReq(session=1, timeout_ms=700), timeout=10)
        for request in (
            pb.ApplyReq(message=b"w", mutation=True, session=1),  # without a number
            pb.ApplyReq(message=b"r", session=1, number=7),  # a read
        ):
            with pytest.raises(grpc.RpcError, match="needs a number from 1 on"):
                stub.RequestApply(request, timeout=10)
        with pytest.raises(grpc.RpcError, match="needs the session"):
            stub.CloseSession(pb.CloseSessionReq(), timeout=10)
    assert [(each.kind, each.session) for each in node.calls] == [
        (CallKind.OPEN_SESSION, SessionWrite(0, 0, 0)),
        (CallKind.APPLY, SessionWrite(1, 7, 5)),
        (CallKind.COMMIT, SessionWrite(1, 8, 5)),
        (CallKind.CLOSE_SESSION, SessionWrite(1, 0, 0)),
    ]
    assert node.calls[0].wait_for_leader and node.calls[2].forwarded


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotLeader("n2 is", leader_id="n2", leader_address="h:1"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.NoLeader("none"), grpc.StatusCode.UNAVAILABLE),
        (ProposalDropped("slow down"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (OutcomeUnknown("who knows"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.CommandTooLarge("too large"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.StorageFailed("disk full"), grpc.StatusCode.INTERNAL),
    ],
)
def test_a_unary_call_that_fails_has_a_status_and_the_error_beside_it(
    node: Peer, error: GeraftError, status: grpc.StatusCode
) -> None:
    node.call_error = error
    with channel_to(node) as channel, pytest.raises(grpc.RpcError) as caught:
        RaftStub(channel).RequestApply(pb.ApplyReq(message=b"w", mutation=True), timeout=10)
    failed: Any = caught.value
    assert failed.code() is status
    metadata = dict(failed.trailing_metadata())
    there = error_from_failure(pb.Failure.FromString(metadata[FAILURE_KEY]))
    assert (type(there), str(there)) == (type(error), str(error))


def test_a_unary_write_that_nobody_answers_ends_as_unknown(node: Peer) -> None:
    node.answer_calls = False
    with channel_to(node) as channel, pytest.raises(grpc.RpcError) as caught:
        RaftStub(channel).RequestApply(pb.ApplyReq(message=b"w", mutation=True, timeout_ms=100), timeout=10)
    failed: Any = caught.value
    assert failed.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert pb.Failure.FromString(dict(failed.trailing_metadata())[FAILURE_KEY]).error == "OutcomeUnknown"


# Streams of calls


def test_calls_share_a_stream_and_are_answered_in_any_order(node: Peer) -> None:
    node.answer_calls = False
    with stream_to(node) as stream:
        mine = [call(b"%d" % number) for number in range(3)]
        stream.submit(mine)
        wait_until(lambda: len(node.calls) == 3)
        for theirs in reversed(node.calls):
            finish([theirs], [b"to " + theirs.message])
        assert [result(each) for each in mine] == [b"to 0", b"to 1", b"to 2"]


def test_thousands_of_calls_by_many_threads_travel_in_few_messages(node: Peer) -> None:
    with stream_to(node) as stream:
        failures: list[BaseException] = []

        def caller(name: int) -> None:
            try:
                for number in range(100):
                    mine = call(b"%d.%d" % (name, number), CallKind.APPLY if number % 2 else CallKind.READ)
                    stream.submit([mine])
                    assert result(mine) == b"echo %d.%d" % (name, number)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=caller, args=(name,)) for name in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures
        assert len(node.calls) == 5000


def test_a_commit_answers_its_index_and_large_messages_go_alone(node: Peer) -> None:
    with stream_to(node) as stream:
        commit, large = call(b"c", CallKind.COMMIT), call(bytes(40 * 1024 * 1024))
        stream.submit([commit, large, call(b"after")])
        assert result(commit) == 1
        assert len(result(large)) == 40 * 1024 * 1024 + 5


def test_calls_of_sessions_keep_their_names_on_the_stream_and_wrong_ones_are_refused_alone(node: Peer) -> None:
    def of_session(kind: CallKind, *name: int) -> Call:
        return Call(kind, b"m", deadline=monotonic() + 20, session=SessionWrite(*name))

    with stream_to(node) as stream:
        good = [
            of_session(CallKind.OPEN_SESSION, 0, 0, 0),
            of_session(CallKind.APPLY, 2**63 - 1, 7, 5),
            of_session(CallKind.COMMIT, 9, 8, 5),
            of_session(CallKind.CLOSE_SESSION, 9, 0, 0),
        ]
        wrong = [
            of_session(CallKind.OPEN_SESSION, 9, 1, 1),
            of_session(CallKind.APPLY, 9, 0, 1),
            of_session(CallKind.READ, 9, 1, 1),
            call(kind=CallKind.CLOSE_SESSION),
        ]
        stream.submit([*wrong, *good, plain := call()])
        assert [result(each) for each in good] == [1, b"echo m", 3, 4]
        assert result(plain) == b"echo m"
        for each in wrong:
            with pytest.raises(errors.Rejected, match="needs a number"):
                result(each)
    assert [each.session for each in node.calls] == [*(each.session for each in good), None]


def test_errors_come_back_as_they_are(node: Peer) -> None:
    node.call_error = ProposalDropped("slow down")
    with stream_to(node) as stream:
        mine = [call(), call()]
        stream.submit(mine)
        for each in mine:
            with pytest.raises(ProposalDropped, match="slow down"):
                result(each)


def test_what_a_broken_stream_leaves_is_unknown_for_writes_and_nothing_for_reads(node: Peer) -> None:
    node.answer_calls = False
    with stream_to(node) as stream:
        write, read = call(b"w"), call(b"r", CallKind.READ)
        stream.submit([write, read])
        wait_until(lambda: len(node.calls) == 2)
        node.transport.stop()
        with pytest.raises(OutcomeUnknown, match="may have happened"):
            result(write)
        with pytest.raises(Unreachable):
            result(read)
        wait_until(lambda: stream.broken)
        late = call(b"late")
        stream.submit([late])
        with pytest.raises(Unreachable):
            result(late)


def test_writes_to_a_server_that_is_not_there_certainly_did_not_happen(node: Peer) -> None:
    node.transport.stop()
    with stream_to(node) as stream:
        mine = [call() for _ in range(20)]
        for each in mine:
            stream.submit([each])
        for each in mine:
            with pytest.raises(Unreachable):
                result(each)


def test_a_stream_that_is_closed_answers_everything(node: Peer) -> None:
    node.answer_calls = False
    with stream_to(node) as stream:
        sent = call()
        stream.submit([sent])
        wait_until(lambda: node.calls)
        stream.close()
        with pytest.raises(OutcomeUnknown):
            result(sent)
        unsent = call()
        stream.submit([unsent])
        with pytest.raises(Unreachable):
            result(unsent)


def test_calls_whose_answer_never_comes_are_swept(node: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(calls_module, "SWEEP_GRACE_SECONDS", 0.05)
    node.answer_calls = False
    with stream_to(node) as stream:
        lost = call(seconds=0.05)
        stream.submit([lost])
        wait_until(lambda: stream.submit([call()]) or lost.error is not None)
        assert isinstance(lost.error, OutcomeUnknown)


def test_a_stream_holds_a_bounded_number_of_unanswered_calls(node: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "UNANSWERED_MAX", 5)
    node.answer_calls = False
    with stream_to(node) as stream:
        mine = [call() for _ in range(6)]
        stream.submit(mine)
        with pytest.raises(ProposalDropped):
            result(mine[-1])
        assert len(node.calls) == 5
        finish(node.calls, [b"now"] * 5)
        assert [result(each) for each in mine[:5]] == [b"now"] * 5


# Forwarding between members


def test_a_member_forwards_to_the_leader_once() -> None:
    with Peer("n1") as n1, Peer("n2") as n2:
        n1.transport.set_peers({"n2": n2.address})
        mine = [call(b"%d" % number) for number in range(10)]
        n1.transport.forward("n2", mine)
        assert [result(each) for each in mine] == [b"echo %d" % number for number in range(10)]
        assert all(each.forwarded for each in n2.calls)
        numbered = Call(CallKind.APPLY, b"m", deadline=monotonic() + 20, session=SessionWrite(9, 7, 5))
        n1.transport.forward("n2", [numbered])
        assert result(numbered) == b"echo m" and n2.calls[-1].session == SessionWrite(9, 7, 5)


def test_forwarded_calls_that_did_not_happen_come_back_and_others_do_not() -> None:
    with Peer("n1") as n1, Peer("n2") as n2:
        n1.transport.set_peers({"n2": n2.address})
        nowhere = call()
        n1.transport.forward("n3", [nowhere])
        assert n1.resubmitted == [nowhere]
        n1.resubmitted.clear()
        n2.call_error = NotLeader("no longer", leader_id="n3")
        refused = call()
        n1.transport.forward("n2", [refused])
        wait_until(lambda: n1.resubmitted == [refused])
        n1.resubmitted.clear()
        n2.call_error, n2.answer_calls = None, False
        write, read = call(), call(kind=CallKind.READ)
        n1.transport.forward("n2", [write, read])
        wait_until(lambda: len(n2.calls) == 3)
        n2.transport.stop()
        with pytest.raises(OutcomeUnknown):
            result(write)
        wait_until(lambda: n1.resubmitted == [read])
        n1.resubmitted.clear()
        down = call()
        n1.transport.forward("n2", [down])
        wait_until(lambda: n1.resubmitted == [down])
