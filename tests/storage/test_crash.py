"""kill -9 in the middle of writes, again and again: what was acknowledged is there, and nothing else is."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from storage_batches import UNLIMITED, entries_of
from storage_crash_writer import KINDS, plan

from geraft.core.entries import EntryId
from geraft.storage import MemoryStorage, RaftStorage, StoredState

HERE = Path(__file__).parent
CRASHES = 50

Content = tuple[StoredState, list[tuple[EntryId, bytes]]]


class Model:
    """What a store must hold after the first `steps` steps of a plan: a MemoryStorage that takes the same steps."""

    def __init__(self, seed: int) -> None:
        self.plan = plan(seed)
        self.steps = 0
        self.storage = MemoryStorage()
        self.storage.open()

    def advance(self) -> None:
        next(self.plan)(self.storage)
        self.steps += 1

    def content(self) -> Content:
        self.storage.close()
        return content_of(self.storage)


def content_of(storage: RaftStorage) -> Content:
    """Open the store, and give all that it holds."""
    state = storage.open()
    return state, entries_of(storage.read(state.first_index, UNLIMITED, UNLIMITED))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_acknowledged_before_a_kill_is_there_and_nothing_else(tmp_path: Path, kind: str) -> None:
    if kind == "rocksdb":
        pytest.importorskip("rocksdict")
    path, seed = tmp_path / "store", 20_001
    rng = random.Random(seed)
    model = Model(seed)
    unacknowledged_writes_found = 0
    with subprocess.Popen(
        [sys.executable, str(HERE / "storage_crash_writer.py")],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for crash in range(CRASHES):
            parent.stdin.write(f"{kind} {path} {seed} {model.steps}\n".encode())
            writer = int(parent.stdout.readline())
            acknowledged = 0
            # Some die as soon as they have opened the store, some after a while, at any moment of a write.
            wanted = rng.choice((0, 1, rng.randint(2, 60)))
            while acknowledged < wanted:
                assert parent.stdout.read(1) == b"."
                acknowledged += 1
            time.sleep(rng.random() * 0.003)
            os.kill(writer, signal.SIGKILL)
            acknowledged += len(parent.stdout.readline()) - 1
            assert int(parent.stdout.readline()) == signal.SIGKILL, "it lived until it was killed"

            for _ in range(acknowledged):
                model.advance()
            storage = KINDS[kind](str(path))
            found = content_of(storage)
            storage.close()
            if found != model.content():
                # The write that was under way may be there too, whole.
                unacknowledged_writes_found += 1
                model.advance()
                assert found == model.content(), f"crash {crash}, after {model.steps} steps"
        parent.stdin.close()
    assert model.steps > 5 * CRASHES
    assert unacknowledged_writes_found < CRASHES
    assert model.content()[0].base.index > 0
    if kind == "sqlite":
        with sqlite3.connect(path) as tool:
            assert tool.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tool.close()
