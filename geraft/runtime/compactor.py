"""Asks for a folded snapshot at regular times, if it is asked to."""

from __future__ import annotations

from collections.abc import Callable

import gevent

from geraft.runtime.hub import monotonic

LOOK_SECONDS = 0.5
"""How often it looks whether the interval has passed, which may be tuned meanwhile."""


class Compactor:
    """interval_seconds: 0 for never; may be changed at any time. fold: asks for a snapshot, and never blocks."""

    def __init__(self, interval_seconds: float, fold: Callable[[], None]) -> None:
        self.interval_seconds = interval_seconds
        self._fold = fold

    def run(self) -> None:
        folded_at = monotonic()
        while True:
            gevent.sleep(LOOK_SECONDS if not self.interval_seconds else min(LOOK_SECONDS, self.interval_seconds))
            if self.interval_seconds and monotonic() - folded_at >= self.interval_seconds:
                folded_at = monotonic()
                self._fold()
