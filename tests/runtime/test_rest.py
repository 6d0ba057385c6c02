"""The rules by which a group rests and wakes (runtime/rest.py), and those of the pulses that it rests under.

rest_mutations.py proves that they can fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from pytest import approx
from resting_nodes import (
    BEAT_SECONDS,
    IDLE_SECONDS,
    PATIENCE_SECONDS,
    SETTINGS,
    STEP_SECONDS,
    Answered,
    Node,
    Offered,
    World,
    lease_read,
    write,
)

from geraft.core.effects import Role
from geraft.core.entries import EntryId
from geraft.core.events import PeerDisconnected, Propose, ReadRequested, Tick
from geraft.core.messages import (
    AppendEntries,
    Heartbeat,
    HeartbeatReply,
    RequestVote,
)
from geraft.core.progress import Pace
from geraft.core.reads import holds_lease
from geraft.runtime.node_loop import TICK_DUE, WOKEN, LeaderWanted
from geraft.runtime.rest import AGAIN_SECONDS, AGAIN_SECONDS_MAX, CATCH_UP_PART, OFFER_SECONDS, State
from geraft.transport.pulse import Pulse, RestAnswer, RestOffer


def offers(node: Node) -> list[Offered]:
    return [note for note in node.notes() if isinstance(note, Offered) and note.number]


def answers(node: Node) -> list[Answered]:
    return [note for note in node.notes() if isinstance(note, Answered)]


def answer(world: World, sender: str, number: int, resting: bool = True) -> None:
    world.leader.take(RestAnswer(sender=sender, number=number, resting=resting))


# A leader offers ------------------------------------------------------------------------------------------------------


def test_a_leader_offers_to_rest_once_it_was_idle_for_long_enough() -> None:
    world = World()
    began = world.now
    offered = world.until_offered()
    assert offered == Offered("2", world.leader.raft.term, world.leader.raft.log.last_entry, 1)
    assert [offer.to for offer in offers(world.leader)] == ["2", "3"]
    assert IDLE_SECONDS <= world.now - began + STEP_SECONDS / 2 <= IDLE_SECONDS + 2 * STEP_SECONDS


def test_anything_to_do_makes_the_idle_time_begin_anew() -> None:
    world = World()
    world.pass_seconds(IDLE_SECONDS - STEP_SECONDS)
    world.leader.take(write(world))
    world.leader.take(TICK_DUE)
    world.settle()
    began = world.now
    world.until_offered()
    assert world.now - began >= IDLE_SECONDS


def test_a_group_that_shall_not_rest_offers_nothing() -> None:
    world = World(idle_seconds=0.0)
    world.pass_seconds(5.0)
    assert not any(node.notes() for node in world.nodes.values())


def append(node: Node, *, durable: bool) -> None:
    """An entry that nobody else gets."""
    node.disk_works = durable
    node.world.network = False
    node.take(write(node.world))
    node.loop.writes.fail_all(AssertionError("its caller is gone"))
    for progress in node.raft.progress.values():
        progress.inflight.clear()
        progress.match_index = 3


UNDER_WAY: dict[str, Callable[[Node], Any]] = {
    "an entry that is not committed": lambda node: append(node, durable=False),
    "a durable entry that is not committed": lambda node: append(node, durable=True),
    "an entry that the app has not applied": lambda node: setattr(node.raft, "last_applied", 1),
    "an entry that the app was not handed": lambda node: setattr(node.raft, "handed_to_app", 1),
    "a write of the disk": lambda node: setattr(node.raft, "_persists_sent", node.raft._persists_sent + 1),
    "a transfer": lambda node: setattr(node.raft, "transfer", object()),
    "a change of members": lambda node: setattr(node.raft, "change", object()),
    "one who leaves": lambda node: node.raft.departing.update({"9": 1.0}),
    "a cut of the log": lambda node: setattr(node.raft, "compacting", True),
    "a cut of the log that goes on": lambda node: setattr(node.raft, "compact_to", 1),
    "a snapshot that is fetched": lambda node: setattr(node.raft, "fetching", object()),
    "a snapshot that has arrived": lambda node: setattr(node.raft, "arrived", object()),
    "a read that waits": lambda node: node.raft.reads_waiting.append(9),
    "a read that is confirmed": lambda node: node.raft.reads_confirming.append((99, (9,), 2)),
    "a message in flight": lambda node: node.raft.progress["2"].inflight.append((2, 1)),
    "a follower that should lead": lambda node: setattr(node.raft.progress["2"], "priority", 1),
    "a caller who waits": lambda node: node.loop._leader_wanted.append(LeaderWanted(1e9)),
}


@pytest.mark.parametrize("what", UNDER_WAY)
def test_a_leader_does_not_rest_while_anything_is_under_way(what: str) -> None:
    world = World()
    UNDER_WAY[what](world.leader)
    for _ in range(20):  # of the rest alone: the core would notice what was done to it
        world.now += STEP_SECONDS
        for pulse in world.leader.pulses.values():
            pulse.seen()
        world.leader.rest.tick()
    assert not offers(world.leader)


NO_FOLLOWER_TO_REST: dict[str, Callable[[World], Any]] = {
    "it lacks an entry": lambda world: setattr(world.leader.raft.progress["2"], "match_index", 1),
    "where its log parts is not known": lambda world: setattr(world.leader.raft.progress["2"], "pace", Pace.PROBE),
    "its pulse is old": lambda world: setattr(world.leader.pulses["2"], "seen_at", world.now - 5 * BEAT_SECONDS),
    "its pulse is not felt yet": lambda world: world.leader.pulses.pop("2"),
}


@pytest.mark.parametrize("why", NO_FOLLOWER_TO_REST)
def test_a_leader_offers_nothing_to_anybody_while_a_follower_that_it_reaches_can_not_rest(why: str) -> None:
    world = World()
    for _ in range(20):
        world.now += STEP_SECONDS
        for pulse in world.leader.pulses.values():
            pulse.seen()
        if "2" in world.leader.pulses:
            NO_FOLLOWER_TO_REST[why](world)
        world.leader.rest.tick()
    assert not world.leader.notes()


def test_a_leader_offers_nothing_without_a_quorum_whose_pulses_it_feels() -> None:
    world = World()
    world.cut("1", "2")
    world.cut("1", "3")
    for _ in range(10):
        world.now += STEP_SECONDS
        world.leader.rest.tick()
    assert not offers(world.leader)
    assert world.leader.rest.state is State.AWAKE


def test_a_follower_that_is_gone_does_not_keep_the_others_awake() -> None:
    world = World()
    world.cut("1", "3")
    world.halted = {"3"}
    world.fall_asleep()
    assert world.resting == {"1", "2"}


def test_times_that_are_too_short_for_pulses_keep_everybody_awake() -> None:
    short = replace(SETTINGS, election_timeout_seconds=0.5)  # three quarters of it are less than four pulses
    world = World(settings=dict.fromkeys("123", short))
    world.pass_seconds(2.0)
    assert not any(node.notes() for node in world.nodes.values())


def test_a_group_of_one_rests_under_no_pulse_at_all() -> None:
    world = World(("1",)).fall_asleep()
    world.pass_seconds(10.0)
    assert world.resting == {"1"}
    world.leader.take(write(world))
    world.settle()
    assert (world.leader.raft.role, world.leader.raft.commit_index) == (Role.LEADER, 3)


# ... and rests --------------------------------------------------------------------------------------------------------


def test_a_leader_rests_only_once_all_that_it_asked_do() -> None:
    world = World()
    number = world.until_offered().number
    answer(world, "2", number)
    assert world.leader.rest.state is State.OFFERING
    assert world.leader.ticking
    answer(world, "3", number)
    assert world.leader.rest.state is State.RESTING
    assert not world.leader.ticking


def test_an_answer_given_twice_is_one_answer() -> None:
    world = World()
    number = world.until_offered().number
    answer(world, "2", number)
    answer(world, "2", number)
    assert world.leader.rest.state is State.OFFERING


def test_one_that_refuses_ends_the_offer_for_all() -> None:
    world = World()
    offered = world.until_offered()
    answer(world, "2", offered.number)
    world.leader.forget()
    answer(world, "3", offered.number, resting=False)
    assert world.leader.rest.state is State.AWAKE
    assert world.leader.notes() == [offered._replace(number=0), offered._replace(to="3", number=0)]


def test_an_offer_that_is_not_answered_ends_after_a_while() -> None:
    world = World()
    world.until_offered()
    offered_at = world.now
    world.network = False
    world.pass_until(lambda: world.leader.rest.state is not State.OFFERING)
    assert OFFER_SECONDS <= world.now - offered_at + STEP_SECONDS / 2 <= OFFER_SECONDS + 2 * STEP_SECONDS


def test_the_pause_after_an_offer_that_came_to_nothing_doubles_up_to_a_longest_one_and_a_rest_ends_it() -> None:
    world = World()

    def pause() -> float:
        refused_at = world.now
        world.until_offered()
        answer(world, "2", world.leader.rest._number, resting=False)
        return world.now - refused_at

    pause()
    wanted = [min(AGAIN_SECONDS * 2**n, AGAIN_SECONDS_MAX) for n in range(9)]
    assert [pause() for _ in wanted] == approx(wanted, abs=2 * STEP_SECONDS)
    world.fall_asleep()
    world.leader.take(WOKEN)
    world.settle()
    pause()
    assert [pause(), pause()] == approx(wanted[:2], abs=2 * STEP_SECONDS)


def test_an_answer_to_an_earlier_offer_does_not_count() -> None:
    world = World()
    earlier = world.until_offered().number
    answer(world, "2", earlier, resting=False)
    number = world.until_offered().number
    assert number != earlier
    for sender in "23":
        answer(world, sender, earlier)
    assert world.leader.rest.state is State.OFFERING
    answer(world, "2", earlier, resting=False)
    assert world.leader.rest.state is State.OFFERING
    for sender in "23":
        answer(world, sender, number)
    assert world.leader.rest.state is State.RESTING


def test_who_was_not_asked_can_not_answer() -> None:
    world = World()
    world.cut("1", "3")
    number = world.until_offered().number
    answer(world, "3", number)
    assert world.leader.rest.state is State.OFFERING
    answer(world, "3", number, resting=False)
    assert world.leader.rest.state is State.OFFERING


def test_a_pulse_that_has_ended_does_not_count() -> None:
    world = World()
    number = world.until_offered().number
    world.leader.pulses["3"].end()  # whose end the loop has not heard of yet
    for sender in "23":
        answer(world, sender, number)
    assert world.leader.rest.state is State.AWAKE
    assert world.leader.pulses["2"].resting_count == 0


def test_a_leader_that_is_idle_no_more_when_the_last_answer_comes_does_not_rest() -> None:
    world = World()
    number = world.until_offered().number
    answer(world, "2", number)
    world.leader.raft.reads_waiting.append(9)
    answer(world, "3", number)
    assert world.leader.rest.state is State.AWAKE
    assert {note.number for note in world.leader.notes()[-2:]} == {0}


def test_answers_to_heartbeats_before_an_offer_do_not_end_it() -> None:
    world = World()
    world.until_offered()
    raft = world.leader.raft
    reply = HeartbeatReply(
        sender="2",
        sender_store="s2",
        term=raft.term,
        round=raft.round,
        last_applied=2,
        silent_seconds=1.0,
        priority=0,
    )
    world.leader.take(reply)
    assert world.leader.rest.state is State.OFFERING
    assert world.leader.told(HeartbeatReply)[-1].event == reply
    world.leader.take(replace(reply, term=raft.term + 1))
    assert world.leader.rest.state is State.AWAKE
    assert raft.role is Role.FOLLOWER


def test_an_answer_that_tells_of_somebody_who_should_lead_ends_an_offer() -> None:
    world = World()
    world.until_offered()
    raft = world.leader.raft
    reply = world.leader.rest._answer_of("2")
    world.leader.take(replace(reply, priority=raft.settings.leader_priority + 1))
    assert world.leader.rest.state is State.AWAKE


# A follower rests -----------------------------------------------------------------------------------------------------


def test_a_follower_that_has_nothing_to_do_takes_the_offer_and_says_so() -> None:
    world = World()
    follower = world.nodes["2"]
    follower.take(world.offer())
    assert follower.rest.state is State.RESTING
    assert not follower.ticking
    assert follower.notes() == [Answered("1", follower.raft.term, 7, True)]
    assert world.streams["1", "2"].resting_count == 1


@pytest.mark.parametrize("changes", [{"term": 1}, {"term": 9}, {"sender": "3"}], ids=str)
def test_an_offer_of_another_term_or_of_who_does_not_lead_is_not_taken(changes: dict[str, Any]) -> None:
    world = World()
    follower = world.nodes["2"]
    follower.take(world.offer(**changes))
    assert follower.rest.state is State.AWAKE
    assert not follower.notes()


REFUSED: dict[str, Callable[[World], RestOffer]] = {
    "its log ends with another entry": lambda world: world.offer(last_entry=EntryId(1, 2)),
    "its log is longer": lambda world: world.offer(last_entry=EntryId(2, 3)),
    "the stream is gone": lambda world: world.offer(pulse=ended_pulse(world)),
}


def ended_pulse(world: World) -> Pulse:
    pulse = Pulse(lambda run: None, world.clock)
    pulse.end()
    return pulse


@pytest.mark.parametrize("why", REFUSED)
def test_a_follower_refuses_an_offer_if(why: str) -> None:
    world = World()
    follower = world.nodes["2"]
    follower.take(REFUSED[why](world))
    assert follower.rest.state is State.AWAKE
    assert answers(follower) == [Answered("1", follower.raft.term, 7, False)]
    assert follower.ticking


def test_a_follower_refuses_an_offer_while_anything_is_under_way() -> None:
    world = World()
    follower = world.nodes["2"]
    follower.raft.compacting = True
    follower.take(world.offer())
    assert (follower.rest.state, answers(follower)[0].resting) == (State.AWAKE, False)


def test_a_follower_whose_own_times_are_too_short_for_pulses_refuses() -> None:
    short = replace(SETTINGS, election_timeout_seconds=0.5)
    world = World(settings={"2": short})
    follower = world.nodes["2"]
    follower.take(world.offer())
    assert (follower.rest.state, answers(follower)[0].resting) == (State.AWAKE, False)


def test_an_offer_that_is_taken_back_at_once_is_not_taken() -> None:
    """Both in one batch: the follower must not rest under the pulse of a leader that does not rest."""
    world = World()
    follower = world.nodes["2"]
    follower.take(world.offer(), world.offer(number=0))
    assert follower.rest.state is State.AWAKE
    assert world.streams["1", "2"].resting_count == 0


def test_what_comes_with_an_offer_is_handled_before_it() -> None:
    world = World()
    follower = world.nodes["2"]
    raft = follower.raft
    vote = RequestVote(
        sender="3", sender_store="s3", term=raft.term + 1, last_entry=raft.log.last_entry, pre_vote=False, forced=True
    )
    follower.disk_works = False
    follower.take(world.offer(), vote)  # of a leader that has handed over to 3 since
    assert (follower.rest.state, raft.term) == (State.AWAKE, 3)
    assert not follower.told(Heartbeat)


@pytest.mark.parametrize("ids", ["1", "123"])
def test_what_comes_with_a_knock_is_begun_before_a_leader_thinks_of_rest(ids: str) -> None:
    world = World(tuple(ids))
    world.pass_seconds(STEP_SECONDS)
    world.now += IDLE_SECONDS + STEP_SECONDS
    world.leader.disk_works = False
    world.leader.take(TICK_DUE, write(world))
    assert world.leader.rest.state is State.AWAKE
    assert world.leader.ticking


# Pulses ---------------------------------------------------------------------------------------------------------------


def test_while_all_rest_nothing_is_sent_and_no_core_is_asked() -> None:
    world = World().fall_asleep()
    world.pass_seconds(20.0)
    assert world.resting == {"1", "2", "3"}
    assert not any(node.sent or node.raft.told for node in world.nodes.values())


def test_a_pulse_that_falls_silent_wakes_all_that_rest_under_it_after_three_quarters_of_an_election_timeout() -> None:
    world = World().fall_asleep()
    world.pass_seconds(1.0)
    world.halted = {"1"}
    silent_at = world.streams["1", "2"].seen_at
    world.pass_seconds(PATIENCE_SECONDS - 2 * BEAT_SECONDS)
    assert world.resting == {"1", "2", "3"}
    world.pass_until(lambda: not world.resting & {"2", "3"})
    assert PATIENCE_SECONDS < world.now - silent_at < PATIENCE_SECONDS + 2 * BEAT_SECONDS


def test_a_follower_whose_pulse_falls_silent_wakes_the_leader() -> None:
    world = World().fall_asleep()
    world.halted = {"3"}
    world.pass_seconds(PATIENCE_SECONDS + 2 * BEAT_SECONDS)
    assert not world.resting & {"1", "2"}
    assert world.leader.raft.role is Role.LEADER


def test_a_stream_that_ends_wakes_both_ends() -> None:
    for dialler, listener in (("1", "2"), ("1", "3")):
        world = World().fall_asleep()
        world.nodes[dialler].pulses[listener].end()
        world.streams[dialler, listener].end()
        world._run_posted()
        world.leader.take()
        world.nodes[listener].take()
        assert dialler not in world.resting and listener not in world.resting


def test_a_pulse_wakes_each_that_rests_once_and_nobody_who_left() -> None:
    woken: list[str] = []
    now = 5.0
    pulse = Pulse(lambda run: run(), lambda: now)
    one, two = (lambda: woken.append("one")), (lambda: woken.append("two"))
    assert pulse.rest(one, 1.0) and pulse.rest(two, 2.0)
    assert pulse.resting_count == 2
    pulse.leave(two)
    pulse.leave(two)
    pulse.check(6.0)
    assert not woken
    pulse.check(6.1)
    pulse.check(7.0)
    assert woken == ["one"]
    assert pulse.rest(two, 2.0)
    pulse.check(6.9)  # the patience is that of who rests now
    assert woken == ["one"]
    pulse.end()
    assert woken == ["one", "two"]
    assert not pulse.rest(one, 1.0)


def test_the_least_patient_decides_when_a_pulse_is_silent() -> None:
    woken: list[str] = []
    pulse = Pulse(lambda run: run(), lambda: 5.0)
    for seconds in (2.0, 1.0, 3.0):
        assert pulse.rest((lambda name: lambda: woken.append(name))(str(seconds)), seconds)
    pulse.check(6.1)
    assert sorted(woken) == ["1.0", "2.0", "3.0"]


def test_a_pulse_is_felt_from_when_its_stream_is_there_and_whenever_it_beats() -> None:
    now = 5.0
    pulse = Pulse(lambda run: run(), lambda: now)
    assert pulse.seen_at == 5.0
    now = 6.0
    pulse.seen()
    assert pulse.seen_at == 6.0


def test_the_end_of_a_pulse_wakes_nobody_before_the_hub_comes_to_it() -> None:
    posted: list[Callable[[], None]] = []
    woken: list[str] = []
    pulse = Pulse(posted.append, lambda: 5.0)
    pulse.rest(lambda: woken.append("one"), 1.0)
    pulse.end()
    assert not woken
    posted.pop()()
    assert woken == ["one"]


# Waking ---------------------------------------------------------------------------------------------------------------


def test_a_leader_that_wakes_says_so_to_all_that_it_asked_before_anything_else_leaves() -> None:
    world = World().fall_asleep()
    world.pass_seconds(5.0)
    raft = world.leader.raft
    world.leader.take(write(world))
    last_entry = EntryId(raft.term, 2)
    assert world.leader.sent[:2] == [Offered(id, raft.term, last_entry, 0) for id in "23"]
    assert world.leader.messages(AppendEntries)
    assert world.leader.ticking
    world.settle()
    assert not world.resting
    assert all(node.raft.log.last_entry.index == 3 for node in world.nodes.values())


def test_a_leader_that_wakes_from_an_offer_says_so_as_well() -> None:
    world = World()
    offered = world.until_offered()
    world.leader.forget()
    world.leader.take(write(world))
    assert world.leader.sent[:2] == [offered._replace(number=0), offered._replace(to="3", number=0)]
    assert not world.leader.told(HeartbeatReply), "nobody rested: no pulse stands for anything"


def test_a_follower_that_wakes_says_so_to_its_leader() -> None:
    world = World().fall_asleep()
    follower = world.nodes["2"]
    follower.take(WOKEN)
    assert follower.sent[0] == Answered("1", follower.raft.term, world.leader.rest._number, False)
    world.settle()
    assert not world.resting


def test_a_follower_that_wakes_tells_of_the_offer_that_it_took() -> None:
    world = World()
    follower = world.nodes["2"]
    follower.take(world.offer(number=5))
    follower.take(WOKEN)
    assert [note.number for note in answers(follower)] == [5, 5]


def test_whatever_comes_wakes_a_node_that_rests_and_is_handled_then() -> None:
    for what in (WOKEN, PeerDisconnected(peer="3"), Tick(now_seconds=0.0)):
        world = World().fall_asleep()
        world.nodes["2"].take(what)
        assert "2" not in world.resting, what
    world = World().fall_asleep()
    world.leader.take(write(world))
    assert world.leader.told(Propose)
    world = World().fall_asleep()
    world.leader.take(WOKEN, lease_read(world))
    assert world.leader.told(ReadRequested)


def test_a_knock_that_was_under_way_wakes_nobody() -> None:
    world = World().fall_asleep()
    for node in world.nodes.values():
        node.take(TICK_DUE)
    assert world.resting == {"1", "2", "3"}


def test_another_offer_to_a_follower_that_rests_is_taken_as_the_first_was() -> None:
    world = World().fall_asleep()
    follower = world.nodes["2"]
    follower.take(world.offer(number=8))
    assert [(note.number, note.resting) for note in answers(follower)] == [(1, False), (8, True)]
    assert "2" in world.resting
    assert world.streams["1", "2"].resting_count == 1


def test_who_wakes_rests_under_no_pulse_any_more() -> None:
    world = World().fall_asleep()
    assert all(pulse.resting_count == 1 for pulse in world.leader.pulses.values())
    world.leader.take(WOKEN)
    world.settle()
    assert all(pulse.resting_count == 0 for pulse in world.leader.pulses.values())
    assert world.streams["1", "2"].resting_count == world.streams["1", "3"].resting_count == 0


def test_a_follower_that_wakes_is_told_one_heartbeat_at_the_time_of_the_last_pulse() -> None:
    world = World().fall_asleep()
    world.pass_seconds(5.0)
    follower = world.nodes["2"]
    last_pulse = world.streams["1", "2"].seen_at
    world.now = last_pulse + 0.6
    follower.take(WOKEN)
    assert [told.now for told in follower.told(Heartbeat)] == approx([last_pulse])
    (told,) = follower.told(Heartbeat)
    assert told.event == Heartbeat(
        sender="1", sender_store="s1", term=2, commit_index=follower.raft.commit_index, round=0
    )
    assert follower.raft.detector.heard_at_seconds == approx(last_pulse)
    assert follower.raft.silent_until_seconds == approx(last_pulse + 1.0)
    assert follower.raft.now == world.now


def test_a_leader_that_wakes_is_told_one_answer_of_each_at_the_time_of_its_last_pulse() -> None:
    world = World().fall_asleep()
    world.pass_seconds(5.0)
    now = world.now
    world.leader.pulses["2"].seen_at, world.leader.pulses["3"].seen_at = now - 0.1, now - 0.5
    raft = world.leader.raft
    acked = {id: progress.acked_round for id, progress in raft.progress.items()}
    world.leader.take(WOKEN)
    replies = world.leader.told(HeartbeatReply)
    assert [told.event.sender for told in replies] == ["3", "2"]  # type: ignore[union-attr]
    assert [told.now for told in replies] == approx([now - 0.5, now - 0.1])
    assert {id: progress.heard_at_seconds for id, progress in raft.progress.items()} == approx(
        {"2": now - 0.1, "3": now - 0.5}
    )
    assert {id: progress.acked_round for id, progress in raft.progress.items()} == acked
    assert raft.now == now


def test_a_wake_extends_no_lease() -> None:
    """Only rounds do: no follower has promised anything since the last one that it answered."""
    world = World().fall_asleep()
    raft = world.leader.raft
    promised = {id: progress.silent_until_seconds for id, progress in raft.progress.items()}
    world.pass_seconds(0.5)
    world.leader.take(WOKEN)
    assert {id: progress.silent_until_seconds for id, progress in raft.progress.items()} == promised
    world = World().fall_asleep()
    world.pass_seconds(5.0)
    world.leader.take(lease_read(world))
    assert not holds_lease(world.leader.raft)
    assert world.leader.raft.reads_confirming, "the first read asks for a round"


def test_a_lease_read_that_wakes_a_leader_does_not_go_by_the_time_before_the_rest() -> None:
    world = World().fall_asleep()
    assert holds_lease(world.leader.raft), "by the time that its core knows, it would hold for ever"
    world.pass_seconds(5.0)
    world.now += 0.3  # since the last pulse
    world.leader.rest.wake()
    assert world.leader.raft.now == world.now
    assert not holds_lease(world.leader.raft)


def test_who_wakes_passes_the_time_since_the_last_pulse_in_steps_that_are_no_pause_of_its_own() -> None:
    for id in ("1", "2"):
        world = World().fall_asleep()
        world.pass_seconds(5.0)
        node = world.nodes[id]
        seen_at = world.streams["1", "2"].seen_at
        world.now = seen_at + 0.9
        node.take(WOKEN)
        times = [told.now for told in node.told(Tick) if told.now >= seen_at - 0.001]
        steps = [later - earlier for earlier, later in pairwise(times)]
        assert times[-1] == world.now
        assert sum(steps) == approx(0.9)
        assert max(steps) <= CATCH_UP_PART * node.raft.longest_step_seconds + 0.001
        assert node.raft.role is (Role.LEADER if id == "1" else Role.FOLLOWER)


def test_a_leader_that_dies_while_all_rest_is_suspected_as_soon_as_any_other() -> None:
    def seconds_to_suspicion(world: World) -> float:
        world.pass_seconds(3.0)
        world.halted = {"1"}
        died_at = world.now
        rafts = [follower.raft for follower in world.followers]
        world.pass_until(
            lambda: any(raft.role is not Role.FOLLOWER or raft.campaign_at_seconds is not None for raft in rafts)
        )
        return world.now - died_at

    resting, awake = seconds_to_suspicion(World().fall_asleep()), seconds_to_suspicion(World(idle_seconds=0.0))
    assert resting == approx(awake, abs=BEAT_SECONDS + 2 * STEP_SECONDS)


def test_a_pause_of_the_process_itself_is_not_taken_for_the_silence_of_the_others() -> None:
    world = World().fall_asleep()
    follower = world.nodes["2"]
    world.halted = {"2"}
    world.now += 60.0
    follower.take(WOKEN)
    assert (follower.raft.role, follower.raft.campaign_at_seconds) == (Role.FOLLOWER, None)
    assert len(follower.told(Tick)) <= 3
    world = World().fall_asleep()
    world.now += 60.0
    world.leader.take(WOKEN)
    assert world.leader.raft.role is Role.LEADER


def test_a_node_that_ends_while_it_rests_says_so_and_its_core_is_told_nothing() -> None:
    world = World().fall_asleep()
    raft = world.leader.raft
    world.leader.rest.end()
    assert world.leader.sent == [Offered(id, raft.term, raft.log.last_entry, 0) for id in "23"]
    follower = world.nodes["2"]
    follower.rest.end()
    assert follower.sent == [Answered("1", raft.term, world.leader.rest._number, False)]
    for node in (world.leader, follower):
        assert not node.raft.told
        assert node.rest.state is State.AWAKE
    assert world.streams["1", "2"].resting_count == 0
    assert all(pulse.resting_count == 0 for pulse in world.leader.pulses.values())


def test_a_node_that_ends_while_it_offers_says_so_and_one_that_is_awake_need_not() -> None:
    world = World()
    for node in world.nodes.values():
        node.rest.end()
    assert not any(node.notes() for node in world.nodes.values())
    world.until_offered()
    world.leader.forget()
    world.leader.rest.end()
    assert [(note.to, note.number) for note in world.leader.notes()] == [("2", 0), ("3", 0)]


def test_status_tells_when_a_peer_was_last_seen_while_all_rest() -> None:
    world = World().fall_asleep()
    world.pass_seconds(5.0)
    follower = world.nodes["2"]
    assert world.leader.rest.seen_at("3") == world.leader.pulses["3"].seen_at
    assert follower.rest.seen_at("1") == world.streams["1", "2"].seen_at
    assert follower.rest.seen_at("3") == 0.0
    world.leader.take(WOKEN)
    assert world.leader.rest.seen_at("3") == 0.0
