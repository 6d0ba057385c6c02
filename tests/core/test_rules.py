"""The rules of safety, each by the run that breaks a core without it. tests/core/mutations.py breaks each to prove it.

1  one loop owns the state                      6  reads are linearizable
2  every message has a term                     7  members change one step at a time, learners first
3  append: check, truncate, never the committed 8  snapshots
4  commit by counting                           9  pre-vote, check-quorum, silence while a leader lives
5  durable before told                          10 waiting calls always end
                                                11 nothing from outside reaches an assert
"""

from __future__ import annotations

import dataclasses
import random

import pytest
from core_servers import (
    acknowledge,
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

from geraft.core import election, replication
from geraft.core.effects import (
    Alarm,
    CancelFetch,
    ChangeEnded,
    ChangeOutcome,
    Committed,
    CompactLog,
    ConfigurationChanged,
    DiscardSnapshot,
    FetchSnapshot,
    InstallSnapshot,
    Persist,
    ProposalAccepted,
    ReadConfirmed,
    ReadRefused,
    Reason,
    RecordSnapshot,
    Removed,
    Role,
    Send,
    TransferEnded,
    WaitersOutcomeUnknown,
)
from geraft.core.entries import INDEX_MAX, Ballot, EntryId
from geraft.core.events import (
    Applied,
    ChangeMembership,
    Event,
    LogCompacted,
    PeerConnected,
    Persisted,
    Propose,
    ReadRequested,
    SettingsChanged,
    SnapshotFetched,
    SnapshotMade,
    SnapshotRecorded,
    Tick,
    TransferRequested,
)
from geraft.core.log import Log
from geraft.core.membership import (
    AddServer,
    Configuration,
    DemoteServer,
    Member,
    MembershipChange,
    PromoteServer,
    RemoveServer,
    ReplaceMembers,
)
from geraft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    OfferSnapshot,
    PeerMessage,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from geraft.core.raft import HANDLERS, IGNORED, Raft, Settings
from geraft.core.snapshots import Snapshot


def following(*terms: int) -> Raft:
    """In term 3, following 2."""
    raft = make_raft(terms, Ballot(3))
    tell(raft, from_peer(Heartbeat, term=3, commit_index=0, round=1))
    return raft


def vote_request(term: int = 3, last_entry: EntryId = EntryId(2, 9), sender: str = "2", **fields: bool) -> RequestVote:
    return from_peer(RequestVote, sender, term=term, last_entry=last_entry, **fields)


def retune(raft: Raft, **changes: float) -> None:
    tell(raft, SettingsChanged(settings=dataclasses.replace(raft.settings, **changes)))  # type: ignore[arg-type]


def beat(leader: Raft, follower: Raft) -> None:
    """A round of the leader reaches the follower, and its answer comes back, in no time. Both are called 1 by nature,
    so each believes the other to be one of its peers."""
    heartbeats = sent(tell(leader, ReadRequested(token=99)), Heartbeat, "2")
    request = dataclasses.replace(heartbeats[-1], sender="3", sender_store="s3", commit_index=0)
    (reply,) = sent(tell(follower, request), HeartbeatReply)
    tell(leader, dataclasses.replace(reply, sender="2", sender_store="s2"))


def leases(raft: Raft) -> bool:
    return bool(only(tell(raft, ReadRequested(token=1, lease=True)), ReadConfirmed))


def promise(raft: Raft, peer: str) -> HeartbeatReply:
    """The peer's answer to the newest round, with which it promises to be silent for a second."""
    return from_peer(HeartbeatReply, peer, term=raft.term, round=raft.round, silent_seconds=1.0)


def replies_at_once_or_later(effects: list[object]) -> tuple[list[object], list[object]]:
    """What leaves at once, and what waits for the disk."""
    at_once = [effect.message for effect in effects if isinstance(effect, Send)]
    later = [send.message for effect in effects if isinstance(effect, Persist) for send in effect.then]
    return at_once, later


# 1: one loop owns term, vote, role, log and commit --------------------------------------------------------------------


def test_rule_01_every_event_has_one_place_in_every_role() -> None:
    kinds = [*PeerMessage.__args__, *(kind for kind in Event.__args__ if kind not in PeerMessage.__args__)]
    assert len(kinds) == 24
    for role in Role:
        for kind in kinds:
            assert ((role, kind) in HANDLERS) != ((role, kind) in IGNORED), (role, kind)
    assert len(HANDLERS) + len(IGNORED) == len(kinds) * len(Role)
    assert all(reason for reason in IGNORED.values())


def test_rule_01_equal_state_and_event_give_equal_effects() -> None:
    def history() -> list[object]:
        raft = make_leader([2, 2])
        return [
            *tell(raft, Propose(token=1, commands=(b"x",))),
            *acknowledge(raft, 5),
            *pass_time(raft, 3.0),
            *tell(raft, vote_request(9)),
        ]

    assert history() == history()


# 2: every request and reply carries sender, store and term ------------------------------------------------------------


def test_rule_02_every_message_names_its_sender_its_store_and_its_term() -> None:
    for kind in PeerMessage.__args__:
        assert issubclass(kind, Message)
        assert {"sender", "sender_store", "term"} <= {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", [AppendEntries, Heartbeat, RequestVote])
def test_rule_02_a_lower_term_is_refused_with_ours(kind: type[PeerMessage]) -> None:
    """A deposed leader's append fits our log perfectly, and is refused all the same (FLAWS S2)."""
    raft = make_raft([2], Ballot(5))
    request = {
        AppendEntries: from_peer(AppendEntries, term=4, prev=EntryId(2, 2), batches=(batch(4, 3),), commit_index=2),
        Heartbeat: from_peer(Heartbeat, term=4, commit_index=2, round=1),
        RequestVote: vote_request(4),
    }[kind]
    at_once, _ = replies_at_once_or_later(tell(raft, request))
    assert [reply.term for reply in at_once] == [5]
    assert (raft.log.last_entry, raft.commit_index, raft.leader_id) == (EntryId(2, 2), 0, "")


@pytest.mark.parametrize(
    "message",
    [
        from_peer(AppendEntries, term=9, prev=EntryId(3, 2), batches=(), commit_index=0),
        from_peer(AppendEntriesReply, term=9, match_index=0, rejected=EntryId(3, 2)),
        from_peer(Heartbeat, term=9, commit_index=0, round=1),
        from_peer(HeartbeatReply, term=9, round=0),
        from_peer(RequestVoteReply, term=9, granted=False),
        from_peer(RequestVoteReply, term=9, granted=False, pre_vote=True),
    ],
    ids=lambda message: type(message).__name__,
)
def test_rule_02_a_higher_term_is_adopted_and_a_leader_steps_down(message: PeerMessage) -> None:
    """Also from a reply, or a follower with a later term would be stuck (FLAWS L2)."""
    raft = make_leader()
    effects = tell(raft, message)
    assert (raft.role, raft.term, raft.voted_for) == (Role.FOLLOWER, 9, "")
    assert WaitersOutcomeUnknown(term=3) in effects
    assert [persist.ballot for persist in only(effects, Persist)] == [Ballot(9)]


@pytest.mark.parametrize(
    "reply",
    [from_peer(AppendEntriesReply, term=2, match_index=3), from_peer(HeartbeatReply, term=2, round=2)],
)
def test_rule_02_an_answer_of_another_term_does_not_count(reply: PeerMessage) -> None:
    """It tells of a log that a later leader may have changed (FLAWS S7)."""
    raft = make_leader()
    write(raft, tell(raft, Propose(token=1, commands=(b"x",))))
    tell(raft, ReadRequested(token=2))
    assert tell(raft, reply) == []
    assert raft.progress["2"].match_index == 2


def test_rule_02_a_replaced_store_is_not_listened_to() -> None:
    """It forgot its votes and entries (FLAWS S14): its vote would be a second one in the same term."""
    raft = make_candidate()
    forgetful = RequestVoteReply(sender="2", sender_store="another", term=3, granted=True)
    assert tell(raft, forgetful) == []
    assert raft.role is Role.CANDIDATE


# 3: appends -----------------------------------------------------------------------------------------------------------


def test_rule_03_entries_that_do_not_follow_the_log_are_rejected() -> None:
    raft = following(2, 2)
    for prev in (EntryId(3, 3), EntryId(2, 9)):
        tell(raft, from_peer(AppendEntries, term=3, prev=prev, batches=(batch(3, prev.index + 1),), commit_index=0))
        assert raft.log.last_entry == EntryId(2, 3)


def test_rule_03_a_conflict_drops_everything_after_it() -> None:
    """A suffix left behind would be a log that never was anyone's (FLAWS S3)."""
    raft = following(2, 2, 2, 2)
    tell(raft, from_peer(AppendEntries, term=3, prev=EntryId(2, 2), batches=(batch(3, 3),), commit_index=0))
    assert raft.log.last_entry == EntryId(3, 3)
    assert raft.log.term_at(4) is None


def test_rule_03_a_message_that_was_overtaken_drops_nothing() -> None:
    raft = following(2, 3, 3)
    tell(raft, from_peer(AppendEntries, term=3, prev=EntryId(1, 1), batches=(batch(2, 2),), commit_index=0))
    assert raft.log.last_entry == EntryId(3, 4)


def test_rule_03_a_configuration_that_is_dropped_is_rolled_back() -> None:
    """Else the node counts a quorum that nobody agreed to (FLAWS S9)."""
    log = log_of([2])
    log.append(configuration_batch(2, 3, configuration("12345")))
    raft = make_raft(log=log, ballot=Ballot(3))
    tell(raft, from_peer(AppendEntries, term=3, prev=EntryId(2, 2), batches=(batch(3, 3),), commit_index=0))
    assert raft.configuration == configuration("123")


def test_rule_03_nothing_committed_is_dropped() -> None:
    """Whatever a leader sends (FLAWS S19)."""
    raft = following(2, 2)
    tell(raft, from_peer(Heartbeat, term=3, commit_index=3, round=2))
    conflict = from_peer(AppendEntries, term=3, prev=EntryId(1, 1), batches=(batch(3, 2),), commit_index=0)
    effects = tell(raft, conflict)
    assert len(only(effects, Alarm)) == 1
    assert (raft.log.last_entry, raft.commit_index) == (EntryId(2, 3), 3)


def test_rule_03_no_more_is_committed_than_the_message_verified() -> None:
    """Ours after it may be the tail of a deposed leader (FLAWS S1)."""
    raft = following(2, 2, 2)
    tell(raft, from_peer(AppendEntries, term=3, prev=EntryId(2, 2), batches=(), commit_index=9))
    assert raft.commit_index == 2


def test_rule_03_a_heartbeat_tells_no_more_than_the_follower_acknowledged() -> None:
    """It has no check of its own, so its commit index must need none (FLAWS S1)."""
    raft = make_leader([2, 2], matched="2")
    effects = pass_time(raft, 0.1)
    assert raft.commit_index == 4
    assert {beat.commit_index for beat in sent(effects, Heartbeat, "3")} == {0}


# 4: commit by counting ------------------------------------------------------------------------------------------------


def test_rule_04_an_entry_of_an_earlier_term_is_not_committed_by_counting() -> None:
    """Figure 3.7: a server with a later term may still be elected, and replace it."""
    raft = make_leader([2, 2], matched="")  # 1.1, 2.2, 2.3, and its own 3.4
    for peer in "23":
        acknowledge(raft, 3, peer)
    assert raft.commit_index == 0
    acknowledge(raft, 4, "2")
    assert raft.commit_index == 4, "with an entry of our term, all before it is safe"


def test_rule_04_we_count_ourselves_only_once_durable() -> None:
    raft = make_leader(matched="2")
    effects = tell(raft, Propose(token=1, commands=(b"x",)))
    acknowledge(raft, 3, "2")
    assert raft.commit_index == 2
    write(raft, effects)
    assert raft.commit_index == 3


def test_rule_04_the_voters_of_the_latest_configuration_count() -> None:
    raft = make_leader(log=log_of(first=configuration("123", learners="4")), matched="")
    acknowledge(raft, 2, "4")
    assert raft.commit_index == 0, "a learner is nobody's majority"
    acknowledge(raft, 2, "3")
    assert raft.commit_index == 2


def test_rule_04_a_leader_outside_the_configuration_does_not_count_itself() -> None:
    """Raft dissertation 4.2.2 (FLAWS S17)."""
    log = log_of([])
    log.append(configuration_batch(2, 2, configuration("23")))
    raft = make_raft(log=log)
    pass_time(raft, 3.0)
    for pre_vote in (True, False):
        for peer in "23":
            write(raft, tell(raft, from_peer(RequestVoteReply, peer, term=3, granted=True, pre_vote=pre_vote)))
    assert raft.role is Role.LEADER
    acknowledge(raft, 3, "2")
    assert raft.commit_index == 0
    acknowledge(raft, 3, "3")
    assert raft.commit_index == 3


# 5: durable before told -----------------------------------------------------------------------------------------------


def test_rule_05_a_vote_is_durable_before_it_is_given() -> None:
    raft = make_raft([2])
    at_once, later = replies_at_once_or_later(tell(raft, vote_request()))
    assert at_once == []
    assert later == [ours(RequestVoteReply, term=3, granted=True)]
    at_once, later = replies_at_once_or_later(tell(raft, vote_request()))
    assert at_once == [], "asked again while the disk is at it"
    assert later == [ours(RequestVoteReply, term=3, granted=True)]


def test_rule_05_a_term_is_durable_before_it_is_told() -> None:
    raft = make_raft([2])
    at_once, later = replies_at_once_or_later(tell(raft, from_peer(Heartbeat, term=7, commit_index=0, round=1)))
    assert at_once == []
    assert later == [ours(HeartbeatReply, term=7, round=1, silent_seconds=1.0)]


def test_rule_05_entries_are_durable_before_they_are_acknowledged() -> None:
    raft = following(2)
    request = from_peer(AppendEntries, term=3, prev=EntryId(2, 2), batches=(batch(3, 3),), commit_index=0)
    for _ in range(2):  # the second time they are in memory already
        at_once, later = replies_at_once_or_later(tell(raft, request))
        assert at_once == []
        assert later == [ours(AppendEntriesReply, term=3, match_index=3)]


def test_rule_05_our_own_vote_counts_and_is_told_once_durable() -> None:
    raft = make_raft([2])
    raft.become_pre_candidate()
    effects = tell(raft, from_peer(RequestVoteReply, term=3, granted=True, pre_vote=True))
    at_once, later = replies_at_once_or_later(effects)
    assert at_once == []
    assert {type(message) for message in later} == {RequestVote}
    tell(raft, from_peer(RequestVoteReply, term=3, granted=True))
    assert raft.role is Role.CANDIDATE, "one vote, as ours is not written down"
    write(raft, effects)
    assert raft.role is Role.LEADER


def test_rule_05_what_was_truncated_meanwhile_does_not_count_as_durable() -> None:
    raft = following(2)
    old = batch(3, 3, b"a", b"b")
    request = from_peer(AppendEntries, term=3, prev=EntryId(2, 2), batches=(old,), commit_index=0)
    persist = only(tell(raft, request), Persist)[0]
    tell(raft, from_peer(AppendEntries, term=4, prev=EntryId(2, 2), batches=(batch(4, 3),), commit_index=0))
    tell(raft, Persisted(sequence=persist.sequence, last_entry=old.last_entry, ballot=None))
    assert raft.durable_index == 2


# 6: reads -------------------------------------------------------------------------------------------------------------


def test_rule_06_a_read_waits_for_an_entry_of_our_own_term() -> None:
    """Before, a leader may not know what its predecessor committed (FLAWS S11)."""
    raft = make_leader([2], matched="")
    for peer in "23":
        tell(raft, promise(raft, peer))  # so it would hold a lease
    for lease in (False, True):
        assert only(tell(raft, ReadRequested(token=int(lease), lease=lease)), ReadConfirmed) == []
    for peer in "23":
        assert only(tell(raft, promise(raft, peer)), ReadConfirmed) == []


def test_rule_06_a_read_needs_a_round_that_started_after_it() -> None:
    raft = make_leader()
    earlier = raft.round
    assert only(tell(raft, ReadRequested(token=1)), ReadConfirmed) == []
    assert tell(raft, from_peer(HeartbeatReply, term=3, round=earlier)) == []
    confirmed = tell(raft, from_peer(HeartbeatReply, term=3, round=earlier + 1))
    assert confirmed == [ReadConfirmed(tokens=(1,), read_index=2)]


def test_rule_06_a_read_that_came_during_a_round_needs_the_next_one() -> None:
    raft = make_leader()
    tell(raft, ReadRequested(token=1))
    round = raft.round
    tell(raft, ReadRequested(token=2))
    effects = tell(raft, from_peer(HeartbeatReply, term=3, round=round))
    assert only(effects, ReadConfirmed) == [ReadConfirmed(tokens=(1,), read_index=2)]


def test_rule_06_a_lease_ends_before_any_follower_may_vote() -> None:
    leader, follower = make_leader(now=100.0), make_raft(ballot=Ballot(3), now=100.0)
    beat(leader, follower)
    while only(tell(leader, ReadRequested(token=1, lease=True)), ReadConfirmed):
        for raft in (leader, follower):
            tell(raft, Tick(now_seconds=raft.now + 0.01))
        refused = sent(tell(follower, vote_request(4, EntryId(9, 9))), RequestVoteReply)
        assert [reply.granted for reply in refused] == [False]
    assert 100.85 < leader.now < 100.95, "a tenth of the election timeout before the promise ends"


@pytest.mark.parametrize("leaders_timeout_seconds", [0.5, 1.0, 4.0])
def test_rule_06_a_lease_rests_on_what_the_follower_promises_whatever_ours_is(leaders_timeout_seconds: float) -> None:
    """While a cluster is tuned, its nodes go by different election timeouts."""
    leader, follower = make_leader(now=100.0), make_raft(ballot=Ballot(3), now=100.0)
    retune(leader, election_timeout_seconds=leaders_timeout_seconds)
    beat(leader, follower)
    while leases(leader):
        for raft in (leader, follower):
            tell(raft, Tick(now_seconds=raft.now + 0.01))
        refused = sent(tell(follower, vote_request(4, EntryId(9, 9))), RequestVoteReply)
        assert [reply.granted for reply in refused] == [False]
    least = min(leaders_timeout_seconds, 1.0)
    assert leader.now == pytest.approx(100.0 + 0.9 * least, abs=0.02)


@pytest.mark.parametrize("heard_again", [False, True])
def test_rule_06_a_follower_tuned_to_less_keeps_what_it_promised(heard_again: bool) -> None:
    """Neither its vote nor its own campaign may come while a lease rests on its silence."""
    leader = make_leader(now=100.0, election_timeout_seconds=4.0)
    follower = make_raft(ballot=Ballot(3), now=100.0, election_timeout_seconds=4.0)
    beat(leader, follower)
    retune(follower, election_timeout_seconds=0.5)
    if heard_again:
        beat(leader, follower)
    while leases(leader):
        for raft in (leader, follower):
            effects = tell(raft, Tick(now_seconds=raft.now + 0.05))
        assert sent(effects, RequestVote) == [], f"it campaigns at {follower.now}"
        refused = sent(tell(follower, vote_request(4, EntryId(9, 9))), RequestVoteReply)
        assert [reply.granted for reply in refused] == [False]
    assert leader.now > 103.5
    assert sent(pass_time(follower, 5.0), RequestVote), "it is not silent for ever"


def test_rule_06_a_follower_tuned_to_more_promises_what_it_would_keep_after_a_restart() -> None:
    """What it was tuned to is gone then; it starts with the timeout of its configuration."""
    leader, follower = make_leader(now=100.0), make_raft(ballot=Ballot(3), now=100.0)
    for raft in (leader, follower):
        retune(raft, election_timeout_seconds=10.0)
    beat(leader, follower)
    restarted = Raft(
        id="1", store_id="s1", ballot=Ballot(3), log=log_of([2]), settings=Settings(), rng=random.Random(1),
        now_seconds=follower.now,
    )  # fmt: skip
    while leases(leader):
        for raft in (leader, restarted):
            tell(raft, Tick(now_seconds=raft.now + 0.05))
        refused = sent(tell(restarted, vote_request(4, EntryId(9, 9))), RequestVoteReply)
        assert [reply.granted for reply in refused] == [False]
    assert leader.now < 101.0


def test_rule_06_a_transfer_ends_the_lease() -> None:
    raft = make_leader()
    tell(raft, promise(raft, "2"))
    tell(raft, TransferRequested(token=1, target="2"))
    assert only(tell(raft, ReadRequested(token=2, lease=True)), ReadConfirmed) == []


def test_rule_06_a_removed_leader_has_no_lease() -> None:
    """The last voter that is left elects itself, and does not wait out a silence when it restarts."""
    raft = make_leader()
    change(raft, RemoveServer(id="1"))
    pass_time(raft, 0.15)
    for peer in "23":
        tell(raft, from_peer(HeartbeatReply, peer, term=3, round=raft.round, silent_seconds=1.0))
    assert only(tell(raft, ReadRequested(token=1, lease=True)), ReadConfirmed) == []
    for peer in "23":  # a round confirms it as ever
        effects = tell(raft, from_peer(HeartbeatReply, peer, term=3, round=raft.round, silent_seconds=1.0))
    assert only(effects, ReadConfirmed) == [ReadConfirmed(tokens=(1,), read_index=raft.commit_index)]


def test_rule_06_step_down_refuses_reads_that_wait() -> None:
    raft = make_leader()
    tell(raft, ReadRequested(token=1))
    effects = tell(raft, from_peer(HeartbeatReply, term=4, round=0))
    assert ReadRefused(tokens=(1,), reason=Reason.STEPPED_DOWN) in effects


# 8: snapshots ---------------------------------------------------------------------------------------------------------


def record(term: int, index: int, voters: str = "123") -> Snapshot:
    return Snapshot(
        last_entry=EntryId(term, index),
        configuration=configuration(voters),
        configuration_index=1,
        size_bytes=10,
        checksum=7,
    )


def cut_leader(base: int = 5, *, matched: str = "23", **settings: int) -> Raft:
    """Leads term 3 over entries 1 to 9, of term 2 but for its no-op, all applied; cut up to base behind snapshot 8."""
    raft = make_leader([2] * 7, matched=matched, trailing_entries=8 - base, **settings)
    tell(raft, Applied(index=raft.commit_index))
    tell(raft, SnapshotRecorded(snapshot=record(2, 8)))
    (cut,) = only(pass_time(raft, 0.05), CompactLog)
    assert cut.index == base
    tell(raft, LogCompacted(base=EntryId(2, base)))
    return raft


def offer(term: int, index: int, *, leader_term: int = 3, sender: str = "2") -> OfferSnapshot:
    return from_peer(OfferSnapshot, sender, term=leader_term, last_entry=EntryId(term, index))


def test_rule_08_a_log_is_cut_behind_a_durable_snapshot_only() -> None:
    raft = make_leader([2] * 7, trailing_entries=0)
    tell(raft, Applied(index=raft.commit_index))
    (effect,) = only(tell(raft, SnapshotMade(index=8, size_bytes=10, checksum=7)), RecordSnapshot)
    assert effect.snapshot == record(2, 8)
    assert not only(pass_time(raft, 0.2), CompactLog), "the catalogue does not have it yet"
    tell(raft, SnapshotRecorded(snapshot=effect.snapshot))
    (cut,) = only(pass_time(raft, 0.2), CompactLog)
    assert cut.index == 8


def test_rule_08_trailing_entries_and_what_is_not_applied_stay() -> None:
    raft = make_leader([2] * 7, trailing_entries=3)
    tell(raft, SnapshotRecorded(snapshot=record(2, 8)))
    assert not only(pass_time(raft, 0.2), CompactLog), "nothing is applied"
    tell(raft, Applied(index=4))
    (cut,) = only(pass_time(raft, 0.2), CompactLog)
    assert cut.index == 4
    tell(raft, LogCompacted(base=EntryId(2, 4)))
    tell(raft, Applied(index=9))
    (cut,) = only(pass_time(raft, 0.2), CompactLog)
    assert cut.index == 5
    assert raft.log.configuration == configuration(), "its entry is gone, it is not"


def test_rule_08_what_a_follower_needs_that_fetches_a_snapshot_stays() -> None:
    raft = cut_leader(matched="2", heartbeat_interval_seconds=10)
    rejected = EntryId(2, 5)
    tell(raft, from_peer(AppendEntriesReply, "3", term=3, match_index=0, rejected=EntryId(2, 8), hint=EntryId(1, 1)))
    (message,) = sent(
        tell(raft, from_peer(AppendEntriesReply, "3", term=3, match_index=0, rejected=rejected, hint=EntryId(1, 1))),
        OfferSnapshot,
        "3",
    )
    assert message.last_entry == EntryId(2, 8)
    retune(raft, trailing_entries=0)
    tell(raft, Propose(token=1, commands=(b"x",) * 10))
    acknowledge(raft, 19, "2")
    write(raft, [Persist(sequence=raft.next_persist - 1, batches=(batch(3, 10, *(b"x",) * 10),))])
    tell(raft, Applied(index=19))
    tell(raft, SnapshotRecorded(snapshot=record(3, 19)))
    (cut,) = only(pass_time(raft, 0.1), CompactLog)
    assert cut.index == 8, "what follows the snapshot that it fetches is needed next"
    tell(raft, LogCompacted(base=EntryId(2, 8)))
    acknowledge(raft, 12, "3")
    (cut,) = only(pass_time(raft, 0.1), CompactLog)
    assert cut.index == 12, "and what it lacks behind our newest one, or it would need that as well"
    tell(raft, LogCompacted(base=EntryId(3, 12)))
    acknowledge(raft, 19, "3")
    (cut,) = only(pass_time(raft, 0.1), CompactLog)
    assert cut.index == 19


def test_rule_08_a_follower_keeps_the_snapshot_that_it_was_offered() -> None:
    raft = cut_leader(matched="2")
    tell(raft, from_peer(AppendEntriesReply, "3", term=3, match_index=0, rejected=EntryId(2, 8), hint=EntryId(1, 1)))
    tell(raft, from_peer(AppendEntriesReply, "3", term=3, match_index=0, rejected=EntryId(2, 5), hint=EntryId(1, 1)))
    tell(raft, SnapshotRecorded(snapshot=record(3, 9)))
    (again,) = sent(tell(raft, PeerConnected(peer="3")), OfferSnapshot, "3")
    assert again.last_entry == EntryId(2, 8), "another one would make it begin anew"
    refused = from_peer(AppendEntriesReply, "3", term=3, match_index=0, rejected=EntryId(2, 8), hint=EntryId(1, 1))
    assert not sent(tell(raft, refused), OfferSnapshot), "it may refuse at once, and again"
    (newer, *_) = sent(pass_time(raft, 0.3), OfferSnapshot, "3")
    assert newer.last_entry == EntryId(3, 9)


def test_rule_08_a_snapshot_of_what_is_committed_is_ignored_and_acknowledged() -> None:
    log = Log(base=EntryId(2, 5), last_entry=EntryId(2, 9), terms=[(6, 2)], configurations=[(1, configuration())])
    raft = make_raft(ballot=Ballot(3), log=log, snapshot=record(2, 8))
    for index in (3, 8):
        effects = tell(raft, offer(2, index))
        assert not only(effects, FetchSnapshot)
        assert sent(effects, AppendEntriesReply) == [ours(AppendEntriesReply, term=3, match_index=index)]
    assert raft.commit_index == 8


def test_rule_08_a_log_that_comes_further_ends_the_fetch() -> None:
    raft = following(2, 2, 2)
    assert only(tell(raft, offer(3, 9)), FetchSnapshot)
    entries = batch(3, 5, *(b"x",) * 5)
    append = from_peer(AppendEntries, term=3, prev=EntryId(2, 4), batches=(entries,), commit_index=9)
    effects = tell(raft, append)
    assert only(effects, CancelFetch)
    write(raft, effects)
    late = tell(raft, SnapshotFetched(leader="2", snapshot=record(3, 9)))
    assert late == [DiscardSnapshot(index=9, fetched=True)]


def test_rule_08_a_log_that_conflicts_gives_way_to_the_snapshot() -> None:
    raft = following(2, 2, 2, 2, 2)  # entry 4 of the leader is of term 3
    assert only(tell(raft, offer(3, 4)), FetchSnapshot) == [FetchSnapshot(leader="2", last_entry=EntryId(3, 4))]
    snapshot = record(3, 4, voters="124")
    effects = tell(raft, SnapshotFetched(leader="2", snapshot=snapshot))
    (persist,) = only(effects, Persist)
    assert persist.reset == snapshot
    assert only(effects, InstallSnapshot) == [InstallSnapshot(snapshot=snapshot)]
    assert raft.log.last_entry == raft.log.base == EntryId(3, 4)
    assert raft.commit_index == 4
    assert not sent(effects, AppendEntriesReply), "it is acknowledged once it is durable"
    assert [send.message for send in persist.then] == [ours(AppendEntriesReply, term=3, match_index=4)]


def test_rule_08_the_configuration_of_an_installed_snapshot_comes_into_force() -> None:
    raft = following(2)
    tell(raft, offer(3, 40))
    effects = tell(raft, SnapshotFetched(leader="2", snapshot=record(3, 40, voters="124")))
    (changed,) = only(effects, ConfigurationChanged)
    assert changed.configuration == raft.configuration == configuration("124")


def test_rule_08_a_log_that_agrees_by_now_is_kept() -> None:
    raft = following(2, 2, 2)
    tell(raft, offer(3, 9))
    entries = batch(3, 5, *(b"x",) * 7)
    append = from_peer(AppendEntries, term=3, prev=EntryId(2, 4), batches=(entries,), commit_index=0)
    write(raft, tell(raft, append))
    effects = tell(raft, SnapshotFetched(leader="2", snapshot=record(3, 9)))
    assert only(effects, RecordSnapshot) == [RecordSnapshot(snapshot=record(3, 9))]
    assert not only(effects, InstallSnapshot)
    assert (raft.commit_index, raft.log.last_entry) == (9, EntryId(3, 11))


def test_rule_08_a_snapshot_is_installed_after_what_the_app_was_handed_before() -> None:
    raft = following(2, 2, 2)
    write(raft, tell(raft, from_peer(AppendEntries, term=3, prev=EntryId(2, 4), batches=(), commit_index=3)))
    assert raft.handed_to_app == 3
    tell(raft, offer(3, 40))
    effects = tell(raft, SnapshotFetched(leader="2", snapshot=record(3, 40)))
    assert not only(effects, InstallSnapshot)
    effects = tell(raft, Applied(index=3))
    assert only(effects, InstallSnapshot) == [InstallSnapshot(snapshot=record(3, 40))]
    assert raft.last_applied == 3
    tell(raft, Applied(index=40))
    assert raft.last_applied == 40


def test_rule_08_a_snapshot_comes_from_the_leader_we_know_only() -> None:
    raft = following(2)
    tell(raft, offer(2, 40))
    effects = tell(raft, from_peer(Heartbeat, "3", term=4, commit_index=0, round=1))
    assert only(effects, CancelFetch)
    assert tell(raft, SnapshotFetched(leader="2", snapshot=record(2, 40))) == [DiscardSnapshot(index=40, fetched=True)]
    (fetch,) = only(tell(raft, offer(4, 50, leader_term=4, sender="3")), FetchSnapshot)
    assert fetch.leader == "3"


def test_rule_08_appends_and_heartbeats_are_answered_during_a_fetch() -> None:
    raft = following(2, 2)
    tell(raft, offer(3, 40))
    effects = tell(raft, from_peer(AppendEntries, term=3, prev=EntryId(2, 3), batches=(), commit_index=3))
    assert sent(effects, AppendEntriesReply) == [ours(AppendEntriesReply, term=3, match_index=3)]
    assert sent(tell(raft, from_peer(Heartbeat, term=3, commit_index=3, round=2)), HeartbeatReply)
    assert not only(tell(raft, offer(3, 40)), FetchSnapshot), "and it goes on where it is when it is offered again"


# 7: members change one step at a time, learners first ---------------------------------------------------------------


def change(raft: Raft, wanted: MembershipChange, token: int = 50) -> list[object]:
    """Ask for it; our own disk takes what is appended."""
    effects = tell(raft, ChangeMembership(token=token, change=wanted, timeout_seconds=30.0))
    return [*effects, *write(raft, effects)]


def everyone_acknowledges(raft: Raft, peers: str) -> list[object]:
    """What the peers hold is all of the log by now; and what comes of that is on our disk."""
    effects: list[object] = []
    for peer in peers:
        if peer in raft.progress:
            got = acknowledge(
                raft, raft.progress[peer].next_index - 1, peer
            )  # a probe's answer, or the last that was sent
            got += acknowledge(raft, raft.log.last_entry.index, peer)
            effects += [*got, *write(raft, got)]
    return effects


def ended(effects: list[object]) -> list[ChangeOutcome]:
    return [effect.outcome for effect in only(effects, ChangeEnded)]


def shape(value: Configuration) -> tuple[str, str, str]:
    """Ids of voters, learners, outgoing voters."""
    groups = (value.voters, value.learners, value.outgoing)
    return tuple("".join(member.id for member in group) for group in groups)  # type: ignore[return-value]


ADD_4 = AddServer(id="4", address="4.test:1", store_id="s4")


def test_rule_07_a_new_server_is_a_learner_until_it_has_caught_up() -> None:
    """A voter at once could cost the quorum, with an address that was mistyped for good (FLAWS L13)."""
    raft = make_leader()
    effects = change(raft, ADD_4)
    assert shape(raft.configuration) == ("123", "4", "")
    effects += everyone_acknowledges(raft, "23")
    assert raft.commit_index == raft.log.configuration_index
    assert shape(raft.configuration) == ("123", "4", ""), "committed, but 4 has nothing yet"
    effects += everyone_acknowledges(raft, "4")
    assert shape(raft.configuration) == ("1234", "", "")
    assert ended(effects) == [], "a step is under way"
    assert ended(everyone_acknowledges(raft, "23")) == [ChangeOutcome.DONE]


def test_rule_07_catching_up_goes_in_rounds() -> None:
    """A server that holds what was there at the beginning may still lack minutes of writes (4.2.1)."""
    raft = make_leader()
    change(raft, ADD_4)
    everyone_acknowledges(raft, "23")
    raft.progress["4"].heard_at_seconds = raft.now
    held = raft.log.last_entry.index
    tell(raft, Propose(token=1, commands=(b"x", b"y")))
    raft.change.catching_up["4"].began_at_seconds -= 1.5  # type: ignore[union-attr]
    acknowledge(raft, 0, "4")
    acknowledge(raft, held, "4")
    assert shape(raft.configuration) == ("123", "4", ""), "the round took longer than an election timeout"
    acknowledge(raft, held + 2, "4")
    assert shape(raft.configuration) == ("1234", "", "")


@pytest.mark.parametrize("answered", [False, True])
def test_rule_07_who_does_not_catch_up_is_out_again(answered: bool) -> None:
    raft = make_leader()
    effects = change(raft, ADD_4) + everyone_acknowledges(raft, "23")
    if answered:
        effects += tell(raft, from_peer(HeartbeatReply, "4", term=3, round=raft.round))
        acknowledge(raft, 0, "4")
    for _ in range(60 if not answered else 320):
        effects += pass_time(raft, 0.1)
        for peer in "234" if answered else "23":
            effects += tell(raft, from_peer(HeartbeatReply, peer, term=3, round=raft.round))
        if raft.change is not None and raft.change.given_up:
            break
    effects += everyone_acknowledges(raft, "23")
    assert ended(effects) == [ChangeOutcome.GIVEN_UP]
    (last,) = only(effects, ChangeEnded)
    assert last.sentence.startswith("4 at 4.test:1 still lacks" if answered else "4 at 4.test:1 never answered")
    assert shape(raft.configuration) == ("123", "", "")


def test_rule_07_one_change_at_a_time() -> None:
    """Two that start from one configuration lose one of them, and their majorities need not meet (FLAWS S10)."""
    raft = make_leader()
    change(raft, RemoveServer(id="3"))
    before = raft.log.last_entry
    effects = change(raft, RemoveServer(id="2"), token=51)
    assert [(effect.token, effect.outcome) for effect in only(effects, ChangeEnded)] == [(51, ChangeOutcome.PENDING)]
    assert raft.log.last_entry == before
    assert ended(everyone_acknowledges(raft, "2")) == [ChangeOutcome.DONE]
    change(raft, RemoveServer(id="2"), token=52)
    assert shape(raft.configuration) == ("1", "", "")


def test_rule_07_a_step_waits_for_the_one_before() -> None:
    raft = make_leader()
    change(raft, AddServer(id="4", address="4.test:1", learner=True))
    everyone_acknowledges(raft, "4")
    assert shape(raft.configuration) == ("123", "4", "")
    assert raft.commit_index < raft.log.configuration_index
    raft.change = None  # as if the first caller had been told
    change(raft, PromoteServer(id="4"))
    everyone_acknowledges(raft, "4")
    assert shape(raft.configuration) == ("123", "4", ""), "the learner's entry is not committed"
    everyone_acknowledges(raft, "2")
    assert shape(raft.configuration) == ("1234", "", "")


def test_rule_07_a_change_waits_for_an_entry_of_our_term() -> None:
    """An earlier leader's change may be about, which a majority of ours need not meet (raft-dev, 2015)."""
    raft = make_leader(matched="")
    raft.commit_index = 1  # as an earlier leader had told us
    change(raft, RemoveServer(id="3"))
    assert shape(raft.configuration) == ("123", "", "")
    everyone_acknowledges(raft, "2")
    assert shape(raft.configuration) == ("12", "", "")


def test_rule_07_a_configuration_is_in_force_when_it_is_appended() -> None:
    raft = following(2)
    wider = configuration("1234")
    request = from_peer(
        AppendEntries, term=3, prev=EntryId(2, 2), batches=(configuration_batch(3, 3, wider),), commit_index=0
    )
    assert only(tell(raft, request), ConfigurationChanged) == [ConfigurationChanged(configuration=wider, index=3)]
    assert (raft.configuration, raft.commit_index) == (wider, 0)


def test_rule_07_several_voters_change_through_a_joint_configuration() -> None:
    """Majorities of 1 2 3 and of 1 4 5 need not meet (4.3)."""
    raft = make_leader(log=log_of(first=configuration("123", learners="45")))
    effects = change(raft, ReplaceMembers(voters=(Member("1", ""), Member("4", ""), Member("5", ""))))
    effects += everyone_acknowledges(raft, "45")
    assert shape(raft.configuration) == ("145", "", "123")
    effects += everyone_acknowledges(raft, "45")
    assert raft.commit_index < raft.log.configuration_index, "no majority of the old voters holds it"
    assert shape(raft.configuration) == ("145", "", "123")
    effects += everyone_acknowledges(raft, "2")
    assert shape(raft.configuration) == ("145", "", ""), "left as soon as it is committed"
    assert ended(effects) == []
    assert ended(everyone_acknowledges(raft, "45")) == [ChangeOutcome.DONE]


def test_rule_07_a_new_leader_leaves_the_joint_configuration_of_a_dead_one() -> None:
    raft = make_leader(log=log_of(first=configuration("124", outgoing="123")), matched="")
    everyone_acknowledges(raft, "2")
    assert shape(raft.configuration) == ("124", "", "")


def test_rule_07_the_last_voter_stays() -> None:
    """Else nobody could ever write, or add anybody, again (FLAWS X12)."""
    raft = make_raft(log=log_of(first=configuration("1", learners="2")))
    write(raft, write(raft, write(raft, pass_time(raft, 3.0))))
    assert raft.role is Role.LEADER
    before = raft.log.last_entry
    for wanted in (RemoveServer(id="1"), DemoteServer(id="1"), ReplaceMembers(voters=())):
        (refused,) = only(change(raft, wanted), ChangeEnded)
        assert refused.outcome is ChangeOutcome.REFUSED
        assert "without a voter" in refused.sentence
    assert raft.log.last_entry == before


def test_rule_07_nobody_is_let_in_under_the_id_of_another_store() -> None:
    """Its votes and entries were lost with the old one (3.8)."""
    raft = make_leader()
    (refused,) = only(change(raft, AddServer(id="3", address="3.test:1", store_id="another")), ChangeEnded)
    assert refused.outcome is ChangeOutcome.REFUSED
    assert "taken by another store" in refused.sentence
    assert ended(change(raft, AddServer(id="3", address="3.test:1", store_id="s3"))) == [ChangeOutcome.DONE]


def test_rule_07_a_change_that_could_never_be_committed_is_refused() -> None:
    raft = make_leader()
    raft.progress["2"].heard_at_seconds -= 10
    assert ended(change(raft, RemoveServer(id="3"))) == [ChangeOutcome.REFUSED]
    assert shape(raft.configuration) == ("123", "", "")


def test_rule_07_a_removed_leader_leads_until_that_is_committed_and_hands_over() -> None:
    """It does not count itself (4.2.2; FLAWS S17, L11)."""
    raft = make_leader()
    effects = change(raft, RemoveServer(id="1"))
    effects += acknowledge(raft, raft.log.last_entry.index, "2")
    assert ended(effects) == []
    assert sent(pass_time(raft, 0.15), Heartbeat, "3"), "it is still the leader, and says so"
    effects = acknowledge(raft, raft.log.last_entry.index, "3")
    assert ended(effects) == [ChangeOutcome.DONE]
    assert only(effects, Removed) == [Removed(index=raft.log.configuration_index)]
    assert len(sent(effects, TimeoutNow)) == 1
    assert not election.may_campaign(raft)
    for _ in range(12):
        pass_time(raft, 0.1)
        tell(raft, from_peer(HeartbeatReply, "2", term=raft.term, round=raft.round))
    assert raft.role is Role.FOLLOWER, "whether anybody took over or not"


def test_rule_07_a_removed_leader_learns_at_once_that_its_heir_stands_for_election() -> None:
    """As nobody asks for its vote, it would lead on until a heartbeat is answered, and keep its callers waiting."""
    heir = make_raft([1])
    removal = configuration_batch(2, 3, configuration("13"))
    write(heir, tell(heir, from_peer(AppendEntries, term=2, prev=EntryId(1, 2), batches=(removal,), commit_index=3)))
    effects = tell(heir, from_peer(TimeoutNow, term=2))
    asked = {send.to for persist in only(effects, Persist) for send in persist.then}
    assert asked == {"2", "3"}
    assert "2" in heir.addresses, "so it must stay reachable"
    write(heir, effects)
    tell(heir, from_peer(RequestVoteReply, term=3, granted=True))
    assert heir.role is Role.CANDIDATE, "its vote counts for nothing"
    tell(heir, from_peer(RequestVoteReply, "3", term=3, granted=True))
    assert heir.role is Role.LEADER
    assert heir.addresses.keys() == {"3"}


def test_rule_07_a_removed_server_gets_its_removal() -> None:
    raft = make_leader()
    effects = change(raft, RemoveServer(id="3"))
    assert [message.batches[-1].configuration for message in sent(effects, AppendEntries, "3")] == [raft.configuration]
    everyone_acknowledges(raft, "23")
    beats = sent(pass_time(raft, 0.15), Heartbeat, "3")
    assert beats[-1].commit_index == raft.log.configuration_index, "and that it is committed"
    tell(raft, from_peer(HeartbeatReply, "2", term=3, round=raft.round))
    pass_time(raft, 0.5)
    tell(raft, from_peer(HeartbeatReply, "2", term=3, round=raft.round))
    assert sent(pass_time(raft, 0.9), Heartbeat, "3")[5:] == [], "then it is left alone"


def test_rule_07_a_server_whose_removal_may_need_its_log_stands_for_election() -> None:
    """Two servers, the leader removed, only it has the entry, and restarts (4.2.2, FLAWS L12)."""
    log = log_of(first=configuration("12"))
    log.append(configuration_batch(2, 2, configuration("2")))
    raft = make_raft(log=log)
    pass_time(raft, 3.0)
    assert raft.role is Role.PRE_CANDIDATE
    write(raft, tell(raft, from_peer(RequestVoteReply, term=3, granted=True, pre_vote=True)))
    assert raft.role is Role.CANDIDATE, "it asks for votes, and does not count its own"
    tell(raft, from_peer(RequestVoteReply, term=3, granted=True))
    assert raft.role is Role.LEADER


def test_rule_07_who_is_told_that_it_is_out_keeps_still() -> None:
    raft = make_raft([2])
    raft.become_pre_candidate()
    told = from_peer(RequestVoteReply, term=2, granted=False, pre_vote=True, removed_at=7)
    assert only(tell(raft, told), Removed) == [Removed(index=7)]
    assert raft.role is Role.FOLLOWER
    assert sent(pass_time(raft, 10.0), RequestVote) == []
    again = configuration_batch(3, 9, configuration())
    filler = tuple(batch(2, index) for index in range(3, 9))
    tell(raft, from_peer(AppendEntries, term=3, prev=EntryId(2, 2), batches=(*filler, again), commit_index=0))
    assert sent(pass_time(raft, 10.0), RequestVote), "let in again, it takes part again"


def test_rule_07_an_older_configuration_without_us_says_nothing() -> None:
    log = log_of([2] * 6)
    log.append(configuration_batch(2, 8, configuration()))
    raft = make_raft(log=log)
    raft.become_pre_candidate()
    told = from_peer(RequestVoteReply, term=2, granted=False, pre_vote=True, removed_at=7)
    assert only(tell(raft, told), Removed) == []
    assert raft.role is Role.PRE_CANDIDATE


def test_rule_07_who_asks_for_votes_hears_that_it_is_out() -> None:
    log = log_of([2], first=configuration("1234"))
    log.append(configuration_batch(2, 3, configuration("123")))
    raft = make_raft(log=log, ballot=Ballot(3))
    request = vote_request(term=4, last_entry=EntryId(2, 2), sender="4", pre_vote=True)
    assert [reply.removed_at for reply in sent(tell(raft, request), RequestVoteReply)] == [0], "not committed yet"
    tell(raft, from_peer(AppendEntries, term=3, prev=EntryId(2, 3), batches=(), commit_index=3))
    assert [reply.removed_at for reply in sent(tell(raft, request), RequestVoteReply)] == [3]


def test_rule_07_a_vote_is_given_whatever_our_configuration_says() -> None:
    """Neither the candidate nor we ourselves stand in it: others have a later one (4.1, FLAWS R5)."""
    raft = make_raft([2], log=log_of([2], first=configuration("23")))
    effects = tell(raft, vote_request(sender="4"))
    (reply,) = [send.message for persist in only(effects, Persist) for send in persist.then]
    assert isinstance(reply, RequestVoteReply)
    assert reply.granted


def test_rule_07_without_voters_nothing_is_decided() -> None:
    """No majority of nobody, and no crash over an empty list either (FLAWS R10)."""
    raft = make_raft(log=Log())
    assert pass_time(raft, 10.0) == []
    assert raft.role is Role.FOLLOWER
    assert replication.agreed_index(raft, 9) == 0


# 9: elections disturb nobody ------------------------------------------------------------------------------------------


def test_rule_09_a_campaign_starts_with_a_pre_vote_that_changes_nothing() -> None:
    raft = make_raft([2])
    effects = pass_time(raft, 10.0)
    assert raft.term == 2
    assert only(effects, Persist) == []
    assert {message.pre_vote for message in sent(effects, RequestVote)} == {True}


def test_rule_09_a_leader_without_its_quorum_steps_down() -> None:
    raft = make_leader()
    pass_time(raft, 1.6)
    assert raft.role is Role.FOLLOWER


@pytest.mark.parametrize("pre_vote", [False, True])
def test_rule_09_a_leader_refuses_votes(pre_vote: bool) -> None:
    """Else one follower with a cut in one direction could depose it for ever (FLAWS L4)."""
    raft = make_leader()
    effects = tell(raft, vote_request(9, EntryId(9, 9), pre_vote=pre_vote))
    assert [reply.granted for reply in sent(effects, RequestVoteReply)] == [False]
    assert (raft.role, raft.term) == (Role.LEADER, 3)


@pytest.mark.parametrize("pre_vote", [False, True])
def test_rule_09_who_hears_a_leader_refuses_votes(pre_vote: bool) -> None:
    raft = following(2)
    effects = tell(raft, vote_request(9, EntryId(9, 9), sender="3", pre_vote=pre_vote))
    assert [reply.granted for reply in sent(effects, RequestVoteReply)] == [False]
    assert raft.term == 3


def test_rule_09_who_restarts_keeps_its_silence() -> None:
    raft = Raft(
        id="1", store_id="s1", ballot=Ballot(3), log=log_of([2]), settings=Settings(), rng=random.Random(1),
        now_seconds=5.0,
    )  # fmt: skip
    assert [reply.granted for reply in sent(tell(raft, vote_request(4)), RequestVoteReply)] == [False]
    tell(raft, Tick(now_seconds=6.0))
    assert only(tell(raft, vote_request(4)), Persist)[0].ballot == Ballot(4, "2")


@pytest.mark.parametrize(
    "message",
    [
        from_peer(AppendEntries, term=3, prev=EntryId(2, 2), batches=(), commit_index=0),
        from_peer(Heartbeat, term=3, commit_index=0, round=2),
        vote_request(3),
    ],
    ids=lambda message: type(message).__name__,
)
def test_rule_09_appends_heartbeats_and_votes_given_put_a_campaign_off(message: PeerMessage) -> None:
    """FLAWS L14."""
    raft = make_raft([2], Ballot(3))
    wait = raft.detector.suspect_after_seconds()
    if not isinstance(message, RequestVote):
        tell(raft, message)  # it is known as the leader already
    pass_time(raft, wait - 0.1)
    write(raft, tell(raft, message))
    pass_time(raft, wait - 0.1)
    assert (raft.role, raft.campaign_at_seconds) == (Role.FOLLOWER, None)
    pass_time(raft, 5.0)  # a real silence is noticed, though
    assert raft.role is Role.PRE_CANDIDATE


def test_rule_09_regular_heartbeats_do_not_make_the_detector_nervous() -> None:
    """FLAWS L15: a floor on the deviation, and an allowed pause."""
    raft = following(2)
    for round in range(2, 200):
        tell(raft, Tick(now_seconds=raft.now + 0.1))
        tell(raft, from_peer(Heartbeat, term=3, commit_index=0, round=round))
    pass_time(raft, 1.05)  # beyond the silence that we promised it
    assert raft.role is Role.FOLLOWER
    assert raft.campaign_at_seconds is None


# 10: waiting calls always end -----------------------------------------------------------------------------------------


def test_rule_10_a_proposal_is_registered_before_anyone_can_see_it() -> None:
    """FLAWS L21: the answer could otherwise be there before its caller."""
    raft = make_leader()
    effects = tell(raft, Propose(token=7, commands=(b"a", b"b")))
    assert effects[0] == ProposalAccepted(token=7, term=3, first_index=3, count=2)
    assert len(effects) > 1


def test_rule_10_step_down_ends_all_that_waits() -> None:
    raft = make_leader()
    pass_time(raft, 1.0)
    tell(raft, Propose(token=1, commands=(b"x",)))
    tell(raft, TransferRequested(token=2, target="2"))
    tell(raft, ReadRequested(token=3))
    effects = pass_time(raft, 0.6)
    assert only(effects, WaitersOutcomeUnknown) == [WaitersOutcomeUnknown(term=3)]
    assert only(effects, TransferEnded) == [TransferEnded(token=2, reason=Reason.STEPPED_DOWN)]
    assert only(effects, ReadRefused) == [ReadRefused(tokens=(3,), reason=Reason.STEPPED_DOWN)]


def test_rule_10_commitment_is_told_once_and_without_gaps() -> None:
    raft = make_leader()
    told = 2
    for token in range(5):
        tell(raft, Propose(token=token, commands=(b"x",) * (token + 1)))
        effects = acknowledge(raft, raft.log.last_entry.index, "2")
        effects += acknowledge(raft, raft.log.last_entry.index, "3")
        for committed in only(effects, Committed):
            assert committed.first_index == told + 1
            told = committed.last_index
    assert told == raft.log.last_entry.index


def test_rule_10_a_target_is_asked_once_all_that_we_took_is_committed() -> None:
    """What is not would end as unknown for its callers when we step down, though most of it is committed later."""
    raft = make_leader()
    effects = tell(raft, Propose(token=1, commands=(b"x",)))
    effects += tell(raft, TransferRequested(token=2, target="2"))
    effects += acknowledge(raft, raft.log.last_entry.index, "2")
    assert sent(effects, TimeoutNow) == [], "our own disk does not have it yet, nor has 3"
    assert sent(acknowledge(raft, raft.log.last_entry.index, "3"), TimeoutNow, "2")


def test_rule_10_a_transfer_always_ends() -> None:
    raft = make_leader()
    tell(raft, TransferRequested(token=1, target="2"))
    ended = []
    for _ in range(12):
        ended += only(pass_time(raft, 0.1), TransferEnded)
        tell(raft, from_peer(HeartbeatReply, "3", term=3, round=raft.round))
    assert ended == [TransferEnded(token=1, reason=Reason.TIMED_OUT)]


# 11: nothing from outside reaches an assert; test_properties.py sends anything in any role ----------------------------


def test_rule_11_the_highest_term_there_is_does_no_harm() -> None:
    """FLAWS X3: the next one would not fit the store."""
    raft = make_raft([2])
    write(raft, tell(raft, vote_request(INDEX_MAX, EntryId(1, 1))))
    effects = pass_time(raft, 10.0)
    assert raft.term == INDEX_MAX
    assert sent(effects, RequestVote) == []


def test_rule_11_answers_about_what_was_never_sent_do_no_harm() -> None:
    raft = make_leader()
    absurd = EntryId(INDEX_MAX, INDEX_MAX)
    for reply in (
        from_peer(AppendEntriesReply, term=3, match_index=INDEX_MAX),
        from_peer(AppendEntriesReply, term=3, match_index=0, rejected=absurd, hint=absurd),
        from_peer(AppendEntriesReply, term=3, match_index=0, rejected=EntryId(0, 0), hint=EntryId(0, 0)),
        from_peer(HeartbeatReply, term=3, round=INDEX_MAX),
    ):
        tell(raft, reply)
    assert raft.progress["2"].match_index == 2
    assert raft.role is Role.LEADER


def test_rule_11_a_forged_second_leader_of_our_term_does_no_harm() -> None:
    raft = make_leader([2])
    for message in (
        from_peer(AppendEntries, term=3, prev=EntryId(1, 1), batches=(batch(3, 2),), commit_index=9),
        from_peer(Heartbeat, term=3, commit_index=INDEX_MAX, round=1),
        from_peer(TimeoutNow, term=3),
    ):
        assert tell(raft, message) == []
    assert (raft.role, raft.log.last_entry, raft.commit_index) == (Role.LEADER, EntryId(3, 3), 3)
