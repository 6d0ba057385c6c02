"""Sends blinker signals from a native thread of its own: a receiver that raises, blocks or is slow delays nobody."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from blinker import Signal

from geraft import signals
from geraft.runtime.pool import Pool
from geraft.runtime.worker import Worker

log = logging.getLogger(__name__)

QUEUE_MAX = 10_000
"""Signals that wait for slow receivers; beyond them new ones are dropped, and the first drop is logged."""


class _Sending(NamedTuple):
    signal: Signal
    fields: dict[str, Any]


class Dispatcher(Worker):
    """sender: what receivers get as the sender, the node."""

    def __init__(self, sender: object, on_crash: Callable[[BaseException], None], pool: Pool | None = None) -> None:
        super().__init__("geraft signal dispatcher", on_crash, pool)
        self._sender = sender
        self._dropping = False

    def send(self, signal: Signal, **fields: Any) -> None:
        """Send soon, in order. Any thread; costs next to nothing while nobody listens."""
        if not signal.receivers:
            return
        if self.queue.qsize() >= QUEUE_MAX:
            if not self._dropping:
                log.warning("receivers of signals are too slow: some signals are dropped")
            self._dropping = True
            return
        self._dropping = False
        self.queue.put(_Sending(signal, fields))

    def work(self, item: Any) -> bool:
        sending: _Sending = item
        found = None
        if sending.signal is signals.committed:
            # Several commits that wait are told as one: what counts is how far the log is committed.
            while isinstance(found := self.take_more(), _Sending) and found.signal is signals.committed:
                sending.fields["last_index"] = found.fields["last_index"]
        for receiver in list(sending.signal.receivers_for(self._sender)):
            try:
                receiver(self._sender, **sending.fields)
            except BaseException:  # one that calls sys.exit() ends neither us nor the node
                log.exception("a receiver of the signal %s raised", getattr(sending.signal, "name", sending.signal))
        return found is not None and self._take(found)
