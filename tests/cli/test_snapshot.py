"""geraft snapshot, against a node of this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from geraft import MemoryRepository, MemoryStorage, RaftNode, to_raft_app
from geraft.cli import main
from geraft.cli.cluster import free_addresses
from geraft.kv import KeyValueApp, commands


@pytest.fixture
def node() -> Iterator[RaftNode]:
    (address,) = free_addresses(1)
    app = to_raft_app(KeyValueApp(), MemoryRepository())
    with RaftNode(app, MemoryStorage(), id="n1", bootstrap={"n1": address}) as node:
        yield node


def test_a_snapshot_is_made_and_its_index_told(node: RaftNode) -> None:
    node.apply(commands.put("a", b"1"), timeout_seconds=30.0)
    result = CliRunner().invoke(main, ["snapshot", node.address])
    assert result.exit_code == 0, result.output
    index = node.status().snapshot_index
    assert index > 0
    assert result.output == f"{node.address} holds a snapshot of entry {index}\n"


def test_a_node_that_can_not_make_one_says_why(node: RaftNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def fold(*_: object) -> bytes:
        raise OSError("no space left")

    monkeypatch.setattr(KeyValueApp, "fold", fold)
    node.apply(commands.put("a", b"1"), timeout_seconds=30.0)
    result = CliRunner().invoke(main, ["snapshot", node.address])
    assert result.exit_code == 1
    assert "no space left" in result.output


def test_an_address_where_nobody_listens_is_an_error_in_one_line() -> None:
    result = CliRunner().invoke(main, ["snapshot", free_addresses(1)[0], "--timeout", "1"])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
