"""Nodes of the key-value store in processes of their own, on loopback, for demo and bench."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from geraft.cli.command import Failed, join_members

START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 15.0


def free_addresses(count: int) -> list[str]:
    """Loopback addresses that nobody listens on, below the ports that outgoing connections get.

    A port of that range could be given to a connection of ours while its node is down, which would keep it from
    returning.
    """
    found: list[str] = []
    sockets = []
    try:
        while len(found) < count:
            probe = socket.socket()
            sockets.append(probe)
            try:
                probe.bind(("127.0.0.1", random.randint(20000, 32000)))
            except OSError:
                continue
            found.append(f"127.0.0.1:{probe.getsockname()[1]}")
    finally:
        for probe in sockets:
            probe.close()
    return found


class NodeProcess:
    """One `geraft serve`, which ends with this process at the latest: it watches its stdin."""

    def __init__(self, node_id: str, arguments: list[str], log_path: Path) -> None:
        self.node_id = node_id
        self.log_path = log_path
        self._arguments = [sys.executable, "-m", "geraft", "serve", "--until-stdin-closes", *arguments]
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; wait_until_ready tells when it answers."""
        self._log = self.log_path.open("a")
        self._process = subprocess.Popen(
            self._arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def wait_until_ready(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Raises Failed if it ends instead. meanwhile: called again and again."""
        assert self._process is not None and self._process.stdout is not None
        while meanwhile is not None and not select.select([self._process.stdout], [], [], 0.05)[0]:
            meanwhile()
        if not self._process.stdout.readline():  # it says one line when it is ready, and none if it fails
            self._process.wait(START_TIMEOUT_SECONDS)
            lines = self.log_path.read_text(errors="replace").strip().splitlines()
            raise Failed(f"node {self.node_id} did not start: {lines[-1] if lines else 'it said nothing'}")

    def kill(self) -> None:
        """SIGKILL, as if the machine had lost it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._close()

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Stands still meanwhile (SIGSTOP), and goes on afterwards."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def ask_to_stop(self) -> None:
        if self.running:
            assert self._process is not None
            self._process.terminate()

    def wait_until_stopped(self, deadline: float) -> None:
        """Until it ended by itself, or, at the deadline (of time.monotonic()), by SIGKILL."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def cpu_seconds(self) -> float:
        """What the process has used of the CPU since it started."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _close(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        if self._log is not None:
            self._log.close()


class LocalCluster:
    """Nodes n1, n2, ... on loopback, each with its data below `directory`; a context manager that always ends them.

    inside: ids of the nodes that run inside this process, and are not started here. options: more of geraft serve.
    """

    def __init__(
        self,
        count: int,
        directory: Path,
        *,
        storage: str = "sqlite",
        sync: str = "full",
        log_level: str = "info",
        inside: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
    ) -> None:
        self.members = {f"n{number}": address for number, address in enumerate(free_addresses(count), start=1)}
        self.directory = directory
        self.nodes: dict[str, NodeProcess] = {}
        for node_id in self.members:
            if node_id in inside:
                continue
            self.nodes[node_id] = NodeProcess(
                node_id,
                [
                    *("--id", node_id, "--bootstrap", join_members(list(self.members.items()))),
                    *("--data-dir", str(directory / node_id), "--storage", storage, "--sync", sync),
                    *("--log-level", log_level, *options),
                ],
                directory / f"{node_id}.log",
            )

    @property
    def addresses(self) -> list[str]:
        return list(self.members.values())

    def start(self) -> None:
        for node in self.nodes.values():
            node.start()
        for node in self.nodes.values():
            node.wait_until_ready()

    def stop(self) -> None:
        for node in self.nodes.values():
            node.ask_to_stop()
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        for node in self.nodes.values():
            node.wait_until_stopped(deadline)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def filesystem_of(path: Path) -> str:
    """The type of the file system that holds path, such as ext4; "" if it can't be told."""
    best, kind = "", ""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    real = str(path.resolve())
    for line in lines:
        _, mounted_on, found, *_ = line.split()
        mounted_on = mounted_on.replace("\\040", " ")
        inside = real == mounted_on or real.startswith(mounted_on.rstrip("/") + "/")
        if inside and len(mounted_on) >= len(best):
            best, kind = mounted_on, found
    return kind


def directory_on_disk() -> Path:
    """Where data can be put that is to be on a disk: the usual temporary directory, unless that is in memory."""
    import tempfile

    for candidate in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()):
        if candidate.is_dir() and os.access(candidate, os.W_OK) and filesystem_of(candidate) not in ("tmpfs", "ramfs"):
            return candidate
    return Path(tempfile.gettempdir())
