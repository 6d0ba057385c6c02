"""The same faults of the disk for each durable store: a bit that flipped, no room, nothing where something was."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import storage_children as children
from storage_batches import UNLIMITED, commands, entry_ids

from geraft.core.entries import Ballot, EntryId
from geraft.errors import ConfigError, StorageCorrupt, StorageError, StorageForeign, StorageFormatTooNew, StorageLocked
from geraft.storage import FileStorage, Identity, RaftStorage, RocksdbStorage, SqliteStorage
from geraft.testing.storage_suite import membership, snapshot_of

NAMES = {"sqlite": "n1.db", "file": "log", "rocksdb": "rocks"}
CLASSES: dict[str, Callable[[Path], RaftStorage]] = {
    "sqlite": SqliteStorage,
    "file": FileStorage,
    "rocksdb": RocksdbStorage,
}


@pytest.fixture(params=NAMES)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "rocksdb" and find_spec("rocksdict") is None:
        pytest.skip("the extra rocksdb is not installed")
    return str(request.param)


def make(kind: str, directory: Path) -> RaftStorage:
    return CLASSES[kind](directory / NAMES[kind])


# A bit ----------------------------------------------------------------------------------------------------------------

MARKS = {
    "the vote": b"voted-for-n2",
    "the identity": b"store-of-mine",
    "the catalogue": b"sessions-of-9",
    "a configuration": b"127.0.0.1:7001",
    "an entry": b"5.7 ",
}


@pytest.mark.parametrize("what", MARKS)
def test_a_bit_that_flipped_is_found_and_told_and_never_applied(tmp_path: Path, kind: str, what: str) -> None:
    storage = make(kind, tmp_path)
    storage.open()
    storage.initialise(Identity("cluster-of-mine", "n1", "store-of-mine"), [membership(1, 1)])
    storage.write(Ballot(5, "voted-for-n2"), [commands(5, 2, 9)])
    storage.record_snapshot(snapshot_of(5, 9, sessions=b"sessions-of-9"))
    storage.write(None, [commands(5, 10, 10)])
    storage.close()
    hits = 0
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for found in re.finditer(re.escape(MARKS[what]), content):
            damaged = bytearray(content)
            damaged[found.start() + 2] ^= 4
            path.write_bytes(damaged)
            shutil.rmtree(tmp_path.with_name("copy"), ignore_errors=True)
            shutil.copytree(tmp_path, tmp_path.with_name("copy"))
            storage = make(kind, tmp_path.with_name("copy"))
            try:
                state = storage.open()
                entries = storage.read(1, 10, UNLIMITED)
            except StorageCorrupt as error:
                hits += 1
                assert str(tmp_path.with_name("copy") / NAMES[kind]) in str(error)
                assert "under a new id" in str(error)
            else:  # bytes that don't count any more, such as those of a row that was written over
                assert state.ballot == Ballot(5, "voted-for-n2")
                assert state.identity == Identity("cluster-of-mine", "n1", "store-of-mine")
                assert state.snapshots == (snapshot_of(5, 9, sessions=b"sessions-of-9"),)
                assert state.configurations == ((1, membership(1, 1).configuration),)
                assert [command for batch in entries[1:] for command in batch.commands] == [
                    b"5.%d " % index for index in range(2, 11)
                ]
            storage.close()
            path.write_bytes(content)
    assert hits > 0


# No room, and nothing where something should be -----------------------------------------------------------------------

FULL = """
from geraft.storage import *
storage = {"sqlite": SqliteStorage, "file": FileStorage, "rocksdb": RocksdbStorage}[sys.argv[2]](sys.argv[1])
storage.open()
last_index = 0
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    while True:
        storage.write(Ballot(last_index + 1), [commands(1, last_index + 1, last_index + 3, command_bytes=2000)])
        last_index += 3
except StorageFailed as error:
    assert sys.argv[1] in str(error) and "then open the store again" in str(error), error
assert last_index > 3
try:
    storage.write(Ballot(1000000), [])
except StorageFailed as error:
    assert "takes no writes any more" in str(error), error
else:
    sys.exit("a write was taken after one had failed")
assert entry_ids(storage.read(1, last_index, UNLIMITED)) == [(1, index) for index in range(1, last_index + 1)]
storage.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
state = storage.open()
assert (state.ballot.term, state.last_entry.index) in (
    (last_index - 2, last_index), (last_index + 1, last_index + 3)), (state, last_index)
last_index = state.last_entry.index
storage.write(None, [commands(2, last_index + 1, last_index + 1)])
assert entry_ids(storage.read(1, last_index, UNLIMITED)) == [(1, index) for index in range(1, last_index + 1)]
storage.close()
"""


def test_without_room_the_write_fails_and_nothing_else(tmp_path: Path, kind: str) -> None:
    children.run(FULL, tmp_path / NAMES[kind], kind)


HOLD = """
from geraft.storage import *
storage = {"sqlite": SqliteStorage, "file": FileStorage, "rocksdb": RocksdbStorage}[sys.argv[2]](sys.argv[1])
storage.open()
storage.write(None, [commands(1, 1, 9)])
forked = os.fork()
if forked == 0:
    try:
        storage.write(Ballot(9), [])
    except StorageFailed as error:
        assert "fork" in str(error), error
        os.write(1, b"forked\\n")
        time.sleep(60)
    os._exit(1)
os.write(1, b"%d\\n" % forked)
time.sleep(60)
"""


def test_a_live_process_holds_the_store_and_its_fork_does_not(tmp_path: Path, kind: str) -> None:
    with children.start(HOLD, tmp_path / NAMES[kind], kind) as holder:
        assert holder.stdout is not None
        (fork,) = {holder.stdout.readline().strip(), holder.stdout.readline().strip()} - {"forked"}
        try:
            with pytest.raises(StorageLocked, match=rf"in use by process {holder.pid}\b"):
                make(kind, tmp_path).open()
            holder.kill()
            holder.wait()
            storage = make(kind, tmp_path)
            assert storage.open().last_entry == EntryId(1, 9)
            assert len(entry_ids(storage.read(1, 9, UNLIMITED))) == 9
            storage.close()
        finally:
            os.kill(int(fork), signal.SIGKILL)


# What only RocksdbStorage can meet ------------------------------------------------------------------------------------


@pytest.fixture
def rocks(tmp_path: Path) -> Path:
    """A store that was closed."""
    pytest.importorskip("rocksdict")
    storage = RocksdbStorage(tmp_path / "rocks")
    storage.open()
    storage.initialise(Identity("cluster", "n1", "store-1"), [membership(1, 1)])
    storage.write(Ballot(1, "n1"), [commands(1, 2, 20)])
    storage.close()
    return tmp_path / "rocks"


def make_foreign(path: Path) -> None:
    shutil.rmtree(path)
    path.with_name("rocks.lock").unlink()
    path.mkdir()
    (path / "notes.txt").write_text("Dear diary")


def make_newer(path: Path) -> None:
    mark = path / "geraft-format"
    mark.write_text(mark.read_text().replace("1", "2"))


def make_without_mark(path: Path) -> None:
    (path / "geraft-format").unlink()


def make_without_wal(path: Path) -> None:
    for wal in path.glob("*.log"):
        if wal.stat().st_size:
            wal.unlink()
    for table in path.glob("*.sst"):
        table.unlink()


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (make_foreign, StorageForeign),
        (make_newer, StorageFormatTooNew),
        (make_without_mark, StorageCorrupt),
        (make_without_wal, StorageCorrupt),
    ],
)
def test_what_is_no_whole_rocksdb_of_ours_is_refused(
    rocks: Path, damage: Callable[[Path], None], error: type[StorageError]
) -> None:
    damage(rocks)
    with pytest.raises(error, match=re.escape(str(rocks))):
        RocksdbStorage(rocks).open()


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rocksdict", None)
    with pytest.raises(ConfigError, match=r"pip install geraft\[rocksdb\]"):
        RocksdbStorage(tmp_path / "rocks")
