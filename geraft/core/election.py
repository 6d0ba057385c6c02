"""Who leads: votes, pre-vote, check-quorum (Raft dissertation 3.4, 3.6.1, 4.2.3, 6.2, 9.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geraft.core import changes
from geraft.core.effects import Role
from geraft.core.entries import INDEX_MAX
from geraft.core.messages import RequestVote, RequestVoteReply, TimeoutNow
from geraft.core.quorum import is_quorum

if TYPE_CHECKING:
    from geraft.core.raft import Raft


def tick(raft: Raft) -> None:
    """As a follower or candidate: start an election once the leader is suspected, and again while none is won.

    A random pause comes first, so that two servers rarely split the votes (3.4).
    """
    if not may_campaign(raft):
        return
    if raft.campaign_at_seconds is None:
        if raft.role is Role.FOLLOWER and (
            raft.now < raft.silent_until_seconds or not raft.detector.suspects(raft.now)
        ):
            return
        raft.campaign_at_seconds = raft.now + raft.rng.uniform(0, raft.settings.election_timeout_seconds / 2)
    if raft.now >= raft.campaign_at_seconds:
        raft.become_pre_candidate()


def may_campaign(raft: Raft) -> bool:
    """A voter may, and so may one whose removal or demotion is not committed yet: that may need its log (4.2.2).

    Such a one does not count itself. Who knows that it was removed keeps still, for ever or until it is let in again.
    """
    log = raft.log
    if raft.term >= INDEX_MAX:
        return False  # the store could not hold the next term
    if changes.is_removed(raft):
        return False
    if raft.id in log.configuration.voter_ids:
        return True
    if log.configuration_index <= raft.commit_index or not log.configuration.voters:
        return False
    in_force_from, _ = log.configuration_at(raft.commit_index)
    return any(index >= in_force_from and raft.id in earlier.voter_ids for index, earlier in log.configurations)


def start_pre_vote(raft: Raft) -> None:
    if _own_vote_counts(raft):
        raft.votes.add(raft.id)
    _await_outcome(raft)
    if is_quorum(raft.votes, raft.configuration.quorum_groups):
        raft.become_candidate()
        return
    for id in sorted(raft.configuration.voter_ids - {raft.id}):
        raft.send(
            id,
            RequestVote(
                sender=raft.id,
                sender_store=raft.store_id,
                term=raft.term + 1,
                last_entry=raft.log.last_entry,
                pre_vote=True,
            ),
        )


def start_vote(raft: Raft) -> None:
    """Ask for votes once our own is durable; it counts from then on (count_own_vote).

    A leader that hands over to us is asked as well if it is no voter, as one that was removed: its answer counts for
    nothing, but it steps down, and tells its callers so, without waiting for the answer to a heartbeat.
    """
    _await_outcome(raft)
    forced = bool(raft.forced_by)
    asked = raft.configuration.voter_ids | ({raft.forced_by} if forced else set())
    for id in sorted(asked - {raft.id}):
        raft.send_when_durable(id, raft.message(RequestVote, last_entry=raft.log.last_entry, forced=forced))


def _await_outcome(raft: Raft) -> None:
    timeout = raft.settings.election_timeout_seconds
    raft.campaign_at_seconds = raft.now + raft.rng.uniform(timeout / 2, timeout)


def _own_vote_counts(raft: Raft) -> bool:
    return raft.id in raft.configuration.voter_ids


def count_own_vote(raft: Raft) -> None:
    if _own_vote_counts(raft):
        raft.votes.add(raft.id)
    _decide(raft)


def answer_vote_request(raft: Raft, request: RequestVote) -> None:
    """Vote once per term at most, only for a log at least as complete as ours, and not while a leader lives.

    Source: Raft dissertation 3.4 (one vote per term), 3.6.1 (election restriction), 4.2.3 (a server that hears a leader
    neither votes nor adopts the term), 9.6 (a pre-vote changes nothing).
    """
    forced = request.forced and not request.pre_vote and request.term == raft.term + 1
    if request.term < raft.term or (hears_leader(raft) and not forced):
        _answer(raft, request, granted=False)
        return
    up_to_date = request.last_entry >= raft.log.last_entry
    if request.pre_vote:
        _answer(raft, request, granted=up_to_date and request.term > raft.term)
        return
    if request.term > raft.term:
        raft.become_follower(request.term, "")
    granted = up_to_date and raft.voted_for in ("", request.sender)
    if granted:
        if raft.role is not Role.FOLLOWER:
            raft.become_follower(raft.term, "")
        if not raft.voted_for:
            raft.vote_for(request.sender)
        raft.detector.restart(raft.now)  # a vote given is a reason to wait (figure 3.1), but no sample of a heartbeat
        raft.campaign_at_seconds = None
    _answer(raft, request, granted=granted)


def hears_leader(raft: Raft) -> bool:
    """Whether a living leader would be disturbed: we heard one within an election timeout, or we are one.

    After a restart we may have promised our silence to one (a lease may rest on it), so we wait as if we heard it.
    A leader that lost its quorum soon steps down, so being one is enough. How suspicious the
    failure detector is decides when we campaign ourselves, not whether we help another: a server that hears its leader
    irregularly would else refuse long after that leader died.
    """
    if raft.role is Role.LEADER:
        return True
    return raft.now < raft.silent_until_seconds


def _answer(raft: Raft, request: RequestVote, *, granted: bool) -> None:
    index, configuration = raft.log.configuration_at(raft.commit_index)
    removed = bool(configuration.voters) and request.sender not in configuration.members
    reply = RequestVoteReply(
        sender=raft.id,
        sender_store=raft.store_id,
        term=request.term if granted else raft.term,
        granted=granted,
        pre_vote=request.pre_vote,
        call=request.call,
        removed_at=index if removed else 0,
    )
    if granted and not request.pre_vote:
        raft.send_when_durable(request.sender, reply)
    else:
        raft.reply(request.sender, reply)


def count_pre_vote(raft: Raft, reply: RequestVoteReply) -> None:
    if not reply.pre_vote or (reply.granted and reply.term != raft.term + 1):
        return  # of an earlier campaign
    if reply.granted:
        raft.votes.add(reply.sender)
    if is_quorum(raft.votes, raft.configuration.quorum_groups):
        raft.become_candidate()


def count_vote(raft: Raft, reply: RequestVoteReply) -> None:
    if reply.pre_vote or reply.term != raft.term:
        return  # of an earlier campaign
    if reply.granted:
        raft.votes.add(reply.sender)
    _decide(raft)


def _decide(raft: Raft) -> None:
    if is_quorum(raft.votes, raft.configuration.quorum_groups):
        raft.become_leader()


def campaign_now(raft: Raft, request: TimeoutNow) -> None:
    """The leader wants us to take over (3.10): no pause, no pre-vote. Counts only from the leader of our term."""
    if request.sender == raft.leader_id and may_campaign(raft):
        raft.become_candidate(forced_by=request.sender)
