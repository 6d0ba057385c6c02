"""Callers of a simulated cluster whose writes are to be applied once: they number them, and repeat them elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from geraft.errors import AnswerForgotten, NothingHappened, OutcomeUnknown, SessionExpired
from geraft.runtime.hub import CallKind, RemoteCall, SessionWrite
from geraft.testing.simulation.clients import KEYS
from geraft.testing.simulation.register import cell_of

if TYPE_CHECKING:
    from geraft.testing.simulation.cluster import Simulation


@dataclass
class _Write:
    """value: of the register, by which the referee knows the write. number: in the session."""

    value: int
    key: bytes
    kind: CallKind
    message: bytes
    session: int
    number: int
    attempts: int = 0
    may_have_happened: bool = False


class NumberedClient:
    """One write at a time, each sent again until its outcome is known; earlier attempts may still be under way.

    done: how many sessions were opened and writes answered. stopped: it asks for nothing more.
    """

    def __init__(self, world: Simulation) -> None:
        self.world = world
        self.done = 0
        self.stopped = False
        self._session = 0
        self._number = 0

    def act(self) -> None:
        world, rng = self.world, self.world.rng
        if self.stopped:
            return
        if not self._session:
            self._ask(CallKind.OPEN_SESSION, b"", SessionWrite(0, 0, 0), self._opened)
            return
        self._number += 1
        value, key = world.next_number(), rng.choice(KEYS)
        kind = rng.choice((CallKind.APPLY, CallKind.APPLY, CallKind.COMMIT))
        message = world.with_command(b"set %s %d" % (key, value))
        self._send(_Write(value, key, kind, message, self._session, self._number))

    def _go_on(self) -> None:
        self.world.at(self.world.gap_seconds(), self.act)

    def _opened(self, outcome: Any) -> None:
        if isinstance(outcome, int):
            self._session, self._number = outcome, 0
            self.done += 1
        self._go_on()

    def _send(self, write: _Write) -> None:
        if self.stopped:
            return
        write.attempts += 1
        name = SessionWrite(write.session, write.number, write.number)  # all lower ones are over
        self._ask(write.kind, write.message, name, partial(self._came_of, write), partial(self._answered, write))

    def _came_of(self, write: _Write, outcome: Any) -> None:
        """The outcome of the newest attempt; None if none came in time."""
        world = self.world
        if outcome is None or (isinstance(outcome, OutcomeUnknown) and not isinstance(outcome, SessionExpired)):
            write.may_have_happened = True
        elif isinstance(outcome, SessionExpired):
            world.count("session expired")
            self._session = 0
            if not write.may_have_happened:
                world.referee.nothing_happened(write.value)
            self._go_on()
            return
        elif not isinstance(outcome, NothingHappened):
            world.count("numbered write was repeated and answered", write.attempts > 1)
            self.done += 1
            self._go_on()
            return
        world.at(world.rng.uniform(0.0, 0.3), self._send, write)

    def _answered(self, write: _Write, outcome: Any) -> None:
        """Any attempt of the write is answered, early or late."""
        referee = self.world.referee
        if isinstance(outcome, AnswerForgotten):
            self.world.count("answer of a numbered write forgotten")
            referee.numbered_write_done((write.session, write.number), write.value, None, None)
        elif isinstance(outcome, int):
            referee.numbered_write_done((write.session, write.number), write.value, outcome, outcome)
        elif isinstance(outcome, bytes):
            cell = cell_of(outcome)
            referee.numbered_write_done((write.session, write.number), write.value, cell.version, outcome)
            referee.write_done(write.key, write.value, cell)

    def _ask(
        self,
        kind: CallKind,
        message: bytes,
        name: SessionWrite,
        came_of: Callable[[Any], None],
        answered: Callable[[Any], None] = lambda outcome: None,
    ) -> None:
        """Send it once, to some server. came_of: told its outcome, or None when the time is up; answered: told of any
        answer, however late."""
        world, rng = self.world, self.world.rng
        id = rng.choice(list(world.servers))
        server = world.servers[id]
        if server.raft is None:
            world.at(0.1, came_of, NothingHappened("nobody listens"))
            return
        over: list[bool] = []

        def end(outcome: Any) -> None:
            if not over:
                over.append(True)
                came_of(outcome)

        def sink(calls: list[RemoteCall]) -> None:
            (call,) = calls
            server.answered(call.number)
            outcome = call.error if call.error is not None else call.value
            if world.tracing:
                world.log(id, f"answers #{call.number}: {outcome}")
            answered(outcome)
            end(outcome)

        timeout = rng.uniform(0.2, 2.0)
        call = RemoteCall(
            kind,
            message,
            deadline=server.clock() + timeout,
            number=world.next_number(),
            sink=sink,
            wait_for_leader=rng.random() < 0.8,
            session=name,
        )
        server.calls[call.number] = call, lambda: end(None)
        if world.tracing:
            world.log(id, f"is asked #{call.number}: {kind.name} {name} {message.decode()}")
        server.at_once(server.put, call)
        world.at(timeout, end, None)
