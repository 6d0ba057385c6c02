"""Signals go out in order, and no receiver can hurt the node."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from runtime_parts import Gate, lone_node, wait_until

from geraft import signals
from geraft.runtime import dispatcher
from geraft.runtime.dispatcher import Dispatcher


class Sender:
    pass


@pytest.fixture
def running() -> Iterator[Dispatcher]:
    crashes: list[BaseException] = []
    running = Dispatcher(Sender(), crashes.append)
    running.start()
    yield running
    assert running.stop(20) and crashes == []


def test_receivers_hear_their_sender_in_order(running: Dispatcher) -> None:
    heard: list[Any] = []

    def role(sender: object, *, new_role: str, **_: Any) -> None:
        heard.append((sender, new_role))

    def leader(sender: object, *, leader_id: str, **_: Any) -> None:
        heard.append((sender, leader_id))

    def other(sender: object, **_: Any) -> None:
        heard.append("not for us")

    stranger = Sender()
    signals.role_changed.connect(role, sender=running._sender)
    signals.leader_changed.connect(leader, sender=running._sender)
    signals.leader_changed.connect(other, sender=stranger)
    running.send(signals.role_changed, old_role="follower", new_role="candidate", term=2)
    running.send(signals.leader_changed, leader_id="n1", term=2)
    running.send(signals.role_changed, old_role="candidate", new_role="leader", term=2)
    wait_until(lambda: len(heard) == 3)
    assert heard == [(running._sender, "candidate"), (running._sender, "n1"), (running._sender, "leader")]


@pytest.mark.parametrize("error", [ValueError("bad receiver"), SystemExit(1)])
def test_a_receiver_that_raises_is_logged_and_the_next_one_hears(
    running: Dispatcher, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[int] = []

    def bad(sender: object, **_: Any) -> None:
        raise error

    def good(sender: object, *, term: int, **_: Any) -> None:
        heard.append(term)

    signals.role_changed.connect(bad, sender=running._sender)
    signals.role_changed.connect(good, sender=running._sender)
    with caplog.at_level(logging.ERROR):
        running.send(signals.role_changed, old_role="", new_role="", term=1)
        running.send(signals.role_changed, old_role="", new_role="", term=2)
        wait_until(lambda: heard == [1, 2])
    assert "a receiver of the signal role_changed raised" in caplog.text


def test_commits_that_wait_are_told_as_one_but_not_across_another_signal(running: Dispatcher) -> None:
    gate, heard = Gate(), []
    gate.close()

    def committed(sender: object, *, first_index: int, last_index: int, **_: Any) -> None:
        gate()
        heard.append((first_index, last_index))

    def role(sender: object, *, term: int, **_: Any) -> None:
        heard.append(term)

    signals.committed.connect(committed, sender=running._sender)
    signals.role_changed.connect(role, sender=running._sender)
    running.send(signals.committed, first_index=1, last_index=1)
    assert gate.held.wait(20)
    for first, last in ((2, 4), (5, 5), (6, 9)):
        running.send(signals.committed, first_index=first, last_index=last)
    running.send(signals.role_changed, old_role="", new_role="", term=7)
    running.send(signals.committed, first_index=10, last_index=10)
    gate.open()
    wait_until(lambda: len(heard) == 4)
    assert heard == [(1, 1), (2, 9), 7, (10, 10)]


def test_a_slow_receiver_costs_signals_and_not_memory(
    running: Dispatcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatcher, "QUEUE_MAX", 5)
    gate, heard = Gate(), []
    gate.close()

    def slow(sender: object, *, term: int, **_: Any) -> None:
        gate()
        heard.append(term)

    signals.role_changed.connect(slow, sender=running._sender)
    running.send(signals.role_changed, old_role="", new_role="", term=0)
    assert gate.held.wait(20)
    with caplog.at_level(logging.WARNING):
        for term in range(1, 100):
            running.send(signals.role_changed, old_role="", new_role="", term=term)
    assert caplog.text.count("too slow") == 1
    gate.open()
    wait_until(lambda: len(heard) == 6)
    assert heard == [0, 1, 2, 3, 4, 5]


def test_a_node_goes_on_while_a_receiver_is_stuck() -> None:
    gate, node = Gate(), lone_node()
    gate.close()

    def stuck(sender: object, **_: Any) -> None:
        gate()

    signals.role_changed.connect(stuck, sender=node)
    node.start()
    assert gate.held.wait(20)
    assert node.apply(b"x", 30)
    gate.open()
    node.stop()
