"""A native thread with a queue: the frame of the log writer, the applier, the readers and the dispatcher.

Where many nodes live in one process, the threads of a pool take turns instead.
"""

from __future__ import annotations

import logging
from _queue import Empty, SimpleQueue
from collections.abc import Callable
from typing import Any

from geraft.runtime.hub import Waiter, fail, finish, native_ident, native_lock, start_native_thread
from geraft.runtime.pool import Pool, Strand

log = logging.getLogger(__name__)


class End:
    """Lies in the queue behind the last work."""


END = End()


class Worker:
    """Runs work on one native thread of the node, in order. What the work raises goes to on_crash, and ends the work.

    The queue is C and native in every process, patched or not; putting into it never blocks. pool: whose threads do the
    work, one at a time; without one there is a thread of our own.
    """

    def __init__(self, name: str, on_crash: Callable[[BaseException], None], pool: Pool | None = None) -> None:
        self.name = name
        self.queue: SimpleQueue[Any] | Strand = SimpleQueue() if pool is None else Strand(pool, self._work_off)
        self._pooled = pool is not None
        self._on_crash = on_crash
        self._crashed = False
        self._lock = native_lock()  # of what follows; held for a moment, never across a wait
        self._ident = 0
        self._started = False
        self._ending = False
        self._ended = False
        self._last: Callable[[], object] | None = None
        self._waiting: list[Waiter] = []

    def start(self) -> None:
        self._started = True
        if not self._pooled:
            start_native_thread(self._main, name=self.name)

    @property
    def inside(self) -> bool:
        """Whether the caller runs on this thread."""
        return bool(native_ident() == self._ident)

    def run(self, run: Callable[[], Any], timeout_seconds: float, on_timeout: Callable[[], BaseException]) -> Any:
        """Run it on the thread, after what is queued, and give its result; from any other thread or greenlet."""
        waiter = Waiter()

        def answer() -> None:
            try:
                value = run()
            except BaseException as error:
                fail([waiter], error)
            else:
                finish([waiter], [value])

        self.queue.put(answer)
        return waiter.result(timeout_seconds, on_timeout)

    def end_soon(self, last: Callable[[], object] | None = None) -> None:
        """Let the thread end once all that is queued is done; again is no error. Never blocks.

        last: run at the very end, also by a thread whose work crashed.
        """
        with self._lock:
            if self._ending or not self._started:
                return
            self._last = last
            self._ending = True
        self.queue.put(END)

    def wait_until_ended(self, timeout_seconds: float) -> bool:
        """After end_soon(): True once the thread has ended, or at once if it never ran, or is the caller itself."""
        waiter = Waiter()
        with self._lock:
            if self._ended or not self._started or self.inside:
                return True
            self._waiting.append(waiter)
        return waiter.wait(timeout_seconds)

    def stop(self, timeout_seconds: float) -> bool:
        """End the thread once all that is queued is done; True if it ended in time."""
        self.end_soon()
        return self.wait_until_ended(timeout_seconds)

    def _main(self) -> None:
        queue = self.queue
        assert isinstance(queue, SimpleQueue)
        self._ident = native_ident()
        while not self._done(queue.get()):
            pass
        self._finish()

    def _work_off(self) -> None:
        """On a thread of the pool: do what is queued, or a part of it if others wait for the thread."""
        strand = self.queue
        assert isinstance(strand, Strand)
        self._ident = native_ident()
        try:
            while (item := self.take_more()) is not None:
                if not self._ended and self._done(item):
                    self._finish()
                if strand.shall_give_way:
                    break
        finally:
            self._ident = 0  # the thread works for others too

    def _done(self, item: Any) -> bool:
        """Do one item, or drop it after a crash; True if it was the last one."""
        if self._crashed:
            self.drop(item)
            return self._ending
        try:
            return self._take(item)
        except BaseException as error:
            self._crashed = True
            try:
                self._on_crash(error)
            except Exception:
                log.exception("%s could not tell that it crashed", self.name)
            return self._ending  # the end may have been taken from the queue by the work that crashed

    def _finish(self) -> None:
        try:
            self.after_end()
            if self._last is not None:
                self._last()
        except Exception:
            log.exception("%s did not end cleanly", self.name)
        with self._lock:
            self._ended = True
            self._ident = 0  # another thread may get the number
            waiting, self._waiting = self._waiting, []
        finish(waiting, [None] * len(waiting))

    def _take(self, item: Any) -> bool:
        """Do one item; True if that was the end."""
        if item is END:
            return True
        if callable(item):
            item()
            return False
        return self.work(item)

    def work(self, item: Any) -> bool:
        """Do one item of the worker's own kind.

        May take more of them from the queue, and then gives what `_take` says of the last one if it is not of its kind.
        """
        raise TypeError(f"{self.name} has no work of its own")

    def drop(self, item: Any) -> None:
        """Do nothing of the item but tell who waits for it. After a crash, or when there is no time left."""

    def after_end(self) -> None:
        """On the thread, once the work is done."""

    def drop_queue(self) -> None:
        """Drop all that waits, but not the end. Any thread."""
        while (item := self.take_more()) is not None:
            self.drop(item)
        if self._ending:
            self.queue.put(END)

    def take_more(self) -> Any:
        """The next item if one waits, else None."""
        try:
            return self.queue.get_nowait()
        except Empty:
            return None
