"""PerProcess: a node or client of a web application's, made where and when it is first used."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Makes an object on its first use in a process, one for all threads, and another one in a forked child.

        node = PerProcess(lambda: RaftNode(...).start())
        node.get().apply(b"deposit 10")

    A web application is imported where it does not serve: by a reloader's parent, by a management command, by a master
    that forks its workers. A node or a client must live in the process that uses it, so it is made there, by the first
    request. make: gives the object; what it raises reaches the caller of get(), and the next call tries again.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: tuple[int, T] | None = None
        self._lock = (os.getpid(), threading.Lock())

    def get(self) -> T:
        """The object of this process; blocks while it is being made."""
        made, pid = self._made, os.getpid()
        if made is not None and made[0] == pid:
            return made[1]
        lock_pid, lock = self._lock
        if lock_pid != pid:  # a thread of the parent may have held it in the moment of the fork
            self._lock = (pid, threading.Lock())
            lock = self._lock[1]
        with lock:
            made = self._made
            if made is None or made[0] != pid:
                made = self._made = (pid, self._make())
            return made[1]

    def made(self) -> T | None:
        """The object of this process if it was made, else None; never makes one. For what runs at the end."""
        made = self._made
        return made[1] if made is not None and made[0] == os.getpid() else None
