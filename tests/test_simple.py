"""SimpleRaftApp: an app whose snapshot is bytes, and the places that keep the bytes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from geraft.app import MakeSnapshot
from geraft.errors import ConfigError, StorageCorrupt, StorageFailed
from geraft.simple import (
    CHUNK_BYTES,
    FileRepository,
    FsspecRepository,
    MemoryRepository,
    SimpleRaftApp,
    SnapshotRepository,
    to_raft_app,
)


class Sum(SimpleRaftApp):
    """Adds up the numbers it is given; asks for a snapshot at every "copy"."""

    def __init__(self) -> None:
        self.total = 0

    def process_read(self, request: bytes) -> bytes:
        return b"%d" % self.total

    def process_write(self, request: bytes, entry_index: int) -> bytes | tuple[bytes, MakeSnapshot]:
        if request == b"copy":
            return b"copied", MakeSnapshot.COPY
        if request == b"fold":
            return b"folded", MakeSnapshot.FOLD
        self.total += int(request)
        return b"%d" % self.total

    def snapshot(self) -> bytes:
        return b"%d" % self.total

    def restore(self, snapshot: bytes | None) -> None:
        self.total = int(snapshot or b"0")


def make_repository(kind: str, directory: Path) -> SnapshotRepository:
    if kind == "memory":
        return MemoryRepository()
    if kind == "file":
        return FileRepository(directory)
    pytest.importorskip("fsspec")
    url = f"memory://{directory}" if kind == "fsspec memory" else f"file://{directory}"
    return FsspecRepository(url)


@pytest.fixture(params=["memory", "file", "fsspec memory", "fsspec file"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> SnapshotRepository:
    return make_repository(request.param, tmp_path / "snapshots")


def test_writes_are_answered_and_wishes_passed_on(repository: SnapshotRepository) -> None:
    app = to_raft_app(Sum(), repository)
    assert app.process_write(b"5", 3) == (b"5", MakeSnapshot.NONE)
    assert app.process_write(b"7", 4) == (b"12", MakeSnapshot.NONE)
    assert app.process_read(b"") == b"12"
    assert app.process_write(b"fold", 5) == (b"folded", MakeSnapshot.FOLD)
    assert repository.indexes() == []


def test_a_copy_holds_the_state_of_its_index_and_can_be_installed(repository: SnapshotRepository) -> None:
    app = to_raft_app(Sum(), repository)
    app.process_write(b"5", 1)
    assert app.process_write(b"copy", 2) == (b"copied", MakeSnapshot.COPY)
    app.process_write(b"100", 3)
    assert repository.indexes() == [2]
    app.install_snapshot(2)
    assert app.process_read(b"") == b"5"
    app.install_snapshot(None)
    assert app.process_read(b"") == b"0"


def test_a_fold_is_the_old_snapshot_and_the_commands_since(repository: SnapshotRepository) -> None:
    app = to_raft_app(Sum(), repository)
    app.fold_snapshot(None, [b"1", b"2"], 2)
    app.fold_snapshot(2, [b"10"], 3)
    assert app.process_read(b"") == b"0", "folding must not touch the state in use"
    app.install_snapshot(3)
    assert app.process_read(b"") == b"13"


def test_folding_an_app_that_needs_arguments_says_what_to_do() -> None:
    class Named(Sum):
        def __init__(self, name: str) -> None:
            super().__init__()

    with pytest.raises(TypeError, match=r"Named can't be made without arguments .* a fold\(\) of its own"):
        Named("x").fold(None, [])


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
def test_what_is_saved_comes_back(repository: SnapshotRepository, length: int) -> None:
    snapshot = os.urandom(length)
    repository.save(7, [snapshot[:10], snapshot[10:]])
    chunks = list(repository.open(7))
    assert b"".join(chunks) == snapshot
    assert all(len(chunk) <= CHUNK_BYTES for chunk in chunks)


def test_snapshots_are_listed_replaced_and_deleted(repository: SnapshotRepository) -> None:
    for index in (30, 4, 200):
        repository.save(index, [b"%d" % index])
    repository.save(4, [b"again"])
    assert repository.indexes() == [4, 30, 200]
    assert b"".join(repository.open(4)) == b"again"
    repository.delete(30)
    repository.delete(30)
    assert repository.indexes() == [4, 200]
    with pytest.raises(StorageFailed, match="no snapshot"):
        b"".join(repository.open(30))


@pytest.mark.parametrize("kind", ["file", "fsspec file"])
def test_a_source_that_breaks_off_leaves_nothing_behind(tmp_path: Path, kind: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError("the sender is gone")

    repository = make_repository(kind, tmp_path)
    with pytest.raises(StorageFailed, match="the sender is gone"):
        repository.save(1, chunks())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "fsspec file"])
def test_what_a_crash_left_is_swept_by_the_next_start(tmp_path: Path, kind: str) -> None:
    make_repository(kind, tmp_path).save(1, [b"whole"])
    (tmp_path / "snapshot-00000000000000000002.temporary").write_bytes(b"half")
    (tmp_path / "notes.txt").write_bytes(b"not ours")
    assert make_repository(kind, tmp_path).indexes() == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "snapshot-00000000000000000001"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file[:-1],
        lambda file: file[: len(file) // 2],
        lambda file: file[:5],
        lambda file: b"",
        lambda file: b"X" + file[1:],
        lambda file: file[:40] + bytes([file[40] ^ 1]) + file[41:],
        lambda file: file[:-1] + bytes([file[-1] ^ 1]),
        lambda file: file + b"more",
    ],
    ids=["last byte", "half", "magic only", "empty", "magic", "one bit", "checksum", "tail"],
)
@pytest.mark.parametrize("kind", ["file", "fsspec file"])
def test_a_damaged_file_is_found_before_it_is_installed(
    tmp_path: Path, damage: Callable[[bytes], bytes], kind: str
) -> None:
    repository = make_repository(kind, tmp_path)
    app = Sum()
    app.total = 99
    repository.save(1, [b"7" * 1000])
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StorageCorrupt) as caught:
        to_raft_app(app, repository).install_snapshot(1)
    assert caught.value.path == str(path)
    assert app.total == 99


def test_a_url_that_no_file_system_serves_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(ConfigError, match="nonsense"):
        FsspecRepository("nonsense://bucket/n1")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ConfigError, match=r"geraft\[fsspec\]"):
        FsspecRepository("memory://n1")


@pytest.mark.parametrize("kind", ["file", "fsspec file"])
def test_what_a_file_holds_is_the_same_however_it_was_written(tmp_path: Path, kind: str) -> None:
    make_repository(kind, tmp_path).save(7, [b"a" * 1000, b"b"])
    for other in ("file", "fsspec file"):
        assert b"".join(make_repository(other, tmp_path).open(7)) == b"a" * 1000 + b"b"
