"""What users hold says at once what is wrong, and what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runtime_parts import QUICK, Journal, lone_node, wait_until

from geraft import Config, MemoryStorage, RaftNode, SqliteStorage
from geraft.errors import (
    CommandTooLarge,
    ConfigError,
    NodeStopped,
    NoLeader,
    NothingHappened,
    OutcomeUnknown,
    ReadFailed,
    ReadTimeout,
    Rejected,
    TransferFailed,
)
from geraft.runtime.hub import Call, CallKind, SessionWrite, monotonic


@pytest.fixture
def node() -> Iterator[RaftNode]:
    with lone_node() as node:
        node.wait_for_leader(30)
        yield node


@pytest.fixture
def lonely() -> Iterator[RaftNode]:
    """One of three, of which the others never start."""
    voters = {"n1": "127.0.0.1:0", "n2": "127.0.0.1:9", "n3": "127.0.0.1:10"}
    with RaftNode(Journal(), MemoryStorage(), id="n1", listen="127.0.0.1:0", bootstrap=voters, config=QUICK) as node:
        yield node


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"app": object()}, "to_raft_app"),
        ({"storage": "n1.db"}, "SqliteStorage"),
        ({"id": ""}, "1 to 255 characters"),
        ({"id": "n 1"}, "without spaces"),
        ({"id": "n" * 256}, "1 to 255 characters"),
        ({"id": 1}, "1 to 255 characters"),
        ({"bootstrap": {}}, "name at least this node"),
        ({"bootstrap": {"n1": "127.0.0.1"}}, "bootstrap address must be host:port"),
        ({"bootstrap": {"n1": "127.0.0.1:70000"}}, "must be host:port"),
        ({"bootstrap": {"n=1": "127.0.0.1:1"}}, "equal signs"),
        ({"listen": "7001"}, "listen must be host:port"),
        ({"listen": ":7001"}, "listen must be host:port"),
        ({"dial": {"n2": "127.0.0.1:1"}}, "each address in dial must be host:port"),
        ({"dial": {"127.0.0.1:1": "n2"}}, "each address in dial must be host:port"),
    ],
)
def test_a_wrong_argument_is_refused_with_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    given: dict[str, Any] = {"app": Journal(), "storage": MemoryStorage(), "id": "n1", **arguments}
    with pytest.raises(ConfigError, match=sentence):
        RaftNode(given.pop("app"), given.pop("storage"), **given)


@pytest.mark.parametrize("seconds", [None, "1", -1, math.nan, math.inf, 1e12])
def test_a_timeout_that_is_none_is_refused_before_anything_happens(node: RaftNode, seconds: Any) -> None:
    for method in (
        lambda: node.apply(b"x", seconds),
        lambda: node.commit(b"x", seconds),
        lambda: node.read(b"x", timeout_seconds=seconds),
        lambda: node.wait_for_leader(seconds),
        lambda: node.transfer_leadership(timeout_seconds=seconds),
        lambda: lone_node().start(seconds),
    ):
        with pytest.raises(ConfigError, match="timeout_seconds must be a number from 0"):
            method()
    assert node.read(b"") == b"0"


def test_what_is_no_command_is_refused_before_anything_happens(node: RaftNode) -> None:
    for command in ("text", None, bytearray(b"x"), 7):
        with pytest.raises(ConfigError, match="must be bytes, not"):
            node.apply(command)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="must be bytes, not"):
            node.read(command)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="one of linearizable, lease, stale, not 'fresh'"):
        node.read(b"x", "fresh")
    with pytest.raises(ConfigError, match="one of linearizable"):
        node.read(b"x", [])  # type: ignore[arg-type]
    assert node.read(b"") == b"0"


def test_a_command_that_is_too_large_is_told_the_limit() -> None:
    with lone_node(config=Config(command_bytes_max=10)) as node:
        assert node.apply(bytes(10), 30)
        with pytest.raises(CommandTooLarge, match="11 bytes, more than command_bytes_max=10"):
            node.apply(bytes(11))


def test_writes_and_reads(node: RaftNode) -> None:
    index = int(node.apply(b"a", 30))
    assert node.commit(b"b", 30) > index
    for consistency in ("linearizable", "lease"):
        assert node.read(b"", consistency) == b"2"
    wait_until(lambda: node.read(b"", "stale") == b"2")


def test_what_process_read_raises_reaches_the_caller() -> None:
    app = Journal()
    app.on_read = lambda request: {}[request]
    with lone_node(app) as node, pytest.raises(ReadFailed, match="KeyError") as failed:
        node.read(b"missing")
    assert isinstance(failed.value.__cause__, KeyError)


def test_without_a_quorum_every_error_says_why_and_whether_anything_happened(lonely: RaftNode) -> None:
    why = r"1 of 3 voters answers \(n2 at 127.0.0.1:9: no answer; n3 at 127.0.0.1:10: no answer\)"
    with pytest.raises(NoLeader, match=why):
        lonely.apply(b"x", wait_for_leader=False)
    with pytest.raises(NoLeader, match=why):
        lonely.read(b"x", wait_for_leader=False)
    with pytest.raises(NoLeader, match=why):
        lonely.wait_for_leader(0.05)
    with pytest.raises((NoLeader, OutcomeUnknown), match=why):
        lonely.apply(b"x", 0.1)
    with pytest.raises((NoLeader, ReadTimeout), match=why):
        lonely.read(b"x", timeout_seconds=0.1)
    assert re.search(why, in_time(lambda: lonely.apply(b"x", 0.3), OutcomeUnknown))
    assert re.search(why, in_time(lambda: lonely.transfer_leadership(timeout_seconds=0.1), TransferFailed))
    assert re.search(why, in_time(lambda: lonely.remove_server("n3", timeout_seconds=0.1), OutcomeUnknown))
    assert lonely.read(b"", "stale") == b"0"
    assert issubclass(NoLeader, NothingHappened)


def in_time(call: Callable[[], object], late: type[Exception]) -> str:
    """What the node says with NoLeader: it knows that nothing happened, and tells before the caller's own time is up.

    It may be late now and then, and the caller does not know then.
    """
    for _ in range(10):
        with pytest.raises((NoLeader, late)) as raised:
            call()
        if raised.type is NoLeader:
            return str(raised.value)
    raise AssertionError("it was late each time")


def test_a_lone_leader_has_nobody_to_hand_over_to(node: RaftNode) -> None:
    with pytest.raises(TransferFailed, match="no other voter"):
        node.transfer_leadership()
    with pytest.raises(TransferFailed, match="no other voter"):
        node.transfer_leadership("n7")
    node.transfer_leadership("n1")  # it leads already


def test_status_and_cluster_info(node: RaftNode) -> None:
    node.apply(b"x", 30)
    wait_until(lambda: "waiting" not in node.status().explanation)  # the store's identity is written down too
    status = node.status()
    assert (status.id, status.role, status.leader_id, status.peers) == ("n1", "leader", "n1", ())
    assert status.explanation == "leads, all members are up to date"
    assert status.address == node.address != "127.0.0.1:0"
    info = node.cluster_info()
    assert (info.leader_id, [member.id for member in info.members]) == ("n1", ["n1"])
    assert repr(node) == f"<RaftNode n1 at {node.address}, runs>"


def test_status_tells_of_an_app_that_is_stuck() -> None:
    app = Journal()
    down = [True]

    def refuse(command: bytes, index: int) -> None:
        if down:
            raise OSError("database is down")

    app.on_write = refuse
    with lone_node(app) as node:
        with pytest.raises(OutcomeUnknown, match="database is down"):
            node.apply(b"x", 3.0)
        assert "database is down" in node.status().apply_error
        assert node.commit(b"y", 30)  # commits go on meanwhile
        down.clear()
        assert node.apply(b"z", 30)
        wait_until(lambda: node.status().apply_error == "")
        assert app.commands == [b"x", b"y", b"z"]


# Writes that are applied once


def test_a_session_of_a_node_writes_repeats_and_outlives_a_restart(tmp_path: Path) -> None:
    app = Journal()
    with lone_node(app, SqliteStorage(tmp_path / "n1.db")) as node:
        with node.session() as session:
            assert "not open" in repr(session)
            first = session.apply(b"a", 30)
            assert int(first) == session.commit(b"b", 30) - 1
            id = session._session.id
            assert f"NodeSession {id} of n1" in repr(session)
            refused = Call(CallKind.APPLY, b"a", deadline=monotonic() + 30, session=SessionWrite(id, 1, 1))
            node._supervisor.put(refused)  # its answer was acknowledged by the second write
            with pytest.raises(Rejected, match="after its answer was acknowledged"):
                refused.result(30, TimeoutError)
            with pytest.raises(ConfigError, match="must be bytes"):
                session.apply("text")  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match="timeout_seconds"):
                session.apply(b"x", -1)
        with pytest.raises(NodeStopped, match="session was closed"):
            session.apply(b"c", 30)
        kept = node.session()
        kept.apply(b"c", 30)
        name = SessionWrite(kept._session.id, 1, 1)
    app = Journal()
    with lone_node(app, SqliteStorage(tmp_path / "n1.db")) as node:
        node.wait_for_leader(30)
        repeated = Call(CallKind.COMMIT, b"c", deadline=monotonic() + 30, session=name)
        node._supervisor.put(repeated)
        index = repeated.result(30, TimeoutError)
        assert app.applied[-1] == (index, b"c")
        assert app.commands == [b"a", b"b", b"c"]


def test_a_session_without_a_quorum_says_that_nothing_happened(lonely: RaftNode) -> None:
    session = lonely.session()
    with pytest.raises(NothingHappened):
        session.apply(b"x", 0.5)
    session.close()  # nothing was opened: nothing to wait for


def test_sessions_beyond_the_limit_of_the_settings_expire_and_writers_go_on() -> None:
    app = Journal()
    with lone_node(app, config=replace(QUICK, sessions_max=2)) as node:
        sessions = [node.session() for _ in range(3)]
        for _ in range(3):
            for session in sessions:
                session.apply(b"w", 30)  # each finds its session expired, and opens another one
        assert len(app.applied) == 9
