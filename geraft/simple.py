"""State machines whose snapshot is bytes: SimpleRaftApp, two places to keep the bytes, and to_raft_app."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from geraft.app import MakeSnapshot, RaftApp
from geraft.errors import ConfigError, StorageCorrupt, StorageFailed

CHUNK_BYTES = 256 * 1024


class SimpleRaftApp(ABC):
    """A state machine whose whole state fits into bytes. RaftApp tells what its methods must keep to."""

    @abstractmethod
    def process_read(self, request: bytes) -> bytes:
        """Answer a read; must not change the state. Called at any time beside process_write."""

    @abstractmethod
    def process_write(self, request: bytes, entry_index: int) -> bytes | tuple[bytes, MakeSnapshot]:
        """Apply the command and give the reply, or (reply, snapshot wish)."""

    @abstractmethod
    def snapshot(self) -> bytes:
        """The state as bytes. Called between two process_write, never beside one."""

    @abstractmethod
    def restore(self, snapshot: bytes | None) -> None:
        """Become the state of the snapshot; None: become the empty state."""

    def fold(self, old_snapshot: bytes | None, requests: Sequence[bytes]) -> bytes:
        """The snapshot that old_snapshot and the commands after it lead to. Called beside the normal work.

        This one replays them in a fresh instance of the class, made without arguments; each command gets entry index 0.
        Write your own if your class needs arguments, or if process_write makes use of the index.
        """
        try:
            fresh = type(self)()
        except TypeError as error:
            raise TypeError(
                f"{type(self).__name__} can't be made without arguments ({error}), so it must have a fold() of its own"
            ) from error
        fresh.restore(old_snapshot)
        for request in requests:
            fresh.process_write(request, 0)
        return fresh.snapshot()


class SnapshotRepository(ABC):
    """Keeps snapshots by index. Several threads may use it at once, one at most for each index."""

    @abstractmethod
    def save(self, snapshot_index: int, chunks: Iterable[bytes]) -> None:
        """Store the snapshot; on return it is there and durable. Never leaves a part of one behind."""

    @abstractmethod
    def open(self, snapshot_index: int) -> Iterator[bytes]:
        """The snapshot in chunks. Raises StorageFailed if there is none, StorageCorrupt if it is not what was saved.

        Damage may be found as late as after the last chunk, so use nothing before you have all of it.
        """

    @abstractmethod
    def delete(self, snapshot_index: int) -> None:
        """Drop the snapshot; none there is no error."""

    @abstractmethod
    def indexes(self) -> list[int]:
        """The indexes of the snapshots held, ascending."""


class MemoryRepository(SnapshotRepository):
    """Keeps snapshots in memory: gone with the process, as is a log in MemoryStorage."""

    def __init__(self) -> None:
        self._snapshots: dict[int, bytes] = {}

    def save(self, snapshot_index: int, chunks: Iterable[bytes]) -> None:
        self._snapshots[snapshot_index] = b"".join(chunks)

    def open(self, snapshot_index: int) -> Iterator[bytes]:
        snapshot = self._snapshots.get(snapshot_index)
        if snapshot is None:
            raise StorageFailed(f"there is no snapshot of index {snapshot_index}")
        return (snapshot[start : start + CHUNK_BYTES] for start in range(0, len(snapshot), CHUNK_BYTES))

    def delete(self, snapshot_index: int) -> None:
        self._snapshots.pop(snapshot_index, None)

    def indexes(self) -> list[int]:
        return sorted(self._snapshots)


MAGIC = b"geraft snapshot 1\n"
TRAILER = struct.Struct(">QI")
"""What ends a file: how many bytes the snapshot has, and their CRC-32."""


class FileRepository(SnapshotRepository):
    """Keeps each snapshot in a file of its own in one directory, which it makes if need be.

    A file is written under a temporary name, synced, renamed, and its directory synced, so a crash leaves nothing
    behind but a temporary file, which the next FileRepository on that directory removes.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for leftover in self.directory.glob("snapshot-*.temporary"):
                leftover.unlink()
        except OSError as error:
            raise StorageFailed(f"{self.directory} can't be used: {error}", path=str(self.directory)) from error

    def save(self, snapshot_index: int, chunks: Iterable[bytes]) -> None:
        path = self._path(snapshot_index)
        temporary = path.with_name(path.name + ".temporary")
        try:
            try:
                with temporary.open("wb") as file:
                    length, checksum = 0, 0
                    file.write(MAGIC)
                    for chunk in chunks:
                        file.write(chunk)
                        length += len(chunk)
                        checksum = zlib.crc32(chunk, checksum)
                    file.write(TRAILER.pack(length, checksum))
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
                self._sync_directory()
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StorageFailed(f"snapshot {path} could not be written: {error}", path=str(path)) from error

    def open(self, snapshot_index: int) -> Iterator[bytes]:
        path = self._path(snapshot_index)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise StorageFailed(f"there is no snapshot {path}", path=str(path)) from None
        except OSError as error:
            raise StorageFailed(f"snapshot {path} can't be read: {error}", path=str(path)) from error

        def chunks() -> Iterator[bytes]:
            with file:
                try:
                    yield from _checked_chunks(file, path, os.fstat(file.fileno()).st_size)
                except OSError as error:
                    raise StorageFailed(f"snapshot {path} can't be read: {error}", path=str(path)) from error

        return chunks()

    def delete(self, snapshot_index: int) -> None:
        path = self._path(snapshot_index)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageFailed(f"snapshot {path} could not be removed: {error}", path=str(path)) from error

    def indexes(self) -> list[int]:
        matches = (re.fullmatch(r"snapshot-(\d+)", path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def _path(self, snapshot_index: int) -> Path:
        return self.directory / f"snapshot-{snapshot_index:020d}"

    def _sync_directory(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class FsspecRepository(SnapshotRepository):
    """Keeps each snapshot as a file or object of its own below any fsspec URL. Needs the extra `fsspec`.

        FsspecRepository("s3://bucket/cluster/n1", key=..., secret=...)

    url: a place that belongs to this node alone; made if need be. options: for the file system, as fsspec takes them.
    Writes under a temporary name first, and reads back nothing that is not whole: every file ends with its length and
    checksum. How durable a file is when it was written is the file system's word; on the local one it is synced.
    Raises ConfigError if fsspec or the package for the URL's protocol is missing.
    """

    def __init__(self, url: str, **options: Any) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise ConfigError("FsspecRepository needs fsspec: install geraft[fsspec]") from None
        self.url = url
        try:
            self._files, self._root = url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{url} can't be used: {error}") from error
        self._is_local = "file" in ((protocol,) if isinstance(protocol := self._files.protocol, str) else protocol)
        with self._errors("used"):
            self._files.makedirs(self._root, exist_ok=True)
            for path in self._paths(r"snapshot-\d+\.temporary"):
                self._files.rm_file(path)

    def save(self, snapshot_index: int, chunks: Iterable[bytes]) -> None:
        path = self._path(snapshot_index)
        temporary = path + ".temporary"
        with self._errors("written"):
            try:
                with self._files.open(temporary, "wb") as file:
                    length, checksum = 0, 0
                    file.write(MAGIC)
                    for chunk in chunks:
                        file.write(chunk)
                        length += len(chunk)
                        checksum = zlib.crc32(chunk, checksum)
                    file.write(TRAILER.pack(length, checksum))
                self._sync(temporary)
                self._files.mv(temporary, path)
                self._sync(self._root)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._files.rm_file(temporary)
                raise

    def open(self, snapshot_index: int) -> Iterator[bytes]:
        path = self._path(snapshot_index)
        with self._errors("read"):
            file = self._files.open(path, "rb")
            size_bytes = int(self._files.info(path)["size"])

        def chunks() -> Iterator[bytes]:
            with file, self._errors("read"):
                yield from _checked_chunks(file, path, size_bytes)

        return chunks()

    def delete(self, snapshot_index: int) -> None:
        with self._errors("removed"), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(snapshot_index))

    def indexes(self) -> list[int]:
        with self._errors("listed"):
            return sorted(int(path.rpartition("-")[2]) for path in self._paths(r"snapshot-\d+"))

    def _path(self, snapshot_index: int) -> str:
        return f"{self._root.rstrip('/')}/snapshot-{snapshot_index:020d}"

    def _paths(self, pattern: str) -> list[str]:
        self._files.invalidate_cache()  # of listings: another process may have been here before us
        try:
            names = self._files.ls(self._root, detail=False)
        except FileNotFoundError:
            return []  # an object store knows of no directory before there is something in it
        return [name for name in names if re.fullmatch(pattern, name.rpartition("/")[2])]

    def _sync(self, path: str) -> None:
        if self._is_local:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def _errors(self, done: str) -> Iterator[None]:
        """What file systems raise has as many kinds as there are of them; ours, and the chunks' own, pass."""
        try:
            yield
        except FileNotFoundError as error:
            raise StorageFailed(f"there is no snapshot {error}", path=self.url) from error
        except OSError as error:
            raise StorageFailed(f"{self.url} can't be {done}: {error}", path=self.url) from error


def _checked_chunks(file: BinaryIO, path: Path | str, size_bytes: int) -> Iterator[bytes]:
    length = size_bytes - len(MAGIC) - TRAILER.size
    if length < 0 or file.read(len(MAGIC)) != MAGIC:
        raise StorageCorrupt(f"{path} is no snapshot, or one cut off", path=str(path))
    left, checksum = length, 0
    while left > 0 and (chunk := file.read(min(CHUNK_BYTES, left))):
        left -= len(chunk)
        checksum = zlib.crc32(chunk, checksum)
        yield chunk
    if file.read() != TRAILER.pack(length, checksum):
        raise StorageCorrupt(f"snapshot {path} is damaged: length or checksum differ", path=str(path))


def to_raft_app(app: SimpleRaftApp, repository: SnapshotRepository) -> RaftApp:
    """The app as a RaftApp that keeps its snapshots in the repository."""
    return _AdaptedApp(app, repository)


class _AdaptedApp(RaftApp):
    def __init__(self, app: SimpleRaftApp, repository: SnapshotRepository) -> None:
        self.app = app
        self.repository = repository
        self._process_write = app.process_write  # looked up once: it is called for every write

    def process_read(self, request: bytes) -> bytes:
        return self.app.process_read(request)

    def process_write(self, request: bytes, entry_index: int) -> tuple[bytes, MakeSnapshot]:
        answer = self._process_write(request, entry_index)
        if not isinstance(answer, tuple):
            return answer, MakeSnapshot.NONE
        if answer[1] is MakeSnapshot.COPY:
            self.repository.save(entry_index, _chunks_of(self.app.snapshot()))
        return answer

    def install_snapshot(self, snapshot_index: int | None) -> None:
        self.app.restore(None if snapshot_index is None else b"".join(self.repository.open(snapshot_index)))

    def fold_snapshot(self, old_snapshot_index: int | None, requests: Sequence[bytes], snapshot_index: int) -> None:
        old = None if old_snapshot_index is None else b"".join(self.repository.open(old_snapshot_index))
        self.repository.save(snapshot_index, _chunks_of(self.app.fold(old, requests)))

    def save_snapshot(self, chunks: Iterable[bytes], snapshot_index: int) -> None:
        self.repository.save(snapshot_index, chunks)

    def open_snapshot(self, snapshot_index: int) -> Iterator[bytes]:
        return self.repository.open(snapshot_index)

    def delete_snapshot(self, snapshot_index: int) -> None:
        self.repository.delete(snapshot_index)

    def list_snapshots(self) -> Sequence[int]:
        return self.repository.indexes()


def _chunks_of(snapshot: bytes) -> Iterator[bytes]:
    return (snapshot[start : start + CHUNK_BYTES] for start in range(0, len(snapshot), CHUNK_BYTES))
