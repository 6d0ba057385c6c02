"""The sentence in which a node explains itself: why there is no leader, who lags and by how much, what waits."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import pytest
from runtime_parts import PATIENT, Gate, in_thread, wait_until
from test_runtime_rules import Servers


@pytest.fixture
def three() -> Iterator[Servers]:
    servers = Servers(3, dataclasses.replace(PATIENT, apply_stuck_seconds=0))
    for node in servers.nodes:
        node.start()
    yield servers
    for app in servers.apps:
        app.on_write = None
    servers.close()


def test_who_lags_and_by_how_much_and_since_when_it_is_silent(three: Servers) -> None:
    number = three.leader()
    leader, gone = three.nodes[number], three.nodes[number - 1]
    leader.apply(b"x", timeout_seconds=20)
    wait_until(lambda: leader.status().explanation == "leads, all members are up to date", 20)
    gone.stop(5.0)
    for _ in range(3):
        leader.apply(b"x", timeout_seconds=20)
    sentence = wait_until(
        lambda: re.search(
            rf"{gone.id} lacks (\d+) entries, is not connected and was heard", leader.status().explanation
        )
    )
    assert int(sentence[1]) >= 3
    status = {peer.id: peer for peer in leader.status().peers}
    stays = next(id for id in status if id != gone.id)
    wait_until(lambda: leader.status().last_applied == {p.id: p for p in leader.status().peers}[stays].applied_index)


def test_what_waits_for_the_app_and_for_a_quorum(three: Servers) -> None:
    number = three.leader()
    leader, gate = three.nodes[number], Gate()
    leader.apply(b"x", timeout_seconds=20)
    # The identity of a store that is heard of later would be an entry too.
    wait_until(lambda: all(member.store_id for member in leader.cluster_info().members), 20)
    wait_until(lambda: leader.status().explanation == "leads, all members are up to date", 20)
    gate.close()
    three.apps[number].on_write = lambda command, index: gate()
    try:
        for _ in range(3):
            leader.commit(b"x", timeout_seconds=20)
        reading, _ = in_thread(lambda: leader.read(b"", timeout_seconds=20))
        explanation = wait_until(lambda: "with a read" in (said := leader.status().explanation) and said, 20)
        assert "3 entries for the app, 1 caller with a read" in explanation
        assert leader.status().reads_waiting == 1
        for other in {0, 1, 2} - {number}:
            three.stores[other].write_gate.close()
        writing, _ = in_thread(lambda: leader.commit(b"y", timeout_seconds=20))
        explanation = wait_until(lambda: "for a quorum" in (said := leader.status().explanation) and said, 20)
        assert "1 entry for a quorum" in explanation and "caller with a write" in explanation
        assert leader.status().writes_waiting == 1
    finally:
        gate.open()
        for store in three.stores:
            store.write_gate.open()
    reading.join(20)
    writing.join(20)


def test_why_there_is_no_leader_and_who_waits_for_one(three: Servers) -> None:
    survivor = three.nodes[0]
    survivor.wait_for_leader(20)
    for node in three.nodes[1:]:
        node.stop(5.0)
    wait_until(lambda: not survivor.status().leader_id, 20)
    waiting, _ = in_thread(lambda: survivor.apply(b"x", timeout_seconds=10))
    said = wait_until(
        lambda: "1 caller for a leader" in (text := survivor.status().explanation) and "1 of 3" in text and text, 20
    )
    silent = r"at [\d.:]+: no answer(?: for \d+ s)?"  # two followers may never have heard each other
    assert re.search(rf"no leader: 1 of 3 voters answers \(n2 {silent}; n3 {silent}\)", said), said
    assert "no answer for" in said, "one of them led"
    assert survivor.status().calls_parked == 1
    waiting.join(20)
