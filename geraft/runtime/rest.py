"""A group that has nothing to do rests: no ticks, no heartbeats, no cost, until anything happens.

For processes that hold many groups. A leader that has been idle for a while offers its followers to rest, and rests
itself once those that it reaches do. From then on the pulses between the processes stand for the heartbeats between
their nodes: each pulse of the leader's process is taken for a heartbeat of the leader, each answer for the follower's.

Whatever comes into the inbox of a node that rests wakes it first. It is then told what the pulses stood for, with the
time at which the last one came, and only then what happened: so the core sees what it would have seen without a rest,
less the heartbeats in between. A leader that wakes says so to its followers before anything else, on the stream that
carries the pulses, and a follower to its leader; when the stream breaks, or is silent, all wake who rested under it. So
no pulse is ever taken for the heartbeat of a leader that does not rest.

What the core is not told: that a quorum answered rounds in between. A lease ends with the rest; the first read that
wants one asks for a round.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

from geraft.core.effects import Role
from geraft.core.entries import EntryId
from geraft.core.events import Tick
from geraft.core.messages import Heartbeat, HeartbeatReply
from geraft.core.progress import Pace
from geraft.core.quorum import is_quorum
from geraft.core.raft import Raft
from geraft.runtime.node_loop import WOKEN, NodeLoop, TickDue
from geraft.transport.pulse import Pulse, RestAnswer, RestOffer

OFFER_SECONDS = 0.3
"""For which a leader waits for its followers to rest; meanwhile they hear nothing of it but pulses."""
AGAIN_SECONDS = 0.5
AGAIN_SECONDS_MAX = 30.0
"""Pause after an offer that came to nothing; it doubles."""
PATIENCE = 0.75
"""Part of the election timeout after which the silence of a process wakes those that rest under its pulse: their own
failure detectors take over from the last pulse, and have as much time left as without a rest."""
PULSES_MIN = 4
"""As many must fit into that time, or a node does not rest."""
CATCH_UP_PART = 0.8
"""Of the longest step that the core does not take for a pause of this process: in such steps a node that wakes is told
the time since the last pulse. If nobody woke it for long after its patience was over, there was such a pause."""


class RestMail(Protocol):
    """What resting needs of the transport."""

    def pulse_of(self, peer: str) -> Pulse | None: ...

    def offer_rest(self, peer: str, term: int, last_entry: EntryId, number: int) -> None: ...

    def answer_rest(self, leader_id: str, term: int, number: int, resting: bool) -> None: ...


class State(Enum):
    AWAKE = "awake"
    OFFERING = "offering"
    RESTING = "resting"


class Rest:
    """Of one node. Everything runs on its hub, in its loop's greenlet, but what is said to be for any thread.

    idle_seconds: for so long a leader has had nothing to do before it offers to rest; 0 for never.
    pulse_seconds: between two pulses. pause, resume: of the knocks of time.
    """

    def __init__(
        self,
        loop: NodeLoop,
        mail: RestMail,
        *,
        idle_seconds: float,
        pulse_seconds: float,
        pause: Callable[[], None],
        resume: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._mail = mail
        self._idle_seconds = idle_seconds
        self._pulse_seconds = pulse_seconds
        self._pause = pause
        self._resume = resume
        self._clock = clock
        self.state = State.AWAKE
        self._idle_since: float | None = None
        self._not_before = 0.0
        self._again_seconds = AGAIN_SECONDS
        self._number = 0
        self._offered_until = 0.0
        self._asked: dict[str, Pulse] = {}  # as a leader: whom we offered to rest
        self._resting: set[str] = set()  # who of them does
        self._pulse: Pulse | None = None  # as a follower: what we rest under
        self._accepted = 0  # and the number of the offer that we took
        self._wake = self._pulse_stopped  # one object, by which pulses know us

    # What the loop asks

    def take(self, items: list[Any]) -> list[Any]:
        """What came in, less what only a rest is concerned with; anything else ends it first."""
        if self.state is State.AWAKE:
            return items
        for item in items:
            if self._ends(item):
                self.wake()
                return items
        return []

    def _ends(self, item: Any) -> bool:
        kind = type(item)
        if kind is RestAnswer:
            return self._answer_ends(item)
        if kind is HeartbeatReply and self.state is State.OFFERING and item.term == self._loop.raft.term:
            self._loop.step(item)  # of a heartbeat before the offer
            return not self._is_idle()
        if kind is TickDue:
            return self.state is State.OFFERING and self._clock() > self._offered_until
        return True

    def tick(self) -> None:
        """Awake, and time has passed: as a leader that has been idle for long enough, offer to rest."""
        now = self._clock()
        if not self._idle_seconds or self._loop.raft.role is not Role.LEADER or not self._is_idle():
            self._idle_since = None
            return
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since >= self._idle_seconds and now >= self._not_before:
            self._offer(now)

    # A leader's side

    def _offer(self, now: float) -> None:
        raft = self._loop.raft
        asked = {}
        for peer, progress in raft.progress.items():
            if peer not in raft.connected:
                continue  # down: it wakes us when it is back
            pulse = self._mail.pulse_of(peer)
            if pulse is None:
                return  # it lives, and would be left without heartbeats: nothing wakes us when its pulse is back
            if progress.match_index < raft.log.last_entry.index or progress.pace is not Pace.PIPELINE:
                return
            if now - pulse.seen_at > PULSES_MIN * self._pulse_seconds or not self._bears_pulses(raft):
                return
            asked[peer] = pulse
        if not is_quorum({raft.id, *asked}, raft.configuration.quorum_groups):
            return
        self._number += 1
        self._asked, self._resting = asked, set()
        self._offered_until = now + OFFER_SECONDS
        self.state = State.OFFERING
        for peer in asked:
            self._mail.offer_rest(peer, raft.term, raft.log.last_entry, self._number)
        self._rest_if_all_do()

    def _answer_ends(self, answer: RestAnswer) -> bool:
        if answer.number != self._number or answer.sender not in self._asked:
            return False  # of an earlier offer
        if not answer.resting:
            return True
        if self.state is State.OFFERING:
            self._resting.add(answer.sender)
            return not self._rest_if_all_do()
        return False

    def _rest_if_all_do(self) -> bool:
        """Rest, unless somebody has not answered yet; False if we can't after all."""
        if len(self._resting) < len(self._asked):
            return True
        if not self._is_idle():
            return False
        patience_seconds = self._patience_seconds(self._loop.raft)
        if not all(pulse.rest(self._wake, patience_seconds) for pulse in self._asked.values()):
            return False
        self.state = State.RESTING
        self._again_seconds = AGAIN_SECONDS
        self._pause()
        return True

    # A follower's side

    def offered(self, offer: RestOffer) -> None:
        """Awake: rest if we, too, have nothing to do."""
        raft = self._loop.raft
        if not offer.number or offer.sender != raft.leader_id or offer.term != raft.term:
            return  # no offer, or of a leader of the past, who will find out
        resting = (
            raft.role is Role.FOLLOWER
            and offer.last_entry == raft.log.last_entry
            and self._is_idle()
            and self._bears_pulses(raft)
            and offer.pulse.rest(self._wake, self._patience_seconds(raft))
        )
        if resting:
            self._accepted = offer.number
            self._pulse = offer.pulse
            self.state = State.RESTING
            self._pause()
        self._mail.answer_rest(offer.sender, raft.term, offer.number, resting)

    # Both sides

    def _pulse_stopped(self) -> None:
        self._loop.inbox.put(WOKEN)

    def _patience_seconds(self, raft: Raft) -> float:
        return PATIENCE * raft.settings.election_timeout_seconds

    def _bears_pulses(self, raft: Raft) -> bool:
        return self._patience_seconds(raft) >= PULSES_MIN * self._pulse_seconds

    def _is_idle(self) -> bool:
        """Whether nothing is under way here: all we hold is committed, applied and durable, and nobody waits."""
        raft = self._loop.raft
        last_index = raft.log.last_entry.index
        return (
            raft.commit_index == raft.last_applied == raft.handed_to_app == last_index
            and raft.is_durable
            and raft.transfer is None
            and raft.change is None
            and not raft.configuration.outgoing
            and not raft.departing
            and not raft.compacting
            and raft.compact_to <= raft.log.base.index
            and raft.fetching is None
            and raft.arrived is None
            and not raft.reads_waiting
            and not raft.reads_confirming
            and not any(
                progress.inflight or progress.priority > raft.settings.leader_priority
                for progress in raft.progress.values()
            )
            and not self._loop.has_callers
        )

    def end(self) -> None:
        """The node ends: say that it rests no more; its core is told nothing any more."""
        raft = self._loop.raft
        if self.state is State.AWAKE:
            return
        self.state = State.AWAKE
        for peer, pulse in self._asked.items():
            pulse.leave(self._wake)
            self._mail.offer_rest(peer, raft.term, raft.log.last_entry, 0)
        if self._pulse is not None:
            self._pulse.leave(self._wake)
            self._mail.answer_rest(raft.leader_id, raft.term, self._accepted, False)

    def wake(self) -> None:
        """Take part again: say so, and tell the core what the pulses stood for."""
        was, self.state = self.state, State.AWAKE
        now = self._clock()
        self._idle_since = None
        raft = self._loop.raft
        if was is State.AWAKE:
            return
        self._loop.woken()
        if was is State.OFFERING:
            self._not_before = now + self._again_seconds
            self._again_seconds = min(2 * self._again_seconds, AGAIN_SECONDS_MAX)
        else:
            self._resume()
        step = self._loop.step
        if raft.role is Role.LEADER:
            asked, self._asked = self._asked, {}
            for peer, pulse in asked.items():
                pulse.leave(self._wake)
                self._mail.offer_rest(peer, raft.term, raft.log.last_entry, 0)
            if was is State.RESTING:
                for peer, pulse in sorted(asked.items(), key=lambda item: item[1].seen_at):
                    step(Tick(now_seconds=min(pulse.seen_at, now)))
                    if raft.role is Role.LEADER and peer in raft.progress:
                        step(self._answer_of(peer))
        elif self._pulse is not None:
            pulse, self._pulse = self._pulse, None
            pulse.leave(self._wake)
            leader_id = raft.leader_id
            self._mail.answer_rest(leader_id, raft.term, self._accepted, False)
            step(Tick(now_seconds=min(pulse.seen_at, now)))
            step(
                Heartbeat(
                    sender=leader_id,
                    sender_store=raft.store_ids.get(leader_id, ""),
                    term=raft.term,
                    commit_index=raft.commit_index,
                    round=0,
                )
            )
        part = CATCH_UP_PART * raft.longest_step_seconds
        if part and now - raft.now <= 2 * self._patience_seconds(raft):
            while now - raft.now > part:
                step(Tick(now_seconds=raft.now + part))
        step(Tick(now_seconds=now))

    def _answer_of(self, peer: str) -> HeartbeatReply:
        """What the last answer to a pulse stands for: the follower lives, and is as it was."""
        raft = self._loop.raft
        progress = raft.progress[peer]
        return HeartbeatReply(
            sender=peer,
            sender_store=raft.store_ids.get(peer, ""),
            term=raft.term,
            round=progress.acked_round,
            last_applied=progress.applied_index,
            silent_seconds=0.0,
            priority=progress.priority,
        )

    @property
    def resting(self) -> bool:
        """Any thread."""
        return self.state is State.RESTING

    def seen_at(self, peer: str) -> float:
        """When the peer's process was last seen, if we rest under its pulse; else 0. Any thread."""
        pulse = self._asked.get(peer)
        if pulse is None and peer == self._loop.raft.leader_id:
            pulse = self._pulse
        return pulse.seen_at if pulse is not None and self.state is State.RESTING else 0.0
