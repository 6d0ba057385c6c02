"""A node's gRPC: what it serves, and what it has open towards its peers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from geraft.config import Config
from geraft.core.entries import EntryId
from geraft.core.messages import AppendEntriesReply, HeartbeatReply, PeerMessage, RequestVoteReply
from geraft.errors import GeraftError
from geraft.runtime.hub import Call, HubThread, monotonic, native_lock
from geraft.runtime.wishes import Wish
from geraft.transport.carrier import Carrier, Entrance
from geraft.transport.grpc_mode import mode_for, sleep
from geraft.transport.health import Health, NodeHealth
from geraft.transport.hosted import Door, HostedServer
from geraft.transport.peer import PeerLink
from geraft.transport.pulse import Pulse
from geraft.transport.server import SERVICE, RaftHandlers, RaftServer
from geraft.transport.services import Services, SnapshotSink

log = logging.getLogger(__name__)


LINGER_SECONDS = 0.1
"""For so long a node that stops still answers callers, so that they hear "stopped" and turn elsewhere: a write whose
stream ends without an answer would count as unknown."""

GONE_SECONDS = 2.0
"""For so long at most the link to a member that has left stays open for calls that it was forwarded."""


class Transport:
    """Carries messages between this node and its peers, and callers' calls in and on to the leader.

    Messages may be lost, doubled by a sender, or late; between two nodes those of one kind stay in order while a stream
    lives. `send` and `forward` never block and are for any thread; the rest is for one thread at a time.
    """

    def __init__(
        self,
        services: Services,
        listen: str,
        config: Config,
        hub: HubThread,
        dial: Mapping[str, str] | None = None,
        door: Door | None = None,
        carrier: Carrier | None = None,
    ) -> None:
        """dial: for a member's address, the one to reach it by from here, where that is another one. door: into a
        server of the host's, which can be reached at `listen`. carrier: what we share with the nodes of other groups,
        its server included. Without either there is a server of our own."""
        self._services = services
        self._config = config
        self._mode = mode_for(hub)
        self._dial = dict(dial or {})
        self._links: dict[str, PeerLink] = {}
        self._lock = native_lock()
        self._stopped = False
        self._carrier = carrier
        services_of = carrier.services_of if carrier is not None else None
        self.handlers = RaftHandlers(services, self._mode, config, services.group, services_of)
        self._server: RaftServer | HostedServer | Entrance
        if carrier is not None:
            self.health = NodeHealth(carrier.health, f"{SERVICE}/{services.group}", alone=False)
            self._server = carrier.entrance(services.group, self.handlers)
            return
        health = Health(self._mode)
        self.health = NodeHealth(health, SERVICE, alone=True)
        served = [self.handlers.generic_handler(), *health.handlers()]
        if door is None:
            self._server = RaftServer(served, self._mode, listen, config.message_bytes_max)
        else:
            self._server = HostedServer(door, served, self._mode, listen, config.message_bytes_max)

    def start(self) -> None:
        """Listen and serve. Raises AddressInUse or ConfigError."""
        self._server.start()

    @property
    def address(self) -> str:
        """host:port that the server listens on; a port 0 has become a real one."""
        return self._server.address

    def set_peers(self, peers: Mapping[str, str]) -> None:
        """Whom to talk to, address by id, without ourselves. Never blocks: links open and close beside. Any thread."""
        with self._lock:
            if self._stopped:
                return
            links = dict(self._links)
            gone = [links.pop(peer) for peer in list(links) if peers.get(peer) != links[peer].address]
            for peer, address in peers.items():
                if peer not in links:
                    dialled = self._dial.get(address, address)
                    shared = self._carrier.link_to(dialled) if self._carrier is not None else None
                    links[peer] = PeerLink(self._services, self._mode, self._config, peer, address, dialled, shared)
            self._links = links
        for link in gone:
            if link.up:
                self._services.peer_disconnected(link.peer, "its address changed, or it left the cluster")
            self._mode.spawn(self._close_when_idle, link, name="geraft peer close")

    def tune(self, config: Config) -> None:
        """Go by another config from now on, as far as its fields are tunable. The caller of set_peers only."""
        self._config = self.handlers.config = config
        for link in self._links.values():
            link.tune(config)

    def _close_when_idle(self, link: PeerLink) -> None:
        """A leader that was removed still answers what it was asked: wait a moment for that."""
        deadline = monotonic() + GONE_SECONDS
        while link.busy and monotonic() < deadline and not self._stopped:
            sleep(0.05)
        link.close()

    def send(self, to: str, message: PeerMessage) -> None:
        """Send, or drop what can't be sent now. Any thread; never blocks."""
        if isinstance(message, AppendEntriesReply | HeartbeatReply | RequestVoteReply):
            self.handlers.reply(to, message)
            return
        link = self._links.get(to)
        if link is not None:
            link.send(message)

    def forward(self, leader_id: str, calls: Iterable[Call]) -> None:
        """Send calls on to the leader; each is answered, or resubmitted. Any thread; never blocks."""
        calls = list(calls)
        link = self._links.get(leader_id)
        if link is None:
            self._services.resubmit(calls)
            return
        link.forward(calls)

    def forward_wish(self, leader_id: str, wish: Wish) -> None:
        """Let the leader fulfil it; it is answered, or resubmitted. Any thread; never blocks."""
        link = self._links.get(leader_id)
        if link is None:
            self._services.resubmit_wish(wish)
        else:
            link.forward_wish(wish)

    def fetch_snapshot(self, leader_id: str, sink: SnapshotSink) -> None:
        """Pull a snapshot from a member into the sink. Any thread; never blocks."""
        link = self._links.get(leader_id)
        if link is None:
            sink.fail(f"{leader_id} is no peer of ours")
            return
        link.fetch_snapshot(sink)

    # Resting, where many groups share a process

    def pulse_of(self, peer: str) -> Pulse | None:
        """Of the process that the peer lives in; None if there is none just now."""
        link = self._links.get(peer)
        return link.pulse if link is not None and link.up else None

    def offer_rest(self, peer: str, term: int, last_entry: EntryId, number: int) -> None:
        """Ask a follower to rest, or with 0 tell it that we rest no more. Any thread; never blocks."""
        link = self._links.get(peer)
        if link is not None:
            link.offer_rest(term, last_entry, number)

    def answer_rest(self, leader_id: str, term: int, number: int, resting: bool) -> None:
        """Any thread; never blocks."""
        self.handlers.answer_rest(leader_id, term, number, resting)

    def connected_peers(self) -> frozenset[str]:
        """Peers whose replication stream from here is up."""
        return frozenset(peer for peer, link in self._links.items() if link.up)

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Close everything; always ends within about timeout_seconds."""
        with self._lock:
            self._stopped = True
            links, self._links = self._links, {}
        try:
            self.health.set_running(False)
            self._mode.call(self._close_links, list(links.values()), timeout_seconds=timeout_seconds / 2)
            if self.handlers.sessions:
                sleep(min(LINGER_SECONDS, timeout_seconds / 4))
            self.handlers.close()
            self.health.end()
            self._server.stop(min(0.5, timeout_seconds / 4), timeout_seconds / 2)
        except GeraftError as error:
            log.warning("the transport did not stop in time: %s", error)

    def _close_links(self, links: list[PeerLink]) -> None:
        for link in links:
            try:
                link.close()
            except Exception:
                log.exception("the link to %s could not be closed", link.peer)
