"""What the command line tells of writes that were numbered to be applied once."""

from __future__ import annotations

import base64
import importlib
import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from geraft import MemoryRepository, RaftNode, SqliteStorage, to_raft_app
from geraft.cli import main
from geraft.client import retry, session
from geraft.runtime.hub import Call, CallKind, SessionWrite, monotonic

PROGRAMS = Path(__file__).parent.parent / "integration" / "programs"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a node that took a write of a session twice, and another one, and closed the session."""
    monkeypatch.syspath_prepend(PROGRAMS)
    for module, name in ((retry, "ATTEMPT_SECONDS"), (session, "ATTEMPT_SECONDS"), (session, "CLOSE_SECONDS")):
        monkeypatch.setattr(module, name, 30.0)  # nothing is sent once more because the machine has much to do
    path = tmp_path / "log.db"
    app = to_raft_app(importlib.import_module("tally").Tally(), MemoryRepository())
    node = RaftNode(app, SqliteStorage(path), id="n1", listen="127.0.0.1:0", bootstrap={"n1": "127.0.0.1:0"})
    with node, node.session() as numbered:
        numbered.apply(b"first", 30)
        name = SessionWrite(numbered._session.id, 1, 1)
        again = Call(CallKind.APPLY, b"first", deadline=monotonic() + 30, session=name)
        node._supervisor.put(again)
        assert again.result(30, TimeoutError) == b"1"
        numbered.apply(b"second", 30)
    return path


def test_a_dump_names_the_session_and_the_number_of_each_write(store: Path) -> None:
    done = CliRunner().invoke(main, ["log", "dump", str(store), "--json"])
    assert done.exit_code == 0, done.output
    _, *entries = [json.loads(line) for line in done.output.splitlines()]
    of_session = [entry for entry in entries if entry["kind"] == "session"]
    (id,) = {entry["session"] for entry in of_session}
    assert of_session[0]["index"] == id
    assert [(entry["does"], entry.get("number"), entry.get("text")) for entry in of_session] == [
        ("opens", None, None),
        ("writes", 1, "first"),
        ("writes", 1, "first"),
        ("writes", 2, "second"),
        ("closes", None, None),
    ]
    assert base64.b64decode(of_session[3]["base64"]) == b"second"
    text = CliRunner().invoke(main, ["log", "dump", str(store)]).output
    assert f"{id} opens" in text and f"{id}#2 second" in text and f"{id} closes" in text
    with sqlite3.connect(store) as database:
        assert database.execute("SELECT count(*) FROM entries WHERE kind = 'session'").fetchone() == (5,)


def test_a_replay_applies_each_number_once(store: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    done = CliRunner().invoke(main, ["replay", str(store), "tally:Tally", "--snapshot-to", str(state)])
    assert done.exit_code == 0, done.output
    assert json.loads(state.read_bytes()) == {"first": 1, "second": 1}
