"""Messages between nodes, over real gRPC: two or more transports in this process, or one in a child."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transport_harness import Peer, batch, wait_until

from geraft.config import Config
from geraft.core.entries import EntryBatch, EntryId, EntryKind
from geraft.core.membership import Member, Refusal, initial_configuration
from geraft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from geraft.errors import AddressInUse, ConfigError
from geraft.testing.cluster import free_addresses

HERE = Path(__file__).parent


@pytest.fixture
def pair() -> Iterator[tuple[Peer, Peer]]:
    with Peer("n1") as n1, Peer("n2") as n2:
        n1.transport.set_peers({"n2": n2.address})
        n2.transport.set_peers({"n1": n1.address})
        yield n1, n2


def connect(peer: Peer, other: str) -> None:
    wait_until(lambda: peer.transport.send(other, peer.heartbeat(1)) or peer.has_event("connected", other))


# Every kind of message gets there as it was sent


def test_an_append_arrives_with_its_entries_and_its_reply_comes_back(pair: tuple[Peer, Peer]) -> None:
    n1, n2 = pair
    member = Member("n3", "127.0.0.1:1")
    configuration = EntryBatch(
        term=3,
        first_index=8,
        kind=EntryKind.CONFIGURATION,
        commands=(b"",),
        configuration=initial_configuration({member.id: member.address}),
    )
    message = n1.append(batch(5, 3, term=2), configuration, prev=EntryId(2, 4), term=3)
    connect(n1, "n2")
    n1.transport.send("n2", message)
    wait_until(lambda: n2.got(AppendEntries))
    assert n2.got(AppendEntries) == [message]
    wait_until(lambda: n1.got(AppendEntriesReply))
    assert n1.got(AppendEntriesReply)[0].match_index == 8
    assert n1.transport.connected_peers() == {"n2"}


def test_a_rejection_carries_what_may_match(pair: tuple[Peer, Peer]) -> None:
    n1, n2 = pair
    connect(n1, "n2")
    n1.transport.send("n2", n1.append(batch()))
    wait_until(lambda: n1.got(AppendEntriesReply))
    rejection = AppendEntriesReply(
        sender="n2", sender_store="store-n2", term=4, match_index=0, rejected=EntryId(3, 9), hint=EntryId(2, 5)
    )
    n2.transport.send("n1", rejection)
    wait_until(lambda: rejection in n1.delivered)


def test_heartbeats_and_their_replies_have_a_stream_of_their_own(pair: tuple[Peer, Peer]) -> None:
    n1, n2 = pair
    connect(n1, "n2")
    n1.transport.send("n2", n1.heartbeat(77))
    wait_until(lambda: any(reply.round == 77 for reply in n1.got(HeartbeatReply)))
    assert n1.heartbeat(77) in n2.got(Heartbeat)


def test_a_vote_is_asked_and_given(pair: tuple[Peer, Peer]) -> None:
    n1, n2 = pair
    request = RequestVote(
        sender="n1", sender_store="store-n1", term=7, last_entry=EntryId(6, 40), pre_vote=True, forced=True
    )
    n1.transport.send("n2", request)
    wait_until(lambda: n1.got(RequestVoteReply))
    [reply] = n1.got(RequestVoteReply)
    assert (reply.granted, reply.term, reply.sender, reply.call) == (True, 7, "n2", 0)
    [got] = n2.got(RequestVote)
    assert (got.last_entry, got.pre_vote, got.forced, got.term) == (EntryId(6, 40), True, True, 7)


def test_timeout_now_arrives(pair: tuple[Peer, Peer]) -> None:
    n1, n2 = pair
    n1.transport.send("n2", TimeoutNow(sender="n1", sender_store="store-n1", term=2))
    wait_until(lambda: n2.got(TimeoutNow))


def test_many_appends_stay_in_order(pair: tuple[Peer, Peer]) -> None:
    n1, n2 = pair
    connect(n1, "n2")
    for index in range(1, 501):
        n1.transport.send("n2", n1.append(batch(index), prev=EntryId(1, index - 1) if index > 1 else EntryId(0, 0)))
    wait_until(lambda: len(n2.got(AppendEntries)) == 500)
    assert [message.batches[0].first_index for message in n2.got(AppendEntries)] == list(range(1, 501))


def test_a_command_of_64_mib_gets_through(pair: tuple[Peer, Peer]) -> None:
    n1, n2 = pair
    connect(n1, "n2")
    large = n1.append(batch(size=64 * 1024 * 1024))
    n1.transport.send("n2", large)
    wait_until(lambda: n2.got(AppendEntries), timeout_seconds=60)
    assert n2.got(AppendEntries) == [large]
    wait_until(lambda: n1.got(AppendEntriesReply), timeout_seconds=60)
    assert not n1.has_event("disconnected")


def test_a_batch_is_encoded_once_for_every_peer(pair: tuple[Peer, Peer]) -> None:
    n1, _ = pair
    connect(n1, "n2")
    message = n1.append(batch())
    n1.transport.send("n2", message)
    encoded = message.batches[0].encoded
    assert encoded is not None
    n1.transport.send("n2", message)
    assert message.batches[0].encoded is encoded


# Who is not heard


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (Refusal.STORE_REPLACED, "from another store than the one this cluster knows"),
    ],
)
def test_a_peer_that_is_not_admitted_hears_why(pair: tuple[Peer, Peer], refusal: Refusal, sentence: str) -> None:
    n1, n2 = pair
    n2.refusals["n1"] = refusal
    vote = RequestVote(sender="n1", sender_store="store-n1", term=7, last_entry=EntryId(6, 40))
    for message in (n1.append(batch()), n1.heartbeat(1), vote, TimeoutNow(sender="n1", sender_store="s", term=2)):
        n1.events.clear()
        n1.transport.send("n2", message)
        wait_until(lambda: n1.has_event("refused", "n2"))
        assert sentence in n1.events[0][2]
    assert n2.delivered == []
    assert not n1.has_event("connected")


def test_a_peer_refused_later_loses_its_stream(pair: tuple[Peer, Peer]) -> None:
    n1, n2 = pair
    connect(n1, "n2")
    n2.refusals["n1"] = Refusal.STORE_REPLACED
    n1.transport.send("n2", n1.append(batch()))
    wait_until(lambda: n1.has_event("refused", "n2") and n1.has_event("disconnected", "n2"))
    assert n2.got(AppendEntries) == []


def test_a_reply_from_a_store_that_we_refuse_is_dropped(pair: tuple[Peer, Peer]) -> None:
    n1, n2 = pair
    n1.refusals["n2"] = Refusal.STORE_REPLACED
    n1.transport.send("n2", n1.append(batch()))
    wait_until(lambda: n1.has_event("refused", "n2"))
    assert n2.got(AppendEntries) and not n1.delivered


def test_another_cluster_at_the_address_is_refused() -> None:
    with Peer("n1") as n1, Peer("n2", cluster_id="other") as n2:
        n1.transport.set_peers({"n2": n2.address})
        wait_until(lambda: n1.transport.send("n2", n1.heartbeat(1)) or n1.has_event("refused", "n2"))
        assert "belongs to cluster other" in next(event for event in n1.events if event[0] == "refused")[2]
        assert n2.delivered == []


def test_another_node_at_the_address_is_refused() -> None:
    with Peer("n1") as n1, Peer("n3") as n3:
        n1.transport.set_peers({"n2": n3.address})
        wait_until(lambda: n1.transport.send("n2", n1.heartbeat(1)) or n1.has_event("refused", "n2"))
        assert "this is node n3, not n2" in next(event for event in n1.events if event[0] == "refused")[2]
        assert n3.delivered == []


# Peers that go and come back


def test_a_peer_that_restarts_is_reconnected_within_half_a_second(pair: tuple[Peer, Peer]) -> None:
    n1, n2 = pair
    connect(n1, "n2")
    address = n2.address
    n2.transport.stop()

    def seconds_until_reconnected(down_seconds: float) -> float:
        wait_until(lambda: n1.has_event("disconnected", "n2"))
        end = time.monotonic() + down_seconds
        while time.monotonic() < end:  # a leader goes on sending
            n1.transport.send("n2", n1.heartbeat(2))
            n1.transport.send("n2", n1.append(batch()))
            time.sleep(0.05)
        n1.events.clear()
        with Peer("n2", address):
            back = time.monotonic()
            wait_until(lambda: n1.transport.send("n2", n1.heartbeat(3)) or n1.has_event("connected", "n2"))
            return time.monotonic() - back

    # 0.1 to 0.4 s on an idle machine. A busy one has further attempts; pauses that grow would be longer in them.
    assert any(seconds_until_reconnected(down_seconds) < 1.5 for down_seconds in (2.0, 4.0, 6.0))


def test_a_peer_whose_address_changes_is_found_at_the_new_one(pair: tuple[Peer, Peer]) -> None:
    n1, _ = pair
    connect(n1, "n2")
    with Peer("n2") as moved:
        n1.events.clear()
        n1.transport.set_peers({"n2": moved.address})
        assert n1.has_event("disconnected", "n2")
        connect(n1, "n2")
        wait_until(lambda: n1.transport.send("n2", n1.append(batch())) or moved.got(AppendEntries))
        n1.transport.set_peers({})
        assert n1.transport.connected_peers() == set()
        n1.transport.send("n2", n1.append(batch()))  # to nobody: dropped


def test_a_peer_that_is_down_from_the_start_costs_nothing_but_its_messages() -> None:
    def seconds_to_stop() -> float:
        with Peer("n1") as n1:
            n1.transport.set_peers({"n2": free_addresses(1)[0]})
            for round in range(2000):
                n1.transport.send("n2", n1.append(batch(size=10_000)))
                n1.transport.send("n2", n1.heartbeat(round))
            start = time.monotonic()
            n1.transport.stop(2.0)
            took = time.monotonic() - start
            assert n1.events == []
            return took

    assert any(seconds_to_stop() < 3.0 for _ in range(3))  # a busy machine may be late once


@contextmanager
def child_peer() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A peer n2 in a process of its own, and its address."""
    child = subprocess.Popen(
        [sys.executable, str(HERE / "transport_measure.py"), "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        yield child, child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait()


@pytest.mark.slow
def test_a_stopped_process_is_noticed_and_found_again_when_it_goes_on() -> None:
    with child_peer() as (child, address), Peer("n1") as n1:
        n1.transport.set_peers({"n2": address})

        def seconds_to_notice() -> float:
            connect(n1, "n2")
            n1.events.clear()
            os.kill(child.pid, signal.SIGSTOP)
            stopped = time.monotonic()
            wait_until(lambda: n1.transport.send("n2", n1.heartbeat(2)) or n1.has_event("disconnected", "n2"))
            noticed = time.monotonic() - stopped
            n1.events.clear()
            time.sleep(1.0)
            os.kill(child.pid, signal.SIGCONT)
            back = time.monotonic()
            connect(n1, "n2")
            print(f"noticed after {noticed:.2f} s, reconnected after {time.monotonic() - back:.2f} s")
            return noticed

        assert any(seconds_to_notice() < 3.0 for _ in range(3))  # 1.5 s at most on an idle machine


@pytest.mark.slow
def test_a_process_that_is_killed_is_noticed_at_once() -> None:
    def seconds_to_notice() -> float:
        with child_peer() as (child, address), Peer("n1") as n1:
            n1.transport.set_peers({"n2": address})
            connect(n1, "n2")
            child.kill()
            killed = time.monotonic()
            wait_until(lambda: n1.has_event("disconnected", "n2"))
            return time.monotonic() - killed

    assert any(seconds_to_notice() < 1.0 for _ in range(3))


@pytest.mark.slow
def test_an_idle_connection_stays_up(pair: tuple[Peer, Peer]) -> None:
    n1, _ = pair
    connect(n1, "n2")
    time.sleep(6.0)  # a server that counts our pings as misbehaviour would end it by now
    assert not n1.has_event("disconnected")


# The listening end


def test_a_taken_port_is_refused_by_name() -> None:
    with Peer("n1") as n1:
        other = Peer("n2", n1.address, start=False)
        with pytest.raises(AddressInUse, match=n1.address):
            other.transport.start()
        other.stop()


def test_a_port_that_something_else_listens_on_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        peer = Peer("n1", f"localhost:{taken.getsockname()[1]}", start=False)
        with pytest.raises(AddressInUse):
            peer.transport.start()
        peer.stop()


@pytest.mark.parametrize(
    "listen",
    [
        "",
        "nonsense",
        "127.0.0.1",
        "127.0.0.1:x",
        "127.0.0.1:70000",
        "::1:80",
        "no.such.host.invalid:1",
        "192.0.2.1:7001",
    ],
)
def test_an_address_that_is_none_is_a_config_error(listen: str) -> None:
    peer = Peer("n1", listen, start=False)
    with pytest.raises(ConfigError):
        peer.transport.start()
    peer.stop()


def test_stopping_ends_in_time_with_streams_open_and_the_port_is_free_again() -> None:
    def most_seconds_to_stop() -> float:
        took = []
        with Peer("n1") as n1, Peer("n2") as n2:
            n1.transport.set_peers({"n2": n2.address})
            n2.transport.set_peers({"n1": n1.address})
            connect(n1, "n2")
            connect(n2, "n1")
            for peer in (n1, n2):
                start = time.monotonic()
                peer.transport.stop(2.0)
                took.append(time.monotonic() - start)
            with Peer("n1", n1.address):
                pass
        return max(took)

    assert any(most_seconds_to_stop() < 3.0 for _ in range(3))  # a busy machine may be late once


def test_a_message_larger_than_the_limit_breaks_only_its_stream() -> None:
    config = Config(command_bytes_max=1024, message_bytes_max=3 * 1024 * 1024)
    with Peer("n1", config=config) as n1, Peer("n2", config=config) as n2:
        n1.transport.set_peers({"n2": n2.address})
        connect(n1, "n2")
        n1.transport.send("n2", n1.append(batch(size=4 * 1024 * 1024)))
        wait_until(lambda: n1.has_event("disconnected", "n2"))
        n1.events.clear()
        connect(n1, "n2")
        wait_until(lambda: n1.transport.send("n2", n1.append(batch())) or n2.got(AppendEntries))
