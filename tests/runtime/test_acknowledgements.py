"""Which acknowledgements wake the node loop of a leader, and which can wait for other news."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from geraft.core.messages import AppendEntriesReply
from geraft.core.raft import Raft
from geraft.runtime.node_loop import NodeLoop
from geraft.testing.simulation import Faults, Simulation


@pytest.fixture(scope="module")
def leader() -> Raft:
    """Of three, with some entries, all of them committed and acknowledged by everyone."""
    simulation = Simulation(1, faults=Faults(per_second=0))
    for server in simulation.servers.values():
        server.start(simulation.settings)
    for client in simulation.clients:
        simulation.at(0.0, client.act)
    simulation.agenda.run_until(10.0)
    for client in simulation.clients:
        client.stopped = True
    simulation.agenda.run_until(15.0)
    raft = simulation.servers[simulation.leaders()[0]].raft
    assert raft is not None
    assert raft.commit_index == raft.log.last_entry.index > 5
    return raft


def arrival(raft: Raft, match_index: int) -> str:
    """How an acknowledgement of one of its followers comes in."""
    came: list[str] = []
    inbox: Any = SimpleNamespace(put=lambda _: came.append("at once"), put_quietly=lambda _: came.append("quietly"))
    sender = next(iter(raft.progress))
    reply = AppendEntriesReply(
        sender=sender, sender_store=f"store{sender}", term=raft.term, match_index=match_index, rejected=None
    )
    NodeLoop.message_arrived(SimpleNamespace(raft=raft, inbox=inbox), reply)  # type: ignore[arg-type]
    [how] = came
    return how


def test_of_what_is_committed_and_sent_to_all_it_can_wait(leader: Raft) -> None:
    assert arrival(leader, leader.commit_index) == "quietly"


def test_of_what_is_not_committed_yet_it_is_urgent(leader: Raft) -> None:
    assert arrival(leader, leader.commit_index + 1) == "at once"


def test_one_that_makes_room_for_more_is_urgent(leader: Raft) -> None:
    """A follower that lags gets as much as the window holds with each of its acknowledgements, not with each knock."""
    progress = next(iter(leader.progress.values()))
    progress.next_index -= 2
    try:
        assert arrival(leader, progress.next_index - 1) == "at once"
    finally:
        progress.next_index += 2
