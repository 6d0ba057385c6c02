"""Who holds a store: one living process, and neither what it started nor what it left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import storage_children as children

from geraft.core.entries import EntryId
from geraft.errors import StorageLocked
from geraft.storage import FileStorage, SqliteStorage
from geraft.storage.base import RaftStorage

STORES = {"log": FileStorage, "n1.db": SqliteStorage}
"""By the name of what each holds."""

HOLD = """
kind = FileStorage if sys.argv[1].endswith("log") else SqliteStorage
storage = kind(sys.argv[1])
storage.open()
storage.write(None, [commands(1, 1, 9)])
"""
WAIT = """
print("open", flush=True)
sys.stdin.read()
"""
START_AND_FORK = """
import subprocess
slept = subprocess.Popen(["sleep", "60"], close_fds=False)
forked = os.fork()
if forked == 0:
    try:
        for use in (lambda: storage.write(Ballot(9), []), lambda: storage.read(1, 1, 1), storage.open):
            try:
                use()
            except StorageFailed as error:
                assert "fork" in str(error), error
            except StorageLocked as error:
                assert use == storage.open and str(os.getppid()) in str(error), error
            else:
                os._exit(1)
        storage.close()
        os.write(1, b"forked\\n")
        time.sleep(60)
    finally:
        os._exit(1)
os.write(1, b"%d %d\\n" % (slept.pid, forked))
time.sleep(60)
"""

Make = Callable[[Path], RaftStorage]


@pytest.fixture(params=STORES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    place: Path = tmp_path / request.param
    return place


@pytest.fixture
def make(path: Path) -> Make:
    return STORES[path.name]


def test_a_live_process_locks_the_store_and_a_dead_one_does_not(path: Path, make: Make) -> None:
    alias = path.with_name("alias")
    alias.symlink_to(path)
    with children.start(HOLD + WAIT, path) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "open\n"
            for name in (path, alias):
                with pytest.raises(StorageLocked, match=rf"{path.name} is in use by process {holder.pid}\b"):
                    make(name).open()
        finally:
            holder.kill()
    storage = make(path)
    assert storage.open().last_entry == EntryId(1, 9)
    storage.close()


def test_neither_a_program_that_the_holder_started_nor_its_fork_keeps_the_lock(path: Path, make: Make) -> None:
    with children.start(HOLD + START_AND_FORK, path) as holder:
        assert holder.stdout is not None
        lines = [holder.stdout.readline(), holder.stdout.readline()]
        assert "forked\n" in lines
        (pids,) = (line for line in lines if line != "forked\n")
        try:
            with pytest.raises(StorageLocked):
                make(path).open()
            holder.kill()
            holder.wait()
            storage = make(path)
            assert storage.open().last_entry == EntryId(1, 9)
            storage.close()
        finally:
            for pid in pids.split():
                os.kill(int(pid), signal.SIGKILL)


def test_a_store_that_nobody_refers_to_any_more_is_free(path: Path, make: Make) -> None:
    storage = make(path)
    storage.open()
    del storage
    again = make(path)
    again.open()
    again.close()
