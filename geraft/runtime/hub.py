"""The node's own hub in its own native thread, and the only place where anything crosses between threads.

Callers come from any native thread or any greenlet of any hub. Their calls go in by `Inbox`, their answers come out by
`finish`, both woken once per batch. A foreign thread never touches a loop but by `async_watcher.send()`, the one libev
call that is safe there: run_callback_threadsafe loses updates of the loop's count and ends, at random, in a dead hub.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import gevent
from gevent import monkey
from gevent._hub_local import get_hub_if_exists
from gevent.event import Event as GeventEvent

from geraft.errors import GeraftError, GrpcHubTaken, NodeForked, NodeStopped

log = logging.getLogger(__name__)

native_lock = monkey.get_original("_thread", "allocate_lock")
"""A lock of the operating system's, whatever the host has patched."""
native_rlock = monkey.get_original("_thread", "RLock")
"""The same, which its holder may take again."""
native_ident = monkey.get_original("_thread", "get_ident")
monotonic = monkey.get_original("time", "monotonic")
_start_new_thread = monkey.get_original("_thread", "start_new_thread")

_forks = 0
"""How often this process descends from a fork since geraft was imported."""


def _count_fork() -> None:
    global _forks, _shared_lock
    _forks += 1
    _shared_lock = native_lock()  # whoever held it does not run here


os.register_at_fork(after_in_child=_count_fork)


def fork_generation() -> int:
    """Changes in a forked child: what was started under another number does not run here."""
    return _forks


def start_native_thread(run: Callable[[], None], *, name: str) -> None:
    """Start a thread of the operating system's, whatever the host has patched. The interpreter never waits for it.

    What `run` raises is logged, so it should handle its own.
    """

    def guarded() -> None:
        try:
            run()
        except SystemExit:
            pass
        except BaseException:
            if not sys.is_finalizing():
                log.exception("thread %s died", name)

    _start_new_thread(guarded, ())


class Mailbox:
    """Runs functions in one hub, handed in from any thread. Must be made in that hub's thread.

    waiters: greenlets of this hub that wait for an answer of ours; while there are any, the hub must not end for lack
    of other work. Own thread only, like deadlines.
    """

    def __init__(self, hub: Any, *, ref: bool) -> None:
        self.hub = hub
        self.waiters = 0
        self.watcher = hub.loop.async_(ref=ref)
        self.watcher.start(self._drain)
        self._items: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._awake = False
        self._due: dict[int, set[Waiter]] = {}
        self._timer: Any = None

    def post(self, run: Callable[..., object], *args: Any) -> None:
        """Run it soon in the hub's own greenlet, so it must not block. Any thread."""
        self._items.append((run, args))
        if not self._awake:
            self._awake = True
            try:
                self.watcher.send()
            except ValueError:
                pass  # the hub has ended, and with it all who waited there

    def _drain(self) -> None:
        self._awake = False  # first: whatever is added from now on wakes us again
        for _ in range(len(self._items)):
            run, args = self._items.popleft()
            try:
                run(*args)
            except BaseException:  # or the rest would wait for the next post
                self.hub.handle_error((run, args), *sys.exc_info())

    def due_in(self, seconds: float) -> set[Waiter]:
        """Those who are to be woken in that many seconds, rounded up a little: one timer serves all who wait here.

        A timer of its own per call would cost as much as all the rest of the call.
        """
        step = int((monotonic() + seconds) / DEADLINE_STEP_SECONDS) + 1
        waiters = self._due.get(step)
        if waiters is None:
            waiters = self._due[step] = set()
            if self._timer is None:
                self._timer = self.hub.loop.timer(DEADLINE_STEP_SECONDS, DEADLINE_STEP_SECONDS, ref=False)
                self._timer.start(self._wake_due)
        return waiters

    def _wake_due(self) -> None:
        now = monotonic() / DEADLINE_STEP_SECONDS
        for step in [step for step in self._due if step <= now]:
            for waiter in list(self._due.pop(step)):
                try:
                    waiter.wake()
                except BaseException:  # of a raw greenlet, whose errors come up here
                    self.hub.handle_error(waiter, *sys.exc_info())
        if not self._due:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def close(self) -> None:
        self.watcher.stop()
        self.watcher.close()


DEADLINE_STEP_SECONDS = 0.05
PRECISE_SECONDS = 1.0
"""A shorter wait gets a timer of its own."""


class CallKind(IntEnum):
    """What a caller asks for; the numbers are those of proto/geraft.proto."""

    APPLY = 1
    COMMIT = 2
    READ = 3
    OPEN_SESSION = 4
    CLOSE_SESSION = 5


class Consistency(IntEnum):
    """How fresh a read must be; the numbers are those of proto/geraft.proto."""

    LINEARIZABLE = 0
    LEASE = 1
    STALE = 2


class SessionWrite(NamedTuple):
    """Names a write that is applied once however often it is sent: the session, and its number there.

    answered_below: the caller has the answers to all writes of a lower number. Of an opening all are 0, of a closing
    the numbers.
    """

    session: int
    number: int
    answered_below: int


Sink = Callable[[list[Any]], None]


class Waiter:
    """One answer, given once by any thread, awaited by whoever made the waiter: a native thread or any hub's greenlet.

    _home: the mailbox of the waiting greenlet's hub, None for a native thread, or the sink of a remote call.
    """

    __slots__ = ("_greenlet", "_home", "_lock", "done", "error", "value")

    _home: Mailbox | Sink | None

    def __init__(self) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self.done = False
        self._greenlet: Any = None
        hub: Any = get_hub_if_exists()
        if hub is None or hub is gevent.getcurrent():
            self.wait_natively()
        else:
            try:
                self._home = hub._geraft_mailbox
            except AttributeError:  # the first call in this hub
                self._home = hub._geraft_mailbox = Mailbox(hub, ref=False)

    def wait_natively(self) -> None:
        """Be done in the moment of the answer, and block the whole thread until then: as without a hub."""
        self._home = None
        self._lock = native_lock()
        self._lock.acquire()

    def wait(self, timeout_seconds: float | None) -> bool:
        """Block until answered, this greenlet alone if there is a hub. False if the time ran out first."""
        mailbox = self._home
        if mailbox is None:
            return bool(self._lock.acquire(True, -1 if timeout_seconds is None else max(timeout_seconds, 0)))
        if self.done:
            return True
        assert isinstance(mailbox, Mailbox), "nobody waits here for a remote call"
        due: set[Waiter] | None = None
        timer = None
        if timeout_seconds is None:
            pass
        elif timeout_seconds >= PRECISE_SECONDS:
            due = mailbox.due_in(timeout_seconds)
            due.add(self)
        else:
            timer = mailbox.hub.loop.timer(max(timeout_seconds, 0))
            timer.start(self.wake)
        self._greenlet = gevent.getcurrent()
        if not mailbox.waiters:
            mailbox.watcher.ref = True
        mailbox.waiters += 1
        try:
            mailbox.hub.switch()  # until woken by the answer or by the time
        finally:
            self._greenlet = None
            mailbox.waiters -= 1
            if not mailbox.waiters:
                mailbox.watcher.ref = False
            if due is not None:
                due.discard(self)
            if timer is not None:
                timer.stop()
                timer.close()
        return self.done

    def wake(self) -> None:
        """In the waiter's own hub: let it look again."""
        if self._greenlet is not None:
            self._greenlet.switch()

    def result(self, timeout_seconds: float | None, on_timeout: Callable[[], BaseException]) -> Any:
        """The answer; raises what was answered as an error, or on_timeout() if the time ran out first."""
        if not self.wait(timeout_seconds):
            raise on_timeout()
        if self.error is not None:
            raise self.error
        return self.value


class Call(Waiter):
    """What a caller asks of the node, and waits for.

    deadline: of monotonic(), until which the node keeps looking for a leader and for an answer. forwarded: a member was
    asked first, so it is not forwarded again. session: set for a write of a session, its opening and its closing.
    """

    __slots__ = ("consistency", "deadline", "forwarded", "kind", "message", "session", "wait_for_leader")

    def result(self, timeout_seconds: float | None, on_timeout: Callable[[], BaseException]) -> Any:
        if not self.wait(timeout_seconds):
            raise on_timeout()
        error = self.error
        if error is not None:
            try:
                # All who failed together share it: without this each would add its own frames to it.
                raise error.with_traceback(None)
            finally:
                del self, error  # no cycle of the error, this frame and the call
        return self.value

    def __init__(
        self,
        kind: CallKind,
        message: bytes,
        *,
        deadline: float,
        wait_for_leader: bool = True,
        consistency: Consistency = Consistency.LINEARIZABLE,
        forwarded: bool = False,
        session: SessionWrite | None = None,
    ) -> None:
        Waiter.__init__(self)
        self.kind = kind
        self.message = message
        self.deadline = deadline
        self.wait_for_leader = wait_for_leader
        self.consistency = consistency
        self.forwarded = forwarded
        self.session = session


class RemoteCall(Call):
    """A call that came over the wire. Nobody waits for it in this process: `sink` gets it when it is finished,

    together with the others that finished in the same batch: sink([call, ...]), in any thread, must not block.
    number: what the caller named it.
    """

    __slots__ = ("number",)

    def __init__(
        self,
        kind: CallKind,
        message: bytes,
        *,
        deadline: float,
        number: int,
        sink: Callable[[list[RemoteCall]], None],
        wait_for_leader: bool = True,
        consistency: Consistency = Consistency.LINEARIZABLE,
        forwarded: bool = False,
        session: SessionWrite | None = None,
    ) -> None:
        self.value = None
        self.error = None
        self.done = False
        self._home = sink
        self.kind = kind
        self.message = message
        self.deadline = deadline
        self.wait_for_leader = wait_for_leader
        self.consistency = consistency
        self.forwarded = forwarded
        self.session = session
        self.number = number


def finish(waiters: Sequence[Waiter], values: Iterable[Any]) -> None:
    """Answer each waiter with its value, waking every hub and every remote stream among them once. Any thread."""
    for waiter, value in zip(waiters, values, strict=True):
        waiter.value = value
    _deliver(waiters)


def fail(waiters: Iterable[Waiter], error: BaseException) -> None:
    """Answer every waiter with the error. Any thread."""
    waiters = list(waiters)
    for waiter in waiters:
        waiter.error = error
    _deliver(waiters)


def _deliver(waiters: Iterable[Waiter]) -> None:
    groups: dict[Mailbox | Sink, list[Waiter]] = {}
    last: Mailbox | Sink | None = None
    group: list[Waiter] = []
    for waiter in waiters:
        home = waiter._home
        if home is None:
            waiter.done = True
            waiter._lock.release()
            continue
        if home is not last:  # most often all of a batch wait in one hub
            group = groups.setdefault(home, [])
            last = home
        group.append(waiter)
    for home, group in groups.items():
        if isinstance(home, Mailbox):
            home.post(_wake_greenlets, group)
        else:
            home(group)


def _wake_greenlets(group: list[Waiter]) -> None:
    """In the callers' hub: switch into each waiting greenlet in turn."""
    for waiter in group:
        waiter.done = True
        greenlet = waiter._greenlet
        if greenlet is not None:
            try:
                greenlet.switch()
            except BaseException:  # of a raw greenlet, whose errors come up here: the others still wait
                gevent.get_hub().handle_error(greenlet, *sys.exc_info())


class Inbox:
    """What a loop on a hub has to do: filled by any thread, emptied by the loop, which is woken once per batch.

    Made, waited for and closed in the hub's thread.
    """

    def __init__(self, hub: Any) -> None:
        self.items: deque[Any] = deque()
        self._hub = hub
        self._awake = False
        self.closed = False
        self._greenlet: Any = None
        self._watcher = hub.loop.async_()
        self._watcher.start(self._wake)

    def put(self, item: Any) -> None:
        """Any thread; never blocks."""
        self.items.append(item)
        if not self._awake:
            self._awake = True
            try:
                self._watcher.send()
            except ValueError:
                pass  # the hub has ended

    def wake(self) -> None:
        """Let the loop look at what was put quietly. Any thread."""
        if not self._awake:
            self._awake = True
            self._watcher.send()

    def put_quietly(self, item: Any) -> None:
        """For news that can wait for other news, at the latest for the next tick. Any thread."""
        self.items.append(item)

    def wait(self) -> None:
        """Block the calling greenlet, the loop, until something was put."""
        self._awake = False  # before the look: whatever is put from now on wakes us again
        while not self.items:
            self._greenlet = gevent.getcurrent()
            try:
                self._hub.switch()
            finally:
                self._greenlet = None
            self._awake = False

    def _wake(self) -> None:
        if self._greenlet is not None:
            self._greenlet.switch()

    def close(self) -> list[Any]:
        """Take nothing any more; what nobody has taken, once. Whoever puts after this takes it back.

        So each item is seen by the loop, or by who closes, or by who put it, and by one of them only.
        """
        left: list[Any] = []
        if not self.closed:
            self.closed = True
            self._awake = True
            self._watcher.stop()
            self._watcher.close()
            while self.items:
                left.append(self.items.popleft())
        return left

    def take_back(self, item: Any) -> bool:
        """After a put into what was closed by then: whether the item is still the putter's own. Any thread."""
        while True:
            try:
                self.items.remove(item)
            except ValueError:
                return False
            except IndexError:
                continue  # another thread changed the queue meanwhile
            return True


class HubThread:
    """A native thread whose gevent hub runs a node's greenlets.

    patched: whether the process is monkey-patched; then gRPC runs in its gevent mode, on this hub, and every gRPC
    object must be made, used and closed in greenlets of it.
    """

    def __init__(self) -> None:
        self.patched = monkey.is_module_patched("threading")
        self.hub: Any = None
        self.users = 0
        self._mailbox: Mailbox
        self._stop_event: GeventEvent
        self._ident = 0
        self._generation = fork_generation()
        self._lock = native_lock()  # of what follows; held for a moment, never across a wait
        self._running = False
        self._stopped = False
        self._ended = False
        self._starting: list[Waiter] = []
        self._stopping: list[Waiter] = []

    def start(self, timeout_seconds: float = 30.0) -> None:
        """Start the thread and its hub; blocks until they run. Several may start it at once."""
        started = Waiter()
        with self._lock:
            if self._running:
                return
            self._starting.append(started)
            first = len(self._starting) == 1
        if first:
            start_native_thread(self._run, name="geraft hub")
        started.result(timeout_seconds, lambda: NodeStopped("the hub thread did not start in time"))

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            self.hub = gevent.get_hub()
            self._ident = native_ident()
            # Referenced: a hub without a referenced watcher ends at once.
            self._mailbox = Mailbox(self.hub, ref=True)
            self._stop_event = GeventEvent()
            if self.patched:
                self._own_grpc()
        except BaseException as error:
            failure = error
        with self._lock:
            starting, self._starting = self._starting, []
            self._running = failure is None
        if failure is not None:
            fail(starting, failure)
            return
        finish(starting, [None] * len(starting))
        self._stop_event.wait()
        self._mailbox.close()
        self.hub.destroy(destroy_loop=True)
        with self._lock:
            self._ended = True
            stopping, self._stopping = self._stopping, []
        finish(stopping, [None] * len(stopping))

    def _own_grpc(self) -> None:
        """Bind gRPC's gevent mode to this hub: it runs on this hub's thread pool (GEVENT mode is process-wide)."""
        import grpc.experimental.gevent as grpc_gevent

        self.hub.threadpool.maxsize = 64
        grpc_gevent.init_gevent()

    @property
    def inside(self) -> bool:
        """Whether the caller runs on this hub's thread."""
        return bool(native_ident() == self._ident)

    def post(self, run: Callable[..., object], *args: Any) -> None:
        """Run it soon in the hub's own greenlet, so it must not block. Any thread."""
        self.check()
        self._mailbox.post(run, *args)

    def check(self) -> None:
        if self._generation != _forks:
            raise NodeForked("this was started before a fork and does not run in the child: start one in the child")
        if self._stopped:
            raise NodeStopped("the hub was stopped")

    def spawn(self, run: Callable[..., object], *args: Any) -> None:
        """Run it in a new greenlet of this hub, where it may block. Any thread."""
        self.post(gevent.spawn, run, *args)

    def call(self, run: Callable[..., Any], *args: Any, timeout_seconds: float | None = None) -> Any:
        """Run it in a new greenlet of this hub and wait for its result, from any thread."""
        if self.inside:
            return run(*args)
        waiter = Waiter()

        def answer() -> None:
            try:
                value = run(*args)
            except BaseException as error:
                fail([waiter], error)
            else:
                finish([waiter], [value])

        self.spawn(answer)
        return waiter.result(
            timeout_seconds, lambda: GeraftError(f"{run.__name__} took longer than {timeout_seconds} s")
        )

    def inbox(self) -> Inbox:
        """A new inbox for a loop on this hub. Own thread only."""
        return Inbox(self.hub)

    def stop(self, timeout_seconds: float = 5.0) -> bool:
        """End the thread; True if it has ended. Any thread, several at once; not its own greenlets."""
        if self._generation != _forks:
            return True
        ended = Waiter()
        with self._lock:
            if self._ended or not self._running:
                return True
            self._stopping.append(ended)
            first, self._stopped = not self._stopped, True
        if first:
            self._mailbox.post(self._stop_event.set)
        return ended.wait(timeout_seconds)


_shared: HubThread | None = None
"""In a patched process: the one hub that gRPC's gevent mode belongs to. It stays until the process ends."""
_shared_lock = native_lock()


def acquire_hub() -> HubThread:
    """A running hub for one node or client: its own in an unpatched process, the shared one in a patched process.

    Raises GrpcHubTaken if gRPC's gevent mode already belongs to a hub of the host's: its calls would block us for ever.
    """
    global _shared
    if not monkey.is_module_patched("threading"):
        hub = HubThread()
        hub.start()
        return hub
    with _shared_lock:
        if _shared is None or _shared._generation != _forks:
            from grpc._cython import cygrpc  # type: ignore[attr-defined]  # says who owns gevent mode

            if cygrpc.g_gevent_activated:
                raise GrpcHubTaken(
                    "gRPC's gevent mode already belongs to another hub of this process, where calls of ours would hang:"
                    " start the node before anything calls grpc.experimental.gevent.init_gevent(), or leave that call"
                    " out and let geraft make it"
                )
            _shared = HubThread()
        hub = _shared
        hub.users += 1
    # Outside the lock: to wait in it would block the other greenlets of this thread, and so the answer to this one.
    try:
        hub.start()
    except BaseException:
        with _shared_lock:
            if _shared is hub:
                _shared = None
        raise
    return hub


def release_hub(hub: HubThread, timeout_seconds: float = 5.0) -> bool:
    """Give a hub back. True if its thread has ended or is shared and goes on."""
    if hub is _shared:
        hub.users -= 1
        return True
    return hub.stop(timeout_seconds)


def _park_shared_hub() -> None:
    """At the interpreter's exit: let the shared hub's thread wait for ever.

    A thread that the end of the interpreter finds running a greenlet is unwound on the wrong stack, and the process
    dies of SIGSEGV. Nodes stop their own hubs; this one has no owner. Runs after what they register.
    """
    hub = _shared
    if hub is None or hub._stopped or hub._generation != _forks:
        return
    parked, for_ever = native_lock(), native_lock()
    parked.acquire()
    for_ever.acquire()

    def park() -> None:
        parked.release()
        for_ever.acquire()

    hub.post(park)
    hub._stopped = True
    parked.acquire(True, 2.0)


atexit.register(_park_shared_hub)
