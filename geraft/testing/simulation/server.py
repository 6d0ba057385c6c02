"""One server of a simulated cluster: the real core, node loop, log writer and applier, on virtual time.

What runs on threads in a node runs here when the agenda says so: each turn of the node loop, each write of the disk,
each group of entries for the app. Power may fail between any two effects.
"""

from __future__ import annotations

import math
import random
from _queue import Empty, SimpleQueue
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from blinker import Signal

from geraft import signals
from geraft.app import MakeSnapshot, RaftApp
from geraft.core.effects import CompactLog, Persist, RecordSnapshot, Role
from geraft.core.entries import Ballot, EntryBatch, EntryId
from geraft.core.events import SettingsChanged, SnapshotFetched, SnapshotFetchFailed
from geraft.core.messages import PeerMessage
from geraft.core.raft import Raft, Settings
from geraft.core.snapshots import Snapshot
from geraft.errors import BootstrapRefused, NodeStopped, NotLeader, OutcomeUnknown, ReadTimeout, StorageFailed
from geraft.runtime.applier import Applier, FetchWork, Readers, StateWanted
from geraft.runtime.compactor import Compactor
from geraft.runtime.dispatcher import Dispatcher
from geraft.runtime.hub import Call, Inbox, RemoteCall, Waiter, fail, finish
from geraft.runtime.log_writer import ForgetSnapshot, LogWriter
from geraft.runtime.node_loop import TICK_DUE, NodeLoop
from geraft.runtime.rest import Rest
from geraft.runtime.snapshot_fetcher import SnapshotFetch
from geraft.runtime.snapshot_keeper import Fold, SnapshotKeeper
from geraft.runtime.wishes import Transfer, Wish
from geraft.simple import MemoryRepository, to_raft_app
from geraft.storage.base import Identity, StoredState
from geraft.storage.memory import MemoryStorage
from geraft.testing.simulation.guest import Guest
from geraft.testing.simulation.pulses import BEAT_SECONDS
from geraft.testing.simulation.referee import Watched
from geraft.testing.simulation.register import Registers, parts_of
from geraft.testing.virtual import bootstrap_batch, configuration_of, raft_from
from geraft.transport.pulse import Pulse
from geraft.transport.services import SnapshotSink

if TYPE_CHECKING:
    from geraft.testing.simulation.cluster import Simulation

STALL_SECONDS = 10.0
"""As Config.storage_stall_seconds."""


class PowerLoss(BaseException):
    """Ends whatever runs on a server at this moment. No Exception: nothing may catch it on the way."""


class AppTrouble(Exception):
    """Raised by the app, before it has changed anything."""


class _NothingMore(Exception):
    """The node loop would wait for news now."""


class SimulatedDisk(MemoryStorage):
    """Durable when a write returns. broken: every write fails. ballot, last_index: what it holds.

    watch: called after a write that took entries back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.ballot = Ballot(0)
        self.last_index = 0
        self.watch: Callable[[], None] = lambda: None

    def open(self) -> StoredState:
        state = super().open()
        self.ballot, self.last_index = state.ballot, state.last_entry.index
        return state

    def write(self, ballot: Ballot | None, batches: Sequence[EntryBatch]) -> None:
        self._check_works()
        super().write(ballot, batches)
        self.ballot = ballot or self.ballot
        if batches:
            last_index, self.last_index = self.last_index, batches[-1].last_index
            if batches[0].first_index <= last_index:
                self.watch()

    def record_snapshot(self, snapshot: Snapshot) -> None:
        self._check_works()
        super().record_snapshot(snapshot)

    def forget_snapshot(self, index: int) -> None:
        self._check_works()
        super().forget_snapshot(index)

    def compact(self, index: int, bytes_max: int) -> EntryId:
        self._check_works()
        return super().compact(index, bytes_max)

    def reset(self, snapshot: Snapshot) -> None:
        self._check_works()
        super().reset(snapshot)
        self.last_index = snapshot.index
        self.watch()

    def _check_works(self) -> None:
        if self.broken:
            raise StorageFailed("the simulated disk does not write any more")

    def carry_out(self, item: Any) -> None:
        """One item of the log writer's queue, without telling anybody."""
        match item:
            case Persist():
                if item.reset is not None:
                    self.reset(item.reset)
                self.write(item.ballot, item.batches)
            case RecordSnapshot():
                self.record_snapshot(item.snapshot)
            case CompactLog():
                self.compact(item.index, item.bytes_max)
            case ForgetSnapshot():
                self.forget_snapshot(item.snapshot_index)
            case _:
                pass  # somebody wants to know that it came so far


class SimulatedFiles(MemoryRepository):
    """The snapshots of a server: they outlive a crash. saved: told of each that is stored, before anything else is.

    damaged: those that are not what was stored.
    """

    def __init__(self, saved: Callable[[int, bytes], None]) -> None:
        super().__init__()
        self._saved = saved
        self.damaged: set[int] = set()

    def save(self, snapshot_index: int, chunks: Iterable[bytes]) -> None:
        super().save(snapshot_index, chunks)
        self.damaged.discard(snapshot_index)
        self._saved(snapshot_index, self._snapshots[snapshot_index])

    def damage(self, snapshot_index: int, rng: random.Random) -> None:
        """One bit of it turns; an empty one can't be damaged."""
        snapshot = self._snapshots[snapshot_index]
        if snapshot:
            self._snapshots[snapshot_index] = with_a_bit_turned(snapshot, rng)
            self.damaged.add(snapshot_index)


def with_a_bit_turned(content: bytes, rng: random.Random) -> bytes:
    turned = bytearray(content)
    turned[rng.randrange(len(turned))] ^= 1 << rng.randrange(8)
    return bytes(turned)


class _Keeper(SnapshotKeeper):
    """Counts what becomes of folds."""

    world: Simulation

    def _fold(self, work: Fold) -> None:
        newest = self.newest
        overtaken = newest is not None and newest.index >= work.snapshot_index
        super()._fold(work)
        self.world.count("fold that a newer snapshot made needless", overtaken)
        if not overtaken and work.snapshot_index:
            made = work.snapshot_index in self._unrecorded
            self.world.count("snapshot folded" if made else "fold without its log")


class _Inbox(Inbox):
    """Asks for a turn of the loop instead of waking a greenlet."""

    def __init__(self, ask_for_turn: Callable[[], None], ask_for_knock: Callable[[], None]) -> None:
        self.items: deque[Any] = deque()
        self.closed = False
        self._ask_for_turn = ask_for_turn
        self._ask_for_knock = ask_for_knock

    def put(self, item: Any) -> None:
        self.items.append(item)
        self._ask_for_turn()

    def wake(self) -> None:
        self._ask_for_turn()

    def put_quietly(self, item: Any) -> None:
        self.items.append(item)
        self._ask_for_knock()

    def wait(self) -> None:
        if not self.items:
            raise _NothingMore


class _Queue(SimpleQueue[Any]):
    """Of a worker: tells that there is work. taken: how much of it the worker may still take, None for all: a thread
    takes what waits when it begins."""

    def __init__(self, put: Callable[[], None]) -> None:
        self._told = put
        self.taken: int | None = None

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item)
        self._told()

    def get_nowait(self) -> Any:
        if self.taken is not None:
            if self.taken == 0:
                raise Empty
            self.taken -= 1
        return super().get_nowait()


class _Readers(Readers):
    """Runs reads of the app and of the store a moment later."""

    def __init__(self, server: SimulatedServer, app: RaftApp) -> None:
        self._server = server
        self._app = app
        self.queued: dict[int, list[Call]] = {}
        self._number = 0

    def read(self, calls: list[Call]) -> None:
        self._number += 1
        self.queued[self._number] = calls
        self._server.later(self._server.world.app_seconds(), self._read, self._number)

    def _read(self, number: int) -> None:
        calls = self.queued.pop(number)
        finish(calls, [self._app.process_read(call.message) for call in calls])

    def run(self, job: Callable[[], None]) -> None:
        self._server.may_lose_power()
        self._server.later(self._server.world.app_seconds(), job)


class _Applier(Applier):
    """Asks an app that raised again, without a pause: virtual time does not pass while it works."""

    def _pause(self, seconds: float) -> None:
        pass


class _Dispatcher(Dispatcher):
    def __init__(self, server: SimulatedServer, applied_index: int) -> None:
        self._server = server
        self._committed = applied_index

    def send(self, signal: Signal, **fields: Any) -> None:
        self._server.may_lose_power()
        if signal is signals.role_changed:
            self._server.knock_soon()
        elif signal is signals.committed:
            first = fields["first_index"]
            assert first == self._committed + 1, f"signal committed tells of {first} after {self._committed}"
            self._committed = fields["last_index"]


class SimulatedServer:
    """raft is None while it is down. life: how often it was started. clock_rate: of its clock, 1 for a perfect one."""

    def __init__(self, world: Simulation, id: str, batches: Sequence[EntryBatch], clock_rate: float) -> None:
        self.world = world
        self.id = id
        self.store_id = f"store{id}"
        self.clock_rate = clock_rate
        self.clock_zero = 1000.0 * int(id)  # nobody may compare times of two servers
        self.raft: Watched | None = None
        self.life = 0
        self.process = 0  # how often its process was started: that outlives a node which fails, where nodes rest
        self.process_runs = False
        self.paused_until = 0.0
        self.effects_to_crash: int | None = None
        self.app_errors_due = 0
        self.awake_since = 0.0  # when it began to run, started or after a pause
        self.heard: dict[str, float] = {}  # when a message of each peer last came
        self.transfers: list[tuple[float, Transfer]] = []  # with when each was asked for
        self.term = 0
        self.guest: Guest | None = None
        self._agenda = world.agenda
        self._prompt = world.turn_mean == 0
        self.calls: dict[int, tuple[RemoteCall, Callable[[], None]]] = {}  # unanswered, each with what a crash means
        self.taken: set[int] = set()  # of those, which the node has got
        self.on_their_way: dict[int, Call] = {}  # to the leader, or back
        self.repository = SimulatedFiles(self._snapshot_saved)
        self.disk = SimulatedDisk()
        self.disk.watch = lambda: world.referee.check_committed_lasts(f"{id}'s disk dropped entries")
        self.disk.open()
        self.disk.initialise(Identity("simulated", id, self.store_id), batches)
        self.disk.close()

    def clock(self) -> float:
        return self.clock_zero + self._agenda.now * self.clock_rate

    def start(self, settings: Settings) -> None:
        assert self.raft is None, "it runs already"
        world = self.world
        state = self.disk.open()
        self.disk.broken = False
        self.life += 1
        in_old_process = self.process_runs
        if not in_old_process:
            self.process += 1
            self.process_runs = True
        self.effects_to_crash = None
        self.paused_until = 0.0
        chance = random.Random(world.rng.random())
        self._applied_index = 0
        self._fetch_held: FetchWork | None = None
        self._keeping = False
        self.snapshots_asked: list[tuple[int, Waiter]] = []  # with how far the app was when each was asked for
        self._arrives_damaged: SnapshotSink | None = None
        self.guest = (
            Guest(self.id, world.app_factory, world.comparison, world.rng) if world.app_factory is not None else None
        )
        self._registers = Registers(self._app_writes, world.referee.index_of, self.guest)
        raft_app = to_raft_app(self._registers, self.repository)
        self._keeper = _Keeper(
            raft_app,
            self.disk,
            made=self._tell,
            forget=lambda index: self._log_writer.queue.put(ForgetSnapshot(index)),
            ask_app=self._ask_app,
            after_writes=lambda then: self._log_writer.queue.put(then),
            on_crash=self._unexpected,
        )
        self._keeper.world = world
        self._befall_store(state)
        orphans = set(self.repository.indexes()) - {each.index for each in state.snapshots}
        snapshot, damaged = self._keeper.recover(state)
        world.count("orphaned snapshot swept", len(orphans))
        unexpected = set(damaged) - self.repository.damaged
        assert not unexpected, f"{self.id}: snapshots {unexpected} are not what was recorded"
        world.count("damaged snapshot not used", len(damaged))
        assert set(self.repository.indexes()) == {each.index for each in state.snapshots}, "all others are swept"
        if snapshot is not None:
            world.count("restart from a snapshot")
            self._state_is(snapshot)
        self._keeper.queue = _Queue(self._keeper_has_work)
        usable = tuple(each for each in state.snapshots if each.index not in damaged)
        state = replace(state, snapshots=usable)
        self.raft = raft_from(self.id, self.store_id, state, settings, chance, self.clock(), Watched)
        self.raft.server = self
        world.referee.history.restarted(self.id, state.ballot)
        self.awake_since = self._agenda.now
        self.app_errors_due = 0
        self.heard.clear()
        self.transfers.clear()
        self._turn_due = self._running = False
        self._knock_at = math.inf
        self._write_due_at: float | None = None
        self._applying = False
        self._idle_seconds = _idle_seconds(settings)
        self._inbox = _Inbox(self._ask_for_turn, self.knock_soon)
        self._log_writer = LogWriter(
            self.disk, self.send, self._persisted, self._tell, self._keeper.forgotten, self._unexpected
        )
        self._log_writer.queue = self._disk_queue = _Queue(self._disk_has_work)
        self._applier = _Applier(
            raft_app,
            self.disk,
            retry_seconds=1.0,
            retry_max_seconds=1.0,
            applied=self._app_applied,
            apply_failed=self._apply_failed,
            snapshots=self,
            on_crash=self._unexpected,
        )
        self._applier.begin_after(snapshot)
        self._applier.queue = _Queue(self._app_has_work)
        self._readers = _Readers(self, raft_app)
        self.loop = NodeLoop(
            self.raft,
            self._inbox,
            mail=self,
            log_writer=self._log_writer,
            applier=self._applier,
            readers=self._readers,
            keeper=self._keeper,
            dispatcher=_Dispatcher(self, self._applied_index),
            storage=self.disk,
            append_bytes_max=settings.append_bytes_max,
            session_limits=world.session_limits,
            why_no_leader=lambda: "no leader is known",
            clock=self.clock,
        )
        for index in damaged:
            self._log_writer.queue.put(ForgetSnapshot(index))
        self._compactor = Compactor(world.compaction_interval_seconds, self._interval_over, self.clock())
        self._wait_for_interval()
        self._resting = False
        self._rest: Rest | None = None
        if world.pulses is not None:
            self._rest = self.loop.rest = Rest(
                self.loop,
                self,
                idle_seconds=world.pulses.idle_seconds,
                pulse_seconds=BEAT_SECONDS,
                pause=self._begin_rest,
                resume=self._end_rest,
                clock=self.clock,
            )
            if in_old_process:
                world.pulses.attach(self)
        self._knock_in(0.0)

    def _befall_store(self, state: StoredState) -> None:
        """What may happen to a store while its server is down, and when it is started."""
        world = self.world
        chance = world.chance
        if not world.havoc.raging:
            return
        if state.identity is not None and chance.random() < 0.2:
            first = bootstrap_batch(configuration_of({self.id: ""}))
            try:
                self.disk.initialise(Identity("another", self.id, "another"), [first])
            except BootstrapRefused:
                world.count("bootstrap over state refused")
        newest = state.snapshots[-1] if state.snapshots else None
        if newest is None or not world.faults.disks or chance.random() >= 0.2:
            return
        others = [each.index for each in state.snapshots[:-1] if each.index not in self.repository.damaged]
        if state.base.index == 0 or any(index >= state.base.index for index in others):
            self.world.log(self.id, f"has a snapshot {newest.index} with a bit turned")
            self.repository.damage(newest.index, chance)

    def pause(self, seconds: float) -> None:
        """Stand still from now on; what comes meanwhile waits."""
        self.world.log(self.id, f"stands still for {seconds:.3f} s")
        self.paused_until = max(self.paused_until, self._agenda.now + seconds)

    def tune(self, settings: Settings) -> None:
        """Go by these settings until the next restart."""
        self._idle_seconds = _idle_seconds(settings)
        self.at_once(self.put, SettingsChanged(settings=settings))

    def later(self, seconds: float, action: Callable[..., None], *args: Any) -> None:
        """Do it then, if this life still lasts, or as soon as the process goes on; power may fail in it."""
        self._agenda.at(seconds, self._do, self.life, action, args)

    def at_once(self, action: Callable[..., None], *args: Any) -> None:
        """Do it now, if the server runs, or as soon as the process goes on."""
        self._do(self.life, action, args)

    def _do(self, life: int, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.raft is None or self.life != life:
            return
        if self.paused_until:
            pause = self.paused_until - self._agenda.now
            if pause > 0:
                self._agenda.at(pause, self._do, life, action, args)
                return
            self.awake_since, self.paused_until = self.paused_until, 0.0
        try:
            action(*args)
            if self._turn_due and self._prompt:
                self._turn()
        except PowerLoss:
            self.world.count("crash between two effects")
            self.crash()
            self.world.restart_later(self)

    def may_lose_power(self) -> None:
        """Between two effects."""
        if self.effects_to_crash is not None:
            self.effects_to_crash -= 1
            if self.effects_to_crash < 0:
                raise PowerLoss

    # The ends of a life -----------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """Power off: memory is gone; of what waits for the disk the first part may have reached it, or nothing."""
        if self.raft is None:
            return
        self.world.log(self.id, "crashes")
        waiting: list[Any] = []
        self._disk_queue.taken = None
        while (item := self._log_writer.take_more()) is not None:
            waiting.append(item)
        written = self.world.rng.randrange(len(waiting) + 1) if waiting else 0
        if self.disk.broken:
            written = 0
        for item in waiting[:written]:
            self.disk.carry_out(item)
        if 0 < written < len(waiting):
            self.world.count("crash that tore what was written")
        ballots = [item.ballot for item in waiting[written:] if isinstance(item, Persist) and item.ballot is not None]
        if any(ballot.voted_for for ballot in ballots):
            self.world.count("crash that lost a vote")
        if self.loop.fetch is not None:
            self.world.count("crash while a snapshot came")
        self._end()
        self.process_runs = False
        self.transfers.clear()
        self.snapshots_asked.clear()
        self.on_their_way = {}
        lost, self.calls = list(self.calls.values()), {}
        for _, tell in lost:
            tell()

    def _crash_and_return(self, life: int) -> None:
        if self.life == life and self.raft is not None:
            self.crash()
            self.world.restart_later(self)

    def fail(self, error: StorageFailed) -> None:
        """The disk let it down: the node stops as Supervisor stops it, and every caller is told."""
        self.world.log(self.id, f"stops: {error}")
        self.world.count("disk failed")
        untaken = list(self._inbox.items)
        loop, applier, readers = self.loop, self._applier, self._readers
        self._disk_queue.taken = None
        while self._log_writer.take_more() is not None:
            pass
        if self._rest is not None:
            self.effects_to_crash = None
            self._rest.end()
            self.world.count("node that ended in a process that lives")
        else:
            self.process_runs = False
        self._end()
        loop.fail_everything(OutcomeUnknown(f"{self.id} stopped"), lambda: NodeStopped(f"{self.id} stopped"), untaken)
        on_their_way, self.on_their_way = list(self.on_their_way.values()), {}
        fail(on_their_way, OutcomeUnknown(f"{self.id} stopped before the leader's answer came"))
        if self._fetch_held is not None:
            self._fetch_held.fetch.cancel()
        applier.drop_queue()
        self._keeper.drop_queue()
        self._keeper.after_end()
        self._judge_snapshots_asked()
        assert not self.snapshots_asked, f"{self.id} stopped and left who asked for a snapshot unanswered"
        for calls in readers.queued.values():
            fail(calls, ReadTimeout("the node stopped before process_read came to the read"))
        lost, self.calls = self.calls, {}
        left = sorted(set(lost) & self.taken)
        assert not left, f"{self.id} stopped and left callers without an answer: {left}"
        assert all(transfer.done for _, transfer in self.transfers), f"{self.id} stopped and left a transfer unanswered"
        for _, tell in lost.values():  # they came too late to be taken
            tell()

    def _end(self) -> None:
        self.raft = None
        self._resting = False
        self.disk.close()

    @staticmethod
    def _unexpected(error: BaseException) -> None:
        raise error

    def _apply_failed(self, index: int, attempt: int, error: BaseException) -> None:
        if not isinstance(error, AppTrouble):
            raise error
        self.world.count("app raised and was asked again")

    # The node loop ----------------------------------------------------------------------------------------------------

    def _ask_for_turn(self) -> None:
        """A prompt loop runs as soon as what happens now is over, one that is not takes what comes meanwhile too."""
        if not self._turn_due and not self._running:
            self._turn_due = True
            if not self._prompt:
                self.later(self.world.turn_seconds(), self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        self._running = True
        try:
            self.loop.run()
        except _NothingMore:
            pass
        finally:
            self._running = False

    def _knock_in(self, seconds: float) -> None:
        """The ticker knocks then, or earlier."""
        at = self._agenda.now + seconds
        if at < self._knock_at:
            self._knock_at = at
            self.later(seconds, self._knock, at)

    def _knock(self, at: float) -> None:
        """What the ticker does, but only where it can matter."""
        if at != self._knock_at:
            return
        self._knock_at = math.inf
        raft = self.raft
        assert raft is not None
        if self._resting:
            return
        if self.snapshots_asked:
            self._judge_snapshots_asked()
        # What is parked is looked at by a tick alone, however often heartbeats put the deadline off.
        if self._inbox.items or self.loop.has_callers or self.clock() >= self._deadline(raft):
            self._inbox.items.append(TICK_DUE)
            self._turn()
        resolution = self.world.settings.heartbeat_interval_seconds / 4
        wait = (self._deadline(raft) - self.clock()) / self.clock_rate + self.world.rng.random() * resolution
        self._knock_in(max(wait, resolution))

    def _deadline(self, raft: Raft) -> float:
        """When a tick can matter next, if nothing else happens."""
        if raft.role is Role.LEADER:
            matters = raft.heartbeat_at_seconds
        elif raft.campaign_at_seconds is not None:
            matters = raft.campaign_at_seconds
        else:
            detector = raft.detector
            matters = detector.heard_at_seconds + detector.floor_seconds
            if matters < raft.now + self._idle_seconds:  # else it is too early to ask how long exactly
                matters = detector.heard_at_seconds + detector.suspect_after_seconds()
        return min(matters, raft.now + self._idle_seconds)

    def knock_soon(self) -> None:
        """At the ticker's next knock there is something to do."""
        self._knock_in(self.world.settings.heartbeat_interval_seconds / 4)

    def put(self, item: Any) -> None:
        """Into the node's inbox."""
        if isinstance(item, RemoteCall):
            self.taken.add(item.number)
        self._inbox.put(item)

    @property
    def has_no_news(self) -> bool:
        """What it gets now, it takes before anything else."""
        return not self._inbox.items and self.paused_until <= self._agenda.now

    def arrived(self, message: PeerMessage) -> None:
        """Of a peer."""
        self.heard[message.sender] = self._agenda.now
        self.loop.message_arrived(message)

    def answered(self, number: int) -> None:
        """A call of this server's has its answer."""
        self.calls.pop(number, None)

    # Resting (rest.RestMail) ------------------------------------------------------------------------------------------

    @property
    def resting(self) -> bool:
        return self.raft is not None and self._rest is not None and self._rest.resting

    def _begin_rest(self) -> None:
        self.world.count("a node rests")
        self._resting = True

    def _end_rest(self) -> None:
        self._resting = False
        self._knock_in(0.0)

    def pulse_of(self, peer: str) -> Pulse | None:
        stream = self.world.pulses.stream(self.id, peer) if self.world.pulses is not None else None
        return stream.near.pulse if stream is not None else None

    def offer_rest(self, peer: str, term: int, last_entry: EntryId, number: int) -> None:
        self.may_lose_power()
        assert self.world.pulses is not None
        self.world.pulses.offer(self, peer, term, last_entry, number)

    def answer_rest(self, leader_id: str, term: int, number: int, resting: bool) -> None:
        self.may_lose_power()
        assert self.world.pulses is not None
        self.world.pulses.answer(self, leader_id, number, resting)

    # What the loop needs of the transport -----------------------------------------------------------------------------

    def send(self, to: str, message: PeerMessage) -> None:
        self.may_lose_power()
        self.world.send(self, to, message)

    def set_peers(self, peers: dict[str, str]) -> None:
        self.may_lose_power()

    def forward(self, leader_id: str, calls: list[Call]) -> None:
        for call in calls:
            self.world.forward(self, leader_id, call)

    def forward_wish(self, leader_id: str, wish: Wish) -> None:
        fail([wish], NotLeader(f"{leader_id} leads, not {self.id}"))

    # Disk and app -----------------------------------------------------------------------------------------------------

    def _disk_has_work(self) -> None:
        self.may_lose_power()
        if self._write_due_at is None:
            self._disk_queue.taken = self._disk_queue.qsize()
            seconds = self.world.disk_seconds(self)
            self._write_due_at = self.world.now + seconds
            if seconds > STALL_SECONDS:
                self.later(STALL_SECONDS, self._stalled)
            self.later(seconds, self._write)

    def stuck_for(self, seconds: float) -> bool:
        """Whether the write that runs takes so much longer."""
        return self._write_due_at is not None and self._write_due_at - self._agenda.now > seconds

    def _stalled(self) -> None:
        self.fail(StorageFailed("a write to the log store has hung for too long"))
        self.world.restart_later(self)

    def _write(self) -> None:
        """The write ends. What came meanwhile is the next one."""
        self._write_due_at = None
        try:
            self._log_writer._take(self._log_writer.queue.get_nowait())
        except StorageFailed as error:
            self.fail(error)
            self.world.restart_later(self)
            return
        if not self._log_writer.queue.empty():
            self._disk_has_work()

    def _persisted(self, event: Any) -> None:
        self.may_lose_power()
        self.loop.disk_persisted(event)

    def _app_has_work(self) -> None:
        self.may_lose_power()
        if not self._applying:
            self._applying = True
            self.later(self.world.app_seconds(), self._apply)

    def _apply(self) -> None:
        self._applying = False
        item = self._fetch_held or self._applier.queue.get_nowait()
        self._fetch_held = None
        if isinstance(item, FetchWork) and not (item.fetch.ended or item.fetch.complete):
            self._fetch_held = item  # the app's thread waits for the bytes
        else:
            self._applier.work(item)
        if self._fetch_held is not None or not self._applier.queue.empty():
            self._app_has_work()

    def _app_writes(self, index: int, command: bytes) -> MakeSnapshot:
        if self.app_errors_due:
            self.app_errors_due -= 1
            raise AppTrouble("the simulated app has a bad moment")
        assert index > self._applied_index, f"{self.id} applies {index} after {self._applied_index}"
        self._applied_index = index
        self.world.referee.applied(self.id, index, command)
        world = self.world
        if world.rng.random() >= world.snapshot_chance:
            return MakeSnapshot.NONE
        return MakeSnapshot.FOLD if world.chance.random() < world.fold_share else MakeSnapshot.COPY

    # Snapshots --------------------------------------------------------------------------------------------------------

    def _tell(self, event: Any) -> None:
        self.may_lose_power()
        self._inbox.put(event)

    def _keeper_has_work(self) -> None:
        self.may_lose_power()
        if not self._keeping:
            self._keeping = True
            self.later(self.world.app_seconds(), self._keep)

    def _keep(self) -> None:
        self._keeping = False
        self._keeper.work(self._keeper.queue.get_nowait())
        if not self._keeper.queue.empty():
            self._keeper_has_work()

    def copied(self, index: int, sessions: bytes) -> None:
        self._keeper.copied(index, sessions)

    def fold_wanted(self) -> None:
        self.world.count("fold wanted by the app")
        self._keeper.fold()

    def _interval_over(self) -> None:
        self.world.count("fold at the interval")
        self._keeper.fold()

    def _wait_for_interval(self) -> None:
        seconds = self._compactor.seconds_left(self.clock())
        if seconds is not None:
            self.later(seconds, self._look_whether_to_fold)

    def _look_whether_to_fold(self) -> None:
        self._compactor.look(self.clock())
        self._wait_for_interval()

    def take_snapshot(self) -> None:
        """Somebody asks for one of what the app has applied, and waits for its index."""
        waiter = Waiter()
        waiter.wait_natively()  # done when it is answered, whatever hub this thread may have
        self.snapshots_asked.append((self._applied_index, waiter))
        self._keeper.fold(waiter)

    def _judge_snapshots_asked(self) -> None:
        for applied_index, waiter in self.snapshots_asked:
            if waiter.done and waiter.error is None:
                self.world.count("snapshot asked for and made", waiter.value > 0)
                assert waiter.value >= applied_index, (
                    f"{self.id} tells of snapshot {waiter.value}, but {applied_index} was applied when it was asked"
                )
        self.snapshots_asked = [asked for asked in self.snapshots_asked if not asked[1].done]

    def _ask_app(self, answer: Callable[[int, bytes], None]) -> None:
        def tell(index: int, sessions: bytes) -> None:
            if self.guest is not None:
                self.guest.compare(index)  # what a fold of this index will have to be
            answer(index, sessions)

        self._applier.queue.put(StateWanted(tell))

    def _snapshot_saved(self, index: int, content: bytes) -> None:
        cells, guests = parts_of(content)
        self.world.referee.saved(self.id, index, cells)
        if self.guest is not None and guests is not None:
            self.guest.compare_snapshot(index, guests)

    def arrives(self, index: int) -> None:
        self._keeper.arrives(index)

    def fetched(self, fetch: SnapshotFetch, snapshot: Snapshot | None) -> None:
        if fetch is self._arrives_damaged:
            assert snapshot is None, f"{self.id} takes snapshot {fetch.last_entry.index}, which came damaged"
            self.world.count("snapshot that came damaged refused")
        if snapshot is not None:
            self._tell(SnapshotFetched(leader=fetch.leader, snapshot=snapshot))
        else:
            self._tell(SnapshotFetchFailed(leader=fetch.leader, last_entry=fetch.last_entry))

    def not_fetched(self, index: int) -> None:
        self._keeper.discard(index, fetched=True)

    def installed(self, snapshot: Snapshot) -> None:
        assert snapshot.index > self._applied_index, f"{self.id} installs {snapshot.index} over {self._applied_index}"
        self.world.count("snapshot installed")
        self._state_is(snapshot)

    def _state_is(self, snapshot: Snapshot) -> None:
        self._applied_index = snapshot.index
        self.world.referee.installed(self.id, snapshot.index, self._registers.cells())

    def fetch_snapshot(self, leader_id: str, sink: SnapshotSink) -> None:
        self.may_lose_power()
        world = self.world
        self.later(world.turn_seconds(), self._pull, leader_id, sink)
        if world.havoc.raging and world.faults.crashes and world.rng.random() < 0.8:
            victim = world.servers[world.rng.choice((self.id, self.id, leader_id))]
            world.at(world.rng.uniform(0, 0.05), victim._crash_and_return, victim.life)

    def _pull(self, leader_id: str, sink: SnapshotSink) -> None:
        """The next bytes come, or the stream breaks and is taken up again where it was."""
        if sink.ended:
            return
        world, leader = self.world, self.world.servers[leader_id]
        reached = world.havoc.reaches(self.id, leader_id) and world.havoc.reaches(leader_id, self.id)
        if leader.raft is None or not reached:
            world.count("stream of a snapshot broke", sink.offset > 0)
            self.later(world.rng.uniform(0.05, 0.3), self._pull, leader_id, sink)
            return
        try:
            with leader._keeper.reading(sink.last_entry) as (snapshot, chunks):
                content = b"".join(chunks)
        except KeyError:
            world.count("snapshot was gone")
            sink.fail("it is not held any more")
            return
        if not sink.begin(snapshot):
            sink.fail("another snapshot")
            return
        piece = content[sink.offset :][: world.rng.choice((1, 10, 1000))]
        if piece and world.havoc.raging and world.faults.disks and world.chance.random() < 0.05:
            piece = with_a_bit_turned(piece, world.chance)
            self._arrives_damaged = sink
        sink.put(piece)
        if sink.complete:
            sink.finish()
        else:
            self.later(world.snapshot_seconds(), self._pull, leader_id, sink)

    def _app_applied(self, index: int) -> None:
        self.loop.app_applied(index)


def _idle_seconds(settings: Settings) -> float:
    """After a longer time without a tick Raft would believe that the process stood still."""
    return 0.6 * min(settings.acceptable_pause_seconds, settings.election_timeout_seconds / 2)
