"""Links between two programs of ours: what is cut, slowed and broken, and what is not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from geraft.testing.links import Links

PATIENCE_SECONDS = 10.0
SILENCE_SECONDS = 0.2
"""So long without a byte is taken for silence: on loopback one needs far less than a millisecond."""


class Ends:
    """A connection that "a" dialled to "b", and its links."""

    def __init__(self, links: Links) -> None:
        self.links = links
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = links.add("a", "b", f"127.0.0.1:{self._listener.getsockname()[1]}")
        self._open: list[socket.socket] = [self._listener]

    def dial(self) -> socket.socket:
        host, _, port = self.address.rpartition(":")
        return self._kept(socket.create_connection((host, int(port)), PATIENCE_SECONDS))

    def accept(self) -> socket.socket:
        self._listener.settimeout(PATIENCE_SECONDS)
        return self._kept(self._listener.accept()[0])

    def connect(self) -> tuple[socket.socket, socket.socket]:
        return self.dial(), self.accept()

    def stop_listening(self) -> None:
        self._listener.close()

    def close(self) -> None:
        for one in self._open:
            one.close()

    def _kept(self, one: socket.socket) -> socket.socket:
        one.settimeout(PATIENCE_SECONDS)
        self._open.append(one)
        return one


@pytest.fixture
def ends() -> Iterator[Ends]:
    with Links() as links:
        ends = Ends(links)
        yield ends
        ends.close()


def take(one: socket.socket, count: int) -> bytes:
    """So many bytes, or as many as come before the end."""
    data = b""
    while len(data) < count and (more := one.recv(count - len(data))):
        data += more
    return data


def has_ended(one: socket.socket) -> bool:
    """Whether the end of the connection arrives, in one form or the other."""
    try:
        return one.recv(1) == b""
    except ConnectionResetError:
        return True


def is_silent(one: socket.socket) -> bool:
    one.settimeout(SILENCE_SECONDS)
    try:
        one.recv(1)
    except TimeoutError:
        return True
    finally:
        one.settimeout(PATIENCE_SECONDS)
    return False


def assert_passes(source: socket.socket, sink: socket.socket, data: bytes = b"hello") -> None:
    source.sendall(data)
    assert take(sink, len(data)) == data


def test_bytes_pass_both_ways_and_so_does_the_end(ends: Ends) -> None:
    a, b = ends.connect()
    sender = threading.Thread(target=a.sendall, args=(bytes(8 * 1024 * 1024),))
    sender.start()  # far more than all buffers hold
    assert take(b, 8 * 1024 * 1024) == bytes(8 * 1024 * 1024)
    sender.join()
    a.shutdown(socket.SHUT_WR)
    assert b.recv(1) == b""
    assert_passes(b, a)
    b.close()
    assert a.recv(1) == b""


def test_one_way_cut_loses_one_way_and_brings_it_late(ends: Ends) -> None:
    a, b = ends.connect()
    with ends.links.cut([("a", "b")]):
        a.sendall(b"late")
        assert is_silent(b)
        assert_passes(b, a)
        with ends.links.cut([("a", "b"), ("b", "a")]):
            b.sendall(b"too")
            assert is_silent(a)
        assert take(a, 3) == b"too"
        assert is_silent(b), "one of two cuts of this direction has ended, the other has not"
    assert take(b, 4) == b"late"


def test_the_end_of_a_connection_is_cut_too(ends: Ends) -> None:
    a, b = ends.connect()
    with ends.links.cut([("b", "a")]):
        b.close()
        assert is_silent(a)
        a.sendall(b"is anybody there?")
        assert is_silent(a), "the reset that answers it is lost as well"
    assert has_ended(a)


@pytest.mark.parametrize("cut", [("a", "b"), ("b", "a")])
def test_nothing_connects_through_a_cut(ends: Ends, cut: tuple[str, str]) -> None:
    with ends.links.cut([cut]):
        a = ends.dial()  # its own side of the proxy answers, and nothing comes of it
        a.sendall(b"hello")
        ends._listener.settimeout(SILENCE_SECONDS)
        with pytest.raises(TimeoutError):
            ends._listener.accept()
    assert take(ends.accept(), 5) == b"hello"


def test_a_slow_link_delays_and_keeps_the_order(ends: Ends) -> None:
    a, b = ends.connect()

    def seconds_until_answered() -> float:
        began = time.monotonic()
        for letter in b"abcdef":
            a.sendall(bytes([letter]))
            time.sleep(0.01)
        assert_passes(b, a)
        answered = time.monotonic() - began
        assert take(b, 6) == b"abcdef"
        assert time.monotonic() - began > 0.15
        return answered

    with ends.links.slow([("a", "b")], 0.1, 0.3):
        # On a busy machine perhaps not the first time; a slow direction would never be in time.
        assert any(seconds_until_answered() < 0.16 for _ in range(5)), "the other direction is as fast as ever"
    assert_passes(a, b)


def test_a_reset_is_seen_by_both(ends: Ends) -> None:
    a, b = ends.connect()
    assert ends.links.reset("b", "a") == 1
    for one in (a, b):
        with pytest.raises(ConnectionResetError):
            one.recv(1)
    assert_passes(*ends.connect())


@pytest.mark.parametrize(("hanging", "gone"), [("a", "b"), ("b", "a")])
def test_half_open_means_that_one_of_the_two_does_not_know(ends: Ends, hanging: str, gone: str) -> None:
    sockets = dict(zip("ab", ends.connect(), strict=True))
    assert ends.links.half_open(hanging, gone) == 1
    with pytest.raises(ConnectionResetError):
        sockets[gone].recv(1)
    sockets[hanging].sendall(b"is anybody there?")
    assert is_silent(sockets[hanging])
    assert_passes(*ends.connect())
    assert is_silent(sockets[hanging])


def test_who_dials_where_nobody_listens_learns_it(ends: Ends) -> None:
    ends.stop_listening()
    with pytest.raises(ConnectionResetError):
        ends.dial().recv(1)
