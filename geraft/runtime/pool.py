"""Native threads that many workers of a process share: made when needed, and kept."""

from __future__ import annotations

import logging
from _queue import SimpleQueue
from collections.abc import Callable
from typing import Any

from geraft.runtime.hub import native_lock, start_native_thread

log = logging.getLogger(__name__)


class Pool:
    """Runs what it is given on at most threads_max native threads. They keep no interpreter from ending."""

    def __init__(self, name: str, threads_max: int) -> None:
        self._name = name
        self._threads_max = threads_max
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = native_lock()
        self._threads = 0
        self._idle = 0
        self._ending = False

    def submit(self, run: Callable[[], object]) -> None:
        """Run it soon; what it raises is logged. Any thread; never blocks."""
        with self._lock:
            # Work that waits for a thread counts as one that is no longer idle, so each submit finds one or makes one.
            self._idle -= 1
            make_one = self._idle < 0 and self._threads < self._threads_max
            if make_one:
                self._threads += 1
                self._idle += 1
        self._work.put(run)
        if make_one:
            start_native_thread(self._run, name=self._name)

    @property
    def crowded(self) -> bool:
        """Whether work waits for a thread, and none more may be made."""
        return self._idle < 0

    def give_way(self, run: Callable[[], object]) -> bool:
        """Run it again after what waits for a thread; False if nothing does. For who runs on a thread of the pool."""
        with self._lock:
            if self._idle >= 0 or self._ending:
                return False
            self._idle -= 1
            self._work.put(run)  # within the lock, so that it does not land behind the end
            return True

    def _run(self) -> None:
        while True:
            run = self._work.get()
            if run is None:
                self._work.put(None)  # for the next thread
                return
            try:
                run()
            except BaseException:  # the thread works for others too
                log.exception("work of %s failed", self._name)
            del run
            with self._lock:
                self._idle += 1

    def end_soon(self) -> None:
        """Let the threads end once all that was submitted is done; never waits."""
        with self._lock:
            self._ending = True
            self._work.put(None)


class Strand:
    """A queue whose items are worked off on a pool's threads, in order and one at a time: no thread waits for them.

    Stands where a SimpleQueue does. work_off: takes items until none is left, or until shall_give_way; called on one
    thread at a time. A strand that always has more to do holds no thread for itself: whatever else waits for one gets
    its turn between two items.
    """

    def __init__(self, pool: Pool, work_off: Callable[[], None]) -> None:
        self._pool = pool
        self._work_off = work_off
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._lock = native_lock()
        self._busy = False

    def put(self, item: Any) -> None:
        """Any thread; never blocks."""
        self._queue.put(item)
        with self._lock:
            if self._busy:
                return
            self._busy = True
        self._pool.submit(self._run)

    def _run(self) -> None:
        while True:
            try:
                self._work_off()
            except BaseException:  # of one item: the others still wait, and nobody else would come for them
                log.exception("an item could not be worked off")
            with self._lock:
                if self._queue.empty():
                    self._busy = False
                    return
            if self._pool.give_way(self._run):
                return

    @property
    def shall_give_way(self) -> bool:
        """Whether others wait for a thread. For who works off, after an item."""
        return self._pool.crowded

    def get_nowait(self) -> Any:
        """The next item; raises Empty. For who works off."""
        return self._queue.get_nowait()

    def qsize(self) -> int:
        return self._queue.qsize()

    def empty(self) -> bool:
        return self._queue.empty()
