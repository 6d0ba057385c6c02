"""Turns passing time into ticks, and watches for a disk that hangs."""

from __future__ import annotations

from collections.abc import Callable

import gevent

from geraft.errors import StorageFailed
from geraft.runtime.hub import Inbox
from geraft.runtime.log_writer import LogWriter
from geraft.runtime.node_loop import TICK_DUE


class Ticker:
    """Knocks at the node loop a few times per heartbeat. stalled: told once, when a write to the store hangs.

    Runs by itself, or is asked to knock by whoever does so for many nodes at a time.
    """

    def __init__(
        self,
        inbox: Inbox,
        log_writer: LogWriter,
        *,
        interval_seconds: float,
        stall_seconds: float,
        stalled: Callable[[BaseException], None],
    ) -> None:
        self._inbox = inbox
        self._log_writer = log_writer
        self.interval_seconds = interval_seconds
        self.stall_seconds = stall_seconds
        self._stalled = stalled

    def run(self) -> None:
        while True:
            gevent.sleep(self.interval_seconds)
            if not self.knock():
                return

    def knock(self) -> bool:
        """False once the store hangs. Hub only."""
        self._inbox.put(TICK_DUE)
        busy = self._log_writer.busy_seconds()
        if busy > self.stall_seconds:
            self._stalled(StorageFailed(f"a write to the log store has hung for {busy:.1f} s"))
            return False
        return True

    def crashed(self, error: BaseException) -> None:
        """Somebody else could not make us knock: the node would never learn again what time it is."""
        self._stalled(error)


class SharedTicker:
    """Knocks for all nodes of a process at the same moments, so that their heartbeats leave together. Hub only."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._tickers: set[Ticker] = set()

    def add(self, ticker: Ticker) -> None:
        self._tickers.add(ticker)

    def discard(self, ticker: Ticker) -> None:
        """Its node rests, or is gone; again is no error."""
        self._tickers.discard(ticker)

    def run(self) -> None:
        while True:
            gevent.sleep(self._interval_seconds)
            for ticker in list(self._tickers):
                try:
                    goes_on = ticker.knock()
                except Exception as error:  # of one node: time goes on for the others
                    goes_on = False
                    ticker.crashed(error)
                if not goes_on:
                    self._tickers.discard(ticker)
