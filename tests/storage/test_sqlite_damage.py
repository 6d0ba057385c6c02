"""Bytes that changed on the disk: what comes back is what was written, or an error; never anything else."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from geraft.core.entries import Ballot, EntryBatch, EntryId
from geraft.errors import StorageCorrupt, StorageError, StorageForeign, StorageFormatTooNew
from geraft.storage import Identity, SqliteStorage, StoredState
from geraft.storage.sqlite import Synchronous
from geraft.testing.storage_suite import Entry, commands, entries_of, membership, noop, snapshot_of

PAGE = 4096
UNLIMITED = 2**62

Content = tuple[StoredState, list[Entry]]


def fill(storage: SqliteStorage, rng: random.Random) -> None:
    """Rows of a few bytes and of several pages, some of them cut off again."""
    storage.initialise(Identity("cluster", "n1", "store-1"), [membership(1, 1)])
    next_index, term = 2, 1
    for step in range(300):
        batches: list[EntryBatch] = []
        if step % 30 == 29:
            term, next_index = term + 1, next_index - 5
            batches = [noop(term, next_index), membership(term, next_index + 1)]
            next_index += 2
        length = rng.choice((1, 1, 2, 3))
        batches.append(commands(term, next_index, next_index + length - 1, rng.choice((50, 100, 200, 3000))))
        next_index += length
        storage.write(Ballot(term, "n2") if step % 30 == 29 else None, batches)
        if step % 100 == 50:
            storage.record_snapshot(snapshot_of(term, next_index - 1, sessions=rng.randbytes(300)))
            storage.compact(max(next_index - 400, 20), UNLIMITED)


@pytest.fixture(scope="module")
def closed_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Content]:
    """The directory of a store that was closed, and what it holds."""
    directory = tmp_path_factory.mktemp("closed")
    storage = SqliteStorage(directory / "n1.db", synchronous="OFF")
    storage.open()
    fill(storage, random.Random(1))
    storage.close()
    return directory, content_of(directory)


def content_of(directory: Path, synchronous: Synchronous = "OFF") -> Content:
    """All that a store tells, once it has been opened."""
    storage = SqliteStorage(directory / "n1.db", synchronous=synchronous)
    state = storage.open()
    try:
        return state, entries_of(storage.read(state.first_index, UNLIMITED, UNLIMITED))
    finally:
        storage.close()


def damaged_copy(directory: Path, target: Path, name: str, offset: int, content: bytes) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(directory, target)
    (target / "n1.db.lock").unlink()
    with open(target / name, "r+b") as file:
        file.seek(offset)
        file.write(content)


def flipped(rng: random.Random, content: bytes) -> bytes:
    return bytes(byte ^ rng.randint(1, 255) for byte in content)


def test_a_name_that_is_no_text_is_refused(closed_store: tuple[Path, Content], tmp_path: Path) -> None:
    """SQLite quotes it in what it says, which Python then can't decode: found by tests/fuzz."""
    directory, _ = closed_store
    at = (directory / "n1.db").read_bytes().index(b"tablesnapshots") + len("table")
    damaged_copy(directory, tmp_path, "n1.db", at, b"\xce")
    with pytest.raises(StorageCorrupt, match="is damaged"):
        content_of(tmp_path)


@pytest.mark.parametrize("seed", range(10))
def test_flipped_bytes_are_refused_or_without_effect(
    closed_store: tuple[Path, Content], tmp_path: Path, seed: int
) -> None:
    directory, expected = closed_store
    original = (directory / "n1.db").read_bytes()
    rng = random.Random(seed)
    refused = 0
    for _ in range(25):
        # The first bytes of a page hold the B-tree together, so they are hit as often as all the others.
        offset = rng.randrange(len(original) // PAGE) * PAGE + rng.choice((rng.randrange(16), rng.randrange(PAGE - 8)))
        length = rng.choice((1, 1, 8))
        damaged_copy(directory, tmp_path / "copy", "n1.db", offset, flipped(rng, original[offset : offset + length]))
        try:
            found = content_of(tmp_path / "copy")
        except StorageCorrupt:
            refused += 1
        except (StorageForeign, StorageFormatTooNew):
            assert offset < 100, "the header tells whose the file is, and of which format"
            refused += 1
        else:
            assert found == expected, f"{length} bytes at {offset}"
    assert refused > 5


def test_each_byte_of_the_header_is_refused_or_without_effect(
    closed_store: tuple[Path, Content], tmp_path: Path
) -> None:
    directory, expected = closed_store
    original = (directory / "n1.db").read_bytes()
    rng = random.Random(100)
    for offset in range(100):
        damaged_copy(directory, tmp_path / "copy", "n1.db", offset, flipped(rng, original[offset : offset + 1]))
        try:
            assert content_of(tmp_path / "copy") == expected, offset
        except StorageError as error:
            assert str(tmp_path / "copy" / "n1.db") in str(error)


def test_a_page_that_is_zero_or_holds_another_page_is_refused_or_without_effect(
    closed_store: tuple[Path, Content], tmp_path: Path
) -> None:
    directory, expected = closed_store
    original = (directory / "n1.db").read_bytes()
    pages = [original[start : start + PAGE] for start in range(0, len(original), PAGE)]
    rng = random.Random(4096)
    refused = 0
    for number in rng.sample(range(1, len(pages)), 60):
        for content in (bytes(PAGE), rng.choice(pages)):
            damaged_copy(directory, tmp_path / "copy", "n1.db", number * PAGE, content)
            try:
                assert content_of(tmp_path / "copy") == expected, number
            except StorageCorrupt:
                refused += 1
    assert refused > 60


def test_a_log_page_that_lost_its_last_rows_is_refused(closed_store: tuple[Path, Content], tmp_path: Path) -> None:
    """Such a file is in order for SQLite: the log seems to end earlier."""
    directory, expected = closed_store
    original = (directory / "n1.db").read_bytes()
    last_rows = original.rindex(b"%d.%d " % (expected[0].last_entry.term, expected[0].last_entry.index))
    page = last_rows // PAGE * PAGE
    assert original[page] == 0x0D, "a leaf of a table"
    rows = int.from_bytes(original[page + 3 : page + 5], "big")
    for kept in range(1, rows):
        damaged_copy(directory, tmp_path / "copy", "n1.db", page + 3, kept.to_bytes(2, "big"))
        with pytest.raises(StorageCorrupt, match=r"checkpoint|gone"):
            content_of(tmp_path / "copy")


@pytest.mark.parametrize(
    "table", ["meta", "ballot", "checkpoint", "terms", "configurations", "log", "base", "snapshots"]
)
def test_a_row_that_a_tool_changed_or_deleted_is_refused(
    closed_store: tuple[Path, Content], tmp_path: Path, table: str
) -> None:
    directory, _ = closed_store
    column = {"meta": "store_id", "ballot": "voted_for", "checkpoint": "last_index", "terms": "term"}.get(
        table, "checksum"
    )
    for statement in (
        f"UPDATE {table} SET {column} = {column} || '1'",
        f"DELETE FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table})",
        f"DELETE FROM {table} WHERE rowid = (SELECT min(rowid) FROM {table})",
        f"DELETE FROM {table}",
        f"DROP TABLE {table}",
    ):
        if table == "configurations" and "DELETE" in statement:
            continue  # the rows that are left are in order; the entries are in the log
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(directory, tmp_path / "copy")
        with sqlite3.connect(tmp_path / "copy" / "n1.db") as tool:
            tool.execute(statement)
        tool.close()
        with pytest.raises(StorageCorrupt, match=r"copy/n1\.db"):
            content_of(tmp_path / "copy")


@pytest.mark.parametrize("column", ["first_index", "last_index", "term", "kind", "checksum", "entries"])
def test_a_row_that_tells_of_other_entries_than_it_holds_is_refused(
    closed_store: tuple[Path, Content], tmp_path: Path, column: str
) -> None:
    directory, _ = closed_store
    shutil.copytree(directory, tmp_path / "copy")
    with sqlite3.connect(tmp_path / "copy" / "n1.db") as tool:
        (row,) = tool.execute("SELECT max(first_index) FROM log WHERE last_index > first_index + 1").fetchone()
        tool.execute(f"UPDATE log SET {column} = {column} + 1 WHERE first_index = ?", (row,))
    tool.close()
    with pytest.raises(StorageCorrupt):
        content_of(tmp_path / "copy")


# The WAL: what a crash leaves beside the file -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def crashed_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Content]]:
    """A copy of the files of an open store, and what it held after each of its last two writes, the newest first."""
    directory = tmp_path_factory.mktemp("crashed")
    storage = SqliteStorage(tmp_path_factory.mktemp("open") / "n1.db")
    storage.open()
    storage.initialise(Identity("cluster", "n1", "store-1"), [membership(1, 1)])
    contents: list[Content] = []
    for index in range(2, 42, 2):
        storage.write(Ballot(1, "n1"), [commands(1, index, index + 1, 3000)])
        for name in ("n1.db", "n1.db-wal", "n1.db.lock"):
            shutil.copy(Path(storage.path).with_name(name), directory / name)
        shutil.rmtree(directory / "look", ignore_errors=True)
        shutil.copytree(directory, directory / "look")
        contents.insert(0, content_of(directory / "look", "FULL"))
        shutil.rmtree(directory / "look")
    storage.close()
    return directory, contents[:2]


def test_a_wal_is_read_after_a_crash(crashed_store: tuple[Path, list[Content]], tmp_path: Path) -> None:
    directory, (newest, _) = crashed_store
    shutil.copytree(directory, tmp_path / "copy")
    assert newest[0].last_entry == EntryId(1, 41)
    assert content_of(tmp_path / "copy", "FULL") == newest


def test_a_damaged_wal_is_refused_unless_a_crash_could_have_torn_it(
    crashed_store: tuple[Path, list[Content]], tmp_path: Path
) -> None:
    directory, (newest, before) = crashed_store
    original = (directory / "n1.db-wal").read_bytes()
    rng = random.Random(7)
    frame_bytes = 24 + PAGE
    frames = (len(original) - 32) // frame_bytes
    last_commits = [
        frame
        for frame in range(frames)
        if original[32 + frame * frame_bytes + 4 : 32 + frame * frame_bytes + 8] != bytes(4)
    ]
    last_transaction = 32 + (last_commits[-2] + 1) * frame_bytes
    offsets = [*range(32), *(rng.randrange(len(original)) for _ in range(120))]
    offsets += [rng.randrange(last_transaction, len(original)) for _ in range(10)]
    outcomes = {"refused": 0, "torn": 0}
    for offset in offsets:
        damaged_copy(directory, tmp_path / "copy", "n1.db-wal", offset, flipped(rng, original[offset : offset + 1]))
        try:
            found = content_of(tmp_path / "copy", "FULL")
        except StorageCorrupt as error:
            assert "WAL" in str(error)
            outcomes["refused"] += 1
        else:
            if offset < last_transaction:
                assert found == newest, offset
            else:
                assert found == before, "the last transaction is torn, and no other"
                outcomes["torn"] += 1
    assert outcomes["refused"] > 100
    assert outcomes["torn"] >= 10


def test_a_wal_cut_short_by_a_crash_ends_with_a_whole_write(
    crashed_store: tuple[Path, list[Content]], tmp_path: Path
) -> None:
    directory, (newest, before) = crashed_store
    size = (directory / "n1.db-wal").stat().st_size
    for missing in (1, 100, PAGE, PAGE + 24):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(directory, tmp_path / "copy")
        with open(tmp_path / "copy" / "n1.db-wal", "r+b") as wal:
            wal.truncate(size - missing)
        assert content_of(tmp_path / "copy", "FULL") == before
    assert newest != before


def test_a_log_cut_shorter_than_it_was_when_the_wal_was_moved_is_in_order_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "n1.db"
    storage = SqliteStorage(path)
    storage.open()
    storage.write(None, [commands(1, 1, 20)])
    storage.close()
    storage.open()
    storage.write(None, [commands(2, 5, 6)])
    (tmp_path / "copy").mkdir()
    for name in ("n1.db", "n1.db-wal"):
        shutil.copy(tmp_path / name, tmp_path / "copy")
    storage.close()
    state, entries = content_of(tmp_path / "copy", "FULL")
    assert (state.last_entry, len(entries)) == (EntryId(2, 6), 6)
