"""A node whose app raises or hangs goes on voting, replicating and heartbeating, and does not go on leading."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from runtime_parts import PATIENT, Gate, lone_node, wait_until
from test_runtime_rules import Servers

from geraft import RaftNode, signals

STUCK = dataclasses.replace(PATIENT, apply_stuck_seconds=0.4)
POISON = b"poison"


@pytest.fixture
def three() -> Iterator[Servers]:
    servers = Servers(3, STUCK)
    for node in servers.nodes:
        node.start()
    yield servers
    for app in servers.apps:
        app.on_write = None
    servers.close()


def refuse(command: bytes, index: int) -> None:
    if command == POISON:
        raise OSError("the database is down")


def commit_poison(servers: Servers) -> int:
    """Commit what the leader's app can't take; the leader's number."""
    number = servers.leader()
    servers.nodes[number].apply(b"before", timeout_seconds=20)
    wait_until(lambda: all(app.commands == [b"before"] for app in servers.apps))
    return number


def hang(gate: Gate) -> Callable[[bytes, int], Any]:
    return lambda command, index: gate() if command == POISON else None


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_a_leader_whose_app_is_stuck_hands_over_to_one_whose_app_is_not(three: Servers, how: str) -> None:
    number, gate = commit_poison(three), Gate()
    gate.close()
    three.apps[number].on_write = refuse if how == "raises" else hang(gate)
    try:
        three.nodes[number].commit(POISON, timeout_seconds=20)
        wait_until(lambda: three.role(number) == "follower", 20)
        leader = three.leader(*({0, 1, 2} - {number}))
        with three.nodes[leader].session() as session:  # once, though an app that stalls is soon taken for stuck
            assert session.apply(b"after", timeout_seconds=20)
        # It follows the new leader: it has the write that its app has not come to.
        wait_until(lambda: three.nodes[number].status().commit_index >= three.nodes[leader].status().last_applied, 20)
        status = three.nodes[number].status()
        assert status.last_applied < status.commit_index
        assert three.apps[number].commands == [b"before"]
        wait_until(lambda: three.apps[leader].commands == [b"before", POISON, b"after"], 20)
        if how == "raises":
            wait_until(lambda: says_that_the_database_is_down(three.nodes[number]), 20)
    finally:
        three.apps[number].on_write = None
        gate.open()
    wait_until(lambda: three.apps[number].commands == [b"before", POISON, b"after"], 20)
    wait_until(lambda: three.nodes[number].status().apply_error == "", 20)


def says_that_the_database_is_down(node: RaftNode) -> bool:
    status = node.status()
    return "the database is down" in status.apply_error and "the database is down" in status.explanation


def test_if_no_app_takes_the_entry_leadership_stays_and_commits_go_on(
    three: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    """To pass it around would help nobody."""
    number = commit_poison(three)
    for app in three.apps:
        app.on_write = refuse
    with caplog.at_level(logging.WARNING, "geraft"):
        three.nodes[number].commit(POISON, timeout_seconds=20)
        wait_until(lambda: caplog.text.count("leadership stays here") >= 2, 20)
    assert three.role(number) == "leader"
    assert three.nodes[number].commit(b"after", timeout_seconds=20)


def test_with_zero_a_leader_never_hands_over_for_it() -> None:
    servers = Servers(3, dataclasses.replace(STUCK, apply_stuck_seconds=0))
    try:
        for node in servers.nodes:
            node.start()
        number = commit_poison(servers)
        servers.apps[number].on_write = refuse
        servers.nodes[number].commit(POISON, timeout_seconds=20)
        time.sleep(1.5)
        assert servers.role(number) == "leader"
    finally:
        servers.close()


def test_a_slow_app_that_gets_on_is_not_stuck(three: Servers) -> None:
    """What counts is one entry, not how long the work before it takes."""
    number = commit_poison(three)
    three.nodes[number].tune(apply_stuck_seconds=3.0)  # less than all of it takes, and more than a stall of the machine
    three.apps[number].on_write = lambda command, index: time.sleep(0.1)
    term = three.nodes[number].status().term
    for count in range(40):
        three.nodes[number].commit(b"%d" % count, timeout_seconds=20)
    wait_until(lambda: len(three.apps[number].commands) == 41, 20)
    assert (three.role(number), three.nodes[number].status().term) == ("leader", term)


def test_a_failure_is_a_log_line_a_signal_and_in_status_and_a_rejection_is_an_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[tuple[int, int, str]] = []

    def hear(node: RaftNode, *, index: int, attempt: int, error: BaseException, **_: Any) -> None:
        heard.append((index, attempt, str(error)))

    node = lone_node()
    app = node._supervisor._app
    with node, signals.apply_failed.connected_to(hear, sender=node), caplog.at_level(logging.ERROR, "geraft"):
        node.wait_for_leader(20)
        app.on_write = refuse  # type: ignore[attr-defined]
        index = node.commit(POISON, timeout_seconds=20)
        wait_until(lambda: len(heard) >= 3)
        assert heard[:3] == [(index, attempt, "the database is down") for attempt in (1, 2, 3)]
        assert f"process_write of entry {index} raised" in node.status().apply_error
        app.on_write = None  # type: ignore[attr-defined]
        assert int(node.apply(b"x", timeout_seconds=20)) > index
    assert f"entry {index} raised OSError('the database is down') (attempt 2)" in caplog.text
