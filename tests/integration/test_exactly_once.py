"""A counter is written to while leaders are killed and all restart, from folded snapshots: the sum is exact."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from geraft.client import Client
from geraft.errors import OutcomeUnknown
from geraft.testing.cluster import Cluster, wait_until

pytestmark = pytest.mark.slow  # real processes

PROGRAMS = str(Path(__file__).parent / "programs")


@pytest.fixture(scope="module")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", PROGRAMS)
        options = ["--app", "tally:Tally", "--compaction-interval", "0.5", "--trailing-entries", "0"]
        with Cluster(tmp_path_factory.mktemp("tally"), options=options) as cluster:
            yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Cluster:
    running_cluster.heal()
    return running_cluster


class Tellers:
    """Threads that write names of their own through one client; done: what was answered, answer by name."""

    def __init__(self, client: Client, prefix: str, callers: int = 16) -> None:
        self.client = client
        self.prefix = prefix
        self.done: dict[str, bytes] = {}
        self.unknown: set[str] = set()
        self.failed: list[BaseException] = []
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(callers)]
        for thread in self._threads:
            thread.start()

    def _run(self, caller: int) -> None:
        count = 0
        try:
            while not self._ending.is_set():
                count += 1
                name = f"{self.prefix}/{caller}/{count}"
                try:
                    self.done[name] = self.client.apply(name.encode(), timeout_seconds=60)
                except OutcomeUnknown:
                    self.unknown.add(name)
        except BaseException as error:
            self.failed.append(error)

    def wait_for_more(self, count: int = 200) -> None:
        wanted = len(self.done) + count
        wait_until(f"{count} more writes", lambda: len(self.done) >= wanted or self.failed, 60.0)
        assert not self.failed, self.failed

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(60)
        assert not self.failed, self.failed


class Reader:
    """A thread that reads through any member, and sees all that was answered before, whoever dies."""

    def __init__(self, client: Client, tellers: Tellers) -> None:
        self.client = client
        self.tellers = tellers
        self.reads = 0
        self.failed: list[BaseException] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ending.wait(0.05):
                before = list(self.tellers.done)
                held = json.loads(self.client.read(b"", timeout_seconds=60, read_from="any"))
                missing = [name for name in before if name not in held]
                assert not missing, f"answered before the read began, and not seen by it: {missing}"
                self.reads += 1
        except BaseException as error:
            self.failed.append(error)

    def end(self) -> None:
        self._ending.set()
        self._thread.join(60)
        assert not self.failed, self.failed
        assert self.reads > 10


def counts(cluster: Cluster, node: str) -> dict[str, int]:
    """What this very node has applied, by name."""
    with cluster.client() as client:
        reply = client.read(b"", "stale", address=cluster.address(node), timeout_seconds=30)
    return dict(json.loads(reply))


def exactly_once_client(cluster: Cluster) -> Client:
    return Client(list(cluster.members.values()), 60.0, exactly_once=True)


def test_rule_c1_leaders_are_killed_and_all_restart_and_the_sum_is_exact(cluster: Cluster) -> None:
    with exactly_once_client(cluster) as client:
        tellers = Tellers(client, "killed")
        reader = Reader(client, tellers)
        for _ in range(4):
            tellers.wait_for_more()
            leader = cluster.leader()
            cluster.kill(leader)
            cluster.leader(other_than=leader)
            tellers.wait_for_more()
            cluster.start(leader)
        tellers.wait_for_more()
        for node in cluster.members:
            cluster.kill(node)
        cluster.start()
        tellers.wait_for_more()
        tellers.end()
        reader.end()
        assert not tellers.unknown, "each was repeated until its outcome was known"
    cluster.wait_until_even()
    for node in cluster.members:
        held = {name: count for name, count in counts(cluster, node).items() if name.startswith("killed/")}
        assert held == dict.fromkeys(tellers.done, 1), f"{node} applied {len(held)} of {len(tellers.done)}"
    assert all(cluster.status(node).snapshot_index > 0 for node in cluster.members)
    assert any("installed snapshot" in node.said() for node in cluster.nodes.values()), "none was sent"
    answers = list(tellers.done.values())
    assert len(set(answers)) == len(answers), "each write has an answer of its own"


def test_a_leader_that_stands_still_delays_writes_for_a_bounded_time_and_doubles_none(cluster: Cluster) -> None:
    """It keeps its connections and says nothing; what it took is repeated elsewhere, and it goes on with it later."""
    with exactly_once_client(cluster) as client:
        tellers = Tellers(client, "paused")
        tellers.wait_for_more()
        leader = cluster.leader()
        began = time.monotonic()
        cluster.pause(leader)
        tellers.wait_for_more(50)
        took = time.monotonic() - began
        cluster.resume(leader)
        tellers.wait_for_more(50)
        tellers.end()
        assert not tellers.unknown
        assert took < 25, "an election, and a connection that is given up after two seconds of silence"
    cluster.wait_until_even()
    for node in cluster.members:
        held = {name: count for name, count in counts(cluster, node).items() if name.startswith("paused/")}
        assert held == dict.fromkeys(tellers.done, 1)


def test_a_client_that_crashed_leaves_nothing_behind_that_hinders_the_next(cluster: Cluster) -> None:
    first = exactly_once_client(cluster)
    tellers = Tellers(first, "crashed", callers=4)
    tellers.wait_for_more(50)
    first._gateway.close()  # as when its process dies: no session is closed, writes under way are left alone
    tellers._ending.set()
    for thread in tellers._threads:
        thread.join(60)
    with exactly_once_client(cluster) as second:
        following = Tellers(second, "taken over", callers=4)
        following.wait_for_more(50)
        leader = cluster.leader()
        cluster.kill(leader)
        following.wait_for_more(50)
        cluster.start(leader)
        following.end()
        assert not following.unknown
    cluster.wait_until_even()
    for node in cluster.members:
        held = counts(cluster, node)
        assert all(held[name] == 1 for name in [*tellers.done, *following.done])
        assert all(held.get(name, 0) <= 1 for name in tellers.unknown)


def test_a_write_without_a_session_says_that_it_does_not_know_where_one_with_a_session_knows(cluster: Cluster) -> None:
    """The reason for it all: the same killing, with and without."""
    with Client(list(cluster.members.values()), 60.0) as plain, exactly_once_client(cluster) as client:
        without, with_session = Tellers(plain, "without", callers=8), Tellers(client, "with", callers=8)
        for _ in range(3):
            leader = cluster.leader()
            without.wait_for_more(30)
            cluster.kill(leader)
            with_session.wait_for_more(30)
            cluster.start(leader)
            time.sleep(0.1)
        without.end()
        with_session.end()
        assert without.unknown and not with_session.unknown
