"""What the stories share whose nodes all run in the process of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from blinker import Signal

from geraft import Config, MemoryRepository, MemoryStorage, RaftApp, RaftNode, RaftStorage, to_raft_app
from geraft.errors import AddressInUse
from geraft.kv import KeyValueApp
from geraft.testing.cluster import free_addresses, wait_until

BRISK = Config(
    heartbeat_interval_seconds=0.05,
    election_timeout_seconds=0.5,
    acceptable_pause_seconds=0.3,
    apply_retry_seconds=0.2,
    stop_timeout_seconds=10.0,
)
"""For short stories; not so brisk that a busy machine starts elections of its own."""
PATIENT = replace(BRISK, election_timeout_seconds=2.0, acceptable_pause_seconds=3.0)
"""For those that are about no election: a slow machine may let the process stand still for two seconds."""


def key_value_app() -> RaftApp:
    return to_raft_app(KeyValueApp(), MemoryRepository())


class Nodes:
    """Nodes of one cluster by id, all in this process. app and storage make what each gets."""

    def __init__(
        self,
        size: int = 3,
        *,
        app: Callable[[], RaftApp] = key_value_app,
        storage: Callable[[str], RaftStorage] = lambda node: MemoryStorage(),
        config: Config = BRISK,
        members: Mapping[str, str] | None = None,
    ) -> None:
        names = [f"n{number}" for number in range(1, size + 1)]
        self.members = dict(members or zip(names, free_addresses(size), strict=True))
        self.nodes: dict[str, RaftNode] = {}
        self._app = app
        self._storage = storage
        self._config = config

    def __getitem__(self, node: str) -> RaftNode:
        return self.nodes[node]

    def make(self, node: str, **changes: Any) -> RaftNode:
        """A new node of that id, not started."""
        arguments = {"id": node, "bootstrap": self.members, "config": self._config, **changes}
        self.nodes[node] = RaftNode(self._app(), self._storage(node), **arguments)
        return self.nodes[node]

    def start(self, *nodes: str) -> None:
        for node in nodes or self.members:
            self.make(node).start()

    def stop(self) -> None:
        for node in self.nodes.values():
            node.stop()

    def leader(self, *among: str) -> RaftNode:
        """The node that leads, as soon as all of these, by default all that there are, agree on it."""
        asked = [self.nodes[node] for node in among] or list(self.nodes.values())

        def agreed() -> RaftNode | None:
            leaders = {node.status().leader_id for node in asked}
            leader = self.nodes.get(leaders.pop()) if len(leaders) == 1 else None
            return leader if leader is not None and leader.status().role == "leader" else None

        found = wait_until("all agree on a leader", agreed)
        assert found is not None
        return found

    def roles(self) -> tuple[RaftNode, list[RaftNode]]:
        """The leader and its followers, of one moment."""
        leader = self.leader()
        return leader, [node for node in self.nodes.values() if node is not leader]


@contextmanager
def running(*args: Any, start: tuple[str, ...] = (), **changes: Any) -> Iterator[Nodes]:
    """Nodes(...), started; all are stopped at the end."""
    for attempt in range(5):
        nodes = Nodes(*args, **changes)
        try:
            try:
                nodes.start(*start)
            except AddressInUse:
                if attempt == 4 or "members" in changes:
                    raise
                continue
            yield nodes
            return
        finally:
            nodes.stop()


class Heard:
    """What a signal told, as the keyword arguments of each sending, from entering to leaving."""

    def __init__(self, signal: Signal, sender: RaftNode) -> None:
        self._signal, self._sender = signal, sender
        self.told: list[dict[str, Any]] = []

    def __call__(self, sender: RaftNode, **fields: Any) -> None:
        self.told.append(fields)

    def __enter__(self) -> Heard:
        self._signal.connect(self, sender=self._sender)
        return self

    def __exit__(self, *_: object) -> None:
        self._signal.disconnect(self)
