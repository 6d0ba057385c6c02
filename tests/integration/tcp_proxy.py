"""A TCP proxy that stands before a node and loses what it is told to lose, for each sender and direction apart.

Lost means what it means to TCP: nothing arrives as long as the loss lasts. What was sent meanwhile comes late, if the
connection lives that long.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

CHUNK = 256 * 1024


def socket_inode(local_port: int, remote_port: int) -> str:
    """Of the socket that is connected from the one port to the other; "" if there is none.

    The local port alone names no socket: connections to other ports may have it too, and closed ones that linger.
    """
    for table in ("tcp", "tcp6"):  # gRPC connects to IPv4 addresses through sockets of IPv6 where there are any
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            ports = tuple(int(field.rpartition(":")[2], 16) for field in fields[1:3])
            if ports == (local_port, remote_port) and fields[9] != "0":
                return fields[9]
    return ""


def owns_socket(pid: int, inode: str) -> bool:
    try:
        links = [descriptor.readlink() for descriptor in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # the process, or one of its descriptors, is gone
        return False
    return any(str(link) == f"socket:[{inode}]" for link in links)


class TcpProxy:
    """Before node `behind`, whose address is `target`. pids: the process of each node, as of now."""

    def __init__(self, behind: str, target: str, pids: Callable[[], dict[str, int]]) -> None:
        self.behind = behind
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._pids = pids
        self._lost: set[tuple[str, str]] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, links: set[tuple[str, str]]) -> None:
        """From now on nothing that one node of a (sender, receiver) pair sends reaches the other."""
        with self._changed:
            self._lost = set(links)
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._listener.close()
        for one in list(self._sockets):
            self._cut(one)

    def _accept(self) -> None:
        while not self._closed:
            try:
                inner, (_, port) = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(inner, port), daemon=True).start()

    def _serve(self, caller: socket.socket, port: int) -> None:
        inode = socket_inode(port, self._port)
        sender = next((node for node, pid in self._pids().items() if owns_socket(pid, inode)), "")
        try:
            target = socket.create_connection(self._target, timeout=5)
        except OSError:
            caller.close()
            return
        target.settimeout(None)
        for one in (caller, target):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.add(one)
        back = threading.Thread(target=self._pump, args=(target, caller, (self.behind, sender)), daemon=True)
        back.start()
        self._pump(caller, target, (sender, self.behind))
        back.join()
        for one in (caller, target):
            self._sockets.discard(one)
            one.close()

    def _pump(self, source: socket.socket, sink: socket.socket, link: tuple[str, str]) -> None:
        try:
            while data := source.recv(CHUNK):
                with self._changed:
                    self._changed.wait_for(lambda: link not in self._lost or self._closed)
                sink.sendall(data)
        except OSError:
            pass
        self._cut(source)
        self._cut(sink)

    @staticmethod
    def _cut(one: socket.socket) -> None:
        """End it for both threads that use it; whoever serves the connection closes it."""
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
