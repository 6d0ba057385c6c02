"""What SqliteStorage promises beyond the suite: who may open it, what it does when the disk does not do its part."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import storage_children as children
from storage_batches import UNLIMITED, commands, entry_ids

from geraft.core.entries import Ballot, EntryId
from geraft.errors import (
    ConfigError,
    StorageCorrupt,
    StorageError,
    StorageFailed,
    StorageForeign,
    StorageFormatTooNew,
)
from geraft.storage import Identity, SqliteStorage
from geraft.storage import sqlite as sqlite_store
from geraft.testing.storage_suite import membership


def written(path: Path, last_index: int = 20) -> SqliteStorage:
    """An open store that holds entries 1 to last_index."""
    storage = SqliteStorage(path)
    storage.open()
    storage.initialise(Identity("cluster", "n1", "store-1"), [membership(1, 1)])
    storage.write(Ballot(1, "n1"), [commands(1, 2, last_index)])
    return storage


def files(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.iterdir() if path.is_file()}


# The file -----------------------------------------------------------------------------------------------------------


def test_any_sql_tool_can_look_at_the_log(tmp_path: Path) -> None:
    storage = written(tmp_path / "n1.db", 20)
    storage.write(None, [commands(2, 15, 30), commands(2, 31, 31)])
    with sqlite3.connect(tmp_path / "n1.db") as tool:  # while the node is running
        assert tool.execute("SELECT first_index, last_index, term, kind FROM log").fetchall() == [
            (1, 1, 1, 3),
            (2, 14, 1, 2),
            (15, 30, 2, 2),
            (31, 31, 2, 2),
        ]
        assert tool.execute("SELECT cluster_id, node_id, store_id FROM meta").fetchall() == [
            ("cluster", "n1", "store-1")
        ]
        assert tool.execute("SELECT term, voted_for FROM ballot").fetchall() == [(1, "n1")]
        assert tool.execute("SELECT first_index, term FROM terms").fetchall() == [(1, 1), (15, 2)]
        assert tool.execute("SELECT entry_index FROM configurations").fetchall() == [(1,)]
    tool.close()
    storage.close()


def test_missing_directories_are_made_and_the_path_may_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "what? #100% ü.db"
    storage = written(path)
    storage.close()
    assert storage.open().last_entry == EntryId(1, 20)
    assert len(storage.read(1, 20, UNLIMITED)) == 2
    storage.close()
    assert {file.name for file in path.parent.iterdir()} == {path.name, path.name + ".lock"}


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_a_path_must_name_a_file(path: str) -> None:
    with pytest.raises(ConfigError):
        SqliteStorage(path)


def test_synchronous_is_one_of_three(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        SqliteStorage(tmp_path / "n1.db", synchronous="EXTRA")  # type: ignore[arg-type]
    for level, number in (("FULL", 2), ("NORMAL", 1), ("OFF", 0)):
        storage = SqliteStorage(tmp_path / f"{level}.db", synchronous=level)  # type: ignore[arg-type]
        storage.open()
        assert storage._writer is not None
        assert storage._writer.execute("PRAGMA synchronous").fetchone() == (number,)
        storage.close()


def test_the_wal_is_moved_into_the_file_and_starts_over(tmp_path: Path) -> None:
    storage = written(tmp_path / "n1.db", 2)
    for index in range(3, 403):  # 40 MB
        storage.write(None, [commands(1, index, index, command_bytes=100_000)])
    assert (tmp_path / "n1.db").stat().st_size > 30_000_000
    assert (tmp_path / "n1.db-wal").stat().st_size < 2 * sqlite_store.WAL_BYTES_MAX
    storage.close()
    assert not (tmp_path / "n1.db-wal").exists()


def test_opening_a_long_log_does_not_read_it(tmp_path: Path) -> None:
    storage = written(tmp_path / "n1.db", 2)
    storage.write(None, [commands(1, index, index, command_bytes=100_000) for index in range(3, 203)])
    storage.close()
    with open(tmp_path / "n1.db", "r+b") as file:  # the middle is damaged, and opening does not see it
        file.seek(10_000_000)
        file.write(b"damaged!")
    assert storage.open().last_entry == EntryId(1, 202)
    assert len(storage.read(1, 50, UNLIMITED)) == 50
    with pytest.raises(StorageCorrupt, match=r"n1\.db.*under a new id"):
        storage.read(1, 202, UNLIMITED)
    storage.close()


# What is not ours, or not whole -------------------------------------------------------------------------------------


def make_text(path: Path) -> None:
    path.write_text("Dear diary, " * 100)


def make_other_database(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE log (first_index INTEGER)")
    other.close()


def make_newer(path: Path) -> None:
    written(path).close()
    with sqlite3.connect(path) as tool:
        tool.execute("PRAGMA user_version = 2")
    tool.close()


def make_empty(path: Path) -> None:
    path.touch()


def make_orphan_wal(path: Path) -> None:
    storage = written(path)
    wal = path.with_name(path.name + "-wal")
    content = wal.read_bytes()
    storage.close()
    path.unlink()
    wal.write_bytes(content)


def make_headless(path: Path) -> None:
    written(path).close()
    with open(path, "r+b") as file:
        file.write(bytes(4096))


def make_short(path: Path) -> None:
    written(path).close()
    with open(path, "r+b") as file:
        file.truncate(8192)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_without_wal(path: Path) -> None:
    written(path).close()
    with sqlite3.connect(path) as tool:
        tool.execute("PRAGMA journal_mode = DELETE")
    tool.close()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (make_text, StorageForeign),
        (make_other_database, StorageForeign),
        (make_newer, StorageFormatTooNew),
        (make_empty, StorageCorrupt),
        (make_orphan_wal, StorageCorrupt),
        (make_headless, StorageCorrupt),
        (make_short, StorageCorrupt),
        (make_without_wal, StorageCorrupt),
        (make_directory, StorageFailed),
    ],
)
def test_what_is_no_whole_store_is_refused_by_name_and_left_as_it_is(
    tmp_path: Path, make: object, error: type[StorageError]
) -> None:
    path = tmp_path / "n1.db"
    make(path)  # type: ignore[operator]
    before = files(tmp_path)
    for _ in range(2):
        with pytest.raises(error, match=r"n1\.db") as caught:
            SqliteStorage(path).open()
        assert caught.value.path == str(path)
        after = files(tmp_path)
        for name in (path.name + ".lock", path.name + "-shm", path.name + "-wal"):
            if name not in before and not after.get(str(tmp_path / name)):
                after.pop(str(tmp_path / name), None)
        assert {name: after.get(name) for name in before} == before


def test_a_crash_while_a_store_is_made_leaves_none(tmp_path: Path) -> None:
    (tmp_path / "n1.db.new").write_bytes(b"half a file")
    storage = SqliteStorage(tmp_path / "n1.db")
    assert storage.open().identity is None
    storage.close()
    assert not (tmp_path / "n1.db.new").exists()


def test_native_threads_of_a_patched_process_read_and_write(tmp_path: Path) -> None:
    children.run(
        """
from gevent import monkey; monkey.patch_all()
import gevent
storage = SqliteStorage(sys.argv[1])
pool = gevent.get_hub().threadpool
pool.apply(storage.open)
pool.apply(storage.write, (None, [commands(1, 1, 50)]))
jobs = [pool.spawn(storage.read, first, 50, UNLIMITED) for first in range(1, 41)]
for index in range(51, 151):
    pool.apply(storage.write, (None, [commands(1, index, index)]))
for first, job in enumerate(jobs, 1):
    assert entry_ids(job.get())[0] == (1, first)
pool.apply(storage.close)
""",
        tmp_path / "n1.db",
    )


# When the disk does not do its part ---------------------------------------------------------------------------------

FILL = """
def fill(storage, last_index):
    "Write until the disk refuses; the index of the last entry that it took."
    try:
        while True:
            storage.write(Ballot(last_index + 1), [commands(1, last_index + 1, last_index + 3, command_bytes=2000)])
            last_index += 3
    except StorageFailed as error:
        assert sys.argv[1] in str(error) and "then open the store again" in str(error), error
    return last_index

def check_refused_and_readable(storage, last_index, what_fails="writing"):
    for _ in range(2):
        try:
            storage.write(Ballot(1000000), [])
        except StorageFailed as error:
            assert "takes no writes any more" in str(error) and what_fails + " failed" in str(error), error
        else:
            sys.exit("a write was taken after one had failed")
    assert entry_ids(storage.read(1, last_index + 99, UNLIMITED)) == [(1, index) for index in range(1, last_index + 1)]

def check_whole(state, last_index):
    # The write that failed may have reached the disk whole, or not at all.
    assert (state.ballot.term, state.last_entry.index) in (
        (last_index - 2, last_index), (last_index + 1, last_index + 3)), (state, last_index)
    return state.last_entry.index
"""


@pytest.mark.parametrize(
    ("what_fails", "wal_bytes_max"),
    [("writing", sqlite_store.WAL_BYTES_MAX), ("moving the WAL into the file", 100_000)],
)
def test_a_file_that_may_not_grow_fails_the_write_and_nothing_else(
    tmp_path: Path, what_fails: str, wal_bytes_max: int
) -> None:
    children.run(
        FILL
        + """
from geraft.storage import sqlite
sqlite.WAL_BYTES_MAX = int(sys.argv[2])
storage = SqliteStorage(sys.argv[1])
storage.open()
last_index = 0
for limit in (300_000, 900_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    last_index = fill(storage, last_index)
    assert last_index > 3, last_index
    check_refused_and_readable(storage, last_index, sys.argv[3])
    storage.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    last_index = check_whole(storage.open(), last_index)
    assert entry_ids(storage.read(1, last_index, UNLIMITED)) == [(1, index) for index in range(1, last_index + 1)]
    storage.write(Ballot(last_index + 1), [commands(1, last_index + 1, last_index + 3, command_bytes=2000)])
    last_index += 3
storage.close()
""",
        tmp_path / "n1.db",
        wal_bytes_max,
        what_fails,
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs takes root")
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk_fails_the_write_and_nothing_else(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(500_000))
    children.run(
        FILL
        + """
storage = SqliteStorage(sys.argv[1])
storage.open()
last_index = fill(storage, 0)
assert last_index > 3
check_refused_and_readable(storage, last_index)
storage.close()
os.unlink(sys.argv[2])
last_index = check_whole(storage.open(), last_index)
assert fill(storage, last_index) > last_index
storage.close()
""",
        small_disk / "n1.db",
        ballast,
    )


def test_on_a_full_disk_no_store_is_made(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1024 * 1024 - 8192))
    with pytest.raises(StorageFailed, match="free space"):
        SqliteStorage(small_disk / "n1.db").open()
    assert not (small_disk / "n1.db").exists()
    ballast.unlink()
    written(small_disk / "n1.db").close()


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that users other than the one who runs the tests can reach."""
    directory = Path(tempfile.mkdtemp(prefix="geraft-storage-"))
    directory.chmod(0o755)
    yield directory
    directory.chmod(0o755)
    shutil.rmtree(directory)


@pytest.mark.parametrize("mode", [0o555, 0o777])
def test_what_may_not_be_written_is_refused_when_it_is_opened(public_directory: Path, mode: int) -> None:
    written(public_directory / "n1.db").close()
    (public_directory / "n1.db").chmod(0o444)
    (public_directory / "n1.db.lock").chmod(0o666)
    public_directory.chmod(mode)
    before = (public_directory / "n1.db").read_bytes()
    children.run(
        """
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
try:
    SqliteStorage(sys.argv[1]).open()
except StorageFailed as error:
    assert sys.argv[1] in str(error) and "writable" in str(error), error
else:
    sys.exit("it was opened")
""",
        public_directory / "n1.db",
    )
    assert (public_directory / "n1.db").read_bytes() == before


def test_a_write_waits_for_a_sql_tool_and_fails_if_that_never_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "BUSY_TIMEOUT_SECONDS", 0.1)
    storage = written(tmp_path / "n1.db")
    tool = sqlite3.connect(tmp_path / "n1.db", isolation_level=None)
    tool.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageFailed, match="SQL tool"):
        storage.write(Ballot(2), [])
    tool.execute("ROLLBACK")
    tool.close()
    storage.close()
    assert storage.open().ballot == Ballot(1, "n1")
    assert entry_ids(storage.read(20, 30, UNLIMITED)) == [EntryId(1, 20)]
    storage.close()


def test_a_read_that_a_truncation_overtakes_gives_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = written(tmp_path / "n1.db", 20)
    select = storage._select

    def cut_first(*arguments: int) -> object:
        storage.write(None, [commands(2, 10, 11)])
        return select(*arguments)

    monkeypatch.setattr(storage, "_select", cut_first)
    assert entry_ids(storage.read(9, 20, UNLIMITED)) == [(1, 9), (2, 10), (2, 11)]
    storage.write(None, [commands(2, 12, 20)])
    assert storage.read(15, 20, UNLIMITED) == []
    storage.close()
