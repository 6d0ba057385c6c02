"""Cluster: real `geraft serve` processes on loopback, to be killed, halted and restarted by a test.

with Cluster(tmp_path) as cluster, cluster.client() as client:
    client.apply(put("key", b"value"))
    cluster.kill(cluster.leader())
    assert decode_value(client.read(get("key"), timeout_seconds=20)) == b"value"

LinkedCluster is one whose network can be cut, slowed and broken; NamespacedCluster one whose packets can be lost.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

import geraft
from geraft.client import Client
from geraft.errors import GeraftError
from geraft.kv import put
from geraft.runtime.status import NodeStatus
from geraft.testing.links import Links
from geraft.testing.namespaces import Namespaces

T = TypeVar("T")

PATIENT = ("--set", "acceptable_pause_seconds=3")
"""Options of nodes whose story is not about elections: a busy machine may let one of them stand still for two seconds.

A transfer, a change of members and a vote still go by the election timeout."""

START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 20.0
STATUS_TIMEOUT_SECONDS = 2.0
"""Of one question."""


def wait_until(what: str, condition: Callable[[], T], timeout_seconds: float = 30.0) -> T:
    """Block until condition() is true, and give what it gave. Raises AssertionError with `what` if the time runs out.

    A GeraftError of the condition counts as "not yet".
    """
    deadline = time.monotonic() + timeout_seconds
    last: object = None
    while True:
        try:
            last = found = condition()
            if found:
                return found
        except GeraftError as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_seconds} s: {what}; at last: {last!r}")
        time.sleep(0.02)


def write_surely(client: Client, key: str, value: bytes, timeout_seconds: float = 30.0) -> None:
    """Put a value, again if the outcome is unknown: the same value twice is no harm."""

    def written() -> bool:
        client.apply(put(key, value), timeout_seconds=timeout_seconds)
        return True

    wait_until(f"{key} to be written", written, timeout_seconds)


def free_addresses(count: int) -> list[str]:
    """Loopback addresses that nobody listens on, below the ports that outgoing connections get.

    A port of that range could be given to some connection while its node is down, and keep the node from returning.
    """
    probes: list[socket.socket] = []
    try:
        while len(probes) < count:
            probe = socket.socket()
            try:
                probe.bind(("127.0.0.1", random.randint(10000, 32000)))
            except OSError:
                probe.close()
            else:
                probes.append(probe)
        return [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class DidNotStart(Exception):
    """A node ended before it was ready; the message is what it said last."""


class NodeProcess:
    """One `geraft serve`. It ends with this process at the latest: it watches its stdin."""

    def __init__(
        self,
        node_id: str,
        arguments: Iterable[str],
        log_path: Path,
        *,
        patched: bool = False,
        prefix: Iterable[str] = (),
    ) -> None:
        """patched: with the standard library monkey-patched by gevent, as a web server on gevent is.

        prefix: a command that runs the one after it in its own place.
        """
        self.id = node_id
        self.log_path = log_path
        self.paused = False
        self.arguments = list(arguments)
        """Of `geraft serve`, at the next start."""
        module = ["-m", "gevent.monkey", "--module", "geraft"] if patched else ["-m", "geraft"]
        self._command = [*prefix, sys.executable, *module, "serve", "--until-stdin-closes"]
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.id} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def said(self) -> str:
        """All that it logged so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self) -> None:
        """Start it, and return at once."""
        assert not self.running, f"{self.id} runs already"
        source = str(Path(geraft.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
        log: IO[str]
        with self.log_path.open("a") as log:
            self._process = subprocess.Popen(
                [*self._command, *self.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
            )

    def wait_until_ready(self) -> None:
        """Block until it takes part. Raises DidNotStart."""
        assert self._process is not None and self._process.stdout is not None
        select.select([self._process.stdout], [], [], START_TIMEOUT_SECONDS)
        if self._process.poll() is not None or not self._process.stdout.readline():
            self.kill()
            lines = self.said().strip().splitlines()
            raise DidNotStart(f"{self.id}: {lines[-1] if lines else 'it said nothing'}")

    def kill(self) -> None:
        """SIGKILL, as if the machine had lost it; again is no error."""
        if self._process is not None:
            self._process.kill()
            self._end(STOP_TIMEOUT_SECONDS)

    def terminate(self) -> None:
        """SIGTERM: it hands leadership over and stops. Returns at once."""
        self.resume()
        if self._process is not None and self.running:
            self._process.terminate()

    def wait_until_ended(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> int:
        """Block until it ended, and give its exit code. Raises subprocess.TimeoutExpired."""
        assert self._process is not None
        return self._end(timeout_seconds)

    def pause(self) -> None:
        """SIGSTOP: from now on it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        """SIGCONT, if it was paused."""
        if self.paused and self.running:
            os.kill(self.pid, signal.SIGCONT)
        self.paused = False

    def _end(self, timeout_seconds: float) -> int:
        assert self._process is not None
        code = self._process.wait(timeout_seconds)
        self.paused = False
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return code


class Cluster:
    """Key-value nodes n1, n2, ... in processes of their own; a context manager that starts and always ends them.

    directory: for data and logs. members: address by id, by default `size` free ones. listen: where a node listens, if
    not at its member address (a proxy may stand between). options: more arguments of `geraft serve`, for each node;
    options_of: for a node, those that are its own. patched: how many of the last nodes run in a process that gevent has
    monkey-patched. prefix_of: for a node, a command that runs the one after it in its own place.
    """

    def __init__(
        self,
        directory: Path,
        size: int = 3,
        *,
        members: Mapping[str, str] | None = None,
        listen: Mapping[str, str] | None = None,
        options: Iterable[str] = (),
        options_of: Callable[[str], Iterable[str]] = lambda node: (),
        patched: int = 0,
        prefix_of: Callable[[str], Iterable[str]] = lambda node: (),
    ) -> None:
        self.directory = directory
        self.nodes: dict[str, NodeProcess] = {}
        self.members: dict[str, str] = {}
        self._options = list(options)
        self._options_of = options_of
        self._patched = patched
        self._prefix_of = prefix_of
        self._own_arguments: dict[str, list[str]] = {}
        self._listen = dict(listen or {})
        self._addresses_are_ours = members is None
        self._size = size
        self._observer: Client | None = None
        self._set_members(members)

    def _set_members(self, members: Mapping[str, str] | None) -> None:
        if members is None:
            members = {f"n{number}": address for number, address in enumerate(free_addresses(self._size), start=1)}
        self.members = dict(members)
        bootstrap = ",".join(f"{node}={address}" for node, address in self.members.items())
        for node in self.members:
            own = ["--id", node, "--listen", self.address(node), "--data-dir", str(self.data(node))]
            own += ["--log-level", "info", *self._options, *self._options_of(node)]
            self._own_arguments[node] = own
            patched = node in list(self.members)[len(self.members) - self._patched :]
            arguments = [*own, "--bootstrap", bootstrap]
            self.nodes[node] = NodeProcess(
                node,
                arguments,
                self.directory / f"{node}.log",
                patched=patched,
                prefix=self._prefix_of(node),
            )

    def address(self, node: str) -> str:
        """Where the node listens."""
        return self._listen.get(node, self.members[node])

    def data(self, node: str) -> Path:
        """The node's data directory."""
        return self.directory / node

    # Life

    def start(self, *nodes: str) -> None:
        """Start these nodes, by default all; block until each takes part. Raises DidNotStart.

        If another process takes one of the free addresses before us, others are tried.
        """
        first = not any(self.data(node).exists() for node in self.members)
        for attempt in range(5):
            wanted = [self.nodes[node] for node in nodes or self.members]
            for node in wanted:
                node.start()
            try:
                for node in wanted:
                    node.wait_until_ready()
            except DidNotStart as error:
                collision = "in use" in str(error) or "was taken" in str(error)
                if not (first and self._addresses_are_ours and attempt < 4 and collision):
                    raise
                for node in wanted:
                    node.kill()
                    shutil.rmtree(self.data(node.id), ignore_errors=True)
                self._set_members(None)
            else:
                return

    def add(self, node: str, *, join: Iterable[str] = (), address: str = "", options: Iterable[str] = ()) -> None:
        """Start one more node, over an empty store unless it has been here before; block until it has been let in.

        join: through which nodes, by default all that there are. options: more arguments of `geraft serve`, such as
        --learner. Raises DidNotStart.
        """
        seeds = [self.address(seed) for seed in join or self.members if seed != node]
        self.members[node] = address or self.members.get(node) or free_addresses(1)[0]
        arguments = ["--id", node, "--join", ",".join(seeds), "--listen", self.address(node)]
        arguments += ["--data-dir", str(self.data(node)), "--log-level", "info", *self._options, *options]
        self.nodes[node] = NodeProcess(node, arguments, self.directory / f"{node}.log")
        self.nodes[node].start()
        self.nodes[node].wait_until_ready()

    def forget(self, node: str) -> None:
        """Kill the node and delete its data: it belongs to the cluster no more."""
        self.kill(node)
        del self.nodes[node], self.members[node]
        shutil.rmtree(self.data(node), ignore_errors=True)

    def stop(self) -> None:
        """End all that runs: SIGTERM, and SIGKILL for those that do not heed it. Again is no error."""
        running = [node for node in self.nodes.values() if node.running]
        for node in running:
            node.terminate()
        for node in running:
            try:
                node.wait_until_ended()
            except subprocess.TimeoutExpired:
                node.kill()
        if self._observer is not None:
            self._observer.close()
            self._observer = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # What may happen to a node

    def kill(self, node: str) -> None:
        """SIGKILL, as if the machine had lost it."""
        self.nodes[node].kill()

    def pause(self, node: str) -> None:
        """SIGSTOP: it stands still, with its connections open."""
        self.nodes[node].pause()

    def resume(self, node: str) -> None:
        self.nodes[node].resume()

    def restart(self, node: str) -> None:
        """Kill it if it runs, and start it over the data it has."""
        self.kill(node)
        self.start(node)

    def heal(self, timeout_seconds: float = 60.0) -> str:
        """Let every node run, and block until all hold the same log; gives the leader."""
        for node in self.nodes.values():
            node.resume()
        dead = [node.id for node in self.nodes.values() if not node.running]
        if dead:
            self.start(*dead)
        self.wait_until_even(timeout_seconds=timeout_seconds)
        return self.leader()

    def replace(self, node: str) -> None:
        """Start it over an empty store, from which it joins the others. It must be down, and no member any more."""
        process = self.nodes[node]
        assert not process.running, f"{node} runs"
        shutil.rmtree(self.data(node))
        seeds = ",".join(address for other, address in self.members.items() if other != node)
        process.arguments = [*self._own_arguments[node], "--join", seeds, "--advertise", self.members[node]]
        self.start(node)

    # What is asked

    def client(self, timeout_seconds: float = 10.0) -> Client:
        """A client of the cluster; the caller closes it."""
        return Client([self.address(node) for node in self.members], timeout_seconds)

    def status(self, node: str, timeout_seconds: float = 15.0) -> NodeStatus:
        """What the node says of itself; asked again while it runs, as a slow machine may let it stand still for a
        while. Raises Unreachable or ReadTimeout."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                return self._ask(node)
            except GeraftError:
                process = self.nodes[node]
                if not process.running or process.paused or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def statuses(self) -> dict[str, NodeStatus]:
        """What each node says that runs and answers."""
        found = {}
        for node in self.nodes.values():
            if node.running and not node.paused:
                try:
                    found[node.id] = self._ask(node.id)
                except GeraftError:
                    pass
        return found

    def _ask(self, node: str) -> NodeStatus:
        if self._observer is None:
            self._observer = self.client()
        return self._observer.status(self.address(node), STATUS_TIMEOUT_SECONDS)

    def leader(self, timeout_seconds: float = 30.0, *, other_than: str = "") -> str:
        """The node that leads in the latest term, as soon as it answers calls; waits for one."""

        def leading() -> str:
            statuses = self.statuses()
            leaders = [status for status in statuses.values() if status.role == "leader" and status.id != other_than]
            latest = max((status.term for status in statuses.values()), default=0)
            return next((leader.id for leader in leaders if leader.term == latest), "")

        return wait_until(f"a leader other than {other_than!r}", leading, timeout_seconds)

    def wait_until_even(self, *nodes: str, timeout_seconds: float = 60.0) -> None:
        """Block until these nodes, by default all, have applied the same, whole log."""
        names = nodes or tuple(self.members)

        def even() -> bool:
            statuses = [self.status(node) for node in names]
            ends = {(status.last_log_index, status.last_applied, status.leader_id) for status in statuses}
            return len(ends) == 1 and all(end == applied and leader for end, applied, leader in ends)

        wait_until(f"{', '.join(names)} hold the same log", even, timeout_seconds)


OUTSIDE = "outside"
"""Whoever is no node of a LinkedCluster, as a sender or a receiver."""


class LinkedCluster(Cluster):
    """A Cluster whose every byte goes through `links`: from n1 to n2, from OUTSIDE to n1, and so on.

    Each node reaches each other one by an address of its own. The addresses that members are known by are those of
    links too, for whoever is outside; only what this object itself asks goes straight to the nodes.
    """

    def __init__(
        self,
        directory: Path,
        size: int = 3,
        *,
        options: Iterable[str] = (),
        options_of: Callable[[str], Iterable[str]] = lambda node: (),
        patched: int = 0,
    ) -> None:
        nodes = [f"n{number}" for number in range(1, size + 1)]
        listen = dict(zip(nodes, free_addresses(size), strict=True))
        self.links = Links()
        members = {node: self.links.add(OUTSIDE, node, listen[node]) for node in nodes}

        def all_options_of(node: str) -> list[str]:
            dial = [
                f"{members[other]}={self.links.add(node, other, listen[other])}" for other in nodes if other != node
            ]
            return [*(("--dial", ",".join(dial)) if dial else ()), *options_of(node)]

        super().__init__(
            directory,
            size,
            members=members,
            listen=listen,
            options=options,
            options_of=all_options_of,
            patched=patched,
        )

    def stop(self) -> None:
        super().stop()
        self.links.close()


class NamespacedCluster(Cluster):
    """A Cluster each of whose nodes is in a network namespace of its own; `links` cuts them off each other and OUTSIDE.

    This process must be alone in its namespace (`unshare --net`). Raises NamespacesUnavailable.
    """

    def __init__(
        self,
        directory: Path,
        size: int = 3,
        *,
        options: Iterable[str] = (),
        options_of: Callable[[str], Iterable[str]] = lambda node: (),
        patched: int = 0,
    ) -> None:
        nodes = [f"n{number}" for number in range(1, size + 1)]
        self.links = Namespaces(nodes, OUTSIDE)
        super().__init__(
            directory,
            size,
            members={node: self.links.address(node) for node in nodes},
            options=options,
            options_of=options_of,
            patched=patched,
            prefix_of=self.links.prefix,
        )

    def stop(self) -> None:
        super().stop()
        self.links.close()
