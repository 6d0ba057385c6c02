"""What the stories over real processes share: callers that write all the time, and whether all of it is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Self

import grpc

from geraft import Config
from geraft.client import Client
from geraft.errors import GeraftError, NothingHappened, OutcomeUnknown
from geraft.kv import decode_pairs, list_pairs, put
from geraft.pb import geraft_pb2 as pb
from geraft.pb.geraft_pb2_grpc import RaftStub
from geraft.testing.cluster import Cluster, wait_until

SLOW_TO_ELECT = ("--set", "election_timeout_seconds=5")
"""Instead of PATIENT where leadership is handed over or members change. Must be the same on all nodes."""


def tune(addresses: Iterable[str], *, group: str = "", **settings: float) -> None:
    """Change settings of the nodes there; they keep them until they restart."""
    for address in addresses:
        with Client(address, group=group) as client:
            wait_until(f"{address} to be tuned", partial(client.tune_config, settings, address))


@contextmanager
def tuned(cluster: Cluster, **settings: float) -> Iterator[None]:
    """All nodes run, and go by these settings within the block; those that run at its end go by the defaults after it.

    To be entered before it is asked who leads, so that nothing changes in between.
    """
    tune(map(cluster.address, cluster.members), **settings)
    try:
        yield
    finally:
        running = [node.id for node in cluster.nodes.values() if node.running and not node.paused]
        tune(map(cluster.address, running), **{name: getattr(Config(), name) for name in settings})


class Writers:
    """Threads that write, each key once, from entering to leaving. acknowledged: what was answered, value by key."""

    def __init__(self, cluster: Cluster, prefix: str, callers: int = 4) -> None:
        self.prefix = prefix
        self.acknowledged: dict[str, bytes] = {}
        self.unexpected: list[BaseException] = []
        self._client: Client = cluster.client()
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(callers)]

    def _write(self, caller: int) -> None:
        count = 0
        while not self._ending.is_set():
            count += 1
            key, value = f"{self.prefix}/{caller}/{count}", b"%d" % count
            try:
                self._client.apply(put(key, value))
            except (NothingHappened, OutcomeUnknown):
                continue  # while there is no leader; what counts is what was acknowledged
            except BaseException as error:
                self.unexpected.append(error)
                return
            self.acknowledged[key] = value
            time.sleep(0.002)  # leaves the two cores to those who serve

    def wait_for_more(self, count: int = 50) -> None:
        """Block until so many further writes are acknowledged."""
        wanted = len(self.acknowledged) + count
        wait_until(f"{count} more writes", lambda: len(self.acknowledged) >= wanted or self.unexpected, 60.0)
        assert not self.unexpected

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(30)
        self._client.close()


def held(cluster: Cluster, node: str, prefix: str) -> dict[str, bytes]:
    """What this very node has applied of the keys with the prefix."""
    with cluster.client() as client:
        reply = client.read(list_pairs(prefix), "stale", address=cluster.address(node), timeout_seconds=30)
    return dict(decode_pairs(reply))


def voters(client: Client) -> set[str]:
    info = client.cluster_info()
    return {member.id for member in info.members} - {member.id for member in info.learners}


def wait_until_voters(client: Client, *nodes: str) -> None:
    wait_until(f"the voters are {nodes}", lambda: voters(client) == set(nodes), 60.0)


def assert_nothing_lost(cluster: Cluster, writers: Writers) -> None:
    """Every acknowledged write is on every node, and all nodes hold the same."""
    cluster.wait_until_even()
    assert writers.acknowledged
    held_by = {node: held(cluster, node, writers.prefix) for node in cluster.members}
    name, first = held_by.popitem()
    missing = {key for key, value in writers.acknowledged.items() if first.get(key) != value}
    assert not missing
    for node, pairs in held_by.items():
        assert pairs == first, f"{node} and {name} differ"


def read_there(address: str, request: bytes, timeout_seconds: float) -> bytes:
    """A linearizable read that the node at the address must answer by itself. Raises grpc.RpcError if it does not."""
    with grpc.insecure_channel(address) as channel:
        asked = pb.ApplyReq(message=request, timeout_ms=int(timeout_seconds * 1000), forwarded=True)
        return bytes(RaftStub(channel).RequestApply(asked, timeout=timeout_seconds).message)


def terms(cluster: Cluster) -> dict[str, int]:
    """The term of each node; all run."""
    return {node: cluster.status(node).term for node in cluster.members}


def refusals(cluster: Cluster, node: str) -> dict[str, str]:
    """Why the node does not hear a peer, or the peer not it, by peer."""
    try:
        return {peer.id: peer.refusal for peer in cluster.status(node).peers if peer.refusal}
    except GeraftError:
        return {}
