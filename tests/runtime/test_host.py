"""RaftHost: nodes of many groups in one process, on one port; here all in the process of the test."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gevent
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from runtime_parts import PATIENT, QUICK, Journal, in_thread, wait_until

from geraft import Client, Config, MemoryStorage, RaftHost, RaftNode, raft_server_options
from geraft.core.effects import Role
from geraft.errors import AddressInUse, ConfigError, NodeStopped, NoLeader, TransferFailed, UnknownGroup, Unreachable
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import Call, CallKind, monotonic
from geraft.runtime.rest import AGAIN_SECONDS_MAX
from geraft.runtime.wishes import Transfer
from geraft.service import grpc_executor
from geraft.testing.cluster import free_addresses

IDS = ["n1", "n2", "n3"]


def wait_until_resting(nodes: list[RaftNode]) -> None:
    """On a busy machine some offers come to nothing, and each doubles the pause before the next one."""

    def awake() -> list[str]:
        told = [(node.id, node.status().explanation) for node in nodes]
        return [f"{id}: {explanation}" for id, explanation in told if "rests" not in explanation]

    try:
        wait_until(lambda: not awake(), timeout_seconds=2 * AGAIN_SECONDS_MAX)
    except AssertionError:
        raise AssertionError(f"awake: {awake()}") from None


class Hosts:
    """Three of them, in one process. nodes: by group and id."""

    def __init__(self, rest_after_seconds: float = 0.15) -> None:
        self.members = dict(zip(IDS, free_addresses(3), strict=True))
        self.hosts = {
            id: RaftHost(address, config=PATIENT, rest_after_seconds=rest_after_seconds).start()
            for id, address in self.members.items()
        }
        self.apps: dict[tuple[str, str], Journal] = {}

    def add(self, *groups: str) -> None:
        """A node of each of these groups in each host, started."""
        for group in groups:
            for id in IDS:
                self.add_one(group, id)

    def add_one(self, group: str, id: str, storage: MemoryStorage | None = None) -> RaftNode:
        app = self.apps[group, id] = Journal()
        return self.hosts[id].node(group, app, storage or MemoryStorage(), id=id, bootstrap=self.members).start()

    def node(self, group: str, id: str) -> RaftNode:
        return self.hosts[id].nodes[group]

    def leader(self, group: str) -> RaftNode:
        def leading() -> RaftNode | None:
            nodes = [host.nodes[group] for host in self.hosts.values() if group in host.nodes]
            return next((node for node in nodes if node.running and node.status().role == "leader"), None)

        found: RaftNode = wait_until(leading)
        return found

    def rests(self, *groups: str) -> None:
        """Wait until all nodes of these groups rest."""
        wait_until_resting([host.nodes[group] for host in self.hosts.values() for group in groups])

    def stop(self) -> None:
        for host in self.hosts.values():
            host.stop(5.0)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    yield made
    made.stop()


def test_each_group_is_a_cluster_of_its_own(hosts: Hosts) -> None:
    hosts.add("a", "b")
    hosts.node("a", "n1").apply(b"one", timeout_seconds=20)
    hosts.node("b", "n2").apply(b"two", timeout_seconds=20)
    wait_until(lambda: all(len(app.commands) == 1 for app in hosts.apps.values()))
    assert {group: app.commands for (group, _), app in hosts.apps.items()} == {"a": [b"one"], "b": [b"two"]}
    clusters = {hosts.node(group, id).cluster_info().cluster_id for group in "ab" for id in IDS}
    assert len(clusters) == 2
    assert {hosts.node(group, id).address for group in "ab" for id in IDS} == set(hosts.members.values())


def test_a_group_that_has_nothing_to_do_rests_until_it_has(hosts: Hosts) -> None:
    hosts.add("a", "b")
    hosts.rests("a", "b")
    terms = {group: hosts.leader(group).status().term for group in "ab"}
    hosts.node("a", "n1").apply(b"x", timeout_seconds=20)  # forwarded, if another one leads
    hosts.rests("a", "b")
    for group in "ab":
        for id in IDS:
            wait_until(partial(rests_and_hears, hosts.node(group, id)))
    assert terms == {group: hosts.leader(group).status().term for group in "ab"}, "nobody campaigned"
    wait_until(lambda: all(hosts.apps["a", id].commands == [b"x"] for id in IDS))


def rests_and_hears(node: RaftNode) -> bool:
    """A follower its leader, a leader all others."""
    status = node.status()
    leader_or_all = [peer for peer in status.peers if status.role == "leader" or peer.id == status.leader_id]
    heard = all(peer.heard_seconds_ago is not None and peer.heard_seconds_ago < 1 for peer in leader_or_all)
    return "rests" in status.explanation and heard


def test_while_a_group_rests_no_message_of_it_is_sent(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    from geraft.transport import carrier

    hosts.add("a")
    sent: list[int] = []
    put_item = carrier._ProcessStream.put_item

    def note(stream: Any, kind: int, encoded: bytes) -> None:
        sent.append(kind)
        put_item(stream, kind, encoded)

    monkeypatch.setattr(carrier._ProcessStream, "put_item", note)
    for _ in range(10):  # a machine that stalls for longer than they are patient wakes them
        hosts.rests("a")
        sent.clear()
        steps = {id: hosts.node("a", id)._supervisor._raft.now for id in IDS}
        threading.Event().wait(1.0)
        told, later = list(sent), {id: hosts.node("a", id)._supervisor._raft.now for id in IDS}
        if set(told) == {pb.ITEM_KIND_PULSE_REQ} and len(told) < 6 * 30 and steps == later:
            break
    assert set(told) == {pb.ITEM_KIND_PULSE_REQ}
    assert len(told) < 6 * 30  # a pulse to each of two others, every 50 ms
    assert steps == later, "the core is told nothing"


def test_when_the_process_of_its_leader_ends_a_resting_group_elects_another(hosts: Hosts) -> None:
    hosts.add("a")
    hosts.rests("a")
    leader = hosts.leader("a")
    before = leader.status().term
    hosts.hosts[leader.id]._shared._let_go(20.0)  # as a process that dies: no hand-over, all its streams break
    others = [hosts.node("a", id) for id in IDS if id != leader.id]
    wait_until(lambda: any(node.status().role == "leader" for node in others))
    assert others[0].apply(b"x", timeout_seconds=20)
    assert others[0].status().term > before
    wait_until_resting(others)


def test_a_leader_that_stops_hands_over_although_all_rest(hosts: Hosts) -> None:
    hosts.add("a", "b")
    hosts.rests("a", "b")
    leader = hosts.leader("a")
    others = [hosts.node("a", id) for id in IDS if id != leader.id]
    hosts.hosts[leader.id].forget("a")
    wait_until(lambda: any(node.status().role == "leader" for node in others))
    assert "a" not in hosts.hosts[leader.id].nodes
    hosts.rests("b")
    with pytest.raises(NodeStopped):
        leader.apply(b"x")


def test_a_host_that_does_not_stop_in_time_lets_go_of_its_port_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    (address,) = free_addresses(1)
    name, _, port = address.rpartition(":")
    host = RaftHost(address, config=QUICK).start()
    socket.create_connection((name, int(port)), 5).close()
    monkeypatch.setattr(gevent, "killall", lambda greenlets: gevent.sleep(2))
    host.stop(2.0)

    def refused() -> bool:
        try:
            socket.create_connection((name, int(port)), 5).close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(refused, timeout_seconds=20)


def test_a_node_that_fails_while_it_leads_and_rests_lets_the_others_know(hosts: Hosts) -> None:
    """Its process lives and its pulse beats, but that stands for it no more."""
    hosts.add("a")
    hosts.rests("a")
    leader = hosts.leader("a")
    others = [hosts.node("a", id) for id in IDS if id != leader.id]
    leader._supervisor.failed(RuntimeError("as if a part of it had died"))
    wait_until(lambda: any(node.status().role == "leader" for node in others), timeout_seconds=10.0)
    assert others[0].apply(b"x", timeout_seconds=20)


def test_two_of_three_rest_while_the_third_is_gone_and_take_it_in_again(hosts: Hosts) -> None:
    hosts.add("a")
    leader = hosts.leader("a")
    gone = next(id for id in IDS if id != leader.id)
    hosts.rests("a")
    storage = hosts.node("a", gone)._supervisor._storage
    assert isinstance(storage, MemoryStorage)
    hosts.hosts[gone].stop(5.0)
    left = [hosts.node("a", id) for id in IDS if id != gone]
    left[0].apply(b"missed", timeout_seconds=20)
    wait_until_resting(left)
    hosts.hosts[gone] = RaftHost(hosts.members[gone], config=PATIENT, rest_after_seconds=0.15).start()
    hosts.add_one("a", gone, storage)
    wait_until(lambda: hosts.apps["a", gone].commands == [b"missed"])
    hosts.rests("a")


@pytest.mark.timeout(400)  # six rests, each of which may be long in coming
def test_reads_of_every_kind_after_a_rest(hosts: Hosts) -> None:
    hosts.add("a")
    hosts.node("a", "n2").apply(b"x", timeout_seconds=20)
    for consistency in ("linearizable", "lease"):
        for id in IDS:
            hosts.rests("a")
            assert hosts.node("a", id).read(b"", timeout_seconds=20, consistency=consistency) == b"1"
    assert hosts.node("a", "n1").read(b"", consistency="stale") == b"1"


def all_have(apps: list[Journal], count: int) -> bool:
    return all(len(app.commands) == count for app in apps)


def test_many_callers_of_many_groups_from_every_host(hosts: Hosts) -> None:
    groups = [f"g{number}" for number in range(8)]
    hosts.add(*groups)

    def write(group: str, id: str) -> None:
        with hosts.node(group, id).session() as session:
            for number in range(10):
                session.apply(f"{id} {number}".encode(), timeout_seconds=30)

    for thread, outcome in [in_thread(partial(write, group, id)) for group in groups for id in IDS]:
        thread.join(90)
        assert outcome == [None]
    for group in groups:
        apps = [hosts.apps[group, id] for id in IDS]
        wait_until(partial(all_have, apps, 30))
        assert hosts.apps[group, "n1"].commands == hosts.apps[group, "n2"].commands == hosts.apps[group, "n3"].commands


def test_a_client_names_the_group(hosts: Hosts) -> None:
    hosts.add("a", "b")
    with Client(hosts.members.values(), group="b") as client:
        client.apply(b"x", timeout_seconds=20)
        wait_until(lambda: hosts.apps["b", "n1"].commands == [b"x"])
        assert hosts.apps["a", "n1"].commands == []
    for group, said in (("c", "which has a, b"), ("", "name the one")):
        with Client(hosts.members.values(), group=group) as client, pytest.raises(UnknownGroup, match=said):
            for _ in range(10):
                with contextlib.suppress(Unreachable):  # one of them had not said it in time
                    client.apply(b"x", timeout_seconds=2)


def test_health_tells_of_the_host_and_of_each_group(hosts: Hosts) -> None:
    hosts.add("a")
    hosts.leader("a")
    address = hosts.members["n1"]
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]

        def status(service: str) -> int:
            return int(check(health_pb2.HealthCheckRequest(service=service), timeout=5).status)

        assert status("") == health_pb2.HealthCheckResponse.SERVING
        wait_until(lambda: status("geraft.Raft/a") == health_pb2.HealthCheckResponse.SERVING)
        hosts.hosts["n1"].forget("a")
        with pytest.raises(grpc.RpcError, match="health is known of"):
            status("geraft.Raft/a")


def test_a_group_of_one_node_rests_too() -> None:
    (address,) = free_addresses(1)
    with RaftHost(address, config=QUICK, rest_after_seconds=0.1) as host:
        node = host.node("a", Journal(), MemoryStorage(), id="n1", bootstrap={"n1": address}).start()
        assert node.apply(b"x", timeout_seconds=20)
        wait_until_resting([node])
        assert node.apply(b"y", timeout_seconds=20)


def test_a_group_that_shall_not_rest_does_not() -> None:
    made = Hosts(rest_after_seconds=0)
    try:
        made.add("a")
        leader = made.leader("a")
        before = leader._supervisor._raft.round
        threading.Event().wait(0.5)
        wait_until(lambda: leader._supervisor._raft.round > before)
        assert "rests" not in leader.status().explanation
    finally:
        made.stop()


def test_one_group_with_an_app_that_hangs_does_not_stop_the_others(hosts: Hosts) -> None:
    hosts.add("a", "b")
    go_on = threading.Event()

    def hang(command: bytes, index: int) -> None:
        assert go_on.wait(30)

    for id in IDS:
        hosts.apps["a", id].on_write = hang
    waiting = threading.Thread(target=lambda: hosts.node("a", "n1").apply(b"x", timeout_seconds=30))
    waiting.start()
    for number in range(20):
        hosts.node("b", "n1").apply(b"%d" % number, timeout_seconds=20)
    go_on.set()
    waiting.join(30)
    assert not waiting.is_alive()


# A fault in what is done for one group, or towards one process, stays there


def fault(*_: Any) -> None:
    raise RuntimeError("as if there were a mistake in geraft")


def test_a_node_that_can_not_be_told_the_time_ends_and_time_goes_on_for_the_others(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts.add("a", "b")
    leader = hosts.leader("a")
    hosts.leader("b")
    victim = next(hosts.node("a", id) for id in IDS if id != leader.id)
    monkeypatch.setattr(victim._supervisor._log_writer, "busy_seconds", fault)
    leader.apply(b"x", timeout_seconds=20)  # wakes all of them
    wait_until(lambda: not victim.running)
    for id in IDS:
        hosts.node("b", id).apply(b"y", timeout_seconds=20)
    hosts.rests("b")  # for which time must pass


def test_a_message_that_a_node_can_not_handle_ends_no_stream_of_the_others(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hosts.add("a", "b")
    leader = hosts.leader("a")
    other = next(id for id in IDS if id != leader.id)
    hosts.rests("a", "b")
    carrier = hosts.hosts[other]._shared.carrier
    arrivals = set(carrier._arrivals)
    monkeypatch.setattr(hosts.node("a", other)._supervisor._loop, "message_arrived", fault)
    leader.apply(b"x", timeout_seconds=20)  # by the third one
    wait_until(lambda: "internal error of node" in refusals_of(leader, other))
    raft = hosts.node("a", other)._supervisor._raft
    wait_until(lambda: raft.role is Role.PRE_CANDIDATE)  # as it hears nobody; nor does it what they answer

    def stay_up() -> bool:
        """All of them, for longer than one that broke is down; on a busy machine one may break by itself."""
        before = set(carrier._arrivals), [link.pulse for link in carrier._links.values()]
        threading.Event().wait(1.1)
        assert not any(each.error for each in arrivals | before[0]), "ended by us"
        after = set(carrier._arrivals), [link.pulse for link in carrier._links.values()]
        return before == after and len(before[0]) == len(arrivals) and None not in before[1]

    wait_until(stay_up)
    assert "the stream /geraft.Raft/Carry to" not in caplog.text, "failed by what came back"
    hosts.node("b", other).apply(b"y", timeout_seconds=20)


def refusals_of(node: RaftNode, peer: str) -> str:
    return next(each.refusal for each in node.status().peers if each.id == peer)


def test_a_process_that_no_pulse_can_be_sent_to_leaves_the_others_theirs(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts.add("a")
    hosts.rests("a")
    carrier = hosts.hosts["n1"]._shared.carrier
    links = list(carrier._links.values())
    monkeypatch.setattr(links[0], "beat", fault)

    def beats() -> bool:
        pulse = links[1].pulse
        if pulse is None:
            return False
        before = pulse.seen_at
        threading.Event().wait(0.2)
        return pulse.seen_at > before

    threading.Event().wait(0.2)
    wait_until(beats, timeout_seconds=20)


class SlowDisk(MemoryStorage):
    """Each write takes a while, in which the next ones gather."""

    def write(self, ballot: Any, batches: Any) -> None:
        threading.Event().wait(0.005)
        super().write(ballot, batches)


def test_groups_that_write_all_the_time_do_not_keep_another_from_its_disk() -> None:
    """As many of them as log stores get threads."""
    (address,) = free_addresses(1)
    with RaftHost(address, storage_threads_max=2) as host:
        nodes = [
            host.node(group, Journal(), SlowDisk(), id="n1", bootstrap={"n1": address}).start()
            for group in ("busy", "busier", "quiet")
        ]
        for node in nodes:
            node.apply(b"x", timeout_seconds=20)
        enough = threading.Event()

        def write(node: RaftNode) -> None:
            while not enough.is_set():
                node.apply(b"y", timeout_seconds=20)

        writers = [threading.Thread(target=write, args=(node,)) for node in nodes[:2] for _ in range(16)]
        for writer in writers:
            writer.start()
        try:
            for _ in range(10):
                threading.Event().wait(0.1)
                nodes[2].apply(b"z", timeout_seconds=20)
        finally:
            enough.set()
            for writer in writers:
                writer.join(30)


# What is refused


def refusals() -> list[tuple[str, Callable[[], object], str]]:
    member = {"n1": "127.0.0.1:1"}
    return [
        ("no port", lambda: RaftHost("here"), "listen must be host:port"),
        ("no threads", lambda: RaftHost("127.0.0.1:0", app_threads_max=0), "app_threads_max must be at least 1"),
        ("a negative rest", lambda: RaftHost("127.0.0.1:0", rest_after_seconds=-1), "must be a number"),
        (
            "no group",
            lambda: RaftHost("127.0.0.1:0").node("", Journal(), MemoryStorage(), id="n1", bootstrap=member),
            "name the group",
        ),
        (
            "a strange group",
            lambda: RaftHost("127.0.0.1:0").node("a b", Journal(), MemoryStorage(), id="n1", bootstrap=member),
            "a group is named by",
        ),
    ]


@pytest.mark.parametrize(("what", "make", "said"), refusals(), ids=[what for what, _, _ in refusals()])
def test_what_can_not_be_is_refused(what: str, make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_second_node_of_a_group_is_refused(hosts: Hosts) -> None:
    hosts.add("a")
    with pytest.raises(ConfigError, match="has a node of group 'a' already"):
        hosts.add_one("a", "n1")


def test_a_taken_port_is_refused_and_nothing_stays_behind(hosts: Hosts) -> None:
    second = RaftHost(hosts.members["n1"])
    with pytest.raises(AddressInUse):
        second.start()
    with pytest.raises(NodeStopped, match="it starts once"):
        second.start()
    second.stop()


def test_a_node_starts_in_a_host_that_runs_and_not_before() -> None:
    (address,) = free_addresses(1)
    host = RaftHost(address, config=QUICK)
    node = host.node("a", Journal(), MemoryStorage(), id="n1", bootstrap={"n1": address})
    with pytest.raises(NodeStopped, match="start it before its nodes"):
        node.start()
    host.start()
    host.stop()
    host.stop()
    late = host.node("b", Journal(), MemoryStorage(), id="n1", bootstrap={"n1": address})
    with pytest.raises(NodeStopped, match="was stopped"):
        late.start()


def test_a_peer_whose_process_holds_no_groups_is_told_of() -> None:
    plain, address = free_addresses(2)
    members = {"n1": address, "n2": plain}
    with (
        RaftNode(Journal(), MemoryStorage(), id="n2", bootstrap={"n2": plain}, config=QUICK),
        RaftHost(address, config=QUICK) as host,
    ):
        node = host.node("a", Journal(), MemoryStorage(), id="n1", bootstrap=members).start()
        wait_until(lambda: "holds no groups: make its nodes by a RaftHost" in node.status().explanation)
        with pytest.raises(NoLeader, match="holds no groups"):
            node.apply(b"x", wait_for_leader=False)


def test_times_that_are_too_short_for_pulses_keep_a_group_awake() -> None:
    """A node that must suspect its leader within a few pulses can't rest: it would wake for every late one."""
    members = dict(zip(IDS, free_addresses(3), strict=True))
    slow = Config(heartbeat_interval_seconds=0.2, election_timeout_seconds=2.0)
    made = {id: RaftHost(each, config=slow, rest_after_seconds=0.1).start() for id, each in members.items()}
    try:
        nodes = [
            host.node("a", Journal(), MemoryStorage(), id=id, bootstrap=members, config=PATIENT).start()
            for id, host in made.items()
        ]
        nodes[0].apply(b"x", timeout_seconds=20)
        threading.Event().wait(1.0)
        assert not any("rests" in node.status().explanation for node in nodes)
    finally:
        for host in made.values():
            host.stop(5.0)


def test_calls_that_come_back_to_a_node_that_rests_wake_it(hosts: Hosts) -> None:
    """They were forwarded before it rested, and the leader of then did not take them."""
    hosts.add("a")
    hosts.rests("a")
    follower = next(hosts.node("a", id) for id in IDS if hosts.node("a", id).status().role != "leader")
    call = Call(CallKind.APPLY, b"came back", deadline=monotonic() + 20)
    follower._supervisor.resubmit([call])
    assert call.wait(10)
    assert call.error is None
    for _ in range(10):  # on a busy machine a transfer takes too long now and then, and is given up
        hosts.rests("a")
        wish = Transfer("", monotonic() + 20, forwarded=False)
        follower._supervisor.resubmit_wish(wish)
        assert wish.wait(10)
        if not isinstance(wish.error, TransferFailed):
            break
    assert wish.error is None


def test_a_host_on_a_server_of_the_users() -> None:
    (address,) = free_addresses(1)
    server = grpc.server(grpc_executor(), options=raft_server_options())
    echo = {"Say": grpc.unary_unary_rpc_method_handler(lambda request, context: request)}
    host = RaftHost(address, server=server, config=QUICK, rest_after_seconds=0.1)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("example.Echo", echo)])
    assert server.add_insecure_port(address)
    server.start()
    try:
        with host:
            for group in "ab":
                host.node(group, Journal(), MemoryStorage(), id="n1", bootstrap={"n1": address}).start()
            with Client(address, group="b") as client, grpc.insecure_channel(address) as channel:
                client.apply(b"x", timeout_seconds=20)
                assert channel.unary_unary("/example.Echo/Say")(b"hello", timeout=10) == b"hello"
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError, match="does not run"):
            channel.unary_unary("/geraft.Raft/Status")(b"", timeout=10)
    finally:
        server.stop(0.5).wait(10)


def test_an_app_that_had_nothing_to_do_during_a_long_rest_is_not_taken_for_stuck(hosts: Hosts) -> None:
    hosts.add("a")
    hosts.rests("a")
    leader = hosts.leader("a")
    loop = leader._supervisor._loop
    silent: list[float] = []

    def write(command: bytes, index: int) -> None:
        threading.Event().wait(0.3)
        silent.append(loop.app_silent_seconds)

    hosts.apps["a", leader.id].on_write = write
    # So long ago it last got on, and came to where it will be next.
    loop._app_got_on_at, loop._app_at = loop._app_got_on_at - 1000.0, leader.status().last_log_index + 1
    leader.apply(b"x", timeout_seconds=20)
    wait_until(lambda: silent)
    assert silent[0] < 500
