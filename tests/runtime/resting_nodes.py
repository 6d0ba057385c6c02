"""Three nodes of one group, each in a process of its own, on virtual time: real cores, node loops, rests and pulses.

The network, the disks and the processes' beats are the test's: nothing moves unless it says so, and all that leaves a
node is noted, in order.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from geraft.core.effects import Persist, Role
from geraft.core.entries import Ballot, EntryId
from geraft.core.events import Event, PeerConnected, PeerDisconnected, Persisted
from geraft.core.log import Log
from geraft.core.messages import PeerMessage
from geraft.core.raft import Raft, Settings
from geraft.runtime.applier import ApplyWork
from geraft.runtime.hub import Call, CallKind, Consistency, RemoteCall
from geraft.runtime.node_loop import TICK_DUE, NodeLoop
from geraft.runtime.rest import Rest, State
from geraft.testing.virtual import bootstrap_batch, configuration_of
from geraft.transport.pulse import Pulse, RestAnswer, RestOffer

IDS = ("1", "2", "3")
IDLE_SECONDS = 0.3
BEAT_SECONDS = 0.1
STEP_SECONDS = 0.05
"""Between two knocks of time."""
SETTINGS = Settings()
PATIENCE_SECONDS = 0.75
"""That of the rules: three quarters of the election timeout of 1 s."""


class Offered(NamedTuple):
    """What a leader told a follower of its rest; number 0: it rests no more."""

    to: str
    term: int
    last_entry: EntryId
    number: int


class Answered(NamedTuple):
    to: str
    term: int
    number: int
    resting: bool


class Told(NamedTuple):
    """An event that a core was told, at the time that it knew then."""

    now: float
    event: Event


class NothingMore(Exception):
    """The loop would wait for news now."""


class HandInbox:
    def __init__(self) -> None:
        self.items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self.items.append(item)

    put_quietly = put

    def wake(self) -> None:
        pass

    def wait(self) -> None:
        if not self.items:
            raise NothingMore


class NotingRaft(Raft):
    """told: every event, in order."""

    told: list[Told]

    def step(self, event: Event) -> list[Any]:
        effects = super().step(event)
        self.told.append(Told(self.now, event))
        return effects


class Queue:
    def __init__(self, put: Callable[[Any], None]) -> None:
        self.put = put


class Node:
    """sent: what left it, in order: messages as (peer, message), and notes of its rest. disk_works: else writes wait,
    and so does what is to leave behind them. ticking: whether the knocks of time come to it."""

    def __init__(self, world: World, id: str, settings: Settings, idle_seconds: float) -> None:
        self.world = world
        self.id = id
        first = bootstrap_batch(configuration_of({each: f"s{each}" for each in world.ids}))
        log = Log()
        log.append(first)
        self.raft = NotingRaft(
            id=id,
            store_id=f"s{id}",
            ballot=Ballot(0),
            log=log,
            settings=settings,
            rng=random.Random(id),
            now_seconds=world.now,
        )
        self.raft.told = []
        if id != "1":
            self.raft.campaign_at_seconds = None  # the first shall lead
        self.sent: list[Any] = []
        self.ticking = True
        self.disk_works = True
        self._for_disk: list[Persist] = []
        self.pulses: dict[str, Pulse] = {}  # of streams that it dialled
        self.inbox = HandInbox()
        self.position = 0
        self.queue = Queue(self._take_work)
        loop: Any = NodeLoop
        self.loop: NodeLoop = loop(
            self.raft,
            self.inbox,
            mail=self,
            log_writer=self,
            applier=self,
            readers=self,
            keeper=self,
            dispatcher=self,
            storage=self,
            append_bytes_max=1 << 20,
            why_no_leader=lambda: "no leader is known",
            clock=world.clock,
        )
        self.rest = self.loop.rest = Rest(
            self.loop,
            self,
            idle_seconds=idle_seconds,
            pulse_seconds=BEAT_SECONDS,
            pause=self._pause,
            resume=self._resume,
            clock=world.clock,
        )

    def take(self, *items: Any) -> None:
        """These come in as one batch; what they lead to is carried out, but the network stands still."""
        self.inbox.items.extend(items)
        try:
            self.loop.run()
        except NothingMore:
            pass

    def notes(self) -> list[Any]:
        """Of what was sent: that which is about rests."""
        return [each for each in self.sent if isinstance(each, Offered | Answered)]

    def messages(self, kind: type[Any]) -> list[Any]:
        return [each for each in self.sent if isinstance(each, tuple) and isinstance(each[1], kind)]

    def told(self, kind: type[Event]) -> list[Told]:
        return [told for told in self.raft.told if isinstance(told.event, kind)]

    def forget(self) -> None:
        """What it was told and has sent up to now."""
        self.raft.told.clear()
        self.sent.clear()

    def _pause(self) -> None:
        assert self.ticking, "it rests already"
        self.ticking = False

    def _resume(self) -> None:
        assert not self.ticking, "it was awake"
        self.ticking = True

    # Disk and app, which work at once

    def _take_work(self, work: Any) -> None:
        match work:
            case Persist():
                self._for_disk.append(work)
                if self.disk_works:
                    self.write()
            case ApplyWork():
                self.position = work.last_index
                self.loop.app_applied(work.last_index)
            case _:
                raise AssertionError(f"{work} is none of a test of rests")

    def write(self) -> None:
        """The disk does what waits for it."""
        waiting, self._for_disk = self._for_disk, []
        for persist in waiting:
            last_entry = persist.batches[-1].last_entry if persist.batches else None
            self.loop.disk_persisted(Persisted(sequence=persist.sequence, last_entry=last_entry, ballot=persist.ballot))
            for send in persist.then:
                self._out(send.to, send.message)

    def read(self, calls: Sequence[Call]) -> None:
        """Of the app."""

    # The loop's mail, and that of the rest

    def _out(self, to: str, message: PeerMessage) -> None:
        self.sent.append((to, message))
        self.world.post(self.id, to, message)

    def send(self, to: str, message: Any = None, **fields: Any) -> None:
        if isinstance(to, str):  # else a signal
            self._out(to, message)

    def set_peers(self, peers: dict[str, str]) -> None:
        pass

    def pulse_of(self, peer: str) -> Pulse | None:
        return self.pulses.get(peer)

    def offer_rest(self, peer: str, term: int, last_entry: EntryId, number: int) -> None:
        self.sent.append(Offered(peer, term, last_entry, number))
        stream = self.world.streams.get((self.id, peer))
        if stream is not None:
            offer = RestOffer(sender=self.id, term=term, last_entry=last_entry, number=number, pulse=stream)
            self.world.post(self.id, peer, offer)

    def answer_rest(self, leader_id: str, term: int, number: int, resting: bool) -> None:
        self.sent.append(Answered(leader_id, term, number, resting))
        self.world.post(self.id, leader_id, RestAnswer(sender=self.id, number=number, resting=resting))


class World:
    """Begins with node 1 as the leader of all, and nothing under way.

    streams: the pulse that the listener feels, by (dialler, listener). network: whether anything arrives, else it is
    lost, as are the kinds of `loses`. halted: processes that stand still, and do not beat.
    """

    def __init__(
        self,
        ids: Sequence[str] = IDS,
        *,
        idle_seconds: float = IDLE_SECONDS,
        settings: dict[str, Settings] | None = None,
    ) -> None:
        self.ids = ids
        self.now = 100.0
        self.network = True
        self.loses: tuple[type[Any], ...] = ()
        self.halted: set[str] = set()
        self.on_its_way: deque[tuple[str, str, Any]] = deque()
        self.streams: dict[tuple[str, str], Pulse] = {}
        self._posted: deque[Callable[[], None]] = deque()
        self.nodes = {id: Node(self, id, (settings or {}).get(id, SETTINGS), idle_seconds) for id in ids}
        for dialler in ids:
            for listener in ids:
                if dialler != listener:
                    self.connect(dialler, listener)
        self._beat_at = self.now
        self.pass_until(lambda: self.leader.raft.role is Role.LEADER)
        # Each has its no-op, and knows that it is committed.
        self.pass_until(lambda: all(node.raft.last_applied == 2 for node in self.nodes.values()))
        for node in self.nodes.values():
            node.forget()

    def clock(self) -> float:
        return self.now

    @property
    def leader(self) -> Node:
        return self.nodes["1"]

    @property
    def followers(self) -> list[Node]:
        return [node for node in self.nodes.values() if node is not self.leader]

    @property
    def resting(self) -> set[str]:
        return {id for id, node in self.nodes.items() if node.rest.resting}

    def connect(self, dialler: str, listener: str) -> None:
        self.nodes[dialler].pulses[listener] = Pulse(self._posted.append, self.clock)
        self.streams[dialler, listener] = Pulse(self._posted.append, self.clock)
        self.nodes[dialler].take(PeerConnected(peer=listener))

    def cut(self, dialler: str, listener: str) -> None:
        """The stream is gone, and both ends see it."""
        self.nodes[dialler].pulses.pop(listener).end()
        self.streams.pop((dialler, listener)).end()
        self._run_posted()
        self.nodes[dialler].take(PeerDisconnected(peer=listener))

    def post(self, sender: str, to: str, item: Any) -> None:
        if self.network and not isinstance(item, self.loses):
            self.on_its_way.append((sender, to, item))

    def settle(self) -> None:
        """All that is on its way arrives, and what comes of it."""
        for _ in range(10_000):
            self._run_posted()
            for id, node in self.nodes.items():
                if id not in self.halted:
                    node.take()
            if not self.on_its_way:
                return
            sender, to, item = self.on_its_way.popleft()
            if to not in self.halted and sender not in self.halted:
                self._hand_in(self.nodes[to], item)
        raise AssertionError("the nodes never come to an end of what they tell each other")

    @staticmethod
    def _hand_in(node: Node, item: Any) -> None:
        if isinstance(item, RestOffer | RestAnswer):
            node.take(item)
        else:
            node.loop.message_arrived(item)
            node.take()

    def _run_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()

    def pass_seconds(self, seconds: float) -> None:
        """With all beats, knocks and messages."""
        for _ in range(round(seconds / STEP_SECONDS)):
            self.now += STEP_SECONDS
            if self.now >= self._beat_at - STEP_SECONDS / 10:
                self._beat_at += BEAT_SECONDS
                self._beat()
            for id, node in self.nodes.items():
                if node.ticking and id not in self.halted:
                    node.take(TICK_DUE)
            self.settle()

    def _beat(self) -> None:
        for (dialler, listener), pulse in self.streams.items():
            if not {dialler, listener} & self.halted:
                pulse.seen()
                self.nodes[dialler].pulses[listener].seen()
        for dialler, node in self.nodes.items():
            if dialler not in self.halted:
                for pulse in node.pulses.values():
                    pulse.check(self.now)
        for (_, listener), pulse in self.streams.items():
            if listener not in self.halted:
                pulse.check(self.now)

    def pass_until(self, condition: Callable[[], Any]) -> None:
        """In steps; for 50 s at most."""
        for _ in range(1000):
            if condition():
                return
            self.pass_seconds(STEP_SECONDS)
        raise AssertionError("the condition did not come true in 50 s")

    def fall_asleep(self) -> World:
        """Until all rest who can."""
        self.pass_until(lambda: self.resting >= set(self.ids) - self.halted)
        self.settle()
        for node in self.nodes.values():
            node.forget()
        return self

    def until_offered(self) -> Offered:
        """Until the leader offers to rest, of which nobody hears; what it offered to the first follower."""
        self.loses = (RestOffer,)
        self.pass_until(lambda: self.leader.rest.state is State.OFFERING)
        self.loses = ()
        return next(note for note in reversed(self.leader.notes()) if note.to == self.followers[0].id)

    def offer(self, **changes: Any) -> RestOffer:
        """As the leader would make it to node 2; or another one."""
        raft = self.leader.raft
        pulse = self.streams["1", "2"]
        offer = RestOffer(sender="1", term=raft.term, last_entry=raft.log.last_entry, number=7, pulse=pulse)
        return replace(offer, **changes)


def write(world: World) -> RemoteCall:
    """A write of a caller elsewhere."""
    return RemoteCall(CallKind.COMMIT, b"x", deadline=world.now + 10.0, number=1, sink=lambda calls: None)


def lease_read(world: World) -> RemoteCall:
    return RemoteCall(
        CallKind.READ,
        b"x",
        deadline=world.now + 10.0,
        number=1,
        sink=lambda calls: None,
        consistency=Consistency.LEASE,
    )
