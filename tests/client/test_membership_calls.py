"""A client that changes the members: what it repeats, and what it says of a change whose answer it lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "transport"))
from transport_harness import MEMBERS, Peer

from geraft.client import Client
from geraft.errors import GeraftError, MembershipPending, MembershipRefused, OutcomeUnknown, Unreachable
from geraft.runtime.hub import fail, finish
from geraft.runtime.wishes import Wish
from geraft.testing.cluster import free_addresses

LOST = OutcomeUnknown("leadership was lost meanwhile")
PENDING = MembershipPending("n4 catches up")


class Leader(Peer):
    """Answers wishes as `answers` says, in turn, the last one again and again: None grants it."""

    answers: tuple[GeraftError | None, ...] = (None,)

    def submit_wish(self, wish: Wish) -> None:
        answer = self.answers[min(len(self.wishes), len(self.answers) - 1)]
        self.wishes.append(wish)
        if answer is None:
            finish([wish], [MEMBERS])
        else:
            fail([wish], answer)


@pytest.fixture
def leader() -> Iterator[Leader]:
    with Leader("n1") as leader:
        leader.leader = ("n1", leader.address)
        yield leader


def add(leader: Leader, timeout_seconds: float = 20.0) -> None:
    with Client(leader.address) as client:
        client.add_server("n4", "127.0.0.1:4", timeout_seconds=timeout_seconds)


def test_a_change_whose_answer_was_lost_is_waited_for(leader: Leader) -> None:
    leader.answers = (LOST, PENDING, PENDING, None)
    add(leader)
    assert len(leader.wishes) == 4


def test_a_change_of_somebody_else_is_not(leader: Leader) -> None:
    leader.answers = (PENDING, None)
    with pytest.raises(MembershipPending, match="n4 catches up"):
        add(leader)
    assert len(leader.wishes) == 1


def test_one_that_may_still_be_done_at_the_end_is_unknown(leader: Leader) -> None:
    leader.answers = (LOST, PENDING)
    with pytest.raises(OutcomeUnknown, match=r"may still be done.*at last: n4 catches up"):
        add(leader, 2.0)
    assert len(leader.wishes) > 2


def test_without_an_answer_it_is_unknown_and_if_nobody_was_reached_it_did_not_happen() -> None:
    with Peer("n1") as silent:
        silent.leader = ("n1", silent.address)
        silent.answer_calls = False
        with Client(silent.address) as client, pytest.raises(OutcomeUnknown):
            client.remove_server("n2", timeout_seconds=2.0)
        assert silent.wishes
    with Client(free_addresses(1)) as client, pytest.raises(Unreachable):
        client.remove_server("n2", timeout_seconds=2.0)


def test_a_server_that_is_out_already_was_removed_by_the_attempt_whose_answer_was_lost(leader: Leader) -> None:
    leader.members = {"n1": leader.address}
    leader.answers = (LOST, MembershipRefused("n4 is no member"))
    with Client(leader.address) as client:
        client.remove_server("n4")
        with pytest.raises(MembershipRefused):
            client.remove_server("n4")
