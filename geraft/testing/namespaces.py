"""Namespaces: nodes in network namespaces of their own, on a bridge that leads nowhere else.

What is cut is lost below TCP, as on a real network: the kernel sends again, and gives up in its own time. Links, the
proxies, need no rights and can do more; this shows that nothing depends on how they do it.

Needs root, `ip`, `nsenter` and a kernel with veth and bridge, and a process that is alone in its network namespace:
run it by `unshare --net`. All addresses are of 127.77.0.0/24.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from geraft.testing.links import Pair

PORT = 7001
NOWHERE = "02:00:00:00:00:fe"
"""A hardware address that nobody has."""
_BRIDGE = "geraft"
_OUTSIDE_NUMBER = 254


class NamespacesUnavailable(Exception):
    """This machine or this user can't make network namespaces; the message is what was said."""


def unavailable() -> str:
    """Why there can be no namespaces here; "" if there can."""
    missing = [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} can't be found"
    if os.geteuid() != 0:
        return "only root can"
    probe = "ip link add geraft-a type veth peer name geraft-b && ip link add geraft-c type bridge"
    done = subprocess.run(["unshare", "--net", "sh", "-c", probe], capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode and done.stderr.strip() else ""


def inside_own_namespace() -> bool:
    """Whether this process sees no network but a loopback device, and may thus change what it likes."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    return {line.partition(":")[0].strip() for line in lines} <= {"lo"}


class Namespaces:
    """A namespace for each node, and one, this process's own, for whoever is outside. A context manager."""

    def __init__(self, nodes: Sequence[str], outside: str) -> None:
        if not inside_own_namespace():
            raise NamespacesUnavailable("this process shares its network with others: run it by `unshare --net`")
        self._outside = outside
        self._numbers = {node: number for number, node in enumerate(nodes, start=1)}
        self._numbers[outside] = _OUTSIDE_NUMBER
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._cut: Counter[Pair] = Counter()
        self._lock = threading.Lock()
        try:
            self._make(nodes)
        except BaseException:
            self.close()
            raise

    def _make(self, nodes: Sequence[str]) -> None:
        # 127.0.0.0/8 is a network like any other here, but for 127.0.0.1.
        prepare = "ip link set lo up; ip route del local 127.0.0.0/8 dev lo table local"
        routable = "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter"
        own = f"ip addr add 127.77.0.{_OUTSIDE_NUMBER}/24 dev {_BRIDGE}"
        self._run("", f"{prepare}; {routable}; ip link add {_BRIDGE} type bridge; ip link set {_BRIDGE} up; {own}")
        for node in nodes:
            number = self._numbers[node]
            # The namespace lives as long as this process, which ends with ours at the latest: its stdin closes.
            holder = self._holders[node] = subprocess.Popen(
                ["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert holder.stdout is not None
            holder.stdout.readline()
            self._run("", f"ip link add node{number} type veth peer name eth0 netns {holder.pid}")
            self._run("", f"ip link set node{number} master {_BRIDGE} up")
            self._run(node, f"{prepare}; {routable}; ip addr add 127.77.0.{number}/24 dev eth0; ip link set eth0 up")

    def address(self, node: str) -> str:
        """host:port for the node to listen on."""
        return f"127.77.0.{self._numbers[node]}:{PORT}"

    def prefix(self, node: str) -> list[str]:
        """What to put before a command so that it runs in the node's namespace, as the same process."""
        return ["nsenter", f"--net=/proc/{self._holders[node].pid}/ns/net", "--"]

    @contextmanager
    def cut(self, pairs: Iterable[Pair]) -> Iterator[None]:
        """No packet that one of a (sender, receiver) pair sends reaches the other meanwhile."""
        pairs = set(pairs)
        with self._lock:
            for pair in pairs:
                self._cut[pair] += 1
                if self._cut[pair] == 1:
                    self._neighbour(pair, f"replace {{}} lladdr {NOWHERE} nud permanent")
        try:
            yield
        finally:
            with self._lock:
                for pair in pairs:
                    self._cut[pair] -= 1
                    if not self._cut[pair]:
                        self._neighbour(pair, "del {}")

    def close(self) -> None:
        """End the namespaces; what runs in them keeps them alive. Again is no error."""
        for holder in self._holders.values():
            holder.kill()
            holder.communicate()
        self._holders.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _neighbour(self, pair: Pair, what: str) -> None:
        """Change where the sender's frames for the receiver go."""
        sender, receiver = pair
        node, device = ("", _BRIDGE) if sender == self._outside else (sender, "eth0")
        self._run(node, f"ip neigh {what.format(f'127.77.0.{self._numbers[receiver]}')} dev {device}")

    def _run(self, node: str, script: str) -> None:
        command = [*(self.prefix(node) if node else ()), "sh", "-ec", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NamespacesUnavailable(f"{script!r} failed: {done.stderr.strip() or done.returncode}")
