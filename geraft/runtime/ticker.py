"""Turns passing time into ticks, and watches for a disk that hangs."""

from __future__ import annotations

from collections.abc import Callable

import gevent

from geraft.errors import StorageFailed
from geraft.runtime.hub import Inbox
from geraft.runtime.log_writer import LogWriter
from geraft.runtime.node_loop import TICK_DUE


class Ticker:
    """Knocks at the node loop a few times per heartbeat. stalled: told once, when a write to the store hangs."""

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
            self._inbox.put(TICK_DUE)
            busy = self._log_writer.busy_seconds()
            if busy > self.stall_seconds:
                self._stalled(StorageFailed(f"a write to the log store has hung for {busy:.1f} s"))
                return
