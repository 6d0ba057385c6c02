"""Handing leadership over (Raft dissertation 3.10)."""

from __future__ import annotations

import pytest
from core_servers import (
    acknowledge,
    configuration,
    from_peer,
    log_of,
    make_leader,
    make_raft,
    only,
    ours,
    pass_time,
    sent,
    tell,
)

from geraft.core.effects import ProposalAccepted, ProposalRefused, Reason, Send, TransferEnded
from geraft.core.entries import EntryId
from geraft.core.events import ChangeMembership, Propose, TransferRequested
from geraft.core.membership import RemoveServer
from geraft.core.messages import HeartbeatReply, RequestVote, TimeoutNow
from geraft.core.raft import Raft


def test_a_target_that_is_up_to_date_is_asked_at_once() -> None:
    raft = make_leader()
    assert tell(raft, TransferRequested(token=1, target="2")) == [Send(to="2", message=ours(TimeoutNow, term=3))]


def test_another_target_is_brought_up_to_date_first() -> None:
    raft = make_leader()
    tell(raft, Propose(token=1, commands=(b"x",)))
    assert tell(raft, TransferRequested(token=2, target="2")) == []
    assert sent(acknowledge(raft, 3, "3"), TimeoutNow) == []
    assert sent(acknowledge(raft, 3, "2"), TimeoutNow, "2") == [ours(TimeoutNow, term=3)]
    assert sent(acknowledge(raft, 3, "2"), TimeoutNow) == [], "asked once"


def test_without_a_name_the_most_caught_up_voter_is_the_target() -> None:
    raft = make_leader()
    tell(raft, Propose(token=1, commands=(b"x",)))
    acknowledge(raft, 3, "3")
    tell(raft, TransferRequested(token=2))
    assert raft.transfer is not None and raft.transfer.target == "3"
    assert sent(acknowledge(raft, 3, "2"), TimeoutNow, "3")


def test_no_writes_are_taken_meanwhile() -> None:
    raft = make_leader()
    tell(raft, TransferRequested(token=1, target="2"))
    refused = ProposalRefused(token=2, reason=Reason.TRANSFERRING)
    assert tell(raft, Propose(token=2, commands=(b"x",))) == [refused]


def test_it_is_done_when_a_later_term_is_seen() -> None:
    raft = make_leader()
    tell(raft, TransferRequested(token=1, target="2"))
    request = from_peer(RequestVote, term=4, last_entry=EntryId(3, 2), forced=True)
    assert only(tell(raft, request), TransferEnded) == [TransferEnded(token=1, reason=None)]


def test_it_is_given_up_after_an_election_timeout_and_writes_go_on() -> None:
    raft = make_leader()
    tell(raft, TransferRequested(token=1, target="2"))
    ended = []
    for _ in range(12):
        ended += only(pass_time(raft, 0.1), TransferEnded)
        tell(raft, from_peer(HeartbeatReply, "3", term=3, round=raft.round))
    assert ended == [TransferEnded(token=1, reason=Reason.TIMED_OUT)]
    assert only(tell(raft, Propose(token=2, commands=(b"x",))), ProposalAccepted)


def test_a_leader_that_loses_its_quorum_meanwhile_says_so() -> None:
    raft = make_leader()
    pass_time(raft, 1.0)
    tell(raft, TransferRequested(token=1, target="2"))
    assert TransferEnded(token=1, reason=Reason.STEPPED_DOWN) in pass_time(raft, 0.6)


@pytest.mark.parametrize(("target", "reason"), [("9", Reason.NO_TARGET), ("4", Reason.NO_TARGET), ("1", None)])
def test_only_another_voter_can_take_over(target: str, reason: Reason | None) -> None:
    """4 is a learner. To hand over to oneself is done at once."""
    raft = make_leader(log=log_of(first=configuration("123", learners="4")))
    assert tell(raft, TransferRequested(token=1, target=target)) == [TransferEnded(token=1, reason=reason)]


def test_one_transfer_at_a_time() -> None:
    raft = make_leader()
    tell(raft, TransferRequested(token=1, target="2"))
    refused = TransferEnded(token=2, reason=Reason.TRANSFERRING)
    assert tell(raft, TransferRequested(token=2, target="3")) == [refused]


def test_voters_that_are_not_heard_are_not_chosen() -> None:
    raft = make_leader()
    for progress in raft.progress.values():
        progress.heard_at_seconds -= 10.0
    assert tell(raft, TransferRequested(token=1)) == [TransferEnded(token=1, reason=Reason.NO_TARGET)]


def test_without_a_target_it_goes_to_a_voter_whose_app_came_far_enough() -> None:
    raft = make_leader()
    tell(raft, from_peer(HeartbeatReply, "3", term=3, round=raft.round, last_applied=2))
    nobody = TransferEnded(token=1, reason=Reason.NO_TARGET)
    assert tell(raft, TransferRequested(token=1, applied_index=3)) == [nobody]
    assert raft.transfer is None
    effects = tell(raft, TransferRequested(token=2, applied_index=2))
    assert sent(effects, TimeoutNow, "3") and not sent(effects, TimeoutNow, "2")


def test_a_follower_has_nothing_to_hand_over() -> None:
    assert tell(make_raft(), TransferRequested(token=1)) == [TransferEnded(token=1, reason=Reason.NOT_LEADER)]


def follower_wants_to_lead(raft: Raft, priority: int, peer: str = "3") -> list[object]:
    return tell(raft, from_peer(HeartbeatReply, peer, term=3, round=raft.round, priority=priority))


def test_a_voter_of_higher_priority_takes_over_once_it_holds_all() -> None:
    raft = make_leader(matched="2", leader_priority=1)
    follower_wants_to_lead(raft, 5)
    assert sent(pass_time(raft, 0.1), TimeoutNow) == [], "3 lacks the no-op"
    acknowledge(raft, 1, "3")
    acknowledge(raft, 2, "3")
    assert sent(pass_time(raft, 0.1), TimeoutNow, "3") == [ours(TimeoutNow, term=3)]


def test_one_who_does_not_take_over_is_left_alone_for_a_while() -> None:
    raft = make_leader()
    follower_wants_to_lead(raft, 1)
    asked = 0
    for _ in range(100):
        asked += len(sent(pass_time(raft, 0.1), TimeoutNow))
        follower_wants_to_lead(raft, 1)
        follower_wants_to_lead(raft, 0, "2")
    assert asked in (1, 2), "once in ten election timeouts"
    assert only(tell(raft, Propose(token=2, commands=(b"x",))), ProposalAccepted), "and writes go on"


def test_with_equal_priorities_nobody_hands_over() -> None:
    raft = make_leader(leader_priority=5)
    for peer in "23":
        follower_wants_to_lead(raft, 5, peer)
    assert sent(pass_time(raft, 0.5), TimeoutNow) == []


def test_a_learner_never_takes_over_whatever_it_wants() -> None:
    raft = make_leader(log=log_of(first=configuration("123", learners="4")))
    acknowledge(raft, 2, "4")
    follower_wants_to_lead(raft, 9, "4")
    assert sent(pass_time(raft, 0.5), TimeoutNow) == []


def test_while_a_transfer_runs_the_membership_waits() -> None:
    """The target would no longer hold all that we do."""
    raft = make_leader()
    tell(raft, TransferRequested(token=1, target="2"))
    tell(raft, ChangeMembership(token=2, change=RemoveServer(id="3"), timeout_seconds=10.0))
    assert set(raft.configuration.members) == set("123")
    for _ in range(12):
        pass_time(raft, 0.1)
        for peer in "23":
            follower_wants_to_lead(raft, 0, peer)
    assert set(raft.configuration.members) == set("12"), "it went on when the transfer was given up"
