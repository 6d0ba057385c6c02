"""Three processes with a node of each of several groups: what befalls a process befalls all of its groups."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from cluster_stories import tune
from host_processes import end_program, line_of

from geraft.client import Client
from geraft.kv import decode_pairs, decode_value, get, list_pairs, put
from geraft.runtime.status import NodeStatus
from geraft.testing.cluster import PATIENT, Cluster, LinkedCluster, free_addresses, wait_until

pytestmark = pytest.mark.slow  # real processes

ROOT = Path(__file__).resolve().parent.parent.parent
GROUPS = [f"g{number}" for number in range(6)]
OPTIONS = [option for group in GROUPS for option in ("--group", group)]


class Groups:
    """Clients of every group of a cluster of processes."""

    def __init__(self, cluster: Cluster, groups: list[str] | None = None) -> None:
        self.cluster = cluster
        self.clients = {
            group: Client(list(cluster.members.values()), group=group, timeout_seconds=5.0)
            for group in groups or GROUPS
        }
        self.written: dict[str, dict[str, bytes]] = {group: {} for group in self.clients}

    def close(self) -> None:
        for client in self.clients.values():
            client.close()

    def write(self, name: str, timeout_seconds: float = 30.0) -> None:
        """One key to each group, whose value tells the group."""
        for group, client in self.clients.items():
            value = f"{name} in {group}".encode()
            self._write(client, put(name, value), timeout_seconds)
            self.written[group][name] = value

    @staticmethod
    def _write(client: Client, command: bytes, timeout_seconds: float) -> None:
        """Again, if its outcome is unknown: the same value twice is no harm."""

        def written() -> bool:
            client.apply(command, timeout_seconds=5.0)
            return True

        wait_until("a write", written, timeout_seconds)

    def status(self, group: str, node: str) -> NodeStatus:
        return self.clients[group].status(self.cluster.address(node), timeout_seconds=2.0)

    def leaders(self, *nodes: str) -> dict[str, str]:
        """Of each group, as these nodes agree; raises AssertionError if they do not within a while."""

        def of(group: str) -> str:
            statuses = [self.status(group, node) for node in nodes or self.cluster.members]
            named = {status.leader_id for status in statuses}
            leading = [status.id for status in statuses if status.role == "leader"]
            return leading[0] if len(named) == 1 and named == set(leading) else ""

        return {group: wait_until(f"a leader of {group}", partial(of, group)) for group in self.clients}

    def wait_until_all_rest(self, *nodes: str) -> None:
        def resting(group: str) -> bool:
            return all("rests" in self.status(group, node).explanation for node in nodes or self.cluster.members)

        for group in self.clients:
            wait_until(f"{group} rests", partial(resting, group), 90.0)

    def check(self, *nodes: str) -> None:
        """Each of these nodes has exactly what was written to its group."""
        for group in self.written:
            for node in nodes or self.cluster.members:
                wait_until(f"{node} has all of {group}", partial(self._has_all, group, node))

    def _has_all(self, group: str, node: str) -> bool:
        address = self.cluster.address(node)
        reply = self.clients[group].read(list_pairs(""), "stale", timeout_seconds=5.0, address=address)
        return dict(decode_pairs(reply)) == self.written[group]


@pytest.fixture
def three(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Cluster, Groups]]:
    """Its parameter: more options of the nodes."""
    with Cluster(tmp_path, options=[*OPTIONS, *getattr(request, "param", ())]) as cluster, ExitStack() as stack:
        groups = Groups(cluster)
        stack.callback(groups.close)
        yield cluster, groups


def test_a_process_that_is_killed_costs_no_group_anything(three: tuple[Cluster, Groups]) -> None:
    cluster, groups = three
    groups.write("before")
    groups.wait_until_all_rest()
    victim = groups.leaders()[GROUPS[0]]
    left = [node for node in cluster.members if node != victim]
    cluster.kill(victim)
    groups.write("without it")
    groups.wait_until_all_rest(*left)
    groups.check(*left)
    cluster.restart(victim)
    groups.check()
    groups.wait_until_all_rest()


def test_all_are_killed_and_come_back(three: tuple[Cluster, Groups]) -> None:
    cluster, groups = three
    for number in range(3):
        groups.write(f"key {number}")
    for node in cluster.members:
        cluster.kill(node)
    cluster.start()
    groups.write("after")
    groups.check()


@pytest.mark.parametrize("three", [PATIENT], indirect=True, ids=["patient"])
def test_a_process_that_stands_still_while_its_groups_rest(three: tuple[Cluster, Groups]) -> None:
    """Its pulse stops, so the others elect leaders for its groups; when it goes on, it finds that out and follows."""
    cluster, groups = three
    groups.write("before")
    groups.wait_until_all_rest()
    before = groups.leaders()
    victim = before[GROUPS[0]]
    left = [node for node in cluster.members if node != victim]
    cluster.pause(victim)
    during = groups.leaders(*left)
    assert victim not in during.values()
    assert {group: leader for group, leader in before.items() if leader != victim}.items() <= during.items(), (
        "whose leader lives, keeps it"
    )
    groups.write("meanwhile")
    cluster.resume(victim)
    groups.check()
    assert set(groups.leaders()) == set(GROUPS)
    groups.wait_until_all_rest()


def test_processes_have_one_connection_each_way_however_many_groups(three: tuple[Cluster, Groups]) -> None:
    cluster, groups = three
    groups.wait_until_all_rest()
    ports = {int(address.rpartition(":")[2]): node for node, address in cluster.members.items()}
    for node in cluster.members:

        def one_to_each_other(node: str = node) -> bool:
            out = [ports[port] for port in ports_dialled_by(cluster.nodes[node].pid) if port in ports]
            return sorted(out) == sorted(set(cluster.members) - {node})

        wait_until(f"{node} has opened one to each other", one_to_each_other)


def test_a_link_that_fails_one_way_while_all_rest(tmp_path: Path) -> None:
    with LinkedCluster(tmp_path, options=OPTIONS[:4]) as cluster, ExitStack() as stack:
        groups = Groups(cluster, GROUPS[:2])
        stack.callback(groups.close)
        groups.write("before")
        groups.wait_until_all_rest()
        leader = groups.leaders()[GROUPS[0]]
        others = [node for node in cluster.members if node != leader]
        with cluster.links.cut((leader, other) for other in others):
            groups.write("meanwhile", timeout_seconds=60.0)
        groups.write("after")
        groups.check()
        groups.wait_until_all_rest()


def test_one_of_the_processes_is_monkey_patched(tmp_path: Path) -> None:
    with Cluster(tmp_path, options=OPTIONS, patched=1) as cluster, ExitStack() as stack:
        groups = Groups(cluster)
        stack.callback(groups.close)
        groups.write("before")
        groups.wait_until_all_rest()
        cluster.kill("n3")
        groups.write("without it")
        cluster.restart("n3")
        groups.check()
        cluster.kill("n1")
        groups.write("with the patched one")
        groups.check("n2", "n3")


def test_members_of_a_group_come_and_go_and_the_other_groups_stay(tmp_path: Path) -> None:
    with Cluster(tmp_path, options=[*OPTIONS[:4], "--trailing-entries", "5"]) as cluster, ExitStack() as stack:
        groups = Groups(cluster, GROUPS[:2])
        stack.callback(groups.close)
        for number in range(20):
            groups.write(f"key {number}")
        for group in groups.clients:
            leader = groups.leaders()[group]
            groups.clients[group].take_snapshot(cluster.address(leader), timeout_seconds=20.0)
        cluster.add("n4", join=["n1"])
        for group, client in groups.clients.items():
            wait_until(f"n4 votes in {group}", partial(is_voter, client, "n4"))
        groups.check("n4")
        first, second = groups.clients
        groups.clients[first].remove_server("n4", timeout_seconds=20.0)
        wait_until(f"n4 has left {first}", lambda: not is_voter(groups.clients[first], "n4"))
        wait_until(f"n4 votes in {second}", lambda: is_voter(groups.clients[second], "n4"))
        heir = next(node for node in cluster.members if node != groups.leaders("n1", "n2", "n3")[second])

        def heir_leads() -> bool:
            groups.clients[second].transfer_leadership(heir, timeout_seconds=20.0)
            return groups.leaders("n1", "n2", "n3")[second] == heir

        wait_until(f"{heir} leads {second}", heir_leads)
        groups.write("after")
        assert decode_value(groups.clients[second].read(get("after"))) == f"after in {second}".encode()


def test_the_program_of_the_documentation(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "groups.md").read_text(), re.DOTALL)
    program = tmp_path / "program.py"
    program.write_text(code)
    members = dict(zip(["n1", "n2", "n3"], free_addresses(3), strict=True))
    named = [f"{id}={address}" for id, address in members.items()]
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), id, *named],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(ROOT)},
        )
        for id in members
    ]
    try:
        assert [line_of(process) for process in processes] == ["ready\n"] * 3
        for tenant in ("ann", "bob", "cem"):
            tune(members.values(), group=tenant, acceptable_pause_seconds=3.0)
        told = [("ann", 5), ("bob", 7), ("ann", 1)]
        for process, (tenant, number) in zip(processes, told, strict=True):
            assert process.stdin is not None
            process.stdin.write(f"{tenant} {number}\n")
            process.stdin.flush()
            told_back = line_of(process)
            assert told_back == {"ann 5": "5\n", "bob 7": "7\n", "ann 1": "6\n"}[f"{tenant} {number}"]
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        assert [process.wait(30) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            end_program(process)


def is_voter(client: Client, node: str) -> bool:
    return node in voters(client)


def ports_dialled_by(pid: int) -> list[int]:
    """The remote port of each established TCP connection of that process (proc(5): net/tcp)."""
    sockets = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            sockets.add(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:
            pass  # closed meanwhile
    rows = []
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}") as file:
            rows += [line.split() for line in file.readlines()[1:]]
    return [int(row[2].rpartition(":")[2], 16) for row in rows if row[3] == "01" and f"socket:[{row[9]}]" in sockets]


def voters(client: Client) -> set[str]:
    info = client.cluster_info()
    return {member.id for member in info.members} - {member.id for member in info.learners}
