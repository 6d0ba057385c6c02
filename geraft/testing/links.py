"""Links: TCP proxies between those who dial and those who listen, one for each pair, to be cut, slowed and broken.

with Links() as links:
    address = links.add("n1", "n2", "127.0.0.1:7002")  # what n1 dials to reach n2
    with links.cut([("n1", "n2")]):                    # nothing that n1 says reaches n2; the other way it does
        ...

What a pair (sender, receiver) suffers befalls all bytes that go that way, over the connections that either of them
dialled. Cut means what it means to TCP: nothing arrives as long as it lasts, neither bytes nor the end of a connection;
what was sent meanwhile comes late, if the connection lives that long. One thread serves all of them.
"""

from __future__ import annotations

import random
import selectors
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from types import TracebackType
from typing import Self

Pair = tuple[str, str]
"""(sender, receiver): a direction in which bytes go."""

CHUNK_BYTES = 64 * 1024
WAITING_BYTES_MAX = 1024 * 1024
"""What a direction holds of what it read and can't pass on; then the sender's own buffers fill."""
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class _End:
    """One of the two sockets of a connection, and what was read from it for the other one."""

    __slots__ = (
        "closed",
        "connecting",
        "due",
        "events",
        "finished",
        "last_due",
        "other",
        "owner",
        "pair",
        "shut",
        "socket",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self, owner: _Connection, sock: socket.socket, pair: Pair) -> None:
        self.owner = owner
        self.socket = sock
        self.pair = pair
        """From whom what is read here comes, and to whom it goes."""
        self.other: _End
        self.events = 0
        self.connecting = False
        self.closed = False
        self.finished = False
        """Its sender has said all."""
        self.shut = False
        """The other end was told so."""
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.waiting_bytes = 0
        self.last_due = 0.0


class _Connection:
    """A connection that was dialled, and the one to the listener behind; either may be gone for its peer alone."""

    __slots__ = ("far", "hanging", "near", "owed", "target")

    def __init__(self, near: socket.socket, dialler: str, listener: str, target: tuple[str, int]) -> None:
        self.target = target
        self.near = _End(self, near, (dialler, listener))
        self.far: _End | None = None
        """None until the connection to the listener is begun, for which neither direction may be cut."""
        self.hanging = False
        """Half open: one end is gone, and the other was not told. It may say what it likes."""
        self.owed: Pair | None = None
        """The direction in which it will be told as soon as it is not cut any more."""

    @property
    def ends(self) -> list[_End]:
        return [self.near] if self.far is None else [self.near, self.far]


class Links:
    """The proxies, and what befalls them. For any thread; a context manager that ends them all."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._cut: Counter[Pair] = Counter()
        self._slowed: dict[Pair, list[float]] = {}
        self._selector = selectors.DefaultSelector()
        self._connections: set[_Connection] = set()
        self._listeners: list[socket.socket] = []
        self._due: list[tuple[float, int, _End]] = []
        self._count = 0
        self._tasks: deque[Callable[[], None]] = deque()
        self._waker, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="geraft links", daemon=True)
        self._thread.start()

    # What links there are

    def add(self, dialler: str, listener: str, target: str) -> str:
        """Listen on a free address of 127.0.0.1 for those that `dialler` stands for; gives it.

        target: "host:port" of the listener; nobody need listen there yet.
        """
        host, _, port = target.rpartition(":")
        accepting = socket.create_server(("127.0.0.1", 0), backlog=128)
        accepting.setblocking(False)
        self._listeners.append(accepting)
        place = (host, int(port))
        self._do(lambda: self._listen(accepting, dialler, listener, place))
        return f"127.0.0.1:{accepting.getsockname()[1]}"

    def close(self) -> None:
        """End every connection and every proxy. Again is no error."""
        if not self._closed:
            self._closed = True
            self._wake()
            self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # What may befall them

    @contextmanager
    def cut(self, pairs: Iterable[Pair]) -> Iterator[None]:
        """Nothing that one of a (sender, receiver) pair sends reaches the other meanwhile."""
        pairs = set(pairs)
        with self._lock:
            self._cut.update(pairs)
        self._do(self._look_again)
        try:
            yield
        finally:
            with self._lock:
                self._cut.subtract(pairs)
            self._do(self._look_again)

    @contextmanager
    def slow(self, pairs: Iterable[Pair], least_seconds: float, most_seconds: float) -> Iterator[None]:
        """What is sent meanwhile arrives that much later, in order."""
        pairs = set(pairs)
        with self._lock:
            for pair in pairs:
                self._slowed.setdefault(pair, []).append(least_seconds)
                self._slowed[pair].append(most_seconds)
        try:
            yield
        finally:
            with self._lock:
                for pair in pairs:
                    self._slowed[pair].remove(least_seconds)
                    self._slowed[pair].remove(most_seconds)
                    if not self._slowed[pair]:
                        del self._slowed[pair]

    def reset(self, one: str, another: str) -> int:
        """Break every connection between the two, for both of them at once; gives how many there were."""
        return self._ask(lambda: self._break({one, another}, left_hanging=""))

    def half_open(self, left_hanging: str, gone: str) -> int:
        """Of every connection between the two, break the end of `gone`, and tell the other one nothing.

        As if the machine of `gone` had started anew while its network was down: what `left_hanging` sends over those
        connections is lost, and nothing comes back. New connections are none the worse. Gives how many there were.
        """
        return self._ask(lambda: self._break({left_hanging, gone}, left_hanging))

    # In any thread

    def _do(self, task: Callable[[], None]) -> None:
        self._tasks.append(task)
        self._wake()

    def _ask(self, task: Callable[[], int]) -> int:
        answers: list[int] = []
        done = threading.Event()

        def run() -> None:
            answers.append(task())
            done.set()

        self._do(run)
        done.wait(10)
        return answers[0] if answers else 0

    def _wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except OSError:  # full, so it wakes in any case; or closed
            pass

    # In the thread of the proxies

    def _run(self) -> None:
        try:
            while not self._closed:
                timeout = max(self._due[0][0] - time.monotonic(), 0.0) if self._due else None
                for key, ready in self._selector.select(timeout):
                    if isinstance(key.data, _End):
                        self._serve(key.data, ready)
                    elif key.data is not None:
                        key.data()
                    else:
                        self._drain_wakes()
                while self._tasks:
                    self._tasks.popleft()()
                while self._due and self._due[0][0] <= time.monotonic():
                    self._settle(heappop(self._due)[2].owner)
        finally:
            for connection in list(self._connections):
                self._abort(connection)
            for accepting in self._listeners:
                accepting.close()
            self._selector.close()
            self._waker.close()
            self._woken.close()

    def _drain_wakes(self) -> None:
        try:
            while len(self._woken.recv(4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    def _listen(self, accepting: socket.socket, dialler: str, listener: str, target: tuple[str, int]) -> None:
        def accept() -> None:
            try:
                near, _ = accepting.accept()
            except OSError:
                return
            near.setblocking(False)
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(near, dialler, listener, target)
            self._connections.add(connection)
            self._settle(connection)

        self._selector.register(accepting, selectors.EVENT_READ, accept)

    def _serve(self, end: _End, ready: int) -> None:
        connection = end.owner
        if connection not in self._connections:
            return  # ended since select() saw it
        if ready & selectors.EVENT_WRITE and end.connecting:
            end.connecting = False
            if end.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._abort(connection)  # nobody listens there: who dialled learns it
                return
        if ready & selectors.EVENT_READ and not end.connecting:
            self._read(end)
        self._settle(connection)

    def _read(self, end: _End) -> None:
        try:
            data = end.socket.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._lost(end)
            return
        if not data:
            end.finished = True
            if end.owner.hanging:
                self._abort(end.owner)
            return
        if end.owner.hanging:
            return
        due = 0.0
        if self._slowed or end.waiting:
            due = end.last_due = max(end.last_due, time.monotonic() + self._delay(end.pair))
            self._count += 1
            heappush(self._due, (due, self._count, end))
        end.waiting.append((due, data))
        end.waiting_bytes += len(data)

    def _delay(self, pair: Pair) -> float:
        with self._lock:
            bounds = self._slowed.get(pair)
            return self._rng.uniform(min(bounds), max(bounds)) if bounds else 0.0

    def _lost(self, end: _End) -> None:
        """The socket is dead. The other one learns it by a reset, unless that is lost on the way."""
        self._close(end)
        if not self._is_cut(end.pair):
            self._abort(end.owner)
        else:
            end.owner.hanging = True
            end.owner.owed = end.pair

    def _settle(self, connection: _Connection) -> None:
        """Pass on what may be passed on, and wait for what may come next."""
        if connection not in self._connections:
            return
        if connection.far is None:
            near = connection.near
            if self._is_cut(near.pair) or self._is_cut(near.pair[::-1]):
                self._wait_for(near, 0)
                return
            self._connect(connection)
        far = connection.far
        assert far is not None
        for end in (connection.near, far):
            self._pass_on(end)
            if connection not in self._connections:
                return
        if all(end.shut or end.closed for end in connection.ends):
            self._abort(connection)
            return
        for end in connection.ends:
            events = 0
            if connection.hanging:
                events = selectors.EVENT_READ
            elif end.connecting:
                events = selectors.EVENT_WRITE
            else:
                if not end.finished and end.waiting_bytes < WAITING_BYTES_MAX and not self._is_cut(end.pair):
                    events |= selectors.EVENT_READ
                if self._may_pass(end.other):
                    events |= selectors.EVENT_WRITE
            self._wait_for(end, 0 if end.closed else events)

    def _connect(self, connection: _Connection) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        near = connection.near
        far = connection.far = _End(connection, sock, (near.pair[1], near.pair[0]))
        near.other, far.other = far, near
        far.connecting = True
        sock.connect_ex(connection.target)  # what comes of it select() tells

    def _pass_on(self, end: _End) -> None:
        """What was read from this end, to the other."""
        sink = end.other
        while self._may_pass(end):
            due, data = end.waiting[0]
            try:
                sent = sink.socket.send(data)
            except BlockingIOError:
                return
            except OSError:
                self._lost(sink)
                return
            end.waiting_bytes -= sent
            if sent < len(data):
                end.waiting[0] = (due, data[sent:])
                return
            end.waiting.popleft()
        if end.finished and not end.waiting and not end.shut and not self._is_cut(end.pair) and not sink.connecting:
            end.shut = True
            try:
                sink.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self._lost(sink)

    def _may_pass(self, end: _End) -> bool:
        """Whether something waits for the other end whose time has come."""
        return (
            bool(end.waiting)
            and not end.other.connecting
            and not end.owner.hanging
            and not self._is_cut(end.pair)
            and end.waiting[0][0] <= time.monotonic()
        )

    def _is_cut(self, pair: Pair) -> bool:
        return self._cut[pair] > 0

    def _look_again(self) -> None:
        for connection in list(self._connections):
            if connection.owed is not None and not self._is_cut(connection.owed):
                self._abort(connection)
            else:
                self._settle(connection)

    def _break(self, between: set[str], left_hanging: str) -> int:
        found = [one for one in self._connections if set(one.near.pair) == between]
        for connection in found:
            if not left_hanging or connection.far is None:
                self._abort(connection)
                continue
            connection.hanging = True
            gone = connection.near if connection.near.pair[0] != left_hanging else connection.far
            self._close(gone)
            self._settle(connection)
        return len(found)

    def _abort(self, connection: _Connection) -> None:
        """A reset for whoever is left."""
        for end in connection.ends:
            self._close(end)
        self._connections.discard(connection)

    def _close(self, end: _End) -> None:
        if end.closed:
            return
        self._wait_for(end, 0)
        end.closed = True
        try:
            end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        except OSError:
            pass
        end.socket.close()

    def _wait_for(self, end: _End, events: int) -> None:
        if end.events == events:
            return
        if not events:  # not even its end is to be seen
            self._selector.unregister(end.socket)
        elif end.events:
            self._selector.modify(end.socket, events, end)
        else:
            self._selector.register(end.socket, events, end)
        end.events = events
