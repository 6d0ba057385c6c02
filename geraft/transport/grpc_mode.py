"""The two ways in which gRPC runs, behind one face.

In an unpatched process gRPC works on native threads: readers are threads of ours, outboxes are C queues. In a
monkey-patched process it works in its gevent mode on one hub: readers are greenlets of that hub, outboxes wake through
it, and every gRPC object is made, used and closed in its greenlets.
"""

from __future__ import annotations

import logging
from _queue import Empty, SimpleQueue
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, Protocol, TypeVar

import gevent
import grpc
from gevent.event import Event as GeventEvent

from geraft.errors import GeraftError
from geraft.runtime.hub import HubThread, Waiter, fail, finish, native_lock, start_native_thread
from geraft.runtime.pool import Pool

log = logging.getLogger(__name__)

T = TypeVar("T")

_CLOSE: Any = object()


class Outbox(Protocol):
    """What waits to leave on one stream. Filled by any thread, iterated by the one that sends."""

    def put(self, item: Any, size_bytes: int = 0) -> None:
        """Never blocks. After close() the item is dropped."""

    def take_more(self) -> Any:
        """The next item if one waits, else None: for a sender that packs many into one message. Sender only."""

    def close(self) -> None:
        """Let the iteration end once what was put before has been taken. Again is no error."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...

    @property
    def waiting_count(self) -> int: ...

    @property
    def waiting_bytes(self) -> int: ...

    @property
    def closed(self) -> bool: ...


class _Counted:
    """How much waits: two counters that only grow, one written under the putters' lock, one by the only taker."""

    def __init__(self) -> None:
        self._lock = native_lock()
        self._put_count = 0
        self._put_bytes = 0
        self._taken_count = 0
        self._taken_bytes = 0
        self.closed = False

    @property
    def waiting_count(self) -> int:
        return self._put_count - self._taken_count

    @property
    def waiting_bytes(self) -> int:
        return self._put_bytes - self._taken_bytes


class NativeOutbox(_Counted):
    """An Outbox whose taker is a native thread."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: Any = SimpleQueue()

    def put(self, item: Any, size_bytes: int = 0) -> None:
        with self._lock:
            if self.closed:
                return
            self._put_count += 1
            self._put_bytes += size_bytes
            self._queue.put((item, size_bytes))  # within the lock, so that nothing lands behind the end

    def close(self) -> None:
        with self._lock:
            if self.closed:
                return
            self.closed = True
            self._queue.put(_CLOSE)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._taken(self._queue.get())

    def take_more(self) -> Any:
        try:
            entry = self._queue.get_nowait()
        except Empty:
            return None
        try:
            return self._taken(entry)
        except StopIteration:
            return None

    def _taken(self, entry: Any) -> Any:
        if entry is _CLOSE:
            self._queue.put(_CLOSE)  # for the next look
            raise StopIteration
        item, size_bytes = entry
        self._taken_count += 1
        self._taken_bytes += size_bytes
        return item


class GeventOutbox(_Counted):
    """An Outbox whose taker is a greenlet of the hub."""

    def __init__(self, hub: HubThread) -> None:
        super().__init__()
        self._hub = hub
        self._items: deque[tuple[Any, int]] = deque()
        self._news = GeventEvent()
        self._woken = False

    def put(self, item: Any, size_bytes: int = 0) -> None:
        with self._lock:
            if self.closed:
                return
            self._put_count += 1
            self._put_bytes += size_bytes
            self._items.append((item, size_bytes))
        self._wake()

    def close(self) -> None:
        with self._lock:
            if self.closed:
                return
            self.closed = True
        self._wake()

    def _wake(self) -> None:
        if self._woken:
            return
        self._woken = True
        if self._hub.inside:
            self._news.set()
            return
        try:
            self._hub.post(self._news.set)
        except GeraftError:
            pass  # the hub has ended, and the taker with it

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while not self._items:
            if self.closed and not self._items:
                raise StopIteration
            self._news.wait()
            self._news.clear()
            self._woken = False  # before the next look: whatever is put from now on wakes us again
        return self._taken()

    def take_more(self) -> Any:
        return self._taken() if self._items else None

    def _taken(self) -> Any:
        item, size_bytes = self._items.popleft()
        self._taken_count += 1
        self._taken_bytes += size_bytes
        return item


class GrpcMode(Protocol):
    """How to wait, to start work beside, and to reach gRPC."""

    def outbox(self) -> Outbox: ...

    def spawn(self, run: Callable[..., object], *args: Any, name: str) -> None:
        """Run it beside us, where it may block. Any thread."""

    def enter(self, run: Callable[..., object], *args: Any, name: str) -> None:
        """Run it where gRPC may be used: at once in native mode, soon in gevent mode. It must not block. Any thread."""

    def call(self, run: Callable[..., T], *args: Any, timeout_seconds: float | None = None) -> T:
        """Run it where gRPC may be used and wait for its result, in native mode at once if there is no timeout.

        Any thread. Raises GeraftError if it took longer; it goes on then.
        """

    def executor(self, workers_max: int) -> futures.Executor:
        """What a gRPC server runs its handlers on; nothing of it keeps the interpreter from ending."""


class NativeMode:
    """gRPC on native threads, in an unpatched process."""

    def outbox(self) -> Outbox:
        return NativeOutbox()

    def spawn(self, run: Callable[..., object], *args: Any, name: str) -> None:
        start_native_thread(lambda: _swallow(run(*args)), name=name)

    def enter(self, run: Callable[..., object], *args: Any, name: str) -> None:
        run(*args)

    def call(self, run: Callable[..., T], *args: Any, timeout_seconds: float | None = None) -> T:
        if timeout_seconds is None:
            return run(*args)
        waiter = Waiter()

        def answer() -> None:
            try:
                value = run(*args)
            except BaseException as error:
                fail([waiter], error)
            else:
                finish([waiter], [value])

        # In a thread of its own: the caller may be a greenlet, whose hub must not stand still.
        start_native_thread(answer, name="geraft call")
        result: T = waiter.result(timeout_seconds, lambda: GeraftError(f"{run} took longer than {timeout_seconds} s"))
        return result

    def executor(self, workers_max: int) -> futures.Executor:
        return ThreadExecutor(workers_max)


class GeventMode:
    """gRPC in gevent mode on this hub, in a patched process."""

    def __init__(self, hub: HubThread) -> None:
        self.hub = hub

    def outbox(self) -> Outbox:
        return GeventOutbox(self.hub)

    def spawn(self, run: Callable[..., object], *args: Any, name: str) -> None:
        self.hub.spawn(_logged, run, args, name)

    def enter(self, run: Callable[..., object], *args: Any, name: str) -> None:
        self.hub.spawn(_logged, run, args, name)

    def call(self, run: Callable[..., T], *args: Any, timeout_seconds: float | None = None) -> T:
        result: T = self.hub.call(run, *args, timeout_seconds=timeout_seconds)
        return result

    def executor(self, workers_max: int) -> futures.Executor:
        return GreenletExecutor()


def sleep(seconds: float) -> None:
    """Block the calling native thread, or the calling greenlet alone if it is one, patched or not."""
    if seconds > 0:
        Waiter().wait(seconds)


def mode_for(hub: HubThread) -> GrpcMode:
    """The mode in which gRPC runs beside this hub."""
    return GeventMode(hub) if hub.patched else NativeMode()


class LazyChannel:
    """A channel that is made at its first use, so that whoever may not use gRPC can hold it already."""

    def __init__(self, address: str, options: Sequence[tuple[str, Any]]) -> None:
        self.address = address
        self._options = options
        self._lock = native_lock()
        self._channel: grpc.Channel | None = None
        self._closed = False

    def get(self) -> grpc.Channel:
        """The channel. Where gRPC may be used. Raises ValueError once it is closed, as gRPC's own calls do."""
        if self._channel is not None:
            return self._channel
        made = grpc.insecure_channel(self.address, options=self._options)  # outside the lock: it may switch greenlets
        with self._lock:
            closed = self._closed
            if self._channel is None and not closed:
                self._channel = made
            kept = self._channel
        if kept is not made:
            made.close()
        if closed or kept is None:
            raise ValueError("the channel was closed")
        return kept

    def close(self) -> None:
        """Where gRPC may be used. Again is no error."""
        with self._lock:
            self._closed = True
        if self._channel is not None:
            self._channel.close()


class ThreadExecutor(futures.Executor):
    """Native threads, made when needed and kept; unlike those of a ThreadPoolExecutor nobody joins them at exit."""

    def __init__(self, workers_max: int) -> None:
        self._pool = Pool("geraft rpc", workers_max)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
        future: futures.Future[T] = futures.Future()
        self._pool.submit(lambda: _run_task(future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the workers end once they are idle; never waits."""
        self._pool.end_soon()


class GreenletExecutor(futures.Executor):
    """A greenlet of the current hub per task."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
        future: futures.Future[T] = futures.Future()
        gevent.spawn(_run_task, future, fn, args, kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass


def _run_task(future: futures.Future[Any], fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args, **kwargs)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _logged(run: Callable[..., object], args: Any, name: str) -> None:
    try:
        run(*args)
    except Exception:
        log.exception("%s died", name)


def _swallow(_: object) -> None:
    return None
