"""What is left of a store when the power fails, at every point of a run that was recorded.

    def test_it_survives_a_power_loss(tmp_path):
        assert_survives_power_loss(lambda directory: MyStorage(directory / "log"), tmp_path, calls)

calls: functions that are given the store in turn, such as `lambda storage: storage.write(Ballot(2), [])`. What the
store does to its files meanwhile is recorded: for this it must use the functions of `os` (os.open, os.pwrite,
os.fdatasync, os.replace and so on), and no file object in between. Then the disk is made up as a failure of the power
could have left it, after each single write, sync and change of a name, and the store is opened on it: whatever a call
that had returned stored must be there, and nothing else but the whole of the call that was under way.

What was synced is there. Of the rest, per file the writes since its last sync, and per directory the names made,
changed or removed since its last sync: nothing, all, or a random part in any order, single writes torn at the borders
of sectors and within one. `PowerLoss` records other things than stores, and `Recording.disks` gives the disks.
"""

from __future__ import annotations

import builtins
import gc
import io
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from geraft.core.entries import EntryKind
from geraft.core.membership import Configuration
from geraft.storage.base import RaftStorage, StoredState
from geraft.storage.memory import MemoryStorage

SECTOR_BYTES: Final = 512
UNLIMITED: Final = 2**62

Call = Callable[[RaftStorage], object]


class Killed(BaseException):
    """Stands for the end of the process: it comes out of a function of os, behind what that did."""


class NotRecorded(AssertionError):
    """The code changed a file in a way that is not seen here, so nothing could be said about it."""


# What was done --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes put into a file."""

    inode: int
    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file cut, or filled up with zeros, to a size."""

    inode: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Rename:
    """Names of one directory that changed in one step: what each stands for now, None for nothing.

    made_directory: the name stands for a new directory.
    """

    inode: int
    names: tuple[tuple[str, int | None], ...]
    made_directory: bool = False


@dataclass(frozen=True, slots=True)
class Sync:
    """A file, or the names of a directory, brought to the disk."""

    inode: int


Change = Write | Truncate | Rename | Sync


@dataclass(slots=True)
class File:
    """durable: as of the last sync. pending: what was done since."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write | Truncate] = field(default_factory=list)


@dataclass(slots=True)
class Directory:
    """durable: names as of the last sync. pending: what was done since."""

    durable: dict[str, int] = field(default_factory=dict)
    pending: list[Rename] = field(default_factory=list)

    def now(self) -> dict[str, int]:
        return _renamed(self.durable, self.pending)


Inodes = dict[int, File | Directory]
ROOT: Final = 0


@dataclass(frozen=True, slots=True)
class Disk:
    """A directory as a failure of the power could have left it.

    point: after so many changes. marks: how many had been told until then.
    """

    point: int
    marks: int
    what: str
    files: dict[str, bytes | None]

    def write_to(self, directory: Path) -> None:
        """Make the directory, which must not exist, and all that is in it. A None in files is a directory."""
        directory.mkdir(parents=True)
        for name, content in sorted(self.files.items()):
            if content is None:
                (directory / name).mkdir()
            else:
                (directory / name).write_bytes(content)


@dataclass(frozen=True)
class Recording:
    """What was done to the files of a directory, in order. before: what it held at first, all of it durable."""

    before: Inodes
    changes: tuple[Change, ...]
    marks: tuple[int, ...]

    def disks(self, rng: random.Random, *, random_disks: int = 3) -> Iterator[Disk]:
        """For the point before the first change and after each: nothing, all, and random parts of what was not synced.

        Points between which nothing happened but marks give one disk more for each of them.
        """
        inodes = _copy(self.before)
        for point in range(len(self.changes) + 1):
            if point:
                _apply(inodes, self.changes[point - 1])
            marks = sum(mark <= point for mark in self.marks)
            yield Disk(point, marks, "what was synced", _files_of(inodes, "nothing", rng))
            if any(inode.pending for inode in inodes.values()):
                yield Disk(point, marks, "everything", _files_of(inodes, "everything", rng))
                for number in range(random_disks):
                    yield Disk(point, marks, f"a part, number {number}", _files_of(inodes, "a part", rng))


def _copy(inodes: Inodes) -> Inodes:
    return {
        number: File(bytearray(inode.durable)) if isinstance(inode, File) else Directory(dict(inode.durable))
        for number, inode in inodes.items()
    }


def _apply(inodes: Inodes, change: Change) -> None:
    inode = inodes[change.inode]
    match change:
        case Sync():
            for done in inode.pending:
                _finish(inode, done)
            inode.pending.clear()
        case Rename():
            assert isinstance(inode, Directory)
            inode.pending.append(change)
            for _, below in change.names:
                if below is not None:
                    inodes.setdefault(below, Directory() if change.made_directory else File())
        case _:
            assert isinstance(inode, File)
            inode.pending.append(change)


def _finish(inode: File | Directory, change: Change) -> None:
    if isinstance(inode, Directory):
        assert isinstance(change, Rename)
        inode.durable = _renamed(inode.durable, [change])
    else:
        _change(inode.durable, change)


def _change(content: bytearray, change: Change) -> None:
    if isinstance(change, Write):
        content.extend(bytes(max(0, change.offset - len(content))))
        content[change.offset : change.offset + len(change.content)] = change.content
    elif isinstance(change, Truncate):
        del content[change.size_bytes :]
        content.extend(bytes(change.size_bytes - len(content)))


def _renamed(names: dict[str, int], changes: Sequence[Rename]) -> dict[str, int]:
    now = dict(names)
    for change in changes:
        for name, inode in change.names:
            if inode is None:
                now.pop(name, None)
            else:
                now[name] = inode
    return now


How = Literal["nothing", "everything", "a part"]


def _files_of(inodes: Inodes, how: How, rng: random.Random) -> dict[str, bytes | None]:
    """The files that are left, by their path below the root."""
    files: dict[str, bytes | None] = {}

    def walk(number: int, path: str) -> None:
        inode = inodes[number]
        if isinstance(inode, File):
            files[path] = _content_of(inode, how, rng)
            return
        if path:
            files[path] = None
        pending = inode.pending
        if how == "nothing":
            pending = []
        elif how == "a part":
            # A journal keeps the order, so often it is the first ones that are there.
            first = pending[: rng.randint(0, len(pending))]
            pending = first if rng.random() < 0.5 else [change for change in pending if rng.random() < 0.5]
        for name, below in sorted(_renamed(inode.durable, pending).items()):
            walk(below, os.path.join(path, name))

    walk(ROOT, "")
    return files


def _content_of(file: File, how: How, rng: random.Random) -> bytes:
    content = bytearray(file.durable)
    if how == "everything":
        for change in file.pending:
            _change(content, change)
    elif how == "a part":
        for change in file.pending:
            fate = rng.choice(("kept", "kept", "lost", "torn"))
            if fate == "kept" or (fate == "torn" and isinstance(change, Truncate)):
                _change(content, change)
            elif isinstance(change, Write) and fate == "torn":
                for piece in _torn(change, rng):
                    _change(content, piece)
    return bytes(content)


def _torn(write: Write, rng: random.Random) -> Iterator[Write]:
    """The sectors that got to the disk: the first ones, or any of them; of one of them its first bytes only."""
    first, end = write.offset, write.offset + len(write.content)
    borders = [first, *range((first // SECTOR_BYTES + 1) * SECTOR_BYTES, end, SECTOR_BYTES), end]
    sectors = list(pairwise(borders))
    if rng.random() < 0.5:
        sectors = sectors[: rng.randint(1, len(sectors))]
    else:
        sectors = rng.sample(sectors, rng.randint(1, len(sectors)))
    cut = rng.randrange(len(sectors)) if rng.random() < 0.7 else None
    for number, (start, stop) in enumerate(sectors):
        if number == cut:
            stop = rng.randrange(start, stop)
        if stop > start:
            yield Write(write.inode, start, write.content[start - first : stop - first])


# Recording ------------------------------------------------------------------------------------------------------------

_active = threading.Lock()


class PowerLoss:
    """While the context is entered: records what this process does to files below a directory, from any thread.

    with PowerLoss(directory) as power:
        ...
        power.mark()  # told someone that it is done
    for disk in power.recording.disks(random.Random(1)):
        ...

    Raises NotRecorded for what it can't follow; one at a time in a process. It replaces functions of the module `os`.
    """

    def __init__(self, directory: Path) -> None:
        self._root = os.path.realpath(directory)
        self._lock = threading.RLock()
        self._inodes: Inodes = {ROOT: Directory()}
        self._changes: list[Change] = []
        self._marks: list[int] = []
        self._descriptors: dict[int, int] = {}
        self._originals: list[tuple[Any, str, Any]] = []
        self._before: Inodes = {}
        self.changes_until_kill: int | None = None
        """After so many more changes Killed is raised, once."""

    @property
    def recording(self) -> Recording:
        return Recording(before=self._before, changes=tuple(self._changes), marks=tuple(self._marks))

    def mark(self) -> None:
        """What has been done up to here is acknowledged."""
        self._marks.append(len(self._changes))

    def __enter__(self) -> Self:
        if not _active.acquire(blocking=False):
            raise NotRecorded("another PowerLoss is recording in this process")
        self._read_directory(self._root, ROOT)
        self._before = _copy(self._inodes)
        for name in (
            *("open", "close", "write", "writev", "pwrite", "pwritev", "ftruncate", "truncate", "fsync", "fdatasync"),
            *("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "posix_fallocate"),
        ):
            original = getattr(os, name)
            self._originals.append((os, name, original))
            setattr(os, name, self._recorded(original, getattr(self, f"_{name}")))
        for module, name in ((builtins, "open"), (io, "open")):
            original = getattr(module, name)
            self._originals.append((module, name, original))
            setattr(module, name, self._checked_open(original))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for module, name, original in self._originals:
            setattr(module, name, original)
        _active.release()
        if error is None:
            self._compare()

    def _read_directory(self, path: str, number: int) -> None:
        directory = Directory()
        self._inodes[number] = directory
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            below = len(self._inodes)
            directory.durable[entry.name] = below
            if entry.is_dir():
                self._read_directory(entry.path, below)
            else:
                self._inodes[below] = File(bytearray(Path(entry.path).read_bytes()))

    def _compare(self) -> None:
        """Raises NotRecorded unless the directory holds what the recording says."""
        recorded = _files_of(self._inodes, "everything", random.Random(0))
        found: dict[str, bytes | None] = {}
        for path in Path(self._root).rglob("*"):
            found[str(path.relative_to(self._root))] = None if path.is_dir() else path.read_bytes()
        for name in sorted(recorded.keys() | found.keys()):
            if name not in recorded or name not in found or recorded[name] != found[name]:
                raise NotRecorded(
                    f"{os.path.join(self._root, name)} was changed in a way that was not recorded: the code under test"
                    " must use the functions of the module os, by that name, and open, write and sync files with them"
                )

    def _recorded(self, original: Callable[..., Any], record: Callable[..., None]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                if record in (self._write, self._writev):
                    offset = self._position(arguments[0])
                    result = original(*arguments, **named)
                    record(result, offset, *arguments)
                elif record in (self._fsync, self._fdatasync) and arguments[0] in self._descriptors:
                    record(None, *arguments)  # nothing is really at stake, so the disk is not waited for
                    result = None
                else:
                    result = original(*arguments, **named)
                    record(result, *arguments, **named)
                return result

        return call

    def _checked_open(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if set(mode) & set("wax+") and not isinstance(file, int) and self._place(file) is not None:
                raise NotRecorded(f"{file} was opened with open(), whose writes are not recorded: use os.open")
            return original(file, mode, *arguments, **named)

        return call

    # Where things are

    def _place(self, path: Any) -> tuple[int, str] | None:
        """Inode of the directory that the path lies in, and its name there; None if it is not below the root."""
        if isinstance(path, int):
            return None
        full = os.path.abspath(os.fsdecode(path))
        parent = os.path.realpath(os.path.dirname(full))
        if full == self._root or not (parent + os.sep).startswith(self._root + os.sep):
            return None
        number = ROOT
        for name in os.path.relpath(parent, self._root).split(os.sep):
            if name != ".":
                directory = self._inodes[number]
                assert isinstance(directory, Directory)
                number = directory.now()[name]
        return number, os.path.basename(full)

    def _inode_at(self, path: Any) -> int | None:
        if not isinstance(path, int) and os.path.realpath(os.fsdecode(path)) == self._root:
            return ROOT
        place = self._place(path)
        if place is None:
            return None
        directory = self._inodes[place[0]]
        assert isinstance(directory, Directory)
        return directory.now().get(place[1])

    def _do(self, change: Change) -> None:
        _apply(self._inodes, change)
        self._changes.append(change)
        if self.changes_until_kill is not None:
            self.changes_until_kill -= 1
            if self.changes_until_kill <= 0:
                self.changes_until_kill = None
                raise Killed

    def _position(self, descriptor: int) -> int:
        return os.lseek(descriptor, 0, os.SEEK_CUR) if descriptor in self._descriptors else 0

    # One for each function of os: called behind it, with its result.

    def _open(self, result: int, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._descriptors.pop(result, None)
        inode = self._inode_at(path)
        place = self._place(path)
        if inode is None and place is not None:
            inode = len(self._inodes)
            self._do(Rename(place[0], ((place[1], inode),)))
        if inode is None:
            return
        if flags & os.O_APPEND and flags & (os.O_WRONLY | os.O_RDWR):
            raise NotRecorded(f"{path} was opened with O_APPEND, whose writes are not recorded")
        if flags & os.O_TRUNC:
            self._do(Truncate(inode, 0))
        self._descriptors[result] = inode

    def _close(self, result: None, descriptor: int) -> None:
        self._descriptors.pop(descriptor, None)

    def _written(self, descriptor: int, content: bytes, offset: int) -> None:
        if descriptor in self._descriptors and content:
            self._do(Write(self._descriptors[descriptor], offset, content))

    def _write(self, result: int, offset: int, descriptor: int, content: Any) -> None:
        self._written(descriptor, bytes(content)[:result], offset)

    def _writev(self, result: int, offset: int, descriptor: int, pieces: Sequence[Any]) -> None:
        self._written(descriptor, b"".join(pieces)[:result], offset)

    def _pwrite(self, result: int, descriptor: int, content: Any, offset: int) -> None:
        self._written(descriptor, bytes(content)[:result], offset)

    def _pwritev(self, result: int, descriptor: int, pieces: Sequence[Any], offset: int, flags: int = 0) -> None:
        self._written(descriptor, b"".join(pieces)[:result], offset)

    def _ftruncate(self, result: None, descriptor: int, length: int) -> None:
        if descriptor in self._descriptors:
            self._do(Truncate(self._descriptors[descriptor], length))

    def _truncate(self, result: None, path: Any, length: int) -> None:
        inode = self._descriptors.get(path) if isinstance(path, int) else self._inode_at(path)
        if inode is not None:
            self._do(Truncate(inode, length))

    def _posix_fallocate(self, result: None, descriptor: int, offset: int, length: int) -> None:
        if descriptor in self._descriptors:
            size_bytes = os.fstat(descriptor).st_size
            self._do(Truncate(self._descriptors[descriptor], max(size_bytes, offset + length)))

    def _fsync(self, result: None, descriptor: int) -> None:
        if descriptor in self._descriptors:
            self._do(Sync(self._descriptors[descriptor]))

    _fdatasync = _fsync

    def _rename(self, result: None, source: Any, target: Any, **_: object) -> None:
        old, new = self._place(source), self._place(target)
        if old is None and new is None:
            return
        if old is None or new is None or old[0] != new[0]:
            raise NotRecorded(f"{source} was moved to another directory, {target}, which is not recorded")
        directory = self._inodes[old[0]]
        assert isinstance(directory, Directory)
        self._do(Rename(old[0], ((old[1], None), (new[1], directory.now()[old[1]]))))

    _replace = _rename

    def _unlink(self, result: None, path: Any, **_: object) -> None:
        place = self._place(path)
        if place is not None:
            self._do(Rename(place[0], ((place[1], None),)))

    _remove = _rmdir = _unlink

    def _mkdir(self, result: None, path: Any, mode: int = 0o777, **_: object) -> None:
        place = self._place(path)
        if place is not None:
            self._do(Rename(place[0], ((place[1], len(self._inodes)),), made_directory=True))


# Stores ---------------------------------------------------------------------------------------------------------------

Entry = tuple[int, int, EntryKind, bytes, Configuration | None]
Content = tuple[StoredState, list[Entry]]


@dataclass(frozen=True, kw_only=True)
class Survived:
    """How much was tried.

    points: moments of the run. disks: those made up. under_way: on so many of them the call that was under way was
    found, whole. in_recovery: of the disks, those that a second failure left, while the store was being opened. kills:
    calls during which the process was killed and started again.
    """

    calls: int
    kills: int
    points: int
    disks: int
    under_way: int
    in_recovery: int


def content_of(storage: RaftStorage) -> Content:
    """Open the store and give all that it holds: its state, and of each entry index, term, kind, command, members."""
    state = storage.open()
    entries = [
        (index, batch.term, batch.kind, command, batch.configuration)
        for batch in storage.read(state.first_index, UNLIMITED, UNLIMITED)
        for index, command in enumerate(batch.commands, batch.first_index)
    ]
    return state, entries


def assert_survives_power_loss(
    make_storage: Callable[[Path], RaftStorage],
    directory: Path,
    calls: Sequence[Call],
    *,
    seed: int = 1,
    random_disks: int = 3,
    second_losses: float = 0.02,
    kills: float = 0.1,
) -> Survived:
    """Make the calls, and find the store whole on each disk that a failure of the power could have left meanwhile.

    make_storage: gives a store, not open, that keeps what it stores in the directory. directory: empty, for the run and
    the disks. second_losses: the share of the disks on which the power fails again while the store is opened. kills:
    the share of the calls during which the process is killed, whereupon another one opens the store, which finds what
    the system's memory has, synced or not: what it finds must stay.
    Raises AssertionError, with the point and the disk, which then is left in the directory; NotRecorded if the store
    does not use the functions of os.
    """
    rng = random.Random(seed)
    model = MemoryStorage()
    expected = [content_of(model)]
    kill_count = 0
    (directory / "run").mkdir()
    with PowerLoss(directory / "run") as power:
        storage = make_storage(directory / "run")
        storage.open()
        for number, call in enumerate(calls):
            call(model)
            model.close()
            expected.append(content_of(model))
            if rng.random() < kills:
                power.changes_until_kill = rng.randint(1, 3)
            if not _done_or_killed(call, storage):
                kill_count += 1
                del storage
                gc.collect()  # its lock goes with it
                storage = make_storage(directory / "run")
                where = f"the process was killed during call {number}"
                try:
                    found = content_of(storage)
                except Exception as error:
                    raise AssertionError(f"{where}. {type(error).__name__}: {error}") from error
                assert found in expected[-2:], f"{where}. Found {_shown(found)}"
                if found != expected[-1]:
                    call(storage)
            power.changes_until_kill = None
            power.mark()
        storage.close()
    disks = under_way = in_recovery = 0
    for disk in power.recording.disks(rng, random_disks=random_disks):
        allowed = expected[disk.marks : disk.marks + 2]
        place = directory / "disk"
        if rng.random() < second_losses:
            in_recovery += _lose_power_while_opening(make_storage, disk, place, allowed, rng)
        disks += 1
        under_way += _check(make_storage, disk, place, allowed)
    return Survived(
        calls=len(calls),
        kills=kill_count,
        points=len(power.recording.changes) + 1,
        disks=disks + in_recovery,
        under_way=under_way,
        in_recovery=in_recovery,
    )


def _done_or_killed(call: Call, storage: RaftStorage) -> bool:
    """Whether the call returned. After Killed nobody but the caller refers to the store any more."""
    try:
        call(storage)
    except Killed:
        return False
    return True


def _lose_power_while_opening(
    make_storage: Callable[[Path], RaftStorage],
    disk: Disk,
    place: Path,
    allowed: Sequence[Content],
    rng: random.Random,
) -> int:
    disk.write_to(place)
    with PowerLoss(place) as power:
        storage = make_storage(place)
        found = content_of(storage)
        power.mark()
        storage.close()
    shutil.rmtree(place)
    count = 0
    for second in power.recording.disks(rng, random_disks=1):
        # What was found once, and may have been acted upon, stays.
        what = f"{disk.what}; then after {second.point} changes while it was opened: {second.what}"
        again = replace(second, point=disk.point, what=what)
        _check(make_storage, again, place, [found] if second.marks else allowed)
        count += 1
    return count


def _check(make_storage: Callable[[Path], RaftStorage], disk: Disk, place: Path, allowed: Sequence[Content]) -> bool:
    """Whether the disk holds the call that was under way. Raises AssertionError unless it is one of those allowed."""
    disk.write_to(place)
    with _without_syncs():
        return _check_on(make_storage, disk, place, allowed)


@contextmanager
def _without_syncs() -> Iterator[None]:
    """Nothing is really at stake, and a disk that must be waited for takes most of the time."""
    fsync, fdatasync = os.fsync, os.fdatasync
    for name in ("fsync", "fdatasync"):
        setattr(os, name, os.fstat)  # raises for what is no descriptor, as they do
    try:
        yield
    finally:
        for name, original in (("fsync", fsync), ("fdatasync", fdatasync)):
            setattr(os, name, original)


def _check_on(make_storage: Callable[[Path], RaftStorage], disk: Disk, place: Path, allowed: Sequence[Content]) -> bool:
    where = f"the power failed after {disk.point} changes, {disk.marks} calls had returned; on the disk: {disk.what}"
    try:
        storage = make_storage(place)
        found = content_of(storage)
        assert found in allowed, (
            f"{where}. Found {_shown(found)}, and not {' or '.join(map(_shown, allowed))}; see {place}"
        )
        # It goes on from there.
        ballot = found[0].ballot._replace(term=found[0].ballot.term + 1)
        storage.write(ballot, [])
        storage.close()
        storage = make_storage(place)
        state, entries = content_of(storage)
        storage.close()
        assert (state, entries) == (replace(found[0], ballot=ballot), found[1]), f"{where}, then a write; see {place}"
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{where}. {type(error).__name__}: {error}; see {place}") from error
    shutil.rmtree(place)
    return found != allowed[0]


def _shown(content: Content) -> str:
    state, entries = content
    return f"{len(entries)} entries after {state.base} up to {state.last_entry}, {state.ballot}, {state.identity}"
