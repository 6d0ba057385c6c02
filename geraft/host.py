"""RaftHost: nodes of many groups in one process, on one port."""

from __future__ import annotations

import atexit
import logging
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from geraft.app import RaftApp
from geraft.config import Config
from geraft.errors import ConfigError
from geraft.node import RaftNode, check_address, check_timeout
from geraft.runtime.hub import Waiter, finish, monotonic, native_lock
from geraft.runtime.pool import Pool
from geraft.runtime.shared import SharedRuntime
from geraft.storage.base import RaftStorage
from geraft.transport.groups import check_group
from geraft.transport.hosted import Door

if TYPE_CHECKING:
    import grpc

log = logging.getLogger(__name__)

STOPPING_THREADS_MAX = 16
"""Nodes that hand leadership over and stop at a time."""


class RaftHost:
    """Holds nodes of many groups in this process: each group is a cluster of its own, with an app, log and members.

        with RaftHost("10.0.0.1:7001") as host:
            for tenant in tenants:
                host.node(tenant, App(tenant), SqliteStorage(f"{tenant}.db"), id="n1", bootstrap=members).start()

    All of them share one port, one connection to each other process, one hub thread and two pools of native threads.
    A group that has nothing to do rests: its heartbeats stop, and a pulse per process stands for those of all. So a
    process can hold a thousand groups, of which some are busy. All members of a group live in hosts.

    listen: "host:port" to bind; port 0 takes a free one. advertise: under which other processes reach it, if that is
    another one. dial: as in RaftNode. server: a gRPC server of yours to serve them on, beside your own services, at the
    address `listen`; make_raft_service tells what it needs.
    config: of the host, and of every node that is given none. Its heartbeat interval is that of the pulses.
    rest_after_seconds: for so long a group has been idle before it rests; 0 for never.
    storage_threads_max, app_threads_max: native threads on which all log stores, and all apps, get their turns. An app
    that blocks holds one of them meanwhile.

    Every method may be called from any thread and any greenlet, and blocks only its caller. A host starts once. In a
    forked child it raises NodeForked: start one in the child.
    """

    def __init__(
        self,
        listen: str,
        *,
        advertise: str = "",
        config: Config | None = None,
        dial: Mapping[str, str] | None = None,
        server: grpc.Server | None = None,
        rest_after_seconds: float = 0.3,
        storage_threads_max: int = 8,
        app_threads_max: int = 32,
    ) -> None:
        check_address(listen, "listen")
        if advertise:
            check_address(advertise, "advertise")
        for address, dialled in (dial or {}).items():
            check_address(address, "each address in dial")
            check_address(dialled, "each address in dial")
        for name, threads in (("storage_threads_max", storage_threads_max), ("app_threads_max", app_threads_max)):
            if threads < 1:
                raise ConfigError(f"{name} must be at least 1, not {threads!r}")
        check_timeout(rest_after_seconds)
        self.config = config if config is not None else Config()
        self._advertise = advertise
        self._dial = dial
        self._lock = native_lock()
        self._nodes: dict[str, RaftNode] = {}
        self._shared = SharedRuntime(
            listen,
            self.config,
            door=Door(server) if server is not None else None,
            storage_threads_max=storage_threads_max,
            app_threads_max=app_threads_max,
            rest_after_seconds=rest_after_seconds,
        )

    def __repr__(self) -> str:
        return f"<RaftHost at {self.address} with {len(self._nodes)} nodes, {self._shared.state}>"

    def start(self, timeout_seconds: float = 30.0) -> Self:
        """Listen; blocks until it does. Nodes that were made before are started by their own start().

        Raises AddressInUse, ConfigError and GrpcHubTaken; the host then holds nothing and can't be started again.
        """
        check_timeout(timeout_seconds)
        self._shared.start(timeout_seconds)
        _running.add(self)
        return self

    def stop(self, timeout_seconds: float | None = None) -> None:
        """Stop all nodes, each after it has handed leadership over, and let go of the port. Again is no error.

        Blocks at most timeout_seconds, by default Config.stop_timeout_seconds.
        """
        if timeout_seconds is None:
            timeout_seconds = self.config.stop_timeout_seconds
        check_timeout(timeout_seconds)
        _running.discard(self)
        if not self._shared.running:
            return
        self._shared.say_unhealthy()
        deadline = monotonic() + timeout_seconds
        nodes = list(self._nodes.values())
        pool = Pool("geraft stopping", min(STOPPING_THREADS_MAX, max(len(nodes), 1)))
        waiters = []
        for node in nodes:
            waiter = Waiter()
            waiters.append(waiter)
            pool.submit(partial(_stop, node, waiter, deadline))
        for waiter in waiters:
            waiter.wait(max(deadline - monotonic(), 0.0) + 1.0)
        pool.end_soon()
        self._shared.stop(max(deadline - monotonic(), 1.0))

    def __enter__(self) -> Self:
        if not self._shared.running:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """What the host listens on, "host:port"."""
        return self._shared.address

    @property
    def nodes(self) -> dict[str, RaftNode]:
        """By group, those that were made and not let go of by forget()."""
        with self._lock:
            return dict(self._nodes)

    def node(
        self,
        group: str,
        app: RaftApp,
        storage: RaftStorage,
        *,
        id: str,
        bootstrap: Mapping[str, str] | None = None,
        cluster_name: str = "",
        join: Iterable[str] | None = None,
        learner: bool = False,
        config: Config | None = None,
    ) -> RaftNode:
        """A node of that group, to be started, used and stopped like any other; the host must run by then.

        group: 1 to 100 letters, digits, dots, dashes and underscores, the same on all members. Two groups that are
        founded by the same bootstrap list are two clusters all the same, as the group's name is a part of their
        identity. All else is as for RaftNode. Raises ConfigError, also if the
        host has a node of that group already.
        """
        check_group(group)
        if not group:
            raise ConfigError("name the group")
        node = RaftNode(
            app,
            storage,
            id=id,
            listen=self.address,
            bootstrap=bootstrap,
            cluster_name=f"{cluster_name}.{group}" if cluster_name else group,
            join=join,
            learner=learner,
            advertise=self._advertise,
            config=config if config is not None else self.config,
            dial=self._dial,
            shared=self._shared,
            group=group,
        )
        with self._lock:
            if group in self._nodes:
                raise ConfigError(f"this host has a node of group {group!r} already: stop and forget() that one first")
            self._nodes[group] = node
        return node

    def forget(self, group: str) -> None:
        """Stop the group's node, if it runs, and hold it no more. Its store stays as it is. None there is no error.

        Blocks at most Config.stop_timeout_seconds.
        """
        with self._lock:
            node = self._nodes.get(group)
        if node is not None:
            node.stop()
            with self._lock:
                if self._nodes.get(group) is node:
                    del self._nodes[group]


def _stop(node: RaftNode, waiter: Waiter, deadline: float) -> None:
    try:
        node.stop(max(deadline - monotonic(), 0.5))
    except Exception:
        log.exception("%r did not stop cleanly", node)
    finally:
        finish([waiter], [None])


_running: weakref.WeakSet[RaftHost] = weakref.WeakSet()


def _stop_running() -> None:
    """At the interpreter's exit, before the nodes are stopped one by one."""
    for host in list(_running):
        try:
            host.stop(timeout_seconds=2.0)
        except Exception:
            pass  # the process ends anyway


atexit.register(_stop_running)
