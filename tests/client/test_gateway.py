"""The gateway keeps up with the cluster beside the calls, and no address delays a call for long."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from test_client import Cluster, free_address, wait_until
from transport_harness import Peer

from geraft.client import Client, gateway
from geraft.errors import ConfigError, GeraftError, NothingHappened
from geraft.testing.cluster import free_addresses


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    for peer in cluster.peers.values():
        peer.stop()


@pytest.fixture
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(gateway, "POLL_IDLE_SECONDS", 60.0)


@contextmanager
def mute() -> Iterator[str]:
    """An address that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def black_hole() -> Iterator[str]:
    """An address that does not even take connections: its queue is full, so the system drops what asks for one."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        callers = []
        for _ in range(4):
            caller = socket.socket()
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
            callers.append(caller)
        time.sleep(0.05)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        for caller in callers:
            caller.close()


# Beside the calls


@pytest.mark.usefixtures("quick_polls")
def test_members_and_leader_are_followed_without_a_call_that_fails(cluster: Cluster) -> None:
    added = free_address()
    with Client(cluster.seeds[0]) as client:
        client.apply(b"1")
        assert added not in client._gateway.servers
        for peer in cluster.peers.values():
            peer.members["n4"] = added
        wait_until(lambda: added in client._gateway.servers)
        client.apply(b"2")
        cluster.lead("n2")
        wait_until(lambda: client._gateway.leader == cluster.peers["n2"].address)
        client.apply(b"3")
        assert [call.message for call in cluster.peers["n2"].calls] == [b"3"]
        assert [call.message for call in cluster.peers["n1"].calls] == [b"1", b"2"]


@pytest.mark.usefixtures("quick_polls")
def test_a_leader_that_died_meanwhile_costs_the_next_call_no_time(cluster: Cluster) -> None:
    with Client(cluster.seeds) as client:
        client.apply(b"1")
        cluster.peers["n1"].transport.stop()
        cluster.lead("n2")
        wait_until(lambda: cluster.peers["n1"].address in client._gateway._unreachable_since)
        client.apply(b"2")
        assert not [call for call in cluster.peers["n2"].calls if call.error is not None]


@pytest.mark.usefixtures("quick_polls")
def test_nobody_is_asked_any_more_once_there_are_no_calls(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(cluster.seeds) as client:
        gateway_of_client = client._gateway
        assert not gateway_of_client._polling
        client.apply(b"1")
        assert gateway_of_client._polling
        monkeypatch.setattr(gateway, "POLL_IDLE_SECONDS", 0.2)
        wait_until(lambda: not gateway_of_client._polling)
        monkeypatch.setattr(gateway, "POLL_IDLE_SECONDS", 60.0)
        client.apply(b"2")
        assert gateway_of_client._polling
    wait_until(lambda: not gateway_of_client._polling)


@pytest.mark.usefixtures("quick_polls")
def test_a_server_that_was_removed_does_not_bring_its_old_members_back(cluster: Cluster) -> None:
    with Client(cluster.seeds) as client:
        client.apply(b"1")
        known = client._gateway
        old = {"n3": cluster.peers["n3"].address}
        info = cluster.peers["n3"].cluster_info()
        info.term = 7
        with known._lock:
            known._learn(cluster.peers["n1"].address, info)
        cluster.peers["n3"].members = {**old, "n9": free_address()}
        time.sleep(0.3)
        assert cluster.peers["n3"].members["n9"] not in known.servers


# Addresses that do not answer


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("place", [mute, black_hole])
def test_seeds_that_never_answer_delay_no_call(cluster: Cluster, place: object) -> None:
    seed = cluster.seeds[1]
    with place() as silent, place() as other, Client([silent, other, seed], 30.0) as client:  # type: ignore[operator]
        began = time.monotonic()
        assert client.apply(b"1") == b"echo 1"
        assert client.read(b"r") == b"echo r"
        assert time.monotonic() - began < 15.0  # not even one round of questions, which takes 20 s


@pytest.mark.slow
@pytest.mark.parametrize("place", [mute, black_hole])
def test_a_leader_that_never_answers_delays_a_call_for_a_bounded_time(
    cluster: Cluster, place: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "DETOUR_SECONDS", 8.0)  # longer than what a busy machine may add to the second call
    with place() as silent:  # type: ignore[operator]
        for peer in cluster.peers.values():
            peer.leader = ("n9", silent)
            peer.call_error = None
        with Client(cluster.seeds, timeout_seconds=30.0) as client:
            began = time.monotonic()
            assert client.apply(b"around") == b"echo around"  # through a member that reaches it
            took = time.monotonic() - began
            assert took < gateway.DETOUR_SECONDS + 3 * gateway.PROBE_SECONDS + 5.0
            began = time.monotonic()
            assert client.apply(b"again") == b"echo again"
            assert time.monotonic() - began < 2 * gateway.PROBE_SECONDS + 5.0 < gateway.DETOUR_SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("rounds", ["several", "one"])
@pytest.mark.parametrize("place", [mute, black_hole])
def test_if_nobody_ever_answers_the_call_ends_in_its_time(
    place: object, rounds: str, request: pytest.FixtureRequest
) -> None:
    if rounds == "one":
        request.getfixturevalue("patient")  # it would take 20 s
    with place() as silent, Client([silent], timeout_seconds=1.5) as client:  # type: ignore[operator]
        for call in (client.apply, client.read):
            began = time.monotonic()
            with pytest.raises(NothingHappened):
                call(b"x")
            assert time.monotonic() - began < 6.5


@pytest.mark.usefixtures("patient")
def test_many_seeds_are_asked_side_by_side(cluster: Cluster) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(mute()) for _ in range(30)]
        client = stack.enter_context(Client([*silent, *free_addresses(30), cluster.seeds[2]], 30.0))
        began = time.monotonic()
        assert client.apply(b"1") == b"echo 1"
        assert time.monotonic() - began < 15.0  # and the first of them takes 20 s not to answer


# Reads from any


@pytest.mark.usefixtures("patient")  # polls take turns too
def test_reads_from_any_take_the_members_in_turn(cluster: Cluster) -> None:
    for peer in cluster.peers.values():
        peer.call_error = None
    with Client(cluster.seeds, 30.0, read_from="any") as client:
        for _ in range(30):
            client.read(b"r", "stale")
        assert {id: len(peer.calls) for id, peer in cluster.peers.items()} == {"n1": 10, "n2": 10, "n3": 10}
        client.read(b"r")
        client.apply(b"w")
        for _ in range(3):
            client.read(b"l", read_from="leader")
        calls = [call for peer in cluster.peers.values() for call in peer.calls if call.message == b"r"]
        assert not any(call.forwarded for call in calls)  # so that who does not lead passes it on
        assert [call.message for call in cluster.peers["n1"].calls[-4:]] == [b"w", b"l", b"l", b"l"]
    with pytest.raises(ConfigError, match="read_from must be"):
        Client(cluster.seeds, read_from="followers")


@pytest.mark.usefixtures("quick_polls")
def test_reads_from_any_leave_out_who_does_not_answer_until_it_is_back(cluster: Cluster) -> None:
    for peer in cluster.peers.values():
        peer.call_error = None
    third = cluster.peers["n3"]
    address = third.address
    with Client(cluster.seeds, read_from="any") as client:
        client.read(b"r", "stale")
        third.transport.stop()
        for _ in range(30):
            client.read(b"r", "stale")
        taken = len(third.calls)
        wait_until(lambda: address in client._gateway._unreachable_since)
        back = Peer("n3", address)
        try:
            cluster.lead("n1")
            back.members = dict(cluster.peers["n1"].members)
            back.leader = cluster.peers["n1"].leader

            def asked() -> bool:
                try:
                    client.read(b"r", "stale")
                except GeraftError:
                    pass
                return bool(back.calls)

            wait_until(asked)
            assert len(third.calls) == taken
        finally:
            back.stop()
