"""Streams of pulses between the processes of simulated servers that rest (runtime/rest.py, transport/carrier.py).

One leads from each server to each other one. As long as it lives it is ordered and loses nothing, as gRPC's are; it
breaks when something can't get through, or an end crashes, and each end notices that at a time of its own. Raft's
messages go their own way, so they may overtake what goes over it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from geraft.core.entries import EntryId
from geraft.core.events import PeerConnected, PeerDisconnected
from geraft.transport.pulse import Pulse, RestAnswer, RestNote, RestOffer

if TYPE_CHECKING:
    from geraft.testing.simulation.cluster import Simulation
    from geraft.testing.simulation.server import SimulatedServer

BEAT_SECONDS = 0.1
NOTICE_SECONDS = 2.0
"""After so long at most an end knows that the stream is broken."""


class _End:
    """Of a stream, at one of its servers, in one life of its process. That may outlive the node: it holds others."""

    def __init__(self, server: SimulatedServer, other: str, ended: Callable[[], None]) -> None:
        self.server = server
        self.other = other
        self.process = server.process
        self.pulse = Pulse(lambda run: server.at_once(run), server.clock)
        self._ended = ended
        self.gone = False

    @property
    def there(self) -> bool:
        """Whether its process still runs."""
        return self.server.process_runs and self.server.process == self.process

    @property
    def lives(self) -> bool:
        return not self.gone and self.there

    def put(self, item: RestNote) -> None:
        """Into the inbox of the node, if there is one."""
        if self.server.raft is not None:
            self.server.put(item)

    def beaten(self) -> None:
        """The other process lives. Whoever rests hears its node by that, as long as there is one."""
        self.pulse.seen()
        world = self.server.world
        if world.servers[self.other].raft is not None:
            self.server.heard[self.other] = world.now

    def go(self) -> None:
        """It knows that the stream is broken."""
        if not self.gone:
            self.gone = True
            if self.there:
                self.pulse.end()
                self._ended()


class Stream:
    """From the server that dials to the one that listens."""

    def __init__(self, world: Simulation, chance: random.Random, dialler: SimulatedServer, listener: SimulatedServer):
        self._world = world
        self._chance = chance
        self.broken = False
        self.near = _End(dialler, listener.id, lambda: dialler.at_once(dialler.put, PeerDisconnected(peer=listener.id)))
        self.far = _End(listener, dialler.id, lambda: None)
        self._last = {True: 0.0, False: 0.0}

    def send(self, *, there: bool, action: Callable[[_End], None]) -> None:
        """Do it at the other end, after all that was sent before; or break."""
        if self.broken:
            return
        sender, receiver = (self.near, self.far) if there else (self.far, self.near)
        if not sender.lives or not self._world.havoc.reaches(sender.server.id, receiver.server.id):
            self.break_off()
            return
        at = max(self._last[there], self._world.now + self._world.latency * (0.5 + self._chance.random()))
        self._last[there] = at
        self._world.at(at - self._world.now, self._arrive, receiver, action)

    def _arrive(self, receiver: _End, action: Callable[[_End], None]) -> None:
        if not receiver.there:
            self.break_off()
        elif receiver.gone:
            pass
        elif receiver.server.raft is None:
            action(receiver)
        else:
            receiver.server.at_once(action, receiver)

    def break_off(self) -> None:
        if not self.broken:
            self.broken = True
            for end in (self.near, self.far):
                self._world.at(self._chance.random() ** 3 * NOTICE_SECONDS, end.go)


class Pulses:
    """All streams of a cluster whose nodes rest."""

    def __init__(self, world: Simulation) -> None:
        self.world = world
        self.chance = random.Random(f"pulses {world.seed}")  # of its own: other worlds stay as they are
        self.idle_seconds = self.chance.choice((0.1, 0.3, 1.0))
        self._streams: dict[tuple[str, str], Stream] = {}

    def begin(self) -> None:
        for dialler in self.world.servers:
            for listener in self.world.servers:
                if dialler != listener:
                    self.world.at(self.chance.random() * BEAT_SECONDS, self._beat, dialler, listener)

    def stream(self, dialler: str, listener: str) -> Stream | None:
        """As the dialler knows it."""
        stream = self._streams.get((dialler, listener))
        return stream if stream is not None and stream.near.lives else None

    def _beat(self, dialler: str, listener: str) -> None:
        """A process that runs beats, and dials again what it knows to be broken."""
        world = self.world
        world.at(BEAT_SECONDS, self._beat, dialler, listener)
        server, other = world.servers[dialler], world.servers[listener]
        if not server.process_runs or server.paused_until > world.now:
            return
        now = server.clock()
        for (_, to), stream in self._streams.items():
            if to == dialler and stream.far.lives:
                stream.far.pulse.check(now)
        known = self.stream(dialler, listener)
        if known is not None:
            known.near.pulse.check(now)
            known.send(there=True, action=lambda end: self._beaten(known, end))
        elif other.process_runs and world.havoc.reaches(dialler, listener) and self.chance.random() < 0.5:
            old = self._streams.get((dialler, listener))
            if old is not None:
                old.break_off()
            self._streams[dialler, listener] = Stream(world, self.chance, server, other)
            server.at_once(server.put, PeerConnected(peer=listener))

    @staticmethod
    def _beaten(stream: Stream, end: _End) -> None:
        end.beaten()
        stream.send(there=False, action=_End.beaten)

    def attach(self, server: SimulatedServer) -> None:
        """A new node in a process that outlived the last one finds streams that are up."""
        for dialler, listener in self._streams:
            if dialler == server.id and self.stream(dialler, listener) is not None:
                server.at_once(server.put, PeerConnected(peer=listener))

    def offer(self, leader: SimulatedServer, peer: str, term: int, last_entry: EntryId, number: int) -> None:
        stream = self.stream(leader.id, peer)
        if stream is not None:
            stream.send(
                there=True,
                action=lambda end: end.put(
                    RestOffer(sender=leader.id, term=term, last_entry=last_entry, number=number, pulse=end.pulse)
                ),
            )

    def answer(self, follower: SimulatedServer, leader: str, number: int, resting: bool) -> None:
        stream = self._streams.get((leader, follower.id))
        if stream is not None and stream.far.lives:
            note = RestAnswer(sender=follower.id, number=number, resting=resting)
            stream.send(there=False, action=lambda end: end.put(note))
