"""The audit trail of a real node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

geraft_audit = pytest.importorskip("geraft_audit", reason="make .venv/dev installs it")

from geraft import MemoryStorage, RaftNode, signals  # noqa: E402
from geraft.kv import KeyValueApp  # noqa: E402
from geraft.simple import MemoryRepository, to_raft_app  # noqa: E402
from geraft.testing.cluster import wait_until  # noqa: E402


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of the trail that the plugin writes."""
    path = tmp_path / "audit.jsonl"
    monkeypatch.setenv("GERAFT_AUDIT_FILE", str(path))
    geraft_audit.connect()
    yield path
    geraft_audit._audit.disconnect()


def test_a_life_of_a_node_is_written_down(path: Path) -> None:
    app = to_raft_app(KeyValueApp(), MemoryRepository())
    node = RaftNode(app, MemoryStorage(), id="n1", listen="127.0.0.1:0", bootstrap={"n1": "127.0.0.1:0"})
    with node:
        assert node.wait_for_leader(20) == "n1"
        wait_until("the leader is noted", lambda: [line["event"] for line in lines(path)].count("leader_changed") >= 1)
    # What it had begun may be told after that: the entry that records its store, say.
    wait_until("the end is noted", lambda: "node_stopping" in [line["event"] for line in lines(path)])
    noted = lines(path)
    assert {line["node"] for line in noted} == {"n1"}
    assert noted[0]["event"] == "node_started"
    (led,) = [line for line in noted if line["event"] == "leader_changed" and line["leader_id"]]
    assert led["leader_id"] == "n1" and led["term"] >= 1
    assert all(datetime.fromisoformat(line["at"]).tzinfo is not None for line in noted)


def test_every_event_that_this_geraft_sends_is_noted(path: Path) -> None:
    names = [name for name in signals.__all__ if name in geraft_audit.EVENTS or name.startswith("snapshot_")]
    for name in names:
        # Not through the signal: others may listen, who count on all of its arguments.
        (receiver,) = [mine for heard, mine in geraft_audit._audit._receivers.items() if heard == name]
        assert receiver in getattr(signals, name).receivers_for(None)
        receiver(type("Node", (), {"id": "n7"})(), index=3, path=path)
    noted = [line for line in lines(path) if line["node"] == "n7"]
    assert [line["event"] for line in noted] == names
    assert noted[0]["index"] == 3 and noted[0]["path"] == str(path)


def test_without_a_file_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GERAFT_AUDIT_FILE", raising=False)
    monkeypatch.setattr(geraft_audit, "_audit", None)
    geraft_audit.connect()
    assert geraft_audit._audit is None
