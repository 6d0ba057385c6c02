"""The power fails at each point of a run: what was acknowledged is there, and nothing else is.

FileStorage is put through geraft.testing.power_loss, and so are FileStorages that break one of their rules: each must
be found. What SQLite writes can't be recorded from Python; so its files are copied after each call, and between two
copies the newer bytes are there in part.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path

import pytest
from storage_crash_writer import plan

from geraft.storage import FileStorage, MemoryStorage, RaftStorage, SqliteStorage
from geraft.storage import file as file_store
from geraft.storage import segment as segment_format
from geraft.storage import sqlite as sqlite_store
from geraft.testing.power_loss import (
    Call,
    Content,
    NotRecorded,
    PowerLoss,
    assert_survives_power_loss,
    content_of,
)
from geraft.testing.storage_suite import IDENTITY, membership

FRAME_BYTES = 24 + sqlite_store.PAGE_BYTES


def calls_of(seed: int, count: int) -> list[Call]:
    return [lambda storage: storage.initialise(IDENTITY, []), *islice(plan(seed), count - 1)]


def files_of(segment_bytes: int) -> Callable[[Path], RaftStorage]:
    return lambda directory: FileStorage(directory / "log", segment_bytes=segment_bytes)


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory if there is such a file system: thousands of disks are made and looked at."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or not os.access(memory, os.W_OK):
        yield tmp_path
        return
    directory = Path(tempfile.mkdtemp(prefix="geraft-power-loss-", dir=memory))
    yield directory
    shutil.rmtree(directory)


# FileStorage --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "count", "segment_bytes"), [(1, 18, 4096), (2, 14, 1024), (3, 18, 200_000)])
def test_a_file_store_survives(fast_path: Path, seed: int, count: int, segment_bytes: int) -> None:
    survived = assert_survives_power_loss(
        files_of(segment_bytes),
        fast_path,
        calls_of(seed, count),
        seed=seed,
        random_disks=2,
        second_losses=0.005,
        kills=0.2,
    )
    assert survived.points > 2 * count
    assert survived.under_way > count
    assert survived.kills > 0


@pytest.mark.slow
def test_a_file_store_survives_another_loss_while_it_is_opened(fast_path: Path) -> None:
    survived = assert_survives_power_loss(
        files_of(1024), fast_path, calls_of(4, 4), random_disks=1, second_losses=1.0, kills=0
    )
    assert survived.in_recovery > 20


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 16))
def test_a_file_store_survives_long_runs(fast_path: Path, seed: int) -> None:
    segment_bytes = random.Random(seed).choice((1024, 3000, 20_000))
    assert_survives_power_loss(
        files_of(segment_bytes), fast_path, calls_of(seed, 80), seed=seed, second_losses=0.003, kills=0.2
    )


def without_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_format.Segment, "sync", lambda segment: None)


def without_sync_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_format, "sync_directory", lambda directory: None)


def without_sync_of_a_new_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets its name before the disk has what is in it."""
    create_segment, fsync = segment_format.create_segment, os.fsync

    def sync_names_only(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            fsync(descriptor)

    def create(*arguments: object) -> object:
        nonlocal fsync
        fsync = os.fsync  # PowerLoss may have put another one in its place
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", sync_names_only)
            return create_segment(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(file_store, "create_segment", create)


def without_cutting_off_what_is_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_format.Segment, "cut_off", lambda segment, end: None)
    monkeypatch.setattr(segment_format, "AHEAD_BYTES", 0)  # zeros written ahead would cover it


def without_checksum_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_format.Window, "damaged_batch", lambda window, head, step: None)


def without_sync_when_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_store, "write_all", lambda *arguments: None)
    load = FileStorage._load

    def load_without(storage: FileStorage, sequence: int) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: None)
            return load(storage, sequence)

    monkeypatch.setattr(FileStorage, "_load", load_without)


def with_deleting_before_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    append = FileStorage._append

    def append_later(storage: FileStorage, step: object, batches: object, after: object) -> None:
        view = storage._usable()
        base = getattr(after, "base")  # noqa: B009
        storage._remove({part.sequence for part in view.parts[:-1] if part.last_index <= base.index})
        append(storage, step, batches, after)  # type: ignore[arg-type]

    monkeypatch.setattr(FileStorage, "_append", append_later)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutation", "count"),
    [
        (without_sync, 10),
        (without_sync_of_names, 10),
        (without_sync_of_a_new_segment, 10),
        (without_cutting_off_what_is_torn, 30),
        (without_checksum_of_batches, 30),
        (without_sync_when_opening, 10),
        (with_deleting_before_the_step, 60),
    ],
)
def test_a_file_store_that_breaks_a_rule_is_found(
    fast_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mutation: Callable[[pytest.MonkeyPatch], None],
    count: int,
) -> None:
    mutation(monkeypatch)
    with pytest.raises(AssertionError, match=r"the power failed after|the process was killed"):
        assert_survives_power_loss(
            files_of(2048), fast_path, calls_of(1, count), random_disks=3, second_losses=0, kills=0.5
        )


# What is recorded ---------------------------------------------------------------------------------------------------


def disks_of(
    directory: Path, run: Callable[[PowerLoss], None], random_disks: int = 40
) -> list[dict[str, bytes | None]]:
    with PowerLoss(directory) as power:
        run(power)
    last = len(power.recording.changes)
    return [
        disk.files for disk in power.recording.disks(random.Random(1), random_disks=random_disks) if disk.point == last
    ]


def test_what_was_synced_stays_and_the_rest_may_go(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")

    def run(power: PowerLoss) -> None:
        descriptor = os.open(tmp_path / "new", os.O_RDWR | os.O_CREAT)
        os.write(descriptor, b"synced ")
        os.fdatasync(descriptor)
        directory = os.open(tmp_path, os.O_RDONLY)
        os.fsync(directory)
        os.pwritev(descriptor, [b"first ", b"part"], 7)
        os.rename(tmp_path / "old", tmp_path / "older")
        os.close(descriptor)
        os.close(directory)

    disks = disks_of(tmp_path, run)
    assert all(disk["new"] is not None and disk["new"].startswith(b"synced ") for disk in disks)
    assert {len(disk) for disk in disks} == {2}, "a rename is never half done"
    assert {frozenset(disk) for disk in disks} == {frozenset({"new", "old"}), frozenset({"new", "older"})}
    contents = {disk["new"] for disk in disks}
    assert {b"synced ", b"synced first part"} < contents
    assert len(contents) > 4, "torn anywhere"


def test_later_writes_may_be_there_without_earlier_ones_and_sectors_without_others(tmp_path: Path) -> None:
    def run(power: PowerLoss) -> None:
        descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        directory = os.open(tmp_path, os.O_RDONLY)
        os.fsync(directory)
        os.pwrite(descriptor, b"a" * 1024, 0)
        os.pwrite(descriptor, b"b" * 1024, 1024)
        os.ftruncate(descriptor, 4096)
        os.close(descriptor)
        os.close(directory)

    contents = [disk["file"] or b"" for disk in disks_of(tmp_path, run, random_disks=200)]
    assert any(content.count(b"b") == 1024 and b"a" not in content for content in contents)
    assert any(content[512:1024] == b"a" * 512 and content[:512] == bytes(512) for content in contents)
    assert {len(content) for content in contents} > {0, 4096}


def test_marks_tell_what_had_been_acknowledged(tmp_path: Path) -> None:
    with PowerLoss(tmp_path) as power:
        descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        power.mark()
        os.pwrite(descriptor, b"x", 0)
        power.mark()
        os.close(descriptor)
    assert [(disk.point, disk.marks) for disk in power.recording.disks(random.Random(1), random_disks=0)] == [
        (0, 0),
        (1, 1),
        (1, 1),
        (2, 2),
        (2, 2),
    ]


def test_what_is_not_seen_is_told(tmp_path: Path) -> None:
    with PowerLoss(tmp_path), pytest.raises(NotRecorded, match=r"open\(\)"):
        (tmp_path / "file").write_text("x")
    with pytest.raises(NotRecorded, match="file was changed in a way"), PowerLoss(tmp_path):
        descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        with os.fdopen(descriptor, "w") as file:
            file.write("x")
    with pytest.raises(NotRecorded, match="was changed"):
        (tmp_path / "stores").mkdir()
        assert_survives_power_loss(
            lambda directory: SqliteStorage(directory / "n1.db"), tmp_path / "stores", calls_of(1, 3)
        )


# SQLite -------------------------------------------------------------------------------------------------------------


def snapshots_of(path: Path, calls: list[Call]) -> list[tuple[bytes, bytes, Content]]:
    """The file and its WAL after each call, which synced them, and what the store held then."""
    found = []
    model = MemoryStorage()
    storage = SqliteStorage(path)
    storage.open()
    for call in [lambda storage: None, *calls]:
        call(storage)
        call(model) if found else None
        wal = path.with_name(path.name + "-wal")
        model.close()
        found.append((path.read_bytes(), wal.read_bytes() if wal.exists() else b"", content_of(model)))
    storage.close()
    return found


def torn(before: bytes, after: bytes, rng: random.Random) -> Iterator[bytes]:
    """The bytes before, with a part of what the bytes after have anew: cut at frames and within, sectors in any order.

    SQLite syncs the header of a WAL, a part of one sector, before it writes frames behind it.
    """
    if before[:32] != after[:32]:
        yield before
        before = after[:32] + before[32:]
    start = next((at for at, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(before))
    for end in range(32 + FRAME_BYTES, len(after) + 1, FRAME_BYTES):
        is_commit = after[end - FRAME_BYTES + 4 : end - FRAME_BYTES + 8] != bytes(4)
        if end > start and is_commit:  # a transaction ends, and is synced before the next one
            yield from torn_between(before, after, start, end, rng)
            start = end
            before = after[:end] + before[end:]


def torn_between(before: bytes, after: bytes, start: int, end: int, rng: random.Random) -> Iterator[bytes]:
    old = before[:end] + bytes(max(0, end - len(before)))
    borders = [at for at in range(32, end + 1, FRAME_BYTES) if at >= start]
    cuts = {start, end, *borders[:6], *(at + 24 for at in borders[:3] if at < end)}
    cuts |= {rng.randrange(start, end + 1) for _ in range(3)}
    for cut in sorted(cuts):
        yield after[:cut] + before[cut:]  # lost from there on
        yield after[:cut] + old[cut:] + before[end:]  # of the new size, but with nothing in it
    first = start // 512 * 512
    for _ in range(4):
        pieces = (rng.choice((old, after))[at : min(at + 512, end)] for at in range(first, end, 512))
        yield b"".join([after[:first], *pieces, before[end:]])


@pytest.mark.slow
def test_a_sqlite_store_survives(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "WAL_BYTES_MAX", 40_000)
    (fast_path / "run").mkdir()
    calls = calls_of(5, 16)
    snapshots = snapshots_of(fast_path / "run" / "n1.db", calls)
    rng = random.Random(5)
    count = under_way = moves = 0
    monkeypatch.setattr(os, "fsync", os.fstat)  # nothing is really at stake

    def check(file: bytes, wal: bytes, allowed: list[Content], what: str) -> Content:
        shutil.rmtree(fast_path / "disk", ignore_errors=True)
        (fast_path / "disk").mkdir()
        (fast_path / "disk" / "n1.db").write_bytes(file)
        (fast_path / "disk" / "n1.db-wal").write_bytes(wal)
        storage = SqliteStorage(fast_path / "disk" / "n1.db")
        found = content_of(storage)
        storage.close()
        assert found in allowed, what
        return found

    for number, (before, after) in enumerate(pairwise(snapshots), 1):
        for part, wal in enumerate(torn(before[1], after[1], rng)):
            what = f"call {number} was under way, part {part} of the WAL"
            under_way += check(before[0], wal, [before[2], after[2]], what) == after[2]
            count += 1
        if before[0] != after[0]:
            # The WAL was moved into the file, after it had been synced: the call was as good as acknowledged.
            moves += 1
            pages = range(0, len(after[0]), sqlite_store.PAGE_BYTES)
            old = before[0].ljust(len(after[0]), b"\0")
            for _ in range(10):
                file = b"".join(rng.choice((old, after[0]))[at : at + sqlite_store.PAGE_BYTES] for at in pages)
                check(file, after[1], [after[2]], f"call {number}: the WAL was being moved into the file")
                count += 1
    assert count > 250
    assert under_way > 16
    assert moves > 1


@pytest.mark.slow
def test_a_sqlite_store_syncs_what_a_killed_process_left_before_it_believes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = SqliteStorage(tmp_path / "n1.db")
    storage.open()
    storage.initialise(IDENTITY, [membership(1, 1)])
    (tmp_path / "copy").mkdir()
    for name in ("n1.db", "n1.db-wal"):
        shutil.copy(tmp_path / name, tmp_path / "copy" / name)
    storage.close()
    synced: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(os.readlink(f"/proc/self/fd/{descriptor}")), fsync(descriptor))
    )
    storage = SqliteStorage(tmp_path / "copy" / "n1.db")
    assert storage.open().identity == IDENTITY
    assert str(tmp_path / "copy" / "n1.db-wal") in synced
    storage.close()
