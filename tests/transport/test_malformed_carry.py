"""What no process with many groups would send: it is refused, and neither the node nor the other groups notice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from transport_harness import CONFIG, Process, batch, wait_until
from wire_messages import Messages

from geraft.core.messages import AppendEntries, AppendEntriesReply, Heartbeat, HeartbeatReply, RequestVote
from geraft.pb import geraft_pb2 as pb
from geraft.transport import carrier
from geraft.transport.failures import FAILURE_KEY
from geraft.transport.pulse import RestOffer
from geraft.transport.server import say_up, server_options

METHOD = "/geraft.Raft/Carry"
A, B = Messages("c-a", "a"), Messages("c-b", "b")
Item = tuple[int, bytes]
BAD = {
    (kind, name): (item_kind, message)
    for kind, item_kind, messages in (
        ("append", pb.ITEM_KIND_APPEND_ENTRY_REQ, A.bad_appends()),
        ("heartbeat", pb.ITEM_KIND_HEARTBEAT_REQ, A.bad_heartbeats()),
        ("vote", pb.ITEM_KIND_REQUEST_VOTE_REQ, A.bad_votes()),
        ("rest", pb.ITEM_KIND_REST_REQ, A.bad_rests()),
    )
    for name, message in messages.items()
}
PULSE = pb.ITEM_KIND_PULSE_REQ, b""
GOOD_OF_B = pb.ITEM_KIND_HEARTBEAT_REQ, B.heartbeat()


def parcel(*items: Item) -> bytes:
    record = pb.Parcel()
    for kind, message in items:
        record.items.add(kind=kind, message=message)  # type: ignore[arg-type]
    return record.SerializeToString()


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with Process("a", "b") as process:
        yield process


class Stream:
    """To a process, as another one opens it. answers: (kind, bytes), as they come."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._more = threading.Event()
        self._closed = False
        self._waiting: list[bytes] = []
        self.answers: list[Item] = []
        self.error: Any = None
        self._rpc = self._channel.stream_stream(METHOD)(self._requests())
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _requests(self) -> Iterator[bytes]:
        while True:
            self._more.wait(20)
            self._more.clear()
            while self._waiting:
                yield self._waiting.pop(0)
            if self._closed:
                return

    def _read(self) -> None:
        try:
            for encoded in self._rpc:
                self.answers += [(item.kind, item.message) for item in pb.Parcel.FromString(encoded).items]
        except grpc.RpcError as error:
            self.error = error

    def send(self, *encoded: bytes) -> None:
        self._waiting += encoded
        self._more.set()

    def got(self, kind: int) -> list[bytes]:
        return [message for each, message in list(self.answers) if each == kind]

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed = True
        self._more.set()
        self._reader.join(20)
        assert not self._reader.is_alive(), "the stream did not end"
        self._channel.close()


@pytest.fixture
def stream(process: Process) -> Iterator[Stream]:
    for peer in process.peers.values():
        peer.delivered.clear()
        peer.notes.clear()
    with Stream(process.address) as stream:
        yield stream
    # A stream that follows is served, for each group.
    with Stream(process.address) as later:
        later.send(parcel((pb.ITEM_KIND_HEARTBEAT_REQ, A.heartbeat()), GOOD_OF_B, PULSE))
        wait_until(lambda: len(later.got(pb.ITEM_KIND_HEARTBEAT_REP)) == 2)
        wait_until(lambda: later.got(pb.ITEM_KIND_PULSE_REP))


def not_heard(stream: Stream) -> pb.NotHeard:
    """The one refusal that came."""
    [encoded] = stream.got(pb.ITEM_KIND_NOT_HEARD)
    return pb.NotHeard.FromString(encoded)


def refused(stream: Stream) -> str:
    """Why the stream was ended."""
    wait_until(lambda: stream.error is not None)
    assert stream.error.code() is grpc.StatusCode.INVALID_ARGUMENT
    [failure] = [pb.Failure.FromString(value) for key, value in stream.error.trailing_metadata() if key == FAILURE_KEY]
    assert failure.error == "Rejected"
    return str(failure.message)


@pytest.mark.parametrize("case", [case for case in BAD if case[1] != "no protobuf"], ids=" with ".join)
def test_a_message_of_one_group_that_is_wrong_is_told_and_ends_nothing(
    process: Process, stream: Stream, case: tuple[str, str]
) -> None:
    stream.send(parcel(BAD[case], GOOD_OF_B))
    wait_until(lambda: stream.got(pb.ITEM_KIND_HEARTBEAT_REP))
    refusal = not_heard(stream)
    assert refusal.group == "a" and refusal.sentence and not refusal.unknown_group
    stream.send(parcel((pb.ITEM_KIND_HEARTBEAT_REQ, A.heartbeat(round=7))))
    wait_until(lambda: len(stream.got(pb.ITEM_KIND_HEARTBEAT_REP)) == 2)
    assert [message.round for message in process.peers["a"].delivered] == [7]  # type: ignore[union-attr]
    assert not process.peers["a"].notes
    assert [type(message) for message in process.peers["b"].delivered] == [Heartbeat]
    assert stream.error is None


@pytest.mark.parametrize("case", [case for case in BAD if case[1] == "no protobuf"], ids=" with ".join)
def test_an_item_that_is_no_protobuf_ends_the_stream(process: Process, stream: Stream, case: tuple[str, str]) -> None:
    stream.send(parcel(BAD[case]))
    assert refused(stream)
    assert not process.peers["a"].delivered


NO_REQUESTS = {
    "an unknown kind": 99,
    "kind 0": 0,
    "an answer to an append": pb.ITEM_KIND_APPEND_ENTRY_REP,
    "an answer to a pulse": pb.ITEM_KIND_PULSE_REP,
    "a refusal": pb.ITEM_KIND_NOT_HEARD,
}


@pytest.mark.parametrize("case", NO_REQUESTS)
def test_what_is_no_request_ends_the_stream(process: Process, stream: Stream, case: str) -> None:
    stream.send(parcel((NO_REQUESTS[case], A.append())))
    assert f"kind {int(NO_REQUESTS[case])} is no request" in refused(stream)


def test_a_parcel_that_is_none_ends_the_stream(process: Process, stream: Stream) -> None:
    stream.send(b"\xff\xff\xff")
    assert refused(stream)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cluster_id": "c-b"}, "belongs to cluster c-a"),
        ({"receiver": "n9"}, "this is node n1, not n9"),
        ({"group": "b"}, "belongs to cluster c-b"),
    ],
)
def test_a_message_for_someone_else_is_not_heard(
    process: Process, stream: Stream, changes: dict[str, str], sentence: str
) -> None:
    for kind, make in (
        (pb.ITEM_KIND_APPEND_ENTRY_REQ, A.append),
        (pb.ITEM_KIND_HEARTBEAT_REQ, A.heartbeat),
        (pb.ITEM_KIND_REQUEST_VOTE_REQ, A.vote),
        (pb.ITEM_KIND_REST_REQ, A.rest),
    ):
        stream.send(parcel((kind, make(header=A.header(**changes)))))
    wait_until(lambda: len(stream.got(pb.ITEM_KIND_NOT_HEARD)) == 4)
    for encoded in stream.got(pb.ITEM_KIND_NOT_HEARD):
        refusal = pb.NotHeard.FromString(encoded)
        assert sentence in refusal.sentence
        assert refusal.group == changes.get("group", "a") and refusal.receiver == changes.get("receiver", "n1")
    assert not process.peers["a"].delivered and not process.peers["b"].delivered
    assert not process.peers["a"].notes and not process.peers["b"].notes


@pytest.mark.parametrize("group", ["", "nowhere", "a" * 5000])
def test_a_group_that_is_not_there_is_told_in_few_words(process: Process, stream: Stream, group: str) -> None:
    stream.send(parcel((pb.ITEM_KIND_APPEND_ENTRY_REQ, A.append(header=A.header(group=group))), GOOD_OF_B))
    wait_until(lambda: stream.got(pb.ITEM_KIND_HEARTBEAT_REP))
    refusal = not_heard(stream)
    assert refusal.unknown_group
    assert process.address in refusal.sentence and len(refusal.sentence) < 300
    assert group.startswith(refusal.group) and len(refusal.group) <= 100


def test_what_is_right_is_handed_in_each_to_its_group(process: Process, stream: Stream) -> None:
    stream.send(
        parcel(
            (pb.ITEM_KIND_APPEND_ENTRY_REQ, A.append()),
            GOOD_OF_B,
            (pb.ITEM_KIND_REQUEST_VOTE_REQ, A.vote()),
            (pb.ITEM_KIND_REST_REQ, B.rest(number=5)),
        )
    )
    wait_until(lambda: process.peers["b"].notes)
    assert [type(message) for message in process.peers["a"].delivered] == [AppendEntries, RequestVote]
    assert [type(message) for message in process.peers["b"].delivered] == [Heartbeat]
    [offer] = process.peers["b"].notes
    assert isinstance(offer, RestOffer) and offer.number == 5
    process.peers["b"].transport.answer_rest("n2", 3, 5, True)
    wait_until(lambda: stream.got(pb.ITEM_KIND_REST_REP))
    answer = pb.RestRep.FromString(stream.got(pb.ITEM_KIND_REST_REP)[0])
    assert (answer.header.group, answer.number, answer.resting) == ("b", 5, True)
    assert len(stream.got(pb.ITEM_KIND_APPEND_ENTRY_REP)) == len(stream.got(pb.ITEM_KIND_REQUEST_VOTE_REP)) == 1


def test_many_items_in_a_parcel_are_each_answered(process: Process, stream: Stream) -> None:
    count = 20_000
    stream.send(parcel(*[(pb.ITEM_KIND_HEARTBEAT_REQ, A.heartbeat(round=number)) for number in range(count)]))
    wait_until(lambda: len(stream.got(pb.ITEM_KIND_HEARTBEAT_REP)) == count)


def test_who_does_not_read_what_comes_back_is_cut_off(
    process: Process, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits for it would grow without end."""
    monkeypatch.setattr(carrier, "ITEMS_WAITING_MAX", 5_000)
    pulses = parcel(*[PULSE] * 4_000)
    enough = threading.Event()

    def endless() -> Iterator[bytes]:
        while not enough.wait(0.002):
            yield pulses

    with grpc.insecure_channel(process.address) as channel:
        rpc = channel.stream_stream(METHOD)(endless())
        try:
            wait_until(lambda: "does not read its replies" in caplog.text)
            with pytest.raises(grpc.RpcError):
                for _ in rpc:
                    pass
        finally:
            enough.set()
            rpc.cancel()
    with Stream(process.address) as later:
        later.send(parcel(PULSE))
        wait_until(lambda: later.got(pb.ITEM_KIND_PULSE_REP))


# What comes back to a process that dials ------------------------------------------------------------------------------


class Answerer(grpc.GenericRpcHandler):
    """Listens as a process would, and answers whatever comes first on a stream with these bytes, once."""

    def __init__(self) -> None:
        self.answer: Callable[[int], list[bytes]] = lambda kind: []
        self.received: list[int] = []
        self.streams = 0
        self._server = grpc.server(
            ThreadPoolExecutor(20), handlers=[self], options=server_options(CONFIG.message_bytes_max)
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._carry) if handler_call_details.method == METHOD else None

    def _carry(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self.streams += 1
        say_up(context, "")
        for encoded in requests:
            for item in pb.Parcel.FromString(encoded).items:
                self.received.append(item.kind)
                yield from self.answer(item.kind)

    def __enter__(self) -> Answerer:
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.stop(0).wait(10)


def append_reply(messages: Messages, **changes: Any) -> bytes:
    fields: dict[str, Any] = {"header": messages.header(), "match_index": 1}
    return pb.AppendEntryRep(**{**fields, **changes}).SerializeToString()


def heartbeat_reply(messages: Messages, **changes: Any) -> bytes:
    fields: dict[str, Any] = {"header": messages.header(), "round": 1}
    return pb.HeartbeatRep(**{**fields, **changes}).SerializeToString()


BAD_REPLIES: dict[str, Item] = {
    "a match of 2^64-1": (pb.ITEM_KIND_APPEND_ENTRY_REP, append_reply(A, match_index=2**64 - 1)),
    "an append without a store": (pb.ITEM_KIND_APPEND_ENTRY_REP, append_reply(A, header=A.header(sender_store=""))),
    "a round of 2^64-1": (pb.ITEM_KIND_HEARTBEAT_REP, heartbeat_reply(A, round=2**64 - 1)),
    "a promise without end": (pb.ITEM_KIND_HEARTBEAT_REP, heartbeat_reply(A, silent_seconds=float("inf"))),
    "a foreign cluster": (pb.ITEM_KIND_HEARTBEAT_REP, heartbeat_reply(A, header=A.header(cluster_id="other"))),
    "another receiver": (pb.ITEM_KIND_APPEND_ENTRY_REP, append_reply(A, header=A.header(receiver="n7"))),
    "a vote of term 2^64-1": (
        pb.ITEM_KIND_REQUEST_VOTE_REP,
        pb.RequestVoteRep(header=A.header(term=2**64 - 1)).SerializeToString(),
    ),
    "a rest without a cluster": (
        pb.ITEM_KIND_REST_REP,
        pb.RestRep(header=A.header(cluster_id=""), number=1, resting=True).SerializeToString(),
    ),
}
BAD_STREAMS = {
    "no parcel": b"\xff\xff\xff",
    "a reply that is no protobuf": parcel((pb.ITEM_KIND_APPEND_ENTRY_REP, b"\xff")),
    "a request": parcel((pb.ITEM_KIND_APPEND_ENTRY_REQ, A.append())),
    "an unknown kind": parcel((99, b"")),
    "a refusal that is no protobuf": parcel((pb.ITEM_KIND_NOT_HEARD, b"\xff")),
}
IGNORED = {
    "of a group that is not here": parcel((pb.ITEM_KIND_HEARTBEAT_REP, heartbeat_reply(Messages("c-z", "z")))),
    "of a sender that is no peer": parcel(
        (pb.ITEM_KIND_HEARTBEAT_REP, heartbeat_reply(A, header=A.header(sender="n9")))
    ),
    "a refusal to a group that is not here": parcel(
        (pb.ITEM_KIND_NOT_HEARD, pb.NotHeard(group="z", receiver="n2", sentence="no").SerializeToString())
    ),
}


@pytest.fixture
def answerer() -> Iterator[Answerer]:
    with Answerer() as answerer:
        yield answerer


@pytest.fixture
def dialler(answerer: Answerer) -> Iterator[Process]:
    with Process("a", "b") as process:
        for peer in process.peers.values():
            peer.transport.set_peers({"n2": answerer.address})
        wait_until(lambda: all(peer.has_event("connected", "n2") for peer in process.peers.values()))
        yield process


def once(kind: int, encoded: bytes) -> Callable[[int], list[bytes]]:
    """Answer the first item of that kind so, and nothing else."""
    left = [encoded]
    return lambda each: [left.pop()] if each == kind and left else []


def got(process: Process, group: str, kind: type, send: Callable[[], None]) -> None:
    """Wait until a good reply arrives, asking again and again."""
    peer = process.peers[group]

    def asked() -> bool:
        send()
        time.sleep(0.05)
        return bool(peer.got(kind))

    wait_until(asked)


@pytest.mark.parametrize("case", BAD_REPLIES)
def test_a_reply_of_one_group_that_is_wrong_is_told_and_ends_nothing(
    answerer: Answerer, dialler: Process, case: str
) -> None:
    a, b = dialler.peers["a"], dialler.peers["b"]
    good = parcel(BAD_REPLIES[case], (pb.ITEM_KIND_HEARTBEAT_REP, heartbeat_reply(B)))
    answerer.answer = once(pb.ITEM_KIND_APPEND_ENTRY_REQ, good)
    b.transport.send("n2", b.append(batch()))
    wait_until(lambda: b.got(HeartbeatReply))
    assert a.has_event("refused", "n2")
    assert not a.delivered and not a.notes
    assert not b.has_event("disconnected", "n2") and not a.has_event("disconnected", "n2")


@pytest.mark.parametrize("case", BAD_STREAMS)
def test_an_answer_that_can_be_of_no_group_ends_the_stream_which_is_opened_again(
    answerer: Answerer, dialler: Process, case: str
) -> None:
    b = dialler.peers["b"]
    answerer.answer = once(pb.ITEM_KIND_APPEND_ENTRY_REQ, BAD_STREAMS[case])
    b.transport.send("n2", b.append(batch()))
    wait_until(lambda: b.has_event("disconnected", "n2"))
    answerer.answer = lambda kind: (
        [parcel((pb.ITEM_KIND_APPEND_ENTRY_REP, append_reply(B)))] if kind == pb.ITEM_KIND_APPEND_ENTRY_REQ else []
    )
    got(dialler, "b", AppendEntriesReply, lambda: b.transport.send("n2", b.append(batch())))
    assert not dialler.peers["a"].delivered


def test_a_node_that_can_not_be_told_of_its_link_keeps_no_other_from_it(
    answerer: Answerer, dialler: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: Any) -> None:
        raise RuntimeError("as if there were a mistake in geraft")

    a, b = dialler.peers["a"], dialler.peers["b"]
    for name in ("peer_connected", "peer_disconnected"):
        monkeypatch.setattr(a, name, fault)
    answerer.answer = once(pb.ITEM_KIND_APPEND_ENTRY_REQ, BAD_STREAMS["no parcel"])
    b.transport.send("n2", b.append(batch()))
    wait_until(lambda: b.has_event("disconnected", "n2"))
    wait_until(lambda: [event[0] for event in b.events].count("connected") == 2)


@pytest.mark.parametrize("case", IGNORED)
def test_an_answer_that_is_for_nobody_here_is_dropped(answerer: Answerer, dialler: Process, case: str) -> None:
    a, b = dialler.peers["a"], dialler.peers["b"]
    answerer.answer = once(pb.ITEM_KIND_APPEND_ENTRY_REQ, IGNORED[case])
    b.transport.send("n2", b.append(batch()))
    wait_until(lambda: pb.ITEM_KIND_APPEND_ENTRY_REQ in answerer.received)
    answerer.answer = lambda kind: (
        [parcel((pb.ITEM_KIND_APPEND_ENTRY_REP, append_reply(B)))] if kind == pb.ITEM_KIND_APPEND_ENTRY_REQ else []
    )
    got(dialler, "b", AppendEntriesReply, lambda: b.transport.send("n2", b.append(batch())))
    assert not a.delivered and not a.has_event("refused")
    assert not a.has_event("disconnected", "n2") and not b.has_event("disconnected", "n2")
