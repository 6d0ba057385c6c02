"""Who gets a vote, who counts as elected, and when a server campaigns (Raft dissertation 3.4, 3.6.1, 4.2, 9.6)."""

from __future__ import annotations

import pytest
from core_servers import (
    batch,
    configuration,
    configuration_batch,
    from_peer,
    log_of,
    make_candidate,
    make_leader,
    make_raft,
    only,
    ours,
    pass_time,
    sent,
    tell,
    write,
)

from geraft.core.effects import LeaderChanged, Persist, Role, RoleChanged, Send, WaitersOutcomeUnknown
from geraft.core.entries import INDEX_MAX, Ballot, EntryId
from geraft.core.events import Tick
from geraft.core.messages import (
    AppendEntries,
    Heartbeat,
    HeartbeatReply,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)


def request(sender: str = "2", **fields: object) -> RequestVote:
    return from_peer(RequestVote, sender, **{"term": 3, "last_entry": EntryId(2, 3), **fields})


# Who gets a vote. The server is in term 2 with the log 1.1, 2.2, 2.3. -------------------------------------------------


def test_a_vote_is_written_down_before_it_is_given() -> None:
    raft = make_raft([2, 2])
    assert tell(raft, request(call=7)) == [
        Persist(
            sequence=1,
            ballot=Ballot(3, "2"),
            then=(Send(to="2", message=ours(RequestVoteReply, term=3, granted=True, call=7)),),
        )
    ]


@pytest.mark.parametrize(
    ("last_entry", "granted"),
    [
        (EntryId(2, 3), True),  # the same log
        (EntryId(2, 4), True),  # longer
        (EntryId(2, 2), False),  # shorter
        (EntryId(1, 9), False),  # longer, but of an earlier term
        (EntryId(3, 1), True),  # shorter, but of a later term
    ],
)
@pytest.mark.parametrize("pre_vote", [False, True])
def test_only_a_log_at_least_as_complete_gets_a_vote(last_entry: EntryId, granted: bool, pre_vote: bool) -> None:
    raft = make_raft([2, 2])
    effects = tell(raft, request(last_entry=last_entry, term=4, pre_vote=pre_vote))
    waiting = [send.message for persist in only(effects, Persist) for send in persist.then]
    replies = [reply for reply in [*sent(effects, RequestVoteReply), *waiting] if isinstance(reply, RequestVoteReply)]
    assert [reply.granted for reply in replies] == [granted]
    assert raft.voted_for == ("2" if granted and not pre_vote else "")


def test_one_vote_a_term() -> None:
    raft = make_raft([2, 2])
    write(raft, tell(raft, request("2")))
    refused = ours(RequestVoteReply, term=3, granted=False)
    assert tell(raft, request("3", last_entry=EntryId(2, 9))) == [Send(to="3", message=refused)]
    again = ours(RequestVoteReply, term=3, granted=True)
    assert tell(raft, request("2")) == [Send(to="2", message=again)], "its answer may have been lost"
    assert raft.voted_for == "2"


def test_a_vote_outlives_a_restart() -> None:
    raft = make_raft([2, 2], Ballot(3, "2"))
    assert sent(tell(raft, request("3")), RequestVoteReply) == [ours(RequestVoteReply, term=3, granted=False)]


def test_a_candidate_of_an_earlier_term_is_told_ours() -> None:
    raft = make_raft([2, 2], Ballot(5))
    assert tell(raft, request(term=4)) == [Send(to="2", message=ours(RequestVoteReply, term=5, granted=False))]


def test_a_later_term_is_adopted_though_the_vote_is_refused() -> None:
    """And the refusal, which tells our new term, waits until that is durable."""
    raft = make_raft([2, 2])
    assert tell(raft, request(term=9, last_entry=EntryId(1, 1))) == [
        Persist(
            sequence=1,
            ballot=Ballot(9),
            then=(Send(to="2", message=ours(RequestVoteReply, term=9, granted=False)),),
        )
    ]


def test_a_pre_vote_changes_nothing() -> None:
    raft = make_raft([2, 2])
    granted = ours(RequestVoteReply, term=3, granted=True, pre_vote=True)
    assert tell(raft, request(pre_vote=True)) == [Send(to="2", message=granted)]
    assert (raft.term, raft.voted_for) == (2, "")


def test_a_pre_vote_for_a_term_that_we_are_in_already_is_refused() -> None:
    raft = make_raft([2, 2], Ballot(3))
    refused = ours(RequestVoteReply, term=3, granted=False, pre_vote=True)
    assert tell(raft, request(pre_vote=True)) == [Send(to="2", message=refused)]


@pytest.mark.parametrize("pre_vote", [False, True])
def test_who_hears_a_leader_neither_votes_nor_adopts_the_term(pre_vote: bool) -> None:
    raft = make_raft([2, 2])
    tell(raft, from_peer(Heartbeat, "3", term=2, commit_index=0, round=1))
    refused = ours(RequestVoteReply, term=2, granted=False, pre_vote=pre_vote)
    assert tell(raft, request(term=9, pre_vote=pre_vote)) == [Send(to="2", message=refused)]
    assert raft.term == 2
    pass_time(raft, 2.0)
    assert raft.role is not Role.LEADER
    effects = tell(raft, request(term=9, pre_vote=pre_vote))
    assert sent(effects, RequestVoteReply) or only(effects, Persist), "the silence is over"


def test_an_election_that_the_leader_asked_for_is_answered() -> None:
    raft = make_raft([2, 2])
    tell(raft, from_peer(Heartbeat, "3", term=2, commit_index=0, round=1))
    assert only(tell(raft, request(forced=True, term=3)), Persist)[0].ballot == Ballot(3, "2")


@pytest.mark.parametrize("fields", [{"term": 4}, {"term": 2}, {"term": 3, "pre_vote": True}])
def test_forced_counts_for_a_vote_in_the_next_term_only(fields: dict[str, object]) -> None:
    raft = make_raft([2, 2])
    tell(raft, from_peer(Heartbeat, "3", term=2, commit_index=0, round=1))
    replies = sent(tell(raft, request(forced=True, **fields)), RequestVoteReply)
    assert [reply.granted for reply in replies] == [False]


def test_a_leader_refuses_and_goes_on() -> None:
    raft = make_leader()
    assert sent(tell(raft, request(term=9)), RequestVoteReply) == [ours(RequestVoteReply, term=3, granted=False)]
    assert raft.role is Role.LEADER


def test_a_server_that_restarts_is_silent_for_an_election_timeout() -> None:
    """A leader may hold a lease on the silence that we promised before."""
    raft = make_raft([2, 2])
    raft.silent_until_seconds = raft.now + 1.0  # as __init__ sets it
    assert sent(tell(raft, request()), RequestVoteReply)[0].granted is False
    tell(raft, Tick(now_seconds=raft.now + 1.0))
    assert only(tell(raft, request()), Persist)[0].ballot == Ballot(3, "2")


def test_who_was_never_in_a_term_has_promised_nothing() -> None:
    raft = make_raft(ballot=Ballot(0))
    assert raft.silent_until_seconds <= raft.now


def test_a_vote_given_puts_our_own_campaign_off_and_is_no_sample() -> None:
    """As a sample, the silence before it would make the detector slow to see the candidate fail."""
    raft = make_raft([2, 2])
    pass_time(raft, 1.1)
    usual = raft.detector.suspect_after_seconds()
    write(raft, tell(raft, request()))
    assert not raft.detector.suspects(raft.now + 0.9)
    assert raft.detector.suspect_after_seconds() == usual


def test_a_server_that_does_not_vote_may_give_a_vote() -> None:
    """The candidate may know of a configuration in which we do (4.2.3)."""
    raft = make_raft(log=log_of(first=configuration("23", learners="1")))
    assert only(tell(raft, request()), Persist)[0].ballot == Ballot(3, "2")


# Who campaigns, and who is elected ------------------------------------------------------------------------------------


def test_a_silence_leads_to_a_pre_vote_after_a_random_pause() -> None:
    raft = make_raft([2, 2])
    effects = pass_time(raft, raft.detector.suspect_after_seconds() + 0.5)
    ask = ours(RequestVote, term=3, last_entry=EntryId(2, 3), pre_vote=True)
    assert effects[:3] == [
        RoleChanged(old=Role.FOLLOWER, new=Role.PRE_CANDIDATE, term=2),
        Send(to="2", message=ask),
        Send(to="3", message=ask),
    ]
    assert only(effects, Persist) == []


def test_a_majority_of_pre_votes_starts_the_election() -> None:
    raft = make_raft([2, 2])
    raft.become_pre_candidate()
    ask = ours(RequestVote, term=3, last_entry=EntryId(2, 3))
    assert tell(raft, from_peer(RequestVoteReply, term=3, granted=True, pre_vote=True)) == [
        RoleChanged(old=Role.PRE_CANDIDATE, new=Role.CANDIDATE, term=3),
        Persist(sequence=1, ballot=Ballot(3, "1"), then=(Send(to="2", message=ask), Send(to="3", message=ask))),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"term": 2, "granted": False, "pre_vote": True},  # refused
        {"term": 4, "granted": True, "pre_vote": True},  # of another campaign
        {"term": 2, "granted": True, "pre_vote": False},  # a real vote of an earlier one
    ],
)
def test_what_is_no_pre_vote_for_us_does_not_count(fields: dict[str, object]) -> None:
    raft = make_raft([2, 2])
    raft.become_pre_candidate()
    tell(raft, from_peer(RequestVoteReply, **fields))
    assert (raft.role, raft.term) == (Role.PRE_CANDIDATE, 2)


def test_a_majority_of_votes_makes_a_leader() -> None:
    raft = make_candidate([2, 2])
    effects = tell(raft, from_peer(RequestVoteReply, term=3, granted=True))
    assert effects[:2] == [
        RoleChanged(old=Role.CANDIDATE, new=Role.LEADER, term=3),
        LeaderChanged(leader="1", term=3),
    ]
    assert sent(effects, Heartbeat, "2") == [ours(Heartbeat, term=3, commit_index=0, round=1)]
    probe = ours(AppendEntries, term=3, prev=EntryId(2, 3), batches=(), commit_index=0)
    assert sent(effects, AppendEntries) == [probe, probe]
    assert [part.last_entry for part in only(effects, Persist)[0].batches] == [EntryId(3, 4)]


@pytest.mark.parametrize(
    "fields",
    [
        {"term": 3, "granted": False},
        {"term": 2, "granted": True},  # of an earlier campaign
        {"term": 4, "granted": True, "pre_vote": True},
    ],
)
def test_what_is_no_vote_for_us_does_not_count(fields: dict[str, object]) -> None:
    raft = make_candidate([2, 2])
    tell(raft, from_peer(RequestVoteReply, **fields))
    assert (raft.role, raft.term) == (Role.CANDIDATE, 3)


def test_the_vote_of_one_server_counts_once() -> None:
    raft = make_raft(log=log_of(first=configuration("12345")))
    raft.become_pre_candidate()
    for sender in "23":
        effects = tell(raft, from_peer(RequestVoteReply, sender, term=3, granted=True, pre_vote=True))
    write(raft, effects)
    for _ in range(3):
        tell(raft, from_peer(RequestVoteReply, term=3, granted=True))
    assert raft.role is Role.CANDIDATE
    tell(raft, from_peer(RequestVoteReply, "4", term=3, granted=True))
    assert raft.role is Role.LEADER


def test_a_learner_neither_campaigns_nor_is_counted() -> None:
    learner = make_raft(log=log_of(first=configuration("23", learners="1")))
    assert pass_time(learner, 10.0) == []
    voter = make_raft(log=log_of(first=configuration("12", learners="3")))
    voter.become_pre_candidate()
    tell(voter, from_peer(RequestVoteReply, "3", term=3, granted=True, pre_vote=True))
    assert voter.role is Role.PRE_CANDIDATE


def test_a_server_whose_removal_is_not_committed_may_still_campaign() -> None:
    """The removal may need exactly its log; its own vote does not count (4.2.2)."""
    log = log_of([2])
    log.append(configuration_batch(2, 3, configuration("23")))
    raft = make_raft(log=log)
    pass_time(raft, 3.0)
    assert raft.role is Role.PRE_CANDIDATE
    effects = tell(raft, from_peer(RequestVoteReply, "2", term=3, granted=True, pre_vote=True))
    assert raft.role is Role.PRE_CANDIDATE, "one of two, and itself, is no majority"
    effects = tell(raft, from_peer(RequestVoteReply, "3", term=3, granted=True, pre_vote=True))
    write(raft, effects)
    tell(raft, from_peer(RequestVoteReply, "2", term=3, granted=True))
    assert raft.role is Role.CANDIDATE
    tell(raft, from_peer(RequestVoteReply, "3", term=3, granted=True))
    assert raft.role is Role.LEADER


def test_a_joint_configuration_needs_both_majorities() -> None:
    raft = make_raft(log=log_of(first=configuration("145", outgoing="123")))
    raft.become_pre_candidate()
    tell(raft, from_peer(RequestVoteReply, "4", term=3, granted=True, pre_vote=True))
    assert raft.role is Role.PRE_CANDIDATE
    tell(raft, from_peer(RequestVoteReply, "2", term=3, granted=True, pre_vote=True))
    assert raft.role is Role.CANDIDATE


def test_a_candidate_that_wins_nothing_tries_again_with_a_pre_vote() -> None:
    raft = make_candidate([2, 2])
    pass_time(raft, 1.1)
    assert (raft.role, raft.term) == (Role.PRE_CANDIDATE, 3)


def test_a_candidate_follows_the_leader_of_its_term() -> None:
    raft = make_candidate([2, 2])
    assert tell(raft, from_peer(Heartbeat, "2", term=3, commit_index=0, round=5)) == [
        RoleChanged(old=Role.CANDIDATE, new=Role.FOLLOWER, term=3),
        LeaderChanged(leader="2", term=3),
        Send(to="2", message=ours(HeartbeatReply, term=3, round=5, silent_seconds=1.0)),
    ]


def test_a_single_voter_elects_itself_once_its_vote_is_durable() -> None:
    raft = make_raft(log=log_of(first=configuration("1")))
    effects = pass_time(raft, 3.0)
    assert (raft.role, sent(effects, RequestVote)) == (Role.CANDIDATE, [])
    write(raft, write(raft, effects))
    assert (raft.role, raft.commit_index) == (Role.LEADER, 2)


def test_a_term_that_the_store_could_not_hold_is_never_entered() -> None:
    raft = make_raft(ballot=Ballot(INDEX_MAX))
    assert pass_time(raft, 10.0) == []
    assert raft.term == INDEX_MAX


# Check-quorum ---------------------------------------------------------------------------------------------------------


def test_a_leader_without_its_quorum_steps_down_when_followers_would_suspect_it() -> None:
    """An election timeout and the acceptable pause: the others campaign no earlier, so neither does it give up."""
    raft = make_leader()
    pass_time(raft, 1.4)
    assert raft.role is Role.LEADER
    effects = pass_time(raft, 0.2)
    assert (raft.role, raft.term) == (Role.FOLLOWER, 3)
    assert WaitersOutcomeUnknown(term=3) in effects


def test_one_of_two_followers_is_enough() -> None:
    raft = make_leader()
    for _ in range(50):
        pass_time(raft, 0.1)
        tell(raft, from_peer(HeartbeatReply, "3", term=3, round=raft.round))
    assert raft.role is Role.LEADER


def test_a_pause_of_our_own_is_not_the_silence_of_the_others() -> None:
    leader, follower = make_leader(), make_raft([2])
    tell(follower, from_peer(Heartbeat, "2", term=2, commit_index=0, round=1))
    for raft in (leader, follower):
        tell(raft, Tick(now_seconds=raft.now + 5.0))
        pass_time(raft, 0.3)
    assert leader.role is Role.LEADER
    assert follower.role is Role.FOLLOWER


def test_who_stumbles_from_pause_to_pause_still_misses_the_others() -> None:
    leader, follower = make_leader(), make_raft([2])
    tell(follower, from_peer(Heartbeat, "2", term=2, commit_index=0, round=1))
    for raft in (leader, follower):
        for _ in range(10):
            tell(raft, Tick(now_seconds=raft.now + 0.8))
    assert leader.role is not Role.LEADER
    assert follower.role is not Role.FOLLOWER


# TimeoutNow -----------------------------------------------------------------------------------------------------------


def test_timeout_now_of_our_leader_starts_a_forced_election_at_once() -> None:
    raft = make_raft([2, 2])
    tell(raft, from_peer(Heartbeat, "3", term=2, commit_index=0, round=1))
    effects = tell(raft, from_peer(TimeoutNow, "3", term=2))
    ask = ours(RequestVote, term=3, last_entry=EntryId(2, 3), forced=True)
    assert only(effects, Persist) == [
        Persist(sequence=1, ballot=Ballot(3, "1"), then=(Send(to="2", message=ask), Send(to="3", message=ask)))
    ]


@pytest.mark.parametrize(("sender", "term"), [("2", 2), ("3", 1), ("2", 5)])
def test_timeout_now_of_anybody_else_is_dropped(sender: str, term: int) -> None:
    """Or anyone could depose the leader in a loop (FLAWS X7)."""
    raft = make_raft([2, 2])
    tell(raft, from_peer(Heartbeat, "3", term=2, commit_index=0, round=1))
    tell(raft, from_peer(TimeoutNow, sender, term=term))
    assert raft.role is Role.FOLLOWER


def test_the_log_of_the_helpers_is_what_the_tests_say() -> None:
    raft = make_raft([2, 2])
    assert raft.log.cached(1, 3, 1000) == (
        configuration_batch(1, 1, configuration()),
        batch(2, 2),
        batch(2, 3),
    )
