"""A user's state machine in a simulated cluster: it gets commands with the cluster's own writes, and is compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from geraft.core.invariants import InvariantBroken
from geraft.simple import SimpleRaftApp
from geraft.testing.determinism import compare_states

AppFactory = Callable[[], SimpleRaftApp]
Commands = Sequence[bytes] | Callable[[random.Random], bytes]

COMPARED_EVERY = 8
"""Entries; and the end."""


class Judge(Protocol):
    """Compares what the app does on one server with what it did on the others."""

    def replied(self, server: str, index: int, command: bytes, reply: bytes) -> None: ...

    def has_state(self, server: str, index: int, snapshot: bytes) -> None: ...


class Guest:
    """The app on one server, from its start to its end.

    At random it is replaced by a new app that its snapshot was restored in, as after a restart or on a server that
    lagged: a state that is in no snapshot is lost by that.
    """

    def __init__(self, server: str, factory: AppFactory, judge: Judge, rng: random.Random) -> None:
        self._server = server
        self._factory = factory
        self._judge = judge
        self._rng = rng
        self.restore(None)

    def process_write(self, index: int, command: bytes) -> None:
        reply = self._app.process_write(command, index)
        self._judge.replied(self._server, index, command, reply if isinstance(reply, bytes) else reply[0])
        if index % COMPARED_EVERY == 0:
            self._judge.has_state(self._server, index, self._app.snapshot())
        if self._rng.random() < 0.1:
            self.restore(self._app.snapshot())

    def snapshot(self) -> bytes:
        return self._app.snapshot()

    def fold(self, old_snapshot: bytes | None, commands: Sequence[bytes]) -> bytes:
        """By an app of its own, which knows nothing of this one's state."""
        return self._factory().fold(old_snapshot, commands)

    def restore(self, snapshot: bytes | None) -> None:
        """A new app becomes the state of the snapshot, of this server or of another."""
        self._app = self._factory()
        self._app.restore(snapshot)

    def compare(self, index: int) -> None:
        """When the server has applied all up to index, and no more."""
        self._judge.has_state(self._server, index, self._app.snapshot())

    def compare_snapshot(self, index: int, snapshot: bytes) -> None:
        """When a snapshot of index is stored, made here in one way or the other, or fetched."""
        self._judge.has_state(f"{self._server} (in a snapshot)", index, snapshot)


def can_fold(factory: AppFactory) -> bool:
    """Whether such an app folds at all: one that can't be made without arguments must have a fold of its own."""
    try:
        factory().fold(None, [])
    except Exception:
        return False
    return True


class Comparison:
    """The Judge. Raises InvariantBroken for the first reply or state that differs."""

    def __init__(self) -> None:
        self._replies: dict[int, tuple[str, bytes]] = {}
        self._states: dict[int, tuple[str, bytes]] = {}

    def replied(self, server: str, index: int, command: bytes, reply: bytes) -> None:
        first, expected = self._replies.setdefault(index, (server, reply))
        if reply != expected:
            raise InvariantBroken(
                f"the app is not deterministic: entry {index} ({command!r}) is answered with {expected!r} on {first},"
                f" with {reply!r} on {server}"
            )

    def has_state(self, server: str, index: int, snapshot: bytes) -> None:
        first, expected = self._states.setdefault(index, (server, snapshot))
        found = compare_states(expected, snapshot, None) if snapshot != expected else None
        if found is not None:
            key, one, other = found
            where = f" at key {key!r}" if key is not None else ""
            raise InvariantBroken(
                f"the app is not deterministic: after entry {index} the state differs{where}: {one} on {first},"
                f" {other} on {server}"
            )
