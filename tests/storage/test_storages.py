"""Each store keeps the contract."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from geraft.storage import FileStorage, MemoryStorage, RaftStorage, RocksdbStorage, SqliteStorage
from geraft.testing.storage_suite import StorageSuite


class TestMemoryStorage(StorageSuite):
    persistent = False

    def make_storage(self, directory: Path) -> RaftStorage:
        return MemoryStorage()


class TestSqliteStorage(StorageSuite):
    def make_storage(self, directory: Path) -> RaftStorage:
        return SqliteStorage(directory / "n1.db")


class TestFileStorage(StorageSuite):
    def make_storage(self, directory: Path) -> RaftStorage:
        return FileStorage(directory / "log")


class TestFileStorageOfShortSegments(StorageSuite):
    def make_storage(self, directory: Path) -> RaftStorage:
        return FileStorage(directory / "log", segment_bytes=1024)


@pytest.mark.skipif(find_spec("rocksdict") is None, reason="the extra rocksdb is not installed")
class TestRocksdbStorage(StorageSuite):
    def make_storage(self, directory: Path) -> RaftStorage:
        return RocksdbStorage(directory / "log")
