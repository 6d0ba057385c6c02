"""What the nodes of many groups share in one process: a hub, native threads, a server, and one link to each peer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import gevent

from geraft.config import Config
from geraft.errors import GeraftError, NodeForked, NodeStopped
from geraft.runtime.hub import HubThread, acquire_hub, fork_generation, monotonic, native_rlock, release_hub
from geraft.runtime.pool import Pool
from geraft.runtime.ticker import SharedTicker
from geraft.transport.carrier import Carrier
from geraft.transport.grpc_mode import mode_for
from geraft.transport.hosted import Door, HostedServer
from geraft.transport.server import RaftServer

log = logging.getLogger(__name__)


class SharedRuntime:
    """Started before its nodes, and stopped after them.

    storage_pool: on whose threads the log stores work; app_pool: on whose the apps, and receivers of signals, do.
    rest_after_seconds: for so long a group has been idle before it rests; 0 for never.
    """

    def __init__(
        self,
        listen: str,
        config: Config,
        *,
        dial: Mapping[str, str] | None = None,
        door: Door | None = None,
        storage_threads_max: int,
        app_threads_max: int,
        rest_after_seconds: float,
    ) -> None:
        self.config = config
        self.dial = dict(dial or {})
        self.rest_after_seconds = rest_after_seconds
        self.storage_pool = Pool("geraft log writers", storage_threads_max)
        self.app_pool = Pool("geraft apps", app_threads_max)
        self._listen = listen
        self._door = door
        self._lock = native_rlock()
        self._generation = fork_generation()
        self._hub: HubThread | None = None
        self._carrier: Carrier | None = None
        self._server: RaftServer | HostedServer | None = None
        self.ticker = SharedTicker(config.heartbeat_interval_seconds / 2)
        self._greenlets: list[gevent.Greenlet[[], None]] = []
        self._state = "was not started"

    def start(self, timeout_seconds: float) -> None:
        """Listen. Raises AddressInUse, ConfigError, GrpcHubTaken; nothing stays behind then."""
        with self._lock:
            if self._state != "was not started":
                raise NodeStopped(f"the host {self._state}: it starts once; make a new RaftHost")
            self._state = "is starting"
            self._generation = fork_generation()
        try:
            hub = self._hub = acquire_hub()
            mode = mode_for(hub)
            carrier = self._carrier = Carrier(hub, self.config)
            served = [carrier, *carrier.health.handlers()]
            bytes_max = self.config.message_bytes_max
            if self._door is None:
                self._server = RaftServer(served, mode, self._listen, bytes_max)
            else:
                self._server = HostedServer(self._door, served, mode, self._listen, bytes_max)
            self._server.start()
            carrier.address = self._server.address
            hub.call(self._begin, timeout_seconds=timeout_seconds)
            self._state = "runs"
        except BaseException:
            self._state = "failed"
            self._let_go(5.0)
            raise

    def _begin(self) -> None:
        """On the hub."""
        assert self._carrier is not None
        self._greenlets = [gevent.spawn(self._carrier.run), gevent.spawn(self.ticker.run)]
        self._carrier.health.tell({"": True})

    @property
    def running(self) -> bool:
        return self._state == "runs" and self._generation == fork_generation()

    @property
    def state(self) -> str:
        """In words, as the end of a sentence."""
        return self._state

    def check(self) -> None:
        """Raises NodeStopped, or NodeForked in a forked child, unless it runs."""
        if self._generation != fork_generation() and self._state != "was not started":
            raise NodeForked("this host was started before a fork and does not run in the child: start one there")
        if self._state != "runs":
            raise NodeStopped(f"the host {self._state}: start it before its nodes")

    @property
    def hub(self) -> HubThread:
        self.check()
        assert self._hub is not None
        return self._hub

    @property
    def carrier(self) -> Carrier:
        self.check()
        assert self._carrier is not None
        return self._carrier

    @property
    def address(self) -> str:
        return self._server.address if self._server is not None and self._server.address else self._listen

    def say_unhealthy(self) -> None:
        """To whoever watches the health service, before anything is let go of."""
        if self._carrier is not None:
            self._carrier.health.tell({"": False})

    def stop(self, timeout_seconds: float) -> None:
        """After the nodes: let go of everything. Ends within about timeout_seconds; again is no error."""
        with self._lock:
            if self._state != "runs" or self._generation != fork_generation():
                return
            self._state = "was stopped"
        self._let_go(timeout_seconds)

    def _let_go(self, timeout_seconds: float) -> None:
        deadline = monotonic() + timeout_seconds
        quarter_seconds = timeout_seconds / 4
        hub, carrier, server = self._hub, self._carrier, self._server
        steps: list[Callable[[], object]] = []
        if hub is not None:
            steps.append(lambda: hub.call(gevent.killall, self._greenlets, timeout_seconds=quarter_seconds))
        if hub is not None and carrier is not None:
            steps.append(carrier.health.end)
            steps.append(lambda: mode_for(hub).call(carrier.close, timeout_seconds=quarter_seconds))
        if server is not None:
            steps.append(lambda: server.stop(min(0.5, quarter_seconds), 2 * quarter_seconds))
        for step in steps:
            try:
                step()
            except GeraftError as error:  # what comes after it must end all the same: others still take us for alive
                log.warning("the host did not stop in time: %s", error)
        self.storage_pool.end_soon()
        self.app_pool.end_soon()
        if hub is not None:
            release_hub(hub, max(deadline - monotonic(), 0.1))
