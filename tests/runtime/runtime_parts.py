"""What the tests of the runtime are made of: an app and a store that do what a test tells them, and single nodes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from geraft import Config, MakeSnapshot, MemoryStorage, RaftApp, RaftNode
from geraft.core.entries import Ballot, EntryBatch, EntryId, EntryKind
from geraft.core.snapshots import Snapshot
from geraft.storage.base import RaftStorage, StoredState

ROOT = Path(__file__).resolve().parent.parent.parent
PATCH = "from gevent import monkey; monkey.patch_all()\n"
QUICK = Config(
    heartbeat_interval_seconds=0.05,
    election_timeout_seconds=0.5,
    acceptable_pause_seconds=0.2,
    apply_retry_seconds=0.02,
    apply_retry_max_seconds=0.1,
)
PATIENT = dataclasses.replace(QUICK, acceptable_pause_seconds=2.0)
"""For clusters in which nobody is to campaign because a busy machine has let a thread stall."""


def wait_until(condition: Callable[[], Any], timeout_seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.002)
    return value


class Journal(RaftApp):
    """Notes every command; a reply tells its index. on_write, on_read: what a test puts in their place."""

    def __init__(self) -> None:
        self.applied: list[tuple[int, bytes]] = []
        self.on_write: Callable[[bytes, int], Any] | None = None
        self.on_read: Callable[[bytes], Any] | None = None
        self.on_install: Callable[[], None] | None = None

    def process_read(self, request: bytes) -> bytes:
        if self.on_read is not None:
            return self.on_read(request)  # type: ignore[no-any-return]
        return b"%d" % len(self.applied)

    def process_write(self, request: bytes, entry_index: int) -> tuple[bytes, MakeSnapshot]:
        if self.on_write is not None:
            self.on_write(request, entry_index)
        self.applied.append((entry_index, request))
        return b"%d" % entry_index, MakeSnapshot.NONE

    def install_snapshot(self, snapshot_index: int | None) -> None:
        if self.on_install is not None:
            self.on_install()
        self.applied.clear()

    def fold_snapshot(self, old_snapshot_index: int | None, requests: Sequence[bytes], snapshot_index: int) -> None:
        raise NotImplementedError

    def save_snapshot(self, chunks: Iterable[bytes], snapshot_index: int) -> None:
        raise NotImplementedError

    def open_snapshot(self, snapshot_index: int) -> Iterator[bytes]:
        raise NotImplementedError

    def delete_snapshot(self, snapshot_index: int) -> None:
        raise NotImplementedError

    @property
    def commands(self) -> list[bytes]:
        return [command for _, command in self.applied]


class Gate:
    """Open at first. Closed, it holds whoever passes; `held` tells that somebody is."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.held = threading.Event()

    def close(self) -> None:
        self.held.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def __call__(self) -> None:
        if not self._open.is_set():
            self.held.set()
            assert self._open.wait(60)


class TamedStorage(RaftStorage):
    """A store around another one: hangs where a gate is closed, fails where it is told to, and notes every write."""

    def __init__(self, inner: RaftStorage | None = None) -> None:
        self.inner = inner or MemoryStorage()
        self.write_gate, self.open_gate = Gate(), Gate()
        self.fail_writes: BaseException | None = None
        self.fail_reads_below = 0
        """Reads of entries before this index raise an error that is none of geraft's."""
        self.on_write: Callable[[Sequence[EntryBatch]], None] | None = None
        self.writes: list[tuple[Ballot | None, list[EntryBatch]]] = []
        self.is_open = False

    def open(self) -> StoredState:
        self.open_gate()
        state = self.inner.open()
        self.is_open = True
        return state

    def initialise(self, *args: Any) -> None:
        self.inner.initialise(*args)

    def write(self, ballot: Ballot | None, batches: Sequence[EntryBatch]) -> None:
        self.write_gate()
        if self.fail_writes is not None:
            raise self.fail_writes
        if self.on_write is not None:
            self.on_write(batches)
        self.inner.write(ballot, batches)
        self.writes.append((ballot, list(batches)))

    def read(self, first_index: int, last_index: int, bytes_max: int) -> list[EntryBatch]:
        if first_index < self.fail_reads_below:
            raise OSError("the device does not answer")
        return self.inner.read(first_index, last_index, bytes_max)

    def record_snapshot(self, snapshot: Snapshot) -> None:
        self.inner.record_snapshot(snapshot)

    def forget_snapshot(self, index: int) -> None:
        self.inner.forget_snapshot(index)

    def compact(self, index: int, bytes_max: int) -> EntryId:
        return self.inner.compact(index, bytes_max)

    def reset(self, snapshot: Snapshot) -> None:
        self.inner.reset(snapshot)

    def close(self) -> None:
        self.inner.close()
        self.is_open = False

    def commands(self) -> list[bytes]:
        """Of the whole log; opens the store for it if the node has closed it."""
        state = self.inner.open() if not self.is_open else None
        last_index = state.last_entry.index if state is not None else 2**40
        found = [
            command
            for batch in self.inner.read(1, last_index, 2**40)
            if batch.kind is EntryKind.COMMAND
            for command in batch.commands
        ]
        if state is not None:
            self.inner.close()
        return found


def lone_node(
    app: RaftApp | None = None, storage: RaftStorage | None = None, *, config: Config = QUICK, id: str = "n1"
) -> RaftNode:
    """The only member of a cluster, on a free port; not started."""
    app = app if app is not None else Journal()
    storage = storage if storage is not None else MemoryStorage()
    return RaftNode(app, storage, id=id, listen="127.0.0.1:0", bootstrap={id: "127.0.0.1:0"}, config=config)


def in_thread(run: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run it in a thread; its result, or what it raised, is put into the list."""
    outcome: list[Any] = []

    def noted() -> None:
        try:
            outcome.append(run())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=noted, daemon=True)
    thread.start()
    return thread, outcome


def run_script(script: str, timeout_seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own, where `runtime_parts` can be imported."""
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH") or str(ROOT), str(Path(__file__).parent)]),
        },
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
    )


def threads() -> int:
    """Of the operating system's, in this process."""
    return len(os.listdir("/proc/self/task"))
