"""geraft log finds out by itself which kind of store it is given."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from geraft.cli.command import Failed
from geraft.cli.log import opened
from geraft.cli.serve import LOG_NAMES
from geraft.core.entries import EntryId
from geraft.storage import FileStorage, RaftStorage, RocksdbStorage, SqliteStorage
from geraft.testing.storage_suite import commands

KINDS: dict[str, Callable[[Path], RaftStorage]] = {
    "sqlite": SqliteStorage,
    "file": FileStorage,
    "rocksdb": RocksdbStorage,
}


@pytest.mark.parametrize("kind", LOG_NAMES)
def test_a_store_of_any_kind_is_opened_by_its_directory_or_itself(tmp_path: Path, kind: str) -> None:
    if kind == "rocksdb" and find_spec("rocksdict") is None:
        pytest.skip("the extra rocksdb is not installed")
    path = tmp_path / LOG_NAMES[kind]
    storage = KINDS[kind](path)
    storage.open()
    storage.write(None, [commands(3, 1, 7)])
    storage.close()
    for place in (tmp_path, path):
        with opened(place) as (found, state):
            assert type(found) is type(storage)
            assert state.last_entry == EntryId(3, 7)


def test_what_is_no_store_is_not_made_one(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="holds no log store"), opened(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
