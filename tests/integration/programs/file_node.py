"""A node whose app keeps its state in a file and streams its snapshots, never holding more than a chunk of either.

Arguments: id, directory, bootstrap list (id=address,...). Prints "ready" and runs until its standard input ends.
A write of `fill N` makes the state N MiB; any other is counted. A read gives size, CRC-32 and count.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from geraft import Config, MakeSnapshot, RaftApp, RaftNode, SqliteStorage

CHUNK_BYTES = 1 << 20


class FileApp(RaftApp):
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.state = directory / "state"
        self.count = 0

    def process_read(self, request: bytes) -> bytes:
        size_bytes, checksum = 0, 0
        with self.state.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                size_bytes += len(chunk)
                checksum = zlib.crc32(chunk, checksum)
        return b"%d %d %d" % (size_bytes, checksum, self.count)

    def process_write(self, request: bytes, entry_index: int) -> tuple[bytes, MakeSnapshot]:
        if not request.startswith(b"fill"):
            self.count += 1
            return b"%d" % self.count, MakeSnapshot.NONE
        rng = random.Random(request)
        with self.state.open("wb") as file:
            for _ in range(int(request.split()[1])):
                file.write(rng.randbytes(CHUNK_BYTES))
        self._keep(iter_file(self.state), entry_index)
        return b"filled", MakeSnapshot.COPY

    def _path(self, index: int) -> Path:
        return self.directory / f"snapshot-{index}"

    def _keep(self, chunks: Iterable[bytes], index: int) -> None:
        temporary = self.directory / "temporary"
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path(index))

    def install_snapshot(self, snapshot_index: int | None) -> None:
        self.count = 0
        if snapshot_index is None:
            self.state.write_bytes(b"")
        else:
            shutil.copyfile(self._path(snapshot_index), self.state)

    def fold_snapshot(self, old_snapshot_index: int | None, requests: Sequence[bytes], snapshot_index: int) -> None:
        raise NotImplementedError

    def save_snapshot(self, chunks: Iterable[bytes], snapshot_index: int) -> None:
        self._keep(chunks, snapshot_index)

    def open_snapshot(self, snapshot_index: int) -> Iterator[bytes]:
        return iter_file(self._path(snapshot_index))

    def delete_snapshot(self, snapshot_index: int) -> None:
        self._path(snapshot_index).unlink(missing_ok=True)

    def list_snapshots(self) -> Sequence[int]:
        return [int(path.name.split("-")[1]) for path in self.directory.glob("snapshot-*")]


def iter_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def main() -> None:
    node_id, directory, members = sys.argv[1:]
    bootstrap = dict(pair.split("=") for pair in members.split(","))
    app = FileApp(Path(directory) / "app")
    config = Config(trailing_entries=0)
    with RaftNode(app, SqliteStorage(Path(directory) / "log.db"), id=node_id, bootstrap=bootstrap, config=config):
        print("ready", flush=True)
        while os.read(0, 4096):
            pass


if __name__ == "__main__":
    main()
