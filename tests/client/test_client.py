"""The client against servers that say who leads, over real gRPC."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "transport"))
from transport_harness import Peer, wait_until

from geraft.client import Client
from geraft.client.gateway import parse_seeds
from geraft.client.retry import doubled
from geraft.errors import (
    ConfigError,
    GeraftError,
    NodeForked,
    NodeStopped,
    NoLeader,
    NotLeader,
    OutcomeUnknown,
    ProposalDropped,
    ReadFailed,
    ReadTimeout,
    Unreachable,
)
from geraft.runtime.hub import CallKind, Consistency, finish
from geraft.testing.cluster import free_addresses


class Cluster:
    """Three servers, one of which answers; the others name it."""

    def __init__(self) -> None:
        self.peers = {id: Peer(id) for id in ("n1", "n2", "n3")}
        self.lead("n1")

    def lead(self, leader: str) -> None:
        for id, peer in self.peers.items():
            address = self.peers[leader].address if leader else ""
            peer.leader = (leader, address)
            peer.members = {other: self.peers[other].address for other in self.peers}
            peer.call_error = NotLeader(f"{id} does not lead", leader_id=leader, leader_address=address)
            if not leader:
                peer.call_error = NoLeader(f"{id} knows no leader")
        if leader:
            self.peers[leader].call_error = None

    @property
    def seeds(self) -> list[str]:
        return [peer.address for peer in self.peers.values()]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    for peer in cluster.peers.values():
        peer.stop()


def free_address() -> str:
    return free_addresses(1)[0]


def assert_fails(
    call: Callable[[], object],
    kind: type[GeraftError],
    *parts: str,
    late: tuple[type[GeraftError], ...] = (NoLeader, Unreachable),
) -> None:
    """The call raises this, and says all of that, when its time is up.

    If a server was too slow for the last question before, it raises one of `late`, or says less: it is made again.
    """
    for _ in range(10):
        with pytest.raises((kind, *late)) as caught:
            call()
        if isinstance(caught.value, kind) and all(part in str(caught.value) for part in parts):
            return
    raise AssertionError(f"it is no {kind.__name__} that says {parts}") from caught.value


# Calls and their answers


def test_pauses_double_up_to_a_limit_for_as_long_as_anybody_waits() -> None:
    assert [doubled(0.02, times, 0.25) for times in (0, 1, 3, 4, 5000)] == [0.02, 0.04, 0.16, 0.25, 0.25]


@pytest.mark.usefixtures("patient")
def test_writes_and_reads_reach_the_leader_from_any_seed(cluster: Cluster) -> None:
    for seed in cluster.seeds:
        with Client(seed, 30.0) as client:
            assert client.apply(b"w") == b"echo w"
            assert client.commit(b"c") > 0
            assert client.read(b"r") == b"echo r"
            assert client.read(b"r", "lease") == b"echo r"
    leader = cluster.peers["n1"]
    assert not cluster.peers["n2"].calls and not cluster.peers["n3"].calls
    assert [call.kind for call in leader.calls[:2]] == [CallKind.APPLY, CallKind.COMMIT]
    assert [call.consistency for call in leader.calls[2:4]] == [Consistency.LINEARIZABLE, Consistency.LEASE]
    assert all(call.forwarded for call in leader.calls)  # the leader itself was meant


def test_many_threads_share_one_stream(cluster: Cluster) -> None:
    with Client(cluster.seeds, 30.0) as client:
        answers: list[bytes] = []

        def caller(name: int) -> None:
            for number in range(20):
                answers.append(client.apply(b"%d.%d" % (name, number)))

        threads = [threading.Thread(target=caller, args=(name,)) for name in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(answers) == 1000


def test_greenlets_wait_side_by_side_patched_or_not(cluster: Cluster) -> None:
    leader = cluster.peers["n1"]
    with Client(cluster.seeds, 30.0) as client:
        client.apply(b"first")
        leader.answer_calls = False
        waiting = [gevent.spawn(client.apply, b"%d" % number) for number in range(20)]
        beside = gevent.spawn(lambda: gevent.sleep(0.01) or "ran")
        assert beside.get(timeout=10) == "ran"
        for _ in range(1000):
            if len(leader.calls) == 21:
                break
            gevent.sleep(0.01)
        finish(leader.calls[1:], [b"at last"] * 20)
        gevent.joinall(waiting, timeout=20)
        assert [greenlet.value for greenlet in waiting] == [b"at last"] * 20


@pytest.mark.usefixtures("patient")
def test_a_stale_read_asks_the_server_it_names_or_any(cluster: Cluster) -> None:
    third = cluster.peers["n3"]
    third.call_error = None
    with Client(cluster.seeds, 30.0) as client:
        assert client.read(b"r", "stale", address=third.address) == b"echo r"
        assert len(third.calls) == 1 and third.calls[0].consistency is Consistency.STALE
        assert client.read(b"r", Consistency.STALE) == b"echo r"
        with pytest.raises(ConfigError):
            client.read(b"r", address=third.address)
        with pytest.raises(ConfigError):
            client.read(b"r", "sometimes")


def test_status_and_cluster_info(cluster: Cluster) -> None:
    with Client(cluster.seeds[1]) as client:
        info = client.cluster_info()
        assert (info.cluster_id, info.leader_id) == ("c1", "n1")
        assert [member.id for member in info.members] == ["n1", "n2", "n3"]
        assert client.status().id == "n1"
        assert client.status(cluster.seeds[2]).id == "n3"
        with pytest.raises(Unreachable):
            client.status(free_address(), timeout_seconds=1.0)


# Following the leader


def test_the_client_follows_a_hint_and_an_election(cluster: Cluster) -> None:
    with Client(cluster.seeds[0]) as client:
        client.apply(b"1")
        cluster.lead("n2")
        assert client.apply(b"2") == b"echo 2"
        cluster.lead("")
        threading.Timer(0.5, cluster.lead, args=("n3",)).start()
        assert client.apply(b"3") == b"echo 3"
        assert [call.message for call in cluster.peers["n3"].calls if call.error is None] == [b"3"]


def test_the_client_outlives_its_only_seed(cluster: Cluster) -> None:
    with Client(cluster.seeds[0]) as client:
        client.apply(b"1")
        cluster.peers["n1"].transport.stop()
        cluster.lead("n2")
        try:
            answer = client.apply(b"2")
        except OutcomeUnknown:  # it was sent in the moment in which the stream died
            answer = client.apply(b"2")
        assert answer == b"echo 2"


def test_seeds_are_never_dropped_and_members_never_replaced_by_none(cluster: Cluster) -> None:
    with Client([cluster.seeds[0], free_address()]) as client:
        client.apply(b"1")
        gateway = client._gateway
        assert len(gateway.servers) == 4
        for peer in cluster.peers.values():
            peer.members = {}
        gateway.probe(time.monotonic() + 5)
        assert len(gateway.servers) == 4
        for peer in cluster.peers.values():
            peer.members = {"n3": cluster.peers["n3"].address}
        wait_until(lambda: gateway.probe(time.monotonic() + 5) and len(gateway.servers) == 3)
        assert gateway.servers == (*client._seeds, cluster.peers["n3"].address)


def test_a_leader_that_cannot_be_reached_from_here_is_asked_through_a_member(cluster: Cluster) -> None:
    for peer in cluster.peers.values():
        peer.leader = ("n9", "127.0.0.1:1")
        peer.call_error = None
    with Client(cluster.seeds[1], timeout_seconds=15.0) as client:
        assert client.apply(b"around") == b"echo around"
    taken = [call for peer in cluster.peers.values() for call in peer.calls if call.error is None]
    assert len(taken) == 1 and not taken[0].forwarded  # so whoever got it passes it on


# What fails, and how


def test_without_a_leader_a_call_ends_in_time_and_says_how_things_stand(cluster: Cluster) -> None:
    cluster.lead("")
    cluster.peers["n3"].transport.stop()
    with Client(cluster.seeds, 30.0) as client:

        def write() -> None:
            start = time.monotonic()
            try:
                client.apply(b"w", timeout_seconds=1.0)
            finally:
                assert time.monotonic() - start < 10.0

        assert_fails(write, NoLeader, "no leader: 2 of 3 servers answer")
        assert not any(peer.calls for peer in cluster.peers.values())


def test_nobody_there_is_unreachable_within_the_timeout() -> None:
    with Client([free_address(), free_address()], 30.0) as client:
        start = time.monotonic()
        with pytest.raises(Unreachable, match="0 of 2 servers answer"):
            client.apply(b"w", timeout_seconds=0.5)
        with pytest.raises(Unreachable):
            client.cluster_info(timeout_seconds=0.5)
        assert time.monotonic() - start < 10.0


def test_what_certainly_did_not_happen_is_tried_again(cluster: Cluster) -> None:
    leader = cluster.peers["n1"]
    leader.call_error = ProposalDropped("leadership is being handed over")
    with Client(cluster.seeds, 30.0) as client:

        def relent() -> None:
            wait_until(lambda: len(leader.calls) >= 3)
            leader.call_error = None

        thread = threading.Thread(target=relent)
        thread.start()
        assert client.apply(b"w") == b"echo w"
        thread.join()
        leader.call_error = ProposalDropped("too much waits")
        late = (OutcomeUnknown, NoLeader, Unreachable)
        assert_fails(lambda: client.apply(b"w", timeout_seconds=1.0), ProposalDropped, "too much waits", late=late)


@pytest.mark.usefixtures("patient")
def test_a_write_that_may_have_happened_is_not_tried_again(cluster: Cluster) -> None:
    leader = cluster.peers["n1"]
    leader.call_error = OutcomeUnknown("leadership was lost")
    with Client(cluster.seeds, 30.0) as client:
        with pytest.raises(OutcomeUnknown, match="leadership was lost"):
            client.apply(b"w")
        assert len(leader.calls) == 1
        leader.call_error = ReadFailed("no such key")
        with pytest.raises(ReadFailed, match="no such key"):
            client.read(b"r")
        leader.call_error, leader.answer_calls = None, False
        start = time.monotonic()
        with pytest.raises(OutcomeUnknown, match="may have happened"):
            client.apply(b"w", timeout_seconds=0.4)
        assert_fails(lambda: client.read(b"r", timeout_seconds=0.4), ReadTimeout)
        assert time.monotonic() - start < 10.0

        def stop_once_sent() -> None:
            wait_until(lambda: any(call.message == b"last" for call in leader.calls))
            leader.transport.stop()

        thread = threading.Thread(target=stop_once_sent)
        thread.start()
        with pytest.raises(OutcomeUnknown, match="connection broke"):
            client.apply(b"last")
        thread.join()


@pytest.mark.usefixtures("patient")
def test_a_closed_client_says_so(cluster: Cluster) -> None:
    client = Client(cluster.seeds, 30.0)
    cluster.peers["n1"].answer_calls = False
    ended: list[BaseException] = []

    def caller(kind: str) -> None:
        try:
            client.apply(b"w") if kind == "w" else client.read(b"r")
        except BaseException as error:
            ended.append(error)

    threads = [threading.Thread(target=caller, args=(kind,)) for kind in "wr"]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(cluster.peers["n1"].calls) == 2)
    client.close()
    client.close()
    for thread in threads:
        thread.join(10)
    assert {type(error) for error in ended} == {OutcomeUnknown, NodeStopped}
    for call in (client.apply, client.commit, client.read):
        with pytest.raises(NodeStopped, match="the client was closed"):
            call(b"x")
    with pytest.raises(NodeStopped):
        client.status()


def test_a_client_in_a_forked_child_says_so(cluster: Cluster) -> None:
    with Client(cluster.seeds) as client, Client(cluster.seeds, exactly_once=True) as numbering:
        client.apply(b"1")
        numbering.apply(b"1")
        assert numbering._session is not None
        locks = (numbering._session._lock, numbering._gateway._lock, client._gateway._lock)
        for lock in locks:
            lock.acquire()  # as another thread might have, when the process forks
        child = os.fork()
        if child != 0:
            for lock in locks:
                lock.release()
        if child == 0:
            refused = 0
            for each in (client, numbering):
                try:
                    each.apply(b"2")
                except NodeForked:
                    refused += 1
                each.close()
            os._exit(7 if refused == 2 else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert client.apply(b"3") == b"echo 3"


@pytest.mark.parametrize("seeds", ["", ",", [], "nonsense", "h:1,h", ["h:x"]])
def test_seeds_must_be_addresses(seeds: str | list[str]) -> None:
    with pytest.raises(ConfigError):
        Client(seeds)


def test_seeds_are_given_as_a_list_or_with_commas() -> None:
    assert parse_seeds("a:1, b:2,a:1") == parse_seeds(["a:1", "b:2"]) == ("a:1", "b:2")
    with pytest.raises(ConfigError):
        Client("a:1", timeout_seconds=0)
    with Client("127.0.0.1:1") as client, pytest.raises(ConfigError):
        client.apply("text")  # type: ignore[arg-type]
