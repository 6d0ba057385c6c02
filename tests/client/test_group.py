"""A client of one group among several: every RPC names it, and servers without it are passed over."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "transport"))
from group_server import GroupServer
from test_client import assert_fails, free_address
from transport_harness import Peer, wait_until

from geraft.client import Client, gateway
from geraft.errors import ConfigError, GeraftError, UnknownGroup, Unreachable
from geraft.runtime.hub import CallKind


@pytest.fixture
def server() -> Iterator[GroupServer]:
    with GroupServer("a", "b") as server:
        yield server


@pytest.fixture
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "POLL_SECONDS", 0.05)


@pytest.mark.usefixtures("patient")
def test_each_client_writes_to_and_reads_from_its_group(server: GroupServer) -> None:
    with Client(server.address, 30.0, group="a") as of_a, Client(server.address, 30.0, group="b") as of_b:
        assert of_a.apply(b"for a") == b"echo for a"
        assert of_b.apply(b"for b") == b"echo for b"
        assert of_b.read(b"q", "stale", read_from="any") == b"echo q"
        assert of_b.commit(b"c") == 3
        assert of_a.status().id == "n-a"
        assert of_b.cluster_info().cluster_id == "c-b"
        assert repr(of_a) == f"<Client of group a at {server.address}>"
    assert [each.message for each in server.peers["a"].calls] == [b"for a"]
    assert [each.message for each in server.peers["b"].calls] == [b"for b", b"q", b"c"]


ASKED: dict[str, Callable[[Client, str], object]] = {
    "Call": lambda client, address: client.apply(b"w"),
    "Status": lambda client, address: client.status(address),
    "RequestClusterInfo": lambda client, address: client.cluster_info(),
    "TakeSnapshot": lambda client, address: client.take_snapshot(address, 10.0),
    "GetConfig": lambda client, address: client.get_config(address),
    "TuneConfig": lambda client, address: client.tune_config({"phi_threshold": 9.0}, address),
    "AddServer": lambda client, address: client.add_server("n9", address, timeout_seconds=10.0),
    "RemoveServer": lambda client, address: client.remove_server("n9", timeout_seconds=10.0),
    "ChangeMembership": lambda client, address: client.promote("n9", timeout_seconds=10.0),
    "TransferLeadership": lambda client, address: client.transfer_leadership("n9", timeout_seconds=10.0),
}


@pytest.mark.usefixtures("quick_polls")
def test_every_rpc_of_a_client_names_its_group(server: GroupServer) -> None:
    with Client(server.address, 10.0, group="a") as client:
        for method, ask in ASKED.items():
            with suppress(GeraftError):  # the nodes behind this server can't do all of it; what is asked counts
                ask(client, server.address)
            assert (method, "a") in server.rpcs
        asked = len(server.rpcs)
        client.apply(b"w")
        wait_until(lambda: ("RequestClusterInfo", "a") in server.rpcs[asked:], "the poll beside the calls")
    assert {group for _, group in server.rpcs} == {"a"}


@pytest.mark.usefixtures("patient")
def test_a_session_is_one_of_the_group(server: GroupServer) -> None:
    with Client(server.address, 30.0, exactly_once=True, group="b") as client:
        client.apply(b"once")
    kinds = [each.kind for each in server.peers["b"].calls]
    assert kinds == [CallKind.OPEN_SESSION, CallKind.APPLY, CallKind.CLOSE_SESSION]
    assert not server.peers["a"].calls


# Servers that do not have it


@contextmanager
def three(*groups: str) -> Iterator[tuple[str, GroupServer, GroupServer]]:
    """A node of no group, a server with other groups, and one with these."""
    with ExitStack() as stack:
        plain = stack.enter_context(Peer("n1"))
        plain.leader = ("n1", plain.address)  # it leads, but another cluster
        yield plain.address, stack.enter_context(GroupServer("x", "y")), stack.enter_context(GroupServer(*groups))


@pytest.mark.usefixtures("patient")
def test_servers_without_the_group_are_passed_over() -> None:
    with three("a") as (plain, other, good):
        with Client([plain, other.address, good.address], 30.0, group="a") as client:
            began = time.monotonic()
            assert client.apply(b"w") == b"echo w"
            assert client.read(b"r", read_from="any") == b"echo r"
            client.transfer_leadership("n2", timeout_seconds=30.0)
            assert client.cluster_info().cluster_id == "c-a"
            assert time.monotonic() - began < 10.0  # no round of questions waits for them
        assert len(good.peers["a"].calls) == 2 and len(good.peers["a"].wishes) == 1
        assert not any(peer.calls or peer.wishes for peer in other.peers.values())


def test_if_no_server_has_the_group_the_error_names_each_and_what_it_has() -> None:
    with three("b") as (plain, other, third), Client([plain, other.address, third.address], 0.5, group="a") as client:
        calls: list[Callable[[], object]] = [
            lambda: client.apply(b"w"),
            lambda: client.read(b"r", "stale"),
            lambda: client.read(b"r", read_from="any"),
            lambda: client.cluster_info(),
            lambda: client.status(),
            lambda: client.add_server("n9", plain, timeout_seconds=0.5),
        ]
        for asked in calls:
            assert_fails(
                asked,
                UnknownGroup,
                f"{plain}: no group 'a' at node n1, which has no groups",
                f"{other.address}, which has x, y: correct",
                f"{third.address}, which has b: correct",
            )
        assert_fails(lambda: client.status(other.address), UnknownGroup, "which has x, y")


def test_a_server_without_the_group_is_named_beside_one_that_is_down() -> None:
    dead = free_address()
    with GroupServer("b") as server, Client([dead, server.address], 0.5, group="a") as client:
        assert_fails(
            lambda: client.apply(b"w"),
            Unreachable,
            f"{server.address}, which has b: correct the group's name",
            f"{dead}: Connection refused",
        )


def test_a_group_that_is_named_nowhere_is_asked_for_where_there_are_several(server: GroupServer) -> None:
    with Client(server.address, 0.5) as client:
        assert_fails(lambda: client.apply(b"w"), UnknownGroup, "name the one that is meant")


@pytest.mark.usefixtures("patient")  # without polls: what calls find out is enough
def test_a_group_that_moves_to_another_server_is_followed(server: GroupServer) -> None:
    with GroupServer("a") as other, Client([server.address, other.address], 30.0, group="a") as client:
        for each in (server, other):
            each.lead(server, [server, other])
        client.apply(b"before")
        assert len(server.peers["a"].calls) == 1
        server.remove("a")
        other.lead(other, [other])
        assert client.read(b"after") == b"echo after"
        assert len(other.peers["a"].calls) == 1
        # And back: a server that has the group again counts as one that is back.
        server.add("a")
        for each in (server, other):
            each.lead(server, [server, other])
        other.remove("a")
        assert client.read(b"back") == b"echo back"
        assert [each.message for each in server.peers["a"].calls] == [b"back"]


def test_a_name_that_no_group_can_have_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="choose such a name"):
        Client("127.0.0.1:1", group="a group")
