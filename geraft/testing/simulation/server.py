"""One server of a simulated cluster: the real core, node loop, log writer and applier, on virtual time.

What runs on threads in a node runs here when the agenda says so: each turn of the node loop, each write of the disk,
each group of entries for the app. Power may fail between any two effects.
"""

from __future__ import annotations

import random
from _queue import SimpleQueue
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from blinker import Signal

from geraft import signals
from geraft.app import RaftApp
from geraft.core.effects import Persist, Role
from geraft.core.entries import Ballot, EntryBatch
from geraft.core.messages import PeerMessage
from geraft.core.raft import Raft, Settings
from geraft.errors import NodeStopped, OutcomeUnknown, ReadTimeout, StorageFailed
from geraft.runtime.applier import Applier, Readers
from geraft.runtime.dispatcher import Dispatcher
from geraft.runtime.hub import Call, Inbox, RemoteCall, fail, finish
from geraft.runtime.log_writer import LogWriter
from geraft.runtime.node_loop import TICK_DUE, NodeLoop
from geraft.simple import MemoryRepository, to_raft_app
from geraft.storage.base import Identity, StoredState
from geraft.storage.memory import MemoryStorage
from geraft.testing.simulation.referee import Watched
from geraft.testing.simulation.register import Registers
from geraft.testing.virtual import raft_from

if TYPE_CHECKING:
    from geraft.testing.simulation.cluster import Simulation

STALL_SECONDS = 10.0
"""As Config.storage_stall_seconds."""


class PowerLoss(BaseException):
    """Ends whatever runs on a server at this moment. No Exception: nothing may catch it on the way."""


class _NothingMore(Exception):
    """The node loop would wait for news now."""


class SimulatedDisk(MemoryStorage):
    """Durable when a write returns. broken: every write fails. ballot, last_index: what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.ballot = Ballot(0)
        self.last_index = 0

    def open(self) -> StoredState:
        state = super().open()
        self.ballot, self.last_index = state.ballot, state.last_entry.index
        return state

    def write(self, ballot: Ballot | None, batches: Sequence[EntryBatch]) -> None:
        if self.broken:
            raise StorageFailed("the simulated disk does not write any more")
        super().write(ballot, batches)
        self.ballot = ballot or self.ballot
        if batches:
            self.last_index = batches[-1].last_index


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
    """Of a worker: tells that there is work."""

    def __init__(self, put: Callable[[], None]) -> None:
        self._told = put

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item)
        self._told()


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


class _Dispatcher(Dispatcher):
    def __init__(self, server: SimulatedServer) -> None:
        self._server = server

    def send(self, signal: Signal, **fields: Any) -> None:
        self._server.may_lose_power()
        if signal is signals.role_changed:
            self._server.knock_soon()


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
        self.paused_until = 0.0
        self.effects_to_crash: int | None = None
        self.calls: dict[int, tuple[RemoteCall, Callable[[], None]]] = {}  # unanswered, each with what a crash means
        self.taken: set[int] = set()  # of those, which the node has got
        self.on_their_way: dict[int, Call] = {}  # to the leader, or back
        self.disk = SimulatedDisk()
        self.disk.open()
        self.disk.initialise(Identity("simulated", id, self.store_id), batches)
        self.disk.close()

    def clock(self) -> float:
        return self.clock_zero + self.world.now * self.clock_rate

    def start(self, settings: Settings) -> None:
        assert self.raft is None, "it runs already"
        world = self.world
        state = self.disk.open()
        self.disk.broken = False
        self.life += 1
        self.effects_to_crash = None
        self.paused_until = 0.0
        chance = random.Random(world.rng.random())
        self.raft = raft_from(self.id, self.store_id, state, settings, chance, self.clock(), Watched)
        self.raft.referee = world.referee
        world.referee.history.restarted(self.id, state.ballot)
        self._applied_index = 0
        self._turn_due = self._running = self._knock_due = False
        self._write_due_at: float | None = None
        self._applying = False
        self._idle_seconds = 0.6 * min(settings.acceptable_pause_seconds, settings.election_timeout_seconds / 2)
        raft_app = to_raft_app(Registers(self._app_writes), MemoryRepository())
        self._inbox = _Inbox(self._ask_for_turn, self.knock_soon)
        self._log_writer = LogWriter(self.disk, self.send, self._persisted, self._unexpected)
        self._log_writer.queue = _Queue(self._disk_has_work)
        self._applier = Applier(
            raft_app,
            self.disk,
            retry_seconds=1.0,
            retry_max_seconds=1.0,
            applied=self._app_applied,
            apply_failed=self._apply_failed,
            on_crash=self._unexpected,
        )
        self._applier.queue = _Queue(self._app_has_work)
        self._readers = _Readers(self, raft_app)
        self.loop = NodeLoop(
            self.raft,
            self._inbox,
            mail=self,
            log_writer=self._log_writer,
            applier=self._applier,
            readers=self._readers,
            dispatcher=_Dispatcher(self),
            storage=self.disk,
            append_bytes_max=settings.append_bytes_max,
            why_no_leader=lambda: "no leader is known",
            clock=self.clock,
        )
        self.later(0.0, self._knock)

    def later(self, seconds: float, action: Callable[..., None], *args: Any) -> None:
        """Do it then, if this life still lasts, or as soon as the process goes on; power may fail in it."""
        self.world.at(seconds, self._do, self.life, action, args)

    def _do(self, life: int, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.raft is None or self.life != life:
            return
        pause = self.paused_until - self.world.now
        if pause > 0:
            self.world.at(pause, self._do, life, action, args)
            return
        try:
            action(*args)
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
        waiting: list[Persist] = []
        while (persist := self._log_writer.take_more()) is not None:
            waiting.append(persist)
        written = self.world.rng.randrange(len(waiting) + 1) if waiting else 0
        if self.disk.broken:
            written = 0
        for persist in waiting[:written]:
            self.disk.write(persist.ballot, persist.batches)
        if 0 < written < len(waiting):
            self.world.count("crash that tore what was written")
        if any(persist.ballot is not None and persist.ballot.voted_for for persist in waiting[written:]):
            self.world.count("crash that lost a vote")
        self._end()
        self.on_their_way = {}
        lost, self.calls = list(self.calls.values()), {}
        for _, tell in lost:
            tell()

    def fail(self, error: StorageFailed) -> None:
        """The disk let it down: the node stops as Supervisor stops it, and every caller is told."""
        self.world.log(self.id, f"stops: {error}")
        self.world.count("disk failed")
        untaken = list(self._inbox.items)
        loop, applier, readers = self.loop, self._applier, self._readers
        while self._log_writer.take_more() is not None:
            pass
        self._end()
        loop.fail_everything(OutcomeUnknown(f"{self.id} stopped"), lambda: NodeStopped(f"{self.id} stopped"), untaken)
        on_their_way, self.on_their_way = list(self.on_their_way.values()), {}
        fail(on_their_way, OutcomeUnknown(f"{self.id} stopped before the leader's answer came"))
        applier.drop_queue()
        for calls in readers.queued.values():
            fail(calls, ReadTimeout("the node stopped before process_read came to the read"))
        lost, self.calls = self.calls, {}
        left = sorted(set(lost) & self.taken)
        assert not left, f"{self.id} stopped and left callers without an answer: {left}"
        for _, tell in lost.values():  # they came too late to be taken
            tell()

    def _end(self) -> None:
        self.raft = None
        self.disk.close()

    @staticmethod
    def _unexpected(error: BaseException) -> None:
        raise error

    @staticmethod
    def _apply_failed(index: int, attempt: int, error: BaseException) -> None:
        raise error

    # The node loop ----------------------------------------------------------------------------------------------------

    def _ask_for_turn(self) -> None:
        if not self._turn_due and not self._running:
            self._turn_due = True
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

    def _knock(self) -> None:
        """What the ticker does, but only where it can matter."""
        raft = self.raft
        assert raft is not None
        now = self.clock()
        deadline = min(_deadline(raft), raft.now + self._idle_seconds)
        if now >= deadline or self._inbox.items:
            self._inbox.put(TICK_DUE)
        resolution = self.world.settings.heartbeat_interval_seconds / 4
        self.later(min(max(deadline - now, resolution), self._idle_seconds), self._knock)

    def knock_soon(self) -> None:
        """At the ticker's next knock there is something to do."""
        if not self._knock_due:
            self._knock_due = True
            self.later(self.world.settings.heartbeat_interval_seconds / 4, self._knock_once)

    def _knock_once(self) -> None:
        self._knock_due = False
        self._inbox.put(TICK_DUE)

    def put(self, item: Any) -> None:
        """Into the node's inbox."""
        if isinstance(item, RemoteCall):
            self.taken.add(item.number)
        self._inbox.put(item)

    def arrived(self, message: PeerMessage) -> None:
        """Of a peer."""
        self.loop.message_arrived(message)

    def answered(self, number: int) -> None:
        """A call of this server's has its answer."""
        self.calls.pop(number, None)

    # What the loop needs of the transport -----------------------------------------------------------------------------

    def send(self, to: str, message: PeerMessage) -> None:
        self.may_lose_power()
        self.world.send(self, to, message)

    def set_peers(self, peers: dict[str, str]) -> None:
        self.may_lose_power()

    def forward(self, leader_id: str, calls: list[Call]) -> None:
        for call in calls:
            self.world.forward(self, leader_id, call)

    # Disk and app -----------------------------------------------------------------------------------------------------

    def _disk_has_work(self) -> None:
        self.may_lose_power()
        if self._write_due_at is None:
            seconds = self.world.disk_seconds(self)
            self._write_due_at = self.world.now + seconds
            if seconds > STALL_SECONDS:
                self.later(STALL_SECONDS, self._stalled)
            self.later(seconds, self._write)

    def stuck_for(self, seconds: float) -> bool:
        """Whether the write that runs takes so much longer."""
        return self._write_due_at is not None and self._write_due_at - self.world.now > seconds

    def _stalled(self) -> None:
        self.fail(StorageFailed("a write to the log store has hung for too long"))
        self.world.restart_later(self)

    def _write(self) -> None:
        """The write ends, and with it all that came meanwhile."""
        self._write_due_at = None
        try:
            self._log_writer.work(self._log_writer.queue.get_nowait())
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
        self._applier.work(self._applier.queue.get_nowait())
        if not self._applier.queue.empty():
            self._app_has_work()

    def _app_writes(self, index: int, command: bytes) -> None:
        assert index > self._applied_index, f"{self.id} applies {index} after {self._applied_index}"
        self._applied_index = index
        self.world.referee.applied(self.id, index, command)

    def _app_applied(self, index: int) -> None:
        self.loop.app_applied(index)


def _deadline(raft: Raft) -> float:
    """When a tick can matter next, if nothing else happens."""
    if raft.role is Role.LEADER:
        return raft.heartbeat_at_seconds
    if raft.campaign_at_seconds is not None:
        return raft.campaign_at_seconds
    return raft.detector.heard_at_seconds + raft.detector.suspect_after_seconds()
