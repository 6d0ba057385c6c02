"""Callers of a simulated cluster: each asks one thing at a time of some server, and remembers what it was told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geraft.errors import NothingHappened
from geraft.runtime.hub import Call, CallKind, Consistency, RemoteCall
from geraft.testing.simulation.register import Cell, cell_of

if TYPE_CHECKING:
    from geraft.testing.simulation.cluster import Simulation

KEYS = (b"a", b"b", b"c")


class _Operation:
    """lost_sight: the caller has gone on without an answer."""

    def __init__(self, number: int, key: bytes, kind: CallKind, consistency: Consistency, server: str) -> None:
        self.number = number
        self.key = key
        self.kind = kind
        self.consistency = consistency
        self.server = server
        self.floor = 0
        self.lost_sight = False
        self.answered = False


class Client:
    """done: how many of its calls were answered with a value. stopped: it asks for nothing more."""

    def __init__(self, world: Simulation) -> None:
        self.world = world
        self.done = 0
        self.stopped = False
        self.seen = {key: Cell() for key in KEYS}
        self.server = world.rng.choice(list(world.servers))

    def act(self) -> None:
        """Ask for something, and go on once there is an answer or the time is up."""
        if self.stopped:
            return
        world, rng = self.world, self.world.rng
        if rng.random() < 0.2:
            self.server = rng.choice(list(world.servers))
        elif rng.random() < 0.2:  # whoever believes to lead, however wrongly
            self.server = rng.choice(world.leaders() or [self.server])
        if world.faults.members and rng.random() < 0.5 and self.server not in world.members():
            self.server = rng.choice(world.members())  # it has heard that it asks nobody of the cluster
        server = world.servers[self.server]
        if server.raft is None:
            self.server = rng.choice(list(world.servers))
            world.at(0.1, self.act)
            return
        number = world.next_number()
        key = rng.choice(KEYS)
        kind = rng.choice((CallKind.APPLY, CallKind.APPLY, CallKind.COMMIT, CallKind.READ, CallKind.READ))
        consistency = Consistency.LINEARIZABLE
        if kind is CallKind.READ:
            message = key
            consistency = rng.choice((Consistency.LINEARIZABLE, Consistency.LEASE, Consistency.LEASE))
            if rng.random() < 0.05:
                consistency = Consistency.STALE
        elif rng.random() < 0.3:
            message = b"cas %s %d %d" % (key, self.seen[key].number, number)
        else:
            message = b"set %s %d" % (key, number)
        if kind is not CallKind.READ:
            message = world.with_command(message)
        operation = _Operation(number, key, kind, consistency, self.server)
        operation.floor = world.referee.floor(key)
        timeout = rng.uniform(0.5, 4.0)
        call = RemoteCall(
            kind,
            message,
            deadline=server.clock() + timeout,
            number=number,
            sink=lambda calls: self._answered(operation, calls[0]),
            wait_for_leader=rng.random() < 0.8,
            consistency=consistency,
        )
        server.calls[number] = call, lambda: self._lost(operation)
        if world.tracing:
            world.log(
                self.server,
                f"is asked #{number}: {kind.name} {consistency.name} {message.decode(errors='backslashreplace')}",
            )
        server.at_once(server.put, call)
        world.at(timeout, self._give_up, operation)

    def _give_up(self, operation: _Operation) -> None:
        if not operation.answered and not operation.lost_sight:
            self._lost(operation)

    def _lost(self, operation: _Operation) -> None:
        if operation.lost_sight:
            return
        operation.lost_sight = True
        if operation.kind is not CallKind.READ:
            self.world.count("write with an unknown outcome")
        self._go_on()

    def _go_on(self) -> None:
        self.world.at(self.world.gap_seconds(), self.act)

    def _answered(self, operation: _Operation, call: Call) -> None:
        assert not operation.answered, f"call {operation.number} is answered twice"
        operation.answered = True
        world, referee = self.world, self.world.referee
        world.servers[operation.server].answered(operation.number)
        if world.tracing:
            world.log(operation.server, f"answers #{operation.number}: {call.error or call.value}")
        write = operation.kind is not CallKind.READ
        if call.error is not None:
            if write and isinstance(call.error, NothingHappened):
                referee.nothing_happened(operation.number)
            elif write:
                world.count("write with an unknown outcome")
        elif operation.kind is CallKind.COMMIT:
            referee.write_committed(operation.key, operation.number, call.value)
            self.done += 1
        else:
            cell = cell_of(call.value)
            self.seen[operation.key] = cell
            self.done += 1
            if write:
                world.count("write answered before it was lost sight of", not operation.lost_sight)
                referee.write_done(operation.key, operation.number, cell)
            elif operation.consistency is not Consistency.STALE:
                lease = operation.consistency is Consistency.LEASE
                referee.read_done(operation.key, operation.floor, cell, lease=lease, server=operation.server)
        if not operation.lost_sight:
            operation.lost_sight = True
            self._go_on()
