"""What FileStorage promises beyond the suite: its files, who may open it, what it does when the disk fails."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import subprocess
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
from geraft.storage import FileStorage, Identity
from geraft.storage import segment as segment_format
from geraft.testing.storage_suite import membership, snapshot_of


def written(path: Path, last_index: int = 20, segment_bytes: int = 1024) -> FileStorage:
    """An open store that holds entries 1 to last_index, in several segments if they are many."""
    storage = FileStorage(path, segment_bytes=segment_bytes)
    storage.open()
    storage.initialise(Identity("cluster", "n1", "store-1"), [membership(1, 1)])
    storage.write(Ballot(1, "n1"), [commands(1, 2, 3)])
    for index in range(4, last_index + 1):
        storage.write(None, [commands(1, index, index, command_bytes=100)])
    return storage


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file() and path.name != "lock"}


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))


# The files ----------------------------------------------------------------------------------------------------------


def test_missing_directories_are_made_and_the_path_may_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "what? #100% ü"
    storage = written(path, 3)
    storage.close()
    assert storage.open().last_entry == EntryId(1, 3)
    storage.close()
    assert {file.name for file in path.iterdir()} == {"00000001.log", "lock"}


@pytest.mark.parametrize("arguments", [{"path": ""}, {"path": "log", "segment_bytes": 100}])
def test_what_can_not_be_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        FileStorage(**arguments)  # type: ignore[arg-type]


def test_files_of_others_beside_the_log_are_left_alone(tmp_path: Path) -> None:
    written(tmp_path / "log").close()
    for name in ("notes.txt", "00000001.log.bak", "1.log", "x00000001.log"):
        (tmp_path / "log" / name).write_text("mine")
    storage = FileStorage(tmp_path / "log")
    assert storage.open().last_entry == EntryId(1, 20)
    storage.close()
    assert (tmp_path / "log" / "notes.txt").read_text() == "mine"


def test_each_write_is_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = written(tmp_path / "log", 20, segment_bytes=10_000_000)
    syncs = []
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: (syncs.append(descriptor), sync(descriptor)))
    monkeypatch.setattr(os, "fsync", lambda descriptor: pytest.fail("a write is to sync its file and nothing else"))
    storage.write(Ballot(3, "n2"), [commands(2, 15, 15), commands(3, 16, 700)])
    assert len(syncs) == 1
    storage.record_snapshot(snapshot_of(3, 600))
    storage.compact(600, UNLIMITED)
    storage.reset(snapshot_of(4, 1000))
    assert len(syncs) == 4
    monkeypatch.undo()
    storage.close()


def test_a_device_that_takes_a_write_in_pieces_is_given_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwritev = os.pwritev
    storage = FileStorage(tmp_path / "log")
    storage.open()
    monkeypatch.setattr(
        os, "pwritev", lambda descriptor, pieces, offset: pwritev(descriptor, [b"".join(pieces)[:777]], offset)
    )
    storage.write(None, [commands(1, index, index, command_bytes=100) for index in range(1, 1201)])
    monkeypatch.undo()
    assert entry_ids(storage.read(1, 1200, UNLIMITED)) == [(1, index) for index in range(1, 1201)]
    storage.close()
    assert storage.open().last_entry == EntryId(1, 1200)
    storage.close()


def test_what_a_killed_process_left_in_memory_is_synced_before_it_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "log").close()
    last = segments(tmp_path / "log")[-1]
    done: list[str] = []
    pwritev, fsync = os.pwritev, os.fsync

    def write(descriptor: int, pieces: list[bytes], offset: int) -> int:
        done.append("write")
        return pwritev(descriptor, pieces, offset)

    def sync(descriptor: int) -> None:
        done.append(f"sync {os.readlink(f'/proc/self/fd/{descriptor}')}")
        fsync(descriptor)

    monkeypatch.setattr(os, "pwritev", write)
    monkeypatch.setattr(os, "fsync", sync)
    storage = FileStorage(tmp_path / "log")
    storage.open()
    assert done == ["write", f"sync {last}"]
    monkeypatch.undo()
    storage.close()


def test_segments_without_entries_that_count_are_deleted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    storage = written(path, 60)
    assert len(segments(path)) > 5
    storage.record_snapshot(snapshot_of(1, 40))
    before = segments(path)
    assert storage.compact(40, UNLIMITED) == EntryId(1, 40)
    assert segments(path)[0] > before[3]
    before = segments(path)
    storage.write(None, [commands(2, 42, 42)])  # cuts off what most of them hold
    assert len(segments(path)) <= 3 < len(before)
    storage.write(None, [commands(2, index, index, 200) for index in range(43, 80)])
    storage.reset(snapshot_of(3, 500))
    assert len(segments(path)) == 1
    storage.close()
    (state, _) = storage.open(), storage.close()
    assert (state.base, state.last_entry) == (EntryId(3, 500), EntryId(3, 500))


def test_what_a_crash_kept_from_being_deleted_is_deleted_when_the_store_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "log"
    storage = written(path, 60)
    storage.record_snapshot(snapshot_of(1, 40))
    shutil.copytree(path, tmp_path / "copy")
    storage.compact(40, UNLIMITED)
    storage.close()
    kept = segments(path)
    for segment in segments(tmp_path / "copy"):
        if not (path / segment.name).exists():
            shutil.copy(segment, path)
    (path / "00000099.log.new").write_bytes(b"half a segment")
    assert len(segments(path)) > len(kept)
    storage.open()
    assert segments(path) == kept
    assert not (path / "00000099.log.new").exists()
    assert entry_ids(storage.read(41, 99, UNLIMITED)) == [(1, index) for index in range(41, 61)]
    storage.close()


def test_opening_a_long_log_reads_its_last_segment_only(tmp_path: Path) -> None:
    storage = written(tmp_path / "log", 2, segment_bytes=1_000_000)
    for index in range(3, 103):
        storage.write(None, [commands(1, index, index, command_bytes=100_000)])
    storage.close()
    early = segments(tmp_path / "log")[1]
    with open(early, "r+b") as file:  # an early one is damaged, and opening does not see it
        file.seek(500_000)
        file.write(b"damaged!")
    assert storage.open().last_entry == EntryId(1, 102)
    assert entry_ids(storage.read(60, 102, UNLIMITED)) == [(1, index) for index in range(60, 103)]
    with pytest.raises(StorageCorrupt, match=rf"{early.name} is damaged at byte \d+.*under a new id"):
        storage.read(1, 102, UNLIMITED)
    storage.close()


def test_few_files_are_kept_open_however_long_the_log_is(tmp_path: Path) -> None:
    storage = written(tmp_path / "log", 330)
    assert len(segments(tmp_path / "log")) > 40
    for index in range(1, 331, 3):
        assert entry_ids(storage.read(index, index, UNLIMITED)) == [(1, index)]
    assert 10 < len(open_files(tmp_path)) < 40
    storage.close()
    assert open_files(tmp_path) == []


def open_files(directory: Path) -> list[str]:
    """What this process has open below the directory."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listdir had open
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [path for path in found if path.startswith(str(directory))]


# What is not ours, or not whole -------------------------------------------------------------------------------------


def make_file(path: Path) -> None:
    path.write_text("Dear diary")


def make_other_directory(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("Dear diary")


def make_other_log(path: Path) -> None:
    path.mkdir()
    (path / "00000001.log").write_text("127.0.0.1 GET /\n" * 100)


def make_newer(path: Path) -> None:
    written(path).close()
    last = segments(path)[-1]
    content = last.read_bytes()
    fields = list(segment_format.HEADER.unpack_from(content))
    fields[1] = 2
    header = segment_format.HEADER.pack(*fields)
    last.write_bytes(header + segment_format.crc32(header).to_bytes(4, "little") + content[len(header) + 4 :])


def make_empty(path: Path) -> None:
    written(path).close()
    segments(path)[-1].write_bytes(b"")


def make_headless(path: Path) -> None:
    written(path).close()
    with open(segments(path)[-1], "r+b") as file:
        file.write(bytes(100))


def make_without_first_step(path: Path) -> None:
    written(path).close()
    with open(segments(path)[-1], "r+b") as file:
        file.truncate(segment_format.HEADER_BYTES)


def make_without_last_segment(path: Path) -> None:
    written(path).close()
    segments(path)[-1].unlink()


def make_without_middle_segment(path: Path) -> None:
    written(path).close()
    segments(path)[-2].unlink()


def make_short_middle_segment(path: Path) -> None:
    written(path).close()
    with open(segments(path)[-2], "r+b") as file:
        file.truncate(900)


def make_renamed(path: Path) -> None:
    written(path).close()
    segments(path)[-1].rename(path / "00000050.log")


def make_mixed(path: Path) -> None:
    written(path).close()
    written(path.with_name("other")).close()
    middle = segments(path)[-2]
    shutil.copy(path.with_name("other") / middle.name, middle)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (make_file, StorageForeign),
        (make_other_directory, StorageForeign),
        (make_other_log, StorageForeign),
        (make_newer, StorageFormatTooNew),
        (make_empty, StorageCorrupt),
        (make_headless, StorageCorrupt),
        (make_without_first_step, StorageCorrupt),
        (make_without_last_segment, StorageCorrupt),
        (make_without_middle_segment, StorageCorrupt),
        (make_short_middle_segment, StorageCorrupt),
        (make_renamed, StorageCorrupt),
        (make_mixed, StorageForeign),
    ],
)
def test_what_is_no_whole_store_is_refused_by_name_and_left_as_it_is(
    tmp_path: Path, make: object, error: type[StorageError]
) -> None:
    path = tmp_path / "log"
    make(path)  # type: ignore[operator]
    before = files(path) if path.is_dir() else path.read_bytes()
    for _ in range(2):
        with pytest.raises(error, match=re.escape(str(path))) as caught:
            FileStorage(path).open()
        assert caught.value.path.startswith(str(path))
        assert (files(path) if path.is_dir() else path.read_bytes()) == before


def test_a_directory_of_others_gets_no_lock_file(tmp_path: Path) -> None:
    make_other_directory(tmp_path / "log")
    with pytest.raises(StorageForeign):
        FileStorage(tmp_path / "log").open()
    assert not (tmp_path / "log" / "lock").exists()


def test_a_crash_while_a_store_is_made_leaves_none(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "00000001.log.new").write_bytes(b"half a file")
    storage = FileStorage(tmp_path / "log")
    assert storage.open().identity is None
    storage.close()
    assert not (tmp_path / "log" / "00000001.log.new").exists()


@pytest.mark.parametrize("kept_bytes", [1, 20, 40, 70, 200, 300])
def test_a_torn_write_is_dropped_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, kept_bytes: int) -> None:
    path = tmp_path / "log"
    storage = written(path, 10, segment_bytes=1_000_000)
    offset = storage._offset
    storage.write(Ballot(2, "n2"), [commands(2, 11, 11, command_bytes=300)])
    shutil.copytree(path, tmp_path / "copy")
    storage.close()
    torn = tmp_path / "copy" / "00000001.log"
    content = torn.read_bytes()
    torn.write_bytes(content[: offset + kept_bytes].ljust(len(content), b"\0"))
    with caplog.at_level(logging.WARNING):
        storage = FileStorage(tmp_path / "copy")
        state = storage.open()
    assert (state.ballot, state.last_entry) == (Ballot(1, "n1"), EntryId(1, 10))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    dropped = len(content[: offset + kept_bytes].rstrip(b"\0")) - offset
    assert f"{torn}: dropped {dropped} bytes from byte {offset} on" in told[0]
    storage.write(None, [commands(3, 11, 12)])
    storage.close()
    caplog.clear()
    assert storage.open().last_entry == EntryId(3, 12)
    storage.close()
    assert not caplog.records


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

def check_refused_and_readable(storage, last_index):
    for use in (lambda: storage.write(Ballot(1000000), []), lambda: storage.compact(1, 1)):
        try:
            use()
        except StorageFailed as error:
            assert "takes no writes any more" in str(error) and "writing failed" in str(error), error
        else:
            sys.exit("a write was taken after one had failed")
    assert entry_ids(storage.read(1, last_index + 99, UNLIMITED)) == [(1, index) for index in range(1, last_index + 1)]

def check_whole(state, last_index):
    # The write that failed may have reached the disk whole, or not at all.
    assert (state.ballot.term, state.last_entry.index) in (
        (last_index - 2, last_index), (last_index + 1, last_index + 3)), (state, last_index)
    return state.last_entry.index
"""


@pytest.mark.parametrize("segment_bytes", [100_000, 16_000_000])
def test_a_file_that_may_not_grow_fails_the_write_and_nothing_else(tmp_path: Path, segment_bytes: int) -> None:
    children.run(
        FILL
        + """
storage = FileStorage(sys.argv[1], segment_bytes=int(sys.argv[2]))
storage.open()
last_index = 0
for limit in (60_000, 90_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    last_index = fill(storage, last_index)
    assert last_index > 3, last_index
    check_refused_and_readable(storage, last_index)
    storage.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    last_index = check_whole(storage.open(), last_index)
    assert entry_ids(storage.read(1, last_index, UNLIMITED)) == [(1, index) for index in range(1, last_index + 1)]
    storage.write(Ballot(last_index + 1), [commands(1, last_index + 1, last_index + 3, command_bytes=2000)])
    last_index += 3
storage.close()
""",
        tmp_path / "log",
        segment_bytes,
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
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.parametrize("segment_bytes", [20_000, 16_000_000])
def test_a_full_disk_fails_the_write_and_nothing_else(small_disk: Path, segment_bytes: int) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(500_000))
    children.run(
        FILL
        + """
storage = FileStorage(sys.argv[1], segment_bytes=int(sys.argv[3]))
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
        small_disk / "log",
        ballast,
        segment_bytes,
    )


def test_on_a_full_disk_no_store_is_made(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1024 * 1024 - 4096))
    with pytest.raises(StorageFailed, match="Free space"):
        FileStorage(small_disk / "log").open()
    assert segments(small_disk / "log") == []
    ballast.unlink()
    written(small_disk / "log").close()


def test_a_disk_that_is_read_only_is_refused_when_the_store_is_opened(small_disk: Path) -> None:
    written(small_disk / "log").close()
    before = files(small_disk / "log")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageFailed, match=r"log.*writable"):
        FileStorage(small_disk / "log").open()
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert files(small_disk / "log") == before


def test_a_disk_that_becomes_read_only_fails_the_write_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = written(tmp_path / "log")

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fdatasync", refuse)
    with pytest.raises(StorageFailed, match=r"writing failed.*Read-only.*writable"):
        storage.write(Ballot(9), [])
    monkeypatch.undo()
    with pytest.raises(StorageFailed, match="takes no writes any more"):
        storage.write(Ballot(9), [])
    assert len(entry_ids(storage.read(1, 20, UNLIMITED))) == 20
    storage.close()
    assert storage.open().last_entry == EntryId(1, 20)
    storage.close()


def test_a_read_that_a_cut_overtakes_gives_what_is_left(tmp_path: Path) -> None:
    storage = written(tmp_path / "log", 60)
    load = storage._load_sealed
    storage._loaded.clear()

    def cut_first(part: object) -> object:
        storage._load_sealed = load  # type: ignore[method-assign]
        storage.write(None, [commands(2, 10, 11)])
        return load(part)  # type: ignore[arg-type]

    storage._load_sealed = cut_first  # type: ignore[assignment,method-assign]
    assert storage.read(30, 50, UNLIMITED) == []
    assert entry_ids(storage.read(9, 20, UNLIMITED)) == [(1, 9), (2, 10), (2, 11)]
    storage.close()
