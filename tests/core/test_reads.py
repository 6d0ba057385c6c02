"""Linearizable reads: rounds that all waiting reads share, and leases (Raft dissertation 6.4)."""

from __future__ import annotations

from core_servers import (
    acknowledge,
    configuration,
    from_peer,
    log_of,
    make_candidate,
    make_leader,
    make_raft,
    only,
    pass_time,
    sent,
    tell,
    write,
)

from geraft.core.effects import Effect, ReadConfirmed, ReadRefused, Reason, Role
from geraft.core.events import Propose, ReadRequested, Tick, TransferRequested
from geraft.core.messages import Heartbeat, HeartbeatReply, RequestVoteReply
from geraft.core.raft import Raft


def answer(raft: Raft, round: int, peer: str = "2") -> list[Effect]:
    return tell(raft, from_peer(HeartbeatReply, peer, term=raft.term, round=round, silent_seconds=1.0))


def test_a_read_is_confirmed_by_a_round_sent_after_it() -> None:
    raft = make_leader()
    before = raft.round
    effects = tell(raft, ReadRequested(token=1))
    assert [beat.round for beat in sent(effects, Heartbeat, "2")] == [before + 1]
    assert answer(raft, before) == [], "a round from before the read proves nothing for it"
    assert answer(raft, before + 1) == [ReadConfirmed(tokens=(1,), read_index=2)]
    assert answer(raft, before + 1, "3") == []


def test_the_read_index_is_what_was_committed_when_the_round_started() -> None:
    raft = make_leader()
    tell(raft, Propose(token=9, commands=(b"x",)))
    tell(raft, ReadRequested(token=1))
    for peer in "23":
        acknowledge(raft, 3, peer)
    assert answer(raft, raft.round) == [ReadConfirmed(tokens=(1,), read_index=2)]


def test_reads_that_wait_share_the_next_round() -> None:
    raft = make_leader()
    tell(raft, ReadRequested(token=1))
    first = raft.round
    for token in range(2, 50):
        assert tell(raft, ReadRequested(token=token)) == []
    effects = answer(raft, first)
    assert only(effects, ReadConfirmed) == [ReadConfirmed(tokens=(1,), read_index=2)]
    assert len(sent(effects, Heartbeat, "2")) == 1
    assert answer(raft, raft.round) == [ReadConfirmed(tokens=tuple(range(2, 50)), read_index=2)]


def test_a_later_heartbeat_confirms_when_the_round_itself_was_lost() -> None:
    raft = make_leader()
    tell(raft, ReadRequested(token=1))
    pass_time(raft, 0.2)
    assert answer(raft, raft.round) == [ReadConfirmed(tokens=(1,), read_index=2)]


def test_a_new_leader_lets_reads_wait_for_its_first_entry() -> None:
    raft = make_candidate([2])
    write(raft, tell(raft, from_peer(RequestVoteReply, term=3, granted=True)))
    assert tell(raft, ReadRequested(token=1)) == []
    assert only(answer(raft, raft.round), ReadConfirmed) == []
    acknowledge(raft, 2)
    effects = acknowledge(raft, 3)
    assert [beat.round for beat in sent(effects, Heartbeat, "3")] == [2]
    assert answer(raft, 2) == [ReadConfirmed(tokens=(1,), read_index=3)]


def test_a_learner_confirms_nothing() -> None:
    raft = make_raft(log=log_of(first=configuration("123", learners="4")))
    raft.become_pre_candidate()
    write(raft, tell(raft, from_peer(RequestVoteReply, term=3, granted=True, pre_vote=True)))
    write(raft, tell(raft, from_peer(RequestVoteReply, term=3, granted=True)))
    for match_index in (1, 2):
        acknowledge(raft, match_index)
    tell(raft, ReadRequested(token=1))
    assert answer(raft, raft.round, "4") == []
    assert answer(raft, raft.round, "3") == [ReadConfirmed(tokens=(1,), read_index=2)]


def test_a_single_voter_confirms_at_once() -> None:
    raft = make_raft(log=log_of(first=configuration("1")))
    write(raft, write(raft, pass_time(raft, 3.0)))
    assert only(tell(raft, ReadRequested(token=1)), ReadConfirmed) == [ReadConfirmed(tokens=(1,), read_index=2)]


def test_a_round_that_was_never_sent_confirms_nothing() -> None:
    raft = make_leader()
    tell(raft, ReadRequested(token=1))
    assert answer(raft, raft.round + 5) == []


def test_step_down_refuses_whoever_waits() -> None:
    raft = make_leader()
    tell(raft, ReadRequested(token=1))
    tell(raft, ReadRequested(token=2))
    effects = tell(raft, from_peer(HeartbeatReply, term=9, round=0))
    assert only(effects, ReadRefused) == [ReadRefused(tokens=(1, 2), reason=Reason.STEPPED_DOWN)]
    assert tell(raft, ReadRequested(token=3)) == [ReadRefused(tokens=(3,), reason=Reason.NOT_LEADER)]


# Leases ---------------------------------------------------------------------------------------------------------------


def leased(raft: Raft, token: int = 1) -> bool:
    return bool(only(tell(raft, ReadRequested(token=token, lease=True)), ReadConfirmed))


def test_a_lease_lasts_from_when_the_round_was_sent_and_less_than_the_promise() -> None:
    raft = make_leader()
    sent_at = raft.now
    pass_time(raft, 0.05)
    answer(raft, raft.round)
    tell(raft, Tick(now_seconds=sent_at + 0.89))
    assert leased(raft)
    tell(raft, Tick(now_seconds=sent_at + 0.91))
    assert not leased(raft), "a tenth of the second is for clocks that differ in speed"


def test_without_a_confirmed_round_there_is_no_lease() -> None:
    raft = make_leader()
    assert not leased(raft)


def test_a_pause_of_the_process_ends_the_lease() -> None:
    """Its own pause is forgiven when it judges others; a lease is not prolonged by it."""
    raft = make_leader()
    answer(raft, raft.round)
    tell(raft, Tick(now_seconds=raft.now + 5.0))
    assert raft.role is Role.LEADER
    assert not leased(raft)


def test_a_new_leader_has_no_lease_before_its_first_entry_commits() -> None:
    raft = make_leader(matched="")
    answer(raft, raft.round)
    assert not leased(raft)


def test_asking_another_to_campaign_ends_every_lease_of_the_term() -> None:
    raft = make_leader()
    answer(raft, raft.round)
    assert leased(raft)
    tell(raft, TransferRequested(token=9, target="2"))
    assert not leased(raft)
    for _ in range(30):
        pass_time(raft, 0.1)
        answer(raft, raft.round)
    assert raft.transfer is None
    assert not leased(raft), "the request may still be on its way"
