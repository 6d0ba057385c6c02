"""Asks for a folded snapshot at regular times, if it is asked to."""

from __future__ import annotations

from collections.abc import Callable

from gevent.event import Event

from geraft.runtime.hub import monotonic


class Compactor:
    """fold: asks for a snapshot, and never blocks. now_seconds: of the clock that the other methods are told."""

    def __init__(self, interval_seconds: float, fold: Callable[[], None], now_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._fold = fold
        self._folded_at = now_seconds
        self._changed = Event()

    def tune(self, interval_seconds: float) -> None:
        """Go by another interval from now on; 0 for never. Hub only."""
        self._interval_seconds = interval_seconds
        self._changed.set()

    def run(self) -> None:
        while True:
            self._changed.wait(self.seconds_left(monotonic()))
            self._changed.clear()
            self.look(monotonic())

    def seconds_left(self, now_seconds: float) -> float | None:
        """Until the interval has passed; None if that is never."""
        if not self._interval_seconds:
            return None
        return max(self._folded_at + self._interval_seconds - now_seconds, 0.0)

    def look(self, now_seconds: float) -> None:
        """Ask for a snapshot if the interval has passed."""
        if self.seconds_left(now_seconds) == 0.0:
            self._folded_at = now_seconds
            self._fold()
