"""Which group a call is meant for: in its metadata, inside a Call stream, and refused where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from group_server import METHODS, GroupServer, open_rpc
from transport_harness import CONFIG, Peer, wait_until

from geraft.errors import ConfigError, GeraftError, OutcomeUnknown, UnknownGroup, Unreachable
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import Call, CallKind, acquire_hub, monotonic, release_hub
from geraft.runtime.wishes import Transfer
from geraft.transport import failures
from geraft.transport.calls import CallStream
from geraft.transport.groups import GROUP_KEY, check_group, group_of, metadata_of, unknown_group
from geraft.transport.grpc_mode import LazyChannel, mode_for
from geraft.transport.peer import channel_options
from geraft.transport.seeds import Seeds


@pytest.fixture
def server() -> Iterator[GroupServer]:
    with GroupServer("a", "b") as server:
        yield server


def call(message: bytes = b"m", kind: CallKind = CallKind.APPLY, seconds: float = 20.0) -> Call:
    return Call(kind, message, deadline=monotonic() + seconds)


def result(waiting: Call) -> Any:
    return waiting.result(20.0, lambda: AssertionError("the call did not end"))


@contextmanager
def stream_to(server: GroupServer | Peer, group: str, **options: Any) -> Iterator[CallStream]:
    hub = acquire_hub()
    mode, channel = mode_for(hub), LazyChannel(server.address, channel_options(256 * 1024 * 1024))
    stream = CallStream(channel, mode, "the server", group=group, **options)
    yield stream
    stream.close()
    mode.call(channel.close)
    release_hub(hub)


# Names


@pytest.mark.parametrize("name", ["", "orders", "a", "A-z_0.9", "x" * 100])
def test_a_name_for_a_group(name: str) -> None:
    check_group(name)
    assert group_of([("user-agent", "grpc"), *metadata_of(name)]) == name


@pytest.mark.parametrize(
    "name", [" ", "a b", "a/b", "a:b", "größe", "a\n", "\n", "x" * 101, "a,b", ".", "..", None, 7, b"a"], ids=repr
)
def test_no_name_for_a_group(name: Any) -> None:
    with pytest.raises(ConfigError, match="choose such a name"):
        check_group(name)


def test_metadata_without_a_group_names_none() -> None:
    assert metadata_of("") == ()
    assert metadata_of("orders") == ((GROUP_KEY, "orders"),)
    for nothing in (None, (), [("other", "orders")], [(GROUP_KEY, "")]):
        assert group_of(nothing) == ""


def test_who_asks_for_an_unknown_group_hears_what_there_is_and_what_to_do() -> None:
    assert str(unknown_group("orders", "127.0.0.1:7001", {"c", "a", "b"})) == (
        "no group 'orders' at 127.0.0.1:7001, which has a, b, c: correct the group's name, or start it there"
    )
    assert "leave the group out" in str(unknown_group("orders", "node n1"))
    assert "name the one that is meant" in str(unknown_group("", "h:1", ["a", "b"]))
    assert len(str(unknown_group("x" * 100_000, "h:1", ["a"]))) < 300
    assert failures.status_from_error(unknown_group("x", "h:1")) is grpc.StatusCode.NOT_FOUND


# Refused in one place


@pytest.mark.parametrize("name", METHODS)
def test_a_node_without_a_group_refuses_every_call_that_names_one(name: str) -> None:
    with Peer("n1") as peer, grpc.insecure_channel(peer.address) as channel:
        rpc = open_rpc(channel, name)
        with pytest.raises(grpc.RpcError) as caught:
            rpc(b"", timeout=10, metadata=metadata_of("orders"))
        failed: Any = caught.value
        assert failed.code() is grpc.StatusCode.NOT_FOUND
        error = failures.error_from_rpc(failed, peer.address)
        assert isinstance(error, UnknownGroup)
        assert str(error) == (
            f"{peer.address}: no group 'orders' at node n1, which has no groups: leave the group out, or ask elsewhere"
        )
        assert not (peer.calls or peer.wishes or peer.delivered)


def test_a_call_that_names_no_group_is_answered_by_the_only_node_there() -> None:
    with Peer("n1") as peer, grpc.insecure_channel(peer.address) as channel:
        for metadata in (None, (), ((GROUP_KEY, ""),)):
            answer = open_rpc(channel, "Status")(b"", timeout=10, metadata=metadata)
            assert pb.StatusRep.FromString(answer).id == "n1"


def test_each_group_is_asked_by_its_name(server: GroupServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        status = open_rpc(channel, "Status")
        for group in ("a", "b"):
            answer = status(b"", timeout=10, metadata=metadata_of(group))
            assert pb.StatusRep.FromString(answer).id == f"n-{group}"
        for group, said in (("c", "which has a, b: correct"), ("", "has several groups (a, b)")):
            with pytest.raises(grpc.RpcError) as caught:
                status(b"", timeout=10, metadata=metadata_of(group))
            error = failures.error_from_rpc(caught.value, server.address)
            assert isinstance(error, UnknownGroup)
            assert said in str(error)
            assert str(error).count(server.address) == 1


# Call streams


def test_the_calls_of_a_stream_are_for_the_group_that_its_metadata_names(server: GroupServer) -> None:
    with stream_to(server, "b") as stream:
        mine = [call(b"%d" % number) for number in range(3)]
        stream.submit(mine)
        assert [result(each) for each in mine] == [b"echo 0", b"echo 1", b"echo 2"]
    assert server.rpcs == [("Call", "b")]
    assert [len(server.peers[group].calls) for group in "ab"] == [0, 3]


def test_one_stream_carries_the_calls_of_many_groups(server: GroupServer) -> None:
    with stream_to(server, "a") as stream:
        for number in range(50):
            of_stream, of_b, of_a = call(b"s%d" % number), call(b"b%d" % number), call(b"a%d" % number, CallKind.READ)
            stream.submit([of_stream])
            stream.submit([of_b], "b")
            stream.submit([of_a], "a")
            assert result(of_b) == b"echo b%d" % number
            assert result(of_a) == b"echo a%d" % number
            assert result(of_stream) == b"echo s%d" % number
        assert not stream._notes, "nothing is kept of calls that are answered"
    assert server.rpcs == [("Call", "a")]
    assert {each.message[:1] for each in server.peers["a"].calls} == {b"s", b"a"}
    assert {each.message[:1] for each in server.peers["b"].calls} == {b"b"}


def test_groups_come_and_go_while_the_stream_lives(server: GroupServer) -> None:
    with stream_to(server, "a") as stream:
        stream.submit([first := call()], "b")
        assert result(first) == b"echo m"
        removed = server.peers["b"]
        server.remove("b")
        stream.submit([gone := call(), beside := call()], "b")
        for each in (gone, beside):
            with pytest.raises(UnknownGroup, match="which has a: correct the group's name"):
                result(each)
        server.add("b")
        stream.submit([again := call()], "b")
        assert result(again) == b"echo m"
        assert len(removed.calls) == len(server.peers["b"].calls) == 1
        assert not stream._notes
    assert len(server.rpcs) == 1


def test_calls_that_did_not_happen_go_back_to_whoever_submitted_them(server: GroupServer) -> None:
    back: dict[str, list[tuple[list[Call], GeraftError]]] = {"mine": [], "theirs": []}

    def mine(calls: list[Call], error: GeraftError) -> None:
        back["mine"].append((calls, error))

    def theirs(calls: list[Call], error: GeraftError) -> None:
        back["theirs"].append((calls, error))

    with stream_to(server, "a", returned=mine) as stream:
        # One by one, as the group is not known there.
        stream.submit(unknown := [call(), call()], "c", theirs)
        wait_until(lambda: sum(len(calls) for calls, _ in back["theirs"]) == 2)
        assert all(isinstance(error, UnknownGroup) for _, error in back["theirs"])
        assert [each for calls, _ in back["theirs"] for each in calls] == unknown
        assert not back["mine"]
        # All at once, as the stream breaks: reads may be asked elsewhere, writes that were sent can't.
        back["theirs"].clear()
        for peer in server.peers.values():
            peer.answer_calls = False
        reads_a, reads_b = [call(kind=CallKind.READ) for _ in "12"], [call(kind=CallKind.READ) for _ in "123"]
        stream.submit(reads_a)
        stream.submit([*reads_b, write := call()], "b", theirs)
        wait_until(lambda: [len(server.peers[group].calls) for group in "ab"] == [2, 4])
        server.stop()
        with pytest.raises(OutcomeUnknown):
            result(write)
        wait_until(lambda: back["mine"] and back["theirs"])
        for who, reads in (("mine", reads_a), ("theirs", reads_b)):
            ((calls, error),) = back[who]
            assert calls == reads
            assert isinstance(error, Unreachable)
        assert not stream._notes
        # And afterwards, as it takes no more.
        stream.submit(late := [call()], "b", theirs)
        assert back["theirs"][1][0] == late


def test_a_stream_to_a_server_without_the_group_gives_its_calls_back_as_that(server: GroupServer) -> None:
    back: list[GeraftError] = []
    with (
        Peer("n1") as plain,
        stream_to(plain, "a", returned=lambda calls, error: back.append(error)) as stream,
        stream_to(plain, "") as of_none,
    ):
        stream.submit([call()])
        wait_until(lambda: back)
        assert isinstance(back[0], UnknownGroup)
        assert stream.broken
        # Inside a stream that names none it is refused alone.
        of_none.submit([other := call()], "a")
        of_none.submit([good := call()])
        with pytest.raises(UnknownGroup, match="no group 'a' at node n1, which has no groups"):
            result(other)
        assert result(good) == b"echo m"
        assert len(plain.calls) == 1


# Seeds


def test_a_node_asks_seeds_for_its_own_group(server: GroupServer) -> None:
    hub = acquire_hub()
    with Peer("n1") as plain:
        seeds = Seeds(hub, CONFIG, {}, "b")
        answers, reasons = seeds.cluster_infos([server.address, plain.address])
        assert [answer.cluster_id for answer in answers] == ["c-b"]
        assert len(reasons) == 1 and f"{plain.address}: no group 'b' at node n1" in reasons[0]
        wish = Transfer("n2", monotonic() + 20, forwarded=False)
        seeds.fulfil(server.address, wish, "c-b", 20.0)
        assert len(server.peers["b"].wishes) == 1 and not server.peers["a"].wishes
        with pytest.raises(UnknownGroup):
            Seeds(hub, CONFIG, {}, "c").fulfil(server.address, wish, "c-c", 5.0)
    release_hub(hub)
