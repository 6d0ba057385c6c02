"""The log on its way to the others, on both sides, and what that commits (Raft dissertation 3.5, 3.6.2, 10.2)."""

from __future__ import annotations

import pytest
from core_servers import (
    acknowledge,
    batch,
    configuration,
    configuration_batch,
    from_peer,
    log_of,
    make_leader,
    make_raft,
    noop,
    only,
    ours,
    pass_time,
    sent,
    tell,
    write,
)

from geraft.core.effects import (
    Alarm,
    Apply,
    Committed,
    ConfigurationChanged,
    LeaderChanged,
    LoadEntries,
    Persist,
    ProposalAccepted,
    ProposalRefused,
    Reason,
    Role,
    Send,
    TruncatedTo,
)
from geraft.core.entries import Ballot, EntryBatch, EntryId
from geraft.core.events import (
    Applied,
    EntriesLoaded,
    PeerConnected,
    PeerDisconnected,
    Persisted,
    Propose,
    ReadRequested,
    Tick,
)
from geraft.core.membership import Configuration
from geraft.core.messages import AppendEntries, AppendEntriesReply, Heartbeat, HeartbeatReply, RequestVoteReply
from geraft.core.progress import Pace
from geraft.core.raft import Raft


def append(
    prev: EntryId, *batches: EntryBatch, term: int = 3, commit_index: int = 0, sender: str = "2"
) -> AppendEntries:
    return from_peer(AppendEntries, sender, term=term, prev=prev, batches=batches, commit_index=commit_index)


def follower(*terms: int, ballot: Ballot = Ballot(3)) -> Raft:  # noqa: B008  # a NamedTuple never changes
    """In term 3, following 2."""
    raft = make_raft(terms, ballot)
    tell(raft, from_peer(Heartbeat, term=3, commit_index=0, round=1))
    return raft


def accepted(match_index: int) -> AppendEntriesReply:
    return ours(AppendEntriesReply, term=3, match_index=match_index)


# The follower ---------------------------------------------------------------------------------------------------------


def test_entries_are_durable_before_they_are_acknowledged() -> None:
    raft = follower(2)
    new = batch(3, 3, b"a", b"b")
    assert tell(raft, append(EntryId(2, 2), new)) == [
        Persist(sequence=1, batches=(new,), then=(Send(to="2", message=accepted(4)),))
    ]


def test_what_we_hold_already_is_acknowledged_at_once() -> None:
    raft = follower(2, 3)
    assert tell(raft, append(EntryId(2, 2), batch(3, 3))) == [Send(to="2", message=accepted(3))]


def test_what_we_hold_but_the_disk_does_not_yet_is_acknowledged_behind_it() -> None:
    raft = follower(2)
    tell(raft, append(EntryId(2, 2), batch(3, 3)))
    assert tell(raft, append(EntryId(2, 2), batch(3, 3))) == [
        Persist(sequence=2, then=(Send(to="2", message=accepted(3)),))
    ]


@pytest.mark.parametrize(
    ("prev", "hint"),
    [
        (EntryId(3, 9), EntryId(2, 3)),  # beyond our end
        (EntryId(3, 3), EntryId(2, 3)),  # another term there
        (EntryId(1, 3), EntryId(1, 1)),  # an earlier term there: all of term 2 is skipped
    ],
)
def test_a_message_that_does_not_follow_our_log_is_rejected_with_a_hint(prev: EntryId, hint: EntryId) -> None:
    raft = follower(2, 2)
    rejection = ours(AppendEntriesReply, term=3, match_index=0, rejected=prev, hint=hint)
    assert tell(raft, append(prev, batch(3, prev.index + 1), commit_index=9)) == [Send(to="2", message=rejection)]
    assert raft.commit_index == 0


def test_what_conflicts_is_dropped_with_all_that_follows_it() -> None:
    raft = follower(2, 2, 2, 2)
    new = batch(3, 3)
    assert tell(raft, append(EntryId(2, 2), new)) == [
        TruncatedTo(last=EntryId(2, 2)),
        Persist(sequence=1, batches=(new,), then=(Send(to="2", message=accepted(3)),)),
    ]
    assert raft.log.last_entry == EntryId(3, 3)


def test_a_conflict_in_the_middle_of_a_message_keeps_what_agrees() -> None:
    raft = follower(2, 2, 2)
    assert tell(raft, append(EntryId(1, 1), batch(2, 2, b"x", b"x"), batch(3, 4, b"y"))) == [
        TruncatedTo(last=EntryId(2, 3)),
        Persist(sequence=1, batches=(batch(3, 4, b"y"),), then=(Send(to="2", message=accepted(4)),)),
    ]


def test_an_old_message_does_not_shorten_the_log() -> None:
    """It was overtaken by one that brought more."""
    raft = follower(2, 3, 3, 3)
    assert tell(raft, append(EntryId(2, 2), batch(3, 3))) == [Send(to="2", message=accepted(3))]
    assert raft.log.last_entry == EntryId(3, 5)


def test_a_configuration_is_in_force_when_appended_and_rolled_back_when_dropped() -> None:
    raft = follower(2)
    wider = configuration("1234")
    assert ConfigurationChanged(configuration=wider, index=3) in tell(
        raft, append(EntryId(2, 2), configuration_batch(3, 3, wider))
    )
    effects = tell(raft, append(EntryId(2, 2), batch(4, 3), term=4))
    assert ConfigurationChanged(configuration=configuration(), index=1) in effects
    assert raft.configuration == configuration()


def test_nothing_committed_is_ever_dropped() -> None:
    raft = follower(2, 2)
    tell(raft, append(EntryId(2, 3), commit_index=3))
    effects = tell(raft, append(EntryId(1, 1), batch(3, 2), term=4))
    assert len(only(effects, Alarm)) == 1
    assert "3.2" in only(effects, Alarm)[0].sentence
    assert sent(effects, AppendEntriesReply) == []
    assert raft.log.last_entry == EntryId(2, 3)


@pytest.mark.parametrize(
    ("message", "commit_index"),
    [
        (append(EntryId(2, 2), commit_index=9), 2),  # a probe verifies up to its prev, whatever is committed elsewhere
        (append(EntryId(2, 2), batch(2, 3), commit_index=9), 3),
        (append(EntryId(2, 2), batch(2, 3), commit_index=1), 1),
        (append(EntryId(2, 9), commit_index=9), 0),
    ],
)
def test_no_more_is_committed_than_the_message_verified(message: AppendEntries, commit_index: int) -> None:
    raft = follower(2, 2, 2)
    tell(raft, message)
    assert raft.commit_index == commit_index


def test_a_heartbeat_commits_what_it_says_and_the_app_gets_it() -> None:
    raft = follower(2)
    tell(raft, append(EntryId(2, 2), batch(3, 3, b"a", b"b")))
    assert tell(raft, from_peer(Heartbeat, term=3, commit_index=4, round=2)) == [
        Committed(first_index=1, last_index=4),
        Apply(
            first_index=1,
            last_index=4,
            batches=(configuration_batch(1, 1, configuration()), batch(2, 2), batch(3, 3, b"a", b"b")),
        ),
        Send(to="2", message=ours(HeartbeatReply, term=3, round=2, silent_seconds=1.0)),
    ]


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        (
            append(EntryId(2, 2), batch(2, 3), term=2),
            ours(AppendEntriesReply, term=3, match_index=0, rejected=EntryId(2, 2), hint=EntryId(2, 2)),
        ),
        (from_peer(Heartbeat, term=2, commit_index=2, round=7), ours(HeartbeatReply, term=3, round=0)),
    ],
)
def test_a_deposed_leader_is_told_our_term_and_nothing_else_happens(
    message: AppendEntries | Heartbeat, reply: AppendEntriesReply | HeartbeatReply
) -> None:
    raft = make_raft([2], Ballot(3))
    assert tell(raft, message) == [Send(to="2", message=reply)]


def test_a_new_term_is_durable_before_a_heartbeat_is_answered() -> None:
    raft = make_raft([2])
    assert tell(raft, from_peer(Heartbeat, term=3, commit_index=0, round=1)) == [
        LeaderChanged(leader="2", term=3),
        Persist(
            sequence=1,
            ballot=Ballot(3),
            then=(Send(to="2", message=ours(HeartbeatReply, term=3, round=1, silent_seconds=1.0)),),
        ),
    ]
    # So are those that come before the disk is done.
    assert only(tell(raft, from_peer(Heartbeat, term=3, commit_index=0, round=2)), Send) == []


def test_a_slow_disk_does_not_delay_heartbeats() -> None:
    raft = follower(2)
    tell(raft, append(EntryId(2, 2), batch(3, 3)))
    assert sent(tell(raft, from_peer(Heartbeat, term=3, commit_index=0, round=2)), HeartbeatReply)


def test_a_replaced_store_is_not_listened_to() -> None:
    raft = follower(2)
    stranger = from_peer(AppendEntries, "9", term=9, prev=EntryId(2, 2), batches=(), commit_index=0)
    replaced = AppendEntries(sender="2", sender_store="another", term=9, prev=EntryId(2, 2), batches=(), commit_index=0)
    assert tell(raft, replaced) == []
    tell(raft, stranger)
    assert raft.leader_id == "9", "a stranger may be a member by a configuration that we lack (4.1)"


# The leader -----------------------------------------------------------------------------------------------------------


def test_a_proposal_leaves_for_the_followers_and_the_disk_at_once() -> None:
    raft = make_leader([2])  # 1.1, 2.2, and its no-op 3.3
    new = batch(3, 4, b"a", b"b")
    message = ours(AppendEntries, term=3, prev=EntryId(3, 3), batches=(new,), commit_index=3)
    assert tell(raft, Propose(token=5, commands=(b"a", b"b"))) == [
        ProposalAccepted(token=5, term=3, first_index=4, count=2),
        Send(to="2", message=message),
        Send(to="3", message=message),
        Persist(sequence=3, batches=(new,)),
    ]


def test_the_next_batch_does_not_wait_for_the_last_answer() -> None:
    raft = make_leader()
    for token in range(5):
        assert len(sent(tell(raft, Propose(token=token, commands=(b"x",))), AppendEntries, "2")) == 1
    assert len(raft.progress["2"].inflight) == 5


def test_a_batch_object_is_shared_by_the_disk_and_every_peer() -> None:
    raft = make_leader()
    effects = tell(raft, Propose(token=1, commands=(b"x",)))
    batches = [message.batches[0] for message in sent(effects, AppendEntries)]
    assert all(part is only(effects, Persist)[0].batches[0] for part in batches)


def test_a_majority_commits() -> None:
    raft = make_leader()
    effects = tell(raft, Propose(token=1, commands=(b"a", b"b")))
    assert only(acknowledge(raft, 4, "2"), Committed) == [], "our own disk has not got it yet"
    assert only(write(raft, effects), Committed) == [Committed(first_index=3, last_index=4)]


def test_the_followers_commit_without_our_disk() -> None:
    raft = make_leader()
    tell(raft, Propose(token=1, commands=(b"a", b"b")))
    acknowledge(raft, 4, "2")
    assert only(acknowledge(raft, 3, "3"), Committed) == [Committed(first_index=3, last_index=3)]


def test_a_follower_proposes_nothing() -> None:
    raft = follower(2)
    assert tell(raft, Propose(token=1, commands=(b"x",))) == [ProposalRefused(token=1, reason=Reason.NOT_LEADER)]


def test_load_is_bounded_at_the_door() -> None:
    raft = make_leader(uncommitted_bytes_max=100)
    tell(raft, Propose(token=1, commands=(b"x" * 200,)))
    assert tell(raft, Propose(token=2, commands=(b"x",))) == [ProposalRefused(token=2, reason=Reason.OVERLOADED)]
    for peer in "23":
        acknowledge(raft, 3, peer)
    assert only(tell(raft, Propose(token=3, commands=(b"x",))), ProposalAccepted)


def test_the_window_bounds_what_is_on_its_way() -> None:
    raft = make_leader(inflight_messages_max=2)
    for token in range(4):
        tell(raft, Propose(token=token, commands=(b"x",)))
    assert raft.progress["2"].next_index == 5
    assert [message.prev for message in sent(acknowledge(raft, 3), AppendEntries)] == [EntryId(3, 4)]


def test_bytes_bound_the_window_too() -> None:
    raft = make_leader(inflight_bytes_max=1000)
    for token in range(4):
        tell(raft, Propose(token=token, commands=(b"x" * 600,)))
    assert len(raft.progress["2"].inflight) == 2


def test_heartbeats_carry_no_more_than_the_receiver_is_known_to_hold() -> None:
    raft = make_leader(matched="2")
    effects = pass_time(raft, 0.1)
    assert [beat.commit_index for beat in sent(effects, Heartbeat, "2")] == [2]
    assert [beat.commit_index for beat in sent(effects, Heartbeat, "3")] == [0]


def test_a_rejection_leads_to_the_next_question() -> None:
    raft = make_leader([2, 2, 2], matched="")
    assert raft.progress["2"].next_index == 5
    rejected = from_peer(AppendEntriesReply, term=3, match_index=0, rejected=EntryId(2, 4), hint=EntryId(1, 3))
    probe = ours(AppendEntries, term=3, prev=EntryId(1, 1), batches=(), commit_index=0)
    assert tell(raft, rejected) == [Send(to="2", message=probe)]


@pytest.mark.parametrize(
    ("rejected", "hint"),
    [(EntryId(2, 3), EntryId(1, 1)), (EntryId(3, 5), EntryId(1, 1))],  # below what it acknowledged; another probe's
)
def test_a_late_rejection_is_dropped(rejected: EntryId, hint: EntryId) -> None:
    raft = make_leader([2, 2])
    tell(raft, PeerConnected(peer="2"))
    before = raft.progress["2"].next_index
    assert tell(raft, from_peer(AppendEntriesReply, term=3, match_index=0, rejected=rejected, hint=hint)) == []
    assert raft.progress["2"].next_index == before


def test_a_gap_in_the_pipeline_is_found_by_the_rejection_of_what_follows() -> None:
    raft = make_leader()
    for token in range(3):
        tell(raft, Propose(token=token, commands=(b"x",)))  # entries 3, 4 and 5; the message with 3 is lost
    rejected = from_peer(AppendEntriesReply, term=3, match_index=0, rejected=EntryId(3, 3), hint=EntryId(3, 2))
    assert [message.prev for message in sent(tell(raft, rejected), AppendEntries)] == [EntryId(3, 2)]
    assert [part.first_index for part in sent(acknowledge(raft, 2), AppendEntries)[0].batches] == [3, 4, 5]


def test_a_lost_probe_is_sent_again() -> None:
    raft = make_leader(matched="2")
    assert 5 <= len(sent(pass_time(raft, 0.9), AppendEntries, "3")) <= 9


def test_a_lost_probe_is_sent_again_under_a_stream_of_reads() -> None:
    """Each read starts a round, and each round puts the next heartbeat off; what was lost has a clock of its own."""
    raft = make_leader(matched="2")
    probes = 0
    for token in range(20):
        probes += len(sent(tell(raft, Tick(now_seconds=raft.now + 0.05)), AppendEntries, "3"))
        tell(raft, ReadRequested(token=token))
        tell(raft, from_peer(HeartbeatReply, term=3, round=raft.round))
    assert probes >= 5


def test_the_last_message_of_a_pipeline_may_be_lost() -> None:
    """No later one is there to be rejected: after a while the leader asks by itself."""
    raft = make_leader()
    tell(raft, Propose(token=1, commands=(b"x",)))
    probes = 0
    for _ in range(40):
        effects = pass_time(raft, 0.1)
        for peer in "23":
            tell(raft, from_peer(HeartbeatReply, peer, term=3, round=raft.round))
        probes += len(sent(effects, AppendEntries, "2"))
    assert probes > 0
    assert [part.first_index for part in sent(acknowledge(raft, 2), AppendEntries)[0].batches] == [3]


def test_streams_opened_anew_start_with_a_question() -> None:
    raft = make_leader()
    tell(raft, Propose(token=1, commands=(b"x",)))
    assert tell(raft, PeerDisconnected(peer="2")) == []
    assert sent(tell(raft, Propose(token=2, commands=(b"x",))), AppendEntries, "2") == [], "nobody is there to hear"
    probe = ours(AppendEntries, term=3, prev=EntryId(3, 2), batches=(), commit_index=2)
    assert tell(raft, PeerConnected(peer="2")) == [Send(to="2", message=probe)]


def test_a_slow_follower_is_served_from_the_store() -> None:
    raft = make_leader([2, 2, 2], matched="2", cache_bytes_max=1)
    rejected = from_peer(AppendEntriesReply, "3", term=3, match_index=0, rejected=EntryId(2, 4), hint=EntryId(1, 1))
    tell(raft, rejected)
    effects = acknowledge(raft, 1, "3")
    assert effects == [LoadEntries(peer="3", first_index=2, last_index=5, bytes_max=raft.settings.append_bytes_max)]
    loaded = (batch(2, 2, b"x", b"x"),)
    effects = tell(raft, EntriesLoaded(peer="3", first_index=2, batches=loaded))
    assert sent(effects, AppendEntries, "3")[0].batches == loaded
    assert only(effects, LoadEntries)[0].first_index == 4


@pytest.mark.parametrize(
    "loaded",
    [
        EntriesLoaded(peer="3", first_index=2, batches=()),  # gone
        EntriesLoaded(peer="3", first_index=3, batches=(batch(2, 3),)),  # asked for long ago
        EntriesLoaded(peer="3", first_index=2, batches=(batch(1, 2),)),  # replaced since
    ],
)
def test_entries_that_came_too_late_are_asked_for_again(loaded: EntriesLoaded) -> None:
    raft = make_leader([2, 2, 2], matched="2", cache_bytes_max=1)
    tell(
        raft,
        from_peer(AppendEntriesReply, "3", term=3, match_index=0, rejected=EntryId(2, 4), hint=EntryId(1, 1)),
    )
    acknowledge(raft, 1, "3")
    assert tell(raft, loaded) == []
    assert raft.progress["3"].pace is Pace.PROBE
    assert sent(pass_time(raft, 0.2), AppendEntries, "3")


def test_an_acknowledgement_of_what_was_never_sent_is_refused() -> None:
    raft = make_leader()
    assert len(only(acknowledge(raft, 99), Alarm)) == 1
    assert raft.progress["2"].match_index == 2


def test_a_write_that_was_overtaken_by_a_truncation_does_not_count() -> None:
    """Though the same entry is back in the log: on the disk, the truncation may still be to come."""
    raft = follower(2)
    old = batch(3, 3)
    first = only(tell(raft, append(EntryId(2, 2), old)), Persist)[0]
    tell(raft, append(EntryId(2, 2), batch(4, 3), term=4))
    last = only(tell(raft, append(EntryId(2, 2), old, term=5)), Persist)[0]
    tell(raft, Persisted(sequence=first.sequence, last_entry=old.last_entry, ballot=None))
    assert raft.durable_index == 2
    tell(raft, Persisted(sequence=last.sequence, last_entry=old.last_entry, ballot=Ballot(5)))
    assert raft.durable_index == 3


# The app --------------------------------------------------------------------------------------------------------------


def test_the_app_gets_a_bounded_amount_at_a_time() -> None:
    raft = make_leader(apply_bytes_max=90)
    tell(raft, Applied(index=2))
    for token in range(6):
        tell(raft, Propose(token=token, commands=(b"x" * 80,)))
    acknowledge(raft, 8, "2")
    handed = only(acknowledge(raft, 8, "3"), Apply)
    while handed:
        assert [apply.first_index for apply in handed] == [raft.last_applied + 1]
        handed = only(tell(raft, Applied(index=handed[-1].last_index)), Apply)
    assert raft.last_applied == raft.commit_index == 8


def test_what_is_no_longer_in_memory_is_left_to_the_applier_to_load() -> None:
    raft = make_raft([2, 2, 2], Ballot(3))
    raft.log.evict(4, 0)
    tell(raft, append(EntryId(2, 4), batch(3, 5)))
    effects = tell(raft, from_peer(Heartbeat, term=3, commit_index=5, round=1))
    assert only(effects, Apply) == [Apply(first_index=1, last_index=4, batches=())]
    assert tell(raft, Applied(index=4)) == [Apply(first_index=5, last_index=5, batches=(batch(3, 5),))]


# Store identities -----------------------------------------------------------------------------------------------------


def test_the_stores_of_the_members_are_written_into_the_configuration() -> None:
    unnamed = Configuration(voters=tuple(member._replace(store_id="") for member in configuration().voters))
    raft = make_raft(log=log_of(first=unnamed))
    raft.become_pre_candidate()
    for pre_vote in (True, False):
        effects = tell(raft, from_peer(RequestVoteReply, term=3, granted=True, pre_vote=pre_vote))
        write(raft, effects)
    assert raft.role is Role.LEADER
    acknowledge(raft, 1)
    effects = acknowledge(raft, 2)
    assert [member.store_id for member in raft.configuration.voters] == ["s1", "s2", ""], "3 was not heard yet"
    assert only(effects, Persist)[0].batches[0].first_index == 3
    write(raft, effects)
    acknowledge(raft, 3)
    tell(raft, from_peer(HeartbeatReply, "3", term=3, round=1))
    assert raft.configuration == configuration()


def test_a_member_that_left_may_come_back_with_another_store() -> None:
    raft = follower(2)
    tell(raft, from_peer(Heartbeat, "3", term=2, commit_index=0, round=1))
    returned = Configuration(voters=tuple(member._replace(store_id="") for member in configuration().voters))
    for index, value in enumerate([configuration("12"), returned], 3):
        prev = raft.log.last_entry
        tell(raft, append(prev, configuration_batch(3, index, value)))
    heartbeat = Heartbeat(sender="3", sender_store="another", term=9, commit_index=0, round=1)
    tell(raft, heartbeat)
    assert raft.leader_id == "3"


def test_the_first_entry_of_a_leader_is_an_empty_one_of_its_term() -> None:
    raft = make_leader([2])
    assert raft.log.cached(3, 3, 100) == (noop(3, 3),)
