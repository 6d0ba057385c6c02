"""Bytes that changed on the disk of a FileStorage: what comes back is what was written, or an error that says where."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest

from geraft.core.entries import Ballot, EntryBatch
from geraft.errors import StorageCorrupt, StorageError, StorageFormatTooNew
from geraft.storage import FileStorage, Identity, StoredState
from geraft.storage.segment import HEAD_BYTES, HEADER_BYTES, STEP_MAGIC, Window, open_segment
from geraft.testing.storage_suite import Entry, commands, entries_of, membership, noop, snapshot_of

UNLIMITED = 2**62

Content = tuple[StoredState, list[Entry]]


def fill(storage: FileStorage, rng: random.Random) -> None:
    """Steps of a few bytes and of several sectors, some of them cut off again, and snapshots."""
    storage.initialise(Identity("cluster", "n1", "store-1"), [membership(1, 1)])
    next_index, term = 2, 1
    for step in range(120):
        batches: list[EntryBatch] = []
        if step % 30 == 29:
            term, next_index = term + 1, next_index - 5
            batches = [noop(term, next_index), membership(term, next_index + 1)]
            next_index += 2
        length = rng.choice((1, 1, 2, 3))
        batches.append(commands(term, next_index, next_index + length - 1, rng.choice((50, 100, 200, 3000))))
        next_index += length
        storage.write(Ballot(term, "n2") if step % 30 == 29 else None, batches)
        if step % 50 == 25:
            storage.record_snapshot(snapshot_of(term, next_index - 1, sessions=rng.randbytes(300)))
            storage.compact(max(next_index - 60, 5), UNLIMITED)


def content_of(path: Path) -> Content:
    """All that a store tells, once it has been opened."""
    storage = FileStorage(path)
    state = storage.open()
    try:
        return state, entries_of(storage.read(state.first_index, UNLIMITED, UNLIMITED))
    finally:
        storage.close()


@pytest.fixture(scope="module")
def closed_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Content]:
    """A store that was closed, and what it holds: in several segments, the last one with several steps."""
    path = tmp_path_factory.mktemp("closed") / "log"
    storage = FileStorage(path, segment_bytes=12_000)
    storage.open()
    fill(storage, random.Random(1))
    storage.close()
    shutil.copytree(path, path.with_name("look"))
    return path, content_of(path.with_name("look"))


@pytest.fixture(scope="module")
def crashed_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Content, Content, int]:
    """A store that was not closed, what it holds, what it held one step before, and where the last step begins."""
    path = tmp_path_factory.mktemp("crashed") / "log"
    storage = FileStorage(path)
    storage.open()
    fill(storage, random.Random(2))
    shutil.copytree(path, path.with_name("before"))
    state, offset = storage._usable().state, storage._offset
    # A vote and a command without zeros, so that each sector ends with another byte.
    storage.write(Ballot(state.ballot.term + 7, "n3"), [commands(9, state.last_entry.index + 1, 10**3 - 1, 1100)])
    shutil.copytree(path, path.with_name("crash"))
    storage.close()
    shutil.copytree(path.with_name("crash"), path.with_name("look"))
    return path.with_name("crash"), content_of(path.with_name("look")), content_of(path.with_name("before")), offset


def damaged_copy(path: Path, target: Path, name: str, offset: int, content: bytes) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(path, target)
    with open(target / name, "r+b") as file:
        file.seek(offset)
        file.write(content)
    return target


def flipped(rng: random.Random, content: bytes) -> bytes:
    return bytes(byte ^ rng.randint(1, 255) for byte in content)


def used_bytes(path: Path) -> int:
    return len(path.read_bytes().rstrip(b"\0"))


@pytest.mark.parametrize("bits", ["one bit", "one byte", "eight bytes"])
def test_a_change_anywhere_is_refused_with_file_and_offset_or_without_effect(
    closed_store: tuple[Path, Content], tmp_path: Path, bits: str
) -> None:
    path, expected = closed_store
    rng = random.Random(bits)
    refused = 0
    for number in range(150):
        segment = rng.choice(sorted(path.glob("*.log")))
        offset = rng.randrange(used_bytes(segment) - 8)
        if number < 30:
            segment, offset = sorted(path.glob("*.log"))[-1], rng.randrange(200)
        with open(segment, "rb") as file:
            file.seek(offset)
            original = file.read(8 if bits == "eight bytes" else 1)
        changed = bytes([original[0] ^ 1 << rng.randrange(8)]) if bits == "one bit" else flipped(rng, original)
        copy = damaged_copy(path, tmp_path / "copy", segment.name, offset, changed)
        try:
            found = content_of(copy)
        except StorageCorrupt as error:
            refused += 1
            assert error.path == str(copy / segment.name)
            told = re.search(r"damaged at byte (\d+)", str(error))
            assert offset < HEADER_BYTES or (told is not None and int(told[1]) <= offset + len(changed))
        except StorageFormatTooNew:
            assert 8 <= offset < 12
            refused += 1
        else:
            assert found == expected, f"{bits} at {offset} of {segment.name}"
    assert refused > 100


def test_each_byte_of_a_header_is_refused_or_without_effect(closed_store: tuple[Path, Content], tmp_path: Path) -> None:
    path, expected = closed_store
    rng = random.Random(64)
    for segment in (sorted(path.glob("*.log"))[0], sorted(path.glob("*.log"))[-1]):
        original = segment.read_bytes()
        refused = 0
        for offset in range(HEADER_BYTES):
            content = flipped(rng, original[offset : offset + 1])
            copy = damaged_copy(path, tmp_path / "copy", segment.name, offset, content)
            try:
                assert content_of(copy) == expected, offset
            except StorageError as error:
                refused += 1
                assert segment.name in str(error)
        assert refused == 44


@pytest.mark.parametrize(
    "what", ["the vote", "the identity", "the catalogue", "a configuration", "an entry", "the place of a step"]
)
def test_a_bit_in_what_a_node_must_not_forget_is_found_when_the_store_is_opened(
    tmp_path: Path, what: str, closed_store: tuple[Path, Content]
) -> None:
    path = tmp_path / "log"
    storage = FileStorage(path)
    storage.open()
    storage.initialise(Identity("cluster-of-mine", "n1", "store-of-mine"), [membership(1, 1)])
    storage.write(Ballot(5, "voted-for-n2"), [commands(5, 2, 9)])
    storage.record_snapshot(snapshot_of(5, 9, sessions=b"sessions-of-9"))
    storage.write(None, [commands(5, 10, 10)])
    storage.close()
    marks = {
        "the vote": b"voted-for-n2",
        "the identity": b"store-of-mine",
        "the catalogue": b"sessions-of-9",
        "a configuration": b"127.0.0.1:7001",
        "an entry": b"5.7 ",
        "the place of a step": STEP_MAGIC,
    }
    content = (path / "00000001.log").read_bytes()
    at = content.index(marks[what], HEADER_BYTES + 4)
    damaged_copy(path, tmp_path / "copy", "00000001.log", at + 2, bytes([content[at + 2] ^ 4]))
    storage = FileStorage(tmp_path / "copy")
    with pytest.raises(StorageCorrupt, match=r"copy/00000001\.log is damaged at byte \d+"):
        storage.open()


def test_a_step_in_the_place_of_another_is_refused(closed_store: tuple[Path, Content], tmp_path: Path) -> None:
    """Both are whole: a disk that wrote a block to a wrong place, or lost the write of a block."""
    path, _ = closed_store
    segments = sorted(path.glob("*.log"))
    window = Window(open_segment(str(path), int(segments[-2].stem)))
    heads, offset = [], HEADER_BYTES
    while (head := window.head_at(offset)) is not None:
        heads.append(head)
        offset = head.end
    content = segments[-2].read_bytes()
    steps = [content[head.offset : head.end] for head in heads]
    same_size = [
        (first, second)
        for first in range(1, len(heads))
        for second in range(1, len(heads))
        if first != second and len(steps[first]) == len(steps[second])
    ]
    assert same_size
    for first, second in same_size[:10]:
        copy = damaged_copy(path, tmp_path / "copy", segments[-2].name, heads[first].offset, steps[second])
        with pytest.raises(StorageCorrupt, match=segments[-2].name):
            content_of(copy)


def test_a_segment_of_an_earlier_time_is_refused(closed_store: tuple[Path, Content], tmp_path: Path) -> None:
    """The file of a backup, put back among newer ones."""
    path, _ = closed_store
    shutil.copytree(path, tmp_path / "copy")
    segments = sorted((tmp_path / "copy").glob("*.log"))
    window = Window(open_segment(str(tmp_path / "copy"), int(segments[-2].stem)))
    head = window.head_at(HEADER_BYTES)
    assert head is not None
    with open(segments[-2], "r+b") as file:
        file.truncate(head.end)
    with pytest.raises(StorageCorrupt, match=segments[-2].name):
        content_of(tmp_path / "copy")


def test_a_change_in_the_last_step_after_a_crash_is_told_from_a_torn_write(
    crashed_store: tuple[Path, Content, Content, int], tmp_path: Path
) -> None:
    path, newest, before, start = crashed_store
    original = (path / "00000001.log").read_bytes()
    end = used_bytes(path / "00000001.log")
    assert content_of(damaged_copy(path, tmp_path / "copy", "00000001.log", 0, b"")) == newest
    rng = random.Random(11)
    for offset in [*range(start, start + HEAD_BYTES, 2), *(rng.randrange(start, end) for _ in range(20))]:
        content = bytes([original[offset] ^ 1 << rng.randrange(8)])
        copy = damaged_copy(path, tmp_path / "copy", "00000001.log", offset, content)
        with pytest.raises(StorageCorrupt, match=rf"00000001\.log is damaged at byte {start}: the last step"):
            content_of(copy)
    for offset in [*range(start, start + HEAD_BYTES, 2), *(rng.randrange(start, end) for _ in range(20))]:
        copy = damaged_copy(path, tmp_path / "copy", "00000001.log", offset, bytes(end - offset))
        assert content_of(copy) == before, "torn at that byte"
    for offset in rng.sample(range(start // 512 * 512 + 512, end - 512, 512), 15):
        copy = damaged_copy(path, tmp_path / "copy", "00000001.log", offset, bytes(512))
        assert content_of(copy) == before, "one sector was not written"
