"""Asks for a folded snapshot at regular times, if it is asked to."""

from __future__ import annotations

from collections.abc import Callable

from gevent.event import Event

from geraft.runtime.hub import monotonic


class Compactor:
    """fold: asks for a snapshot, and never blocks."""

    def __init__(self, interval_seconds: float, fold: Callable[[], None]) -> None:
        self._interval_seconds = interval_seconds
        self._fold = fold
        self._changed = Event()

    def tune(self, interval_seconds: float) -> None:
        """Go by another interval from now on; 0 for never. Hub only."""
        self._interval_seconds = interval_seconds
        self._changed.set()

    def run(self) -> None:
        folded_at = monotonic()
        while True:
            interval_seconds = self._interval_seconds
            left = max(folded_at + interval_seconds - monotonic(), 0.0) if interval_seconds else None
            self._changed.wait(left)
            if self._changed.is_set():
                self._changed.clear()
                continue
            folded_at = monotonic()
            self._fold()
