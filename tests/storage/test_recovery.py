"""A store of a cluster that lost its quorum becomes the beginning of a new one."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from geraft.core.entries import Ballot, EntryBatch, EntryId, EntryKind
from geraft.core.membership import Configuration, Member
from geraft.errors import ConfigError, RecoveryRefused, StorageLocked
from geraft.recovery import inspect, recover
from geraft.storage import FileStorage, MemoryStorage, RocksdbStorage, SqliteStorage
from geraft.storage.base import Identity, RaftStorage

OLD = Identity("old", "n1", "s1")
MEMBERS = Configuration(voters=tuple(Member(f"n{number}", f"127.0.0.1:{number}", f"s{number}") for number in (1, 2, 3)))


def entry(term: int, index: int, configuration: Configuration | None = None) -> EntryBatch:
    kind = EntryKind.COMMAND if configuration is None else EntryKind.CONFIGURATION
    command = b"x" if configuration is None else b""
    return EntryBatch(term=term, first_index=index, kind=kind, commands=(command,), configuration=configuration)


KINDS: dict[str, Callable[[Path], RaftStorage]] = {
    "sqlite": SqliteStorage,
    "file": FileStorage,
    "rocksdb": RocksdbStorage,
    "memory": lambda path: MemoryStorage(),
}


@pytest.fixture(params=KINDS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> RaftStorage:
    if request.param == "rocksdb" and find_spec("rocksdict") is None:
        pytest.skip("the extra rocksdb is not installed")
    storage = KINDS[request.param](tmp_path / "log")
    storage.open()
    storage.initialise(OLD, [entry(1, 1, MEMBERS), entry(2, 2)])
    storage.write(Ballot(5, "n2"), [entry(4, 3)])
    storage.close()
    return storage


def test_looking_changes_nothing(storage: RaftStorage) -> None:
    for _ in range(2):
        holding = inspect(storage)
        assert (holding.identity, holding.term, holding.last_entry) == (OLD, 5, EntryId(4, 3))
        assert (holding.configuration, holding.configuration_index) == (MEMBERS, 1)


def test_it_goes_on_alone_under_a_new_cluster_id_in_a_new_term(storage: RaftStorage) -> None:
    after = recover(storage)
    assert after.identity.cluster_id not in ("", "old")
    assert after.identity[1:] == OLD[1:], "the same node, the same store"
    assert (after.term, after.last_entry) == (6, EntryId(6, 4)), "no vote of the old cluster is repeated"
    assert after.configuration == Configuration(voters=(Member("n1", "127.0.0.1:1", "s1"),))
    state = storage.open()
    assert state.ballot == Ballot(6)
    assert [batch.first_index for batch in storage.read(1, 4, 10**6)] == [1, 2, 3, 4], "all that it held is there"
    storage.close()
    assert recover(storage).identity.cluster_id != after.identity.cluster_id


def test_it_may_go_on_with_others_that_start_anew(storage: RaftStorage) -> None:
    after = recover(storage, voters={"n1": "127.0.0.1:9", "n4": "127.0.0.1:4"})
    assert after.configuration.voters == (Member("n1", "127.0.0.1:9", "s1"), Member("n4", "127.0.0.1:4"))
    with pytest.raises(ConfigError, match="must name the node of this store, 'n1'"):
        recover(storage, voters={"n4": "127.0.0.1:4"})


def test_a_store_in_use_or_without_a_log_is_left_alone(storage: RaftStorage) -> None:
    storage.open()
    with pytest.raises(StorageLocked):
        recover(storage)
    storage.close()
    with pytest.raises(RecoveryRefused, match="no log of a cluster"):
        recover(MemoryStorage())
    assert inspect(storage).identity == OLD


def test_a_store_that_cannot_says_so() -> None:
    class Other(MemoryStorage):
        recover = RaftStorage.recover

    other = Other()
    other.open()
    other.initialise(OLD, [entry(1, 1, MEMBERS)])
    other.close()
    with pytest.raises(Exception, match="Other can't be given another identity"):
        recover(other)
    assert inspect(other).identity == OLD
