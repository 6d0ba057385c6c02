"""Simulation: a cluster, its network, its clients and what befalls them, all drawn from one seed."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from geraft.core.effects import Effect, Persist, Role, Send
from geraft.core.events import Event, PeerConnected, PeerDisconnected
from geraft.core.invariants import check_logs_match
from geraft.core.messages import Message, PeerMessage
from geraft.core.raft import Raft, Settings
from geraft.errors import NodeStopped, NoLeader, NotLeader, OutcomeUnknown, Unreachable
from geraft.runtime.hub import Call, CallKind, RemoteCall, fail, finish
from geraft.runtime.node_loop import Transfer
from geraft.testing.scenarios import show_effect, show_message, show_persist
from geraft.testing.simulation.agenda import Agenda
from geraft.testing.simulation.clients import Client
from geraft.testing.simulation.referee import Referee, require
from geraft.testing.simulation.server import SimulatedServer
from geraft.testing.virtual import bootstrap_batch, configuration_of

HEAL_SECONDS = 8.0
"""After the faults: how long until a leader leads, every caller is served and nobody lags."""
QUIET_SECONDS = 4.5
"""After that: how long until the last caller has its answer."""
TRACE_LINES = 60
"""How much of the end of a failed run its error tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What may befall a cluster. per_second: how often something does, on average; 0 for a peaceful one.

    clock_drift: how much faster or slower than the true time clocks run at most, as a fraction. Beyond what
    Settings.clock_drift_max allows between two clocks, reads under a lease are not held to be fresh.
    """

    per_second: float = 1.2
    crashes: bool = True
    pauses: bool = True
    partitions: bool = True
    loss: bool = True
    duplicates: bool = True
    reordering: bool = True
    disks: bool = True
    transfers: bool = True
    clock_drift: float = 0.045


class SimulationFailed(AssertionError):
    """Something that must hold did not. trace: the last lines of what happened before; the message has it all."""

    def __init__(self, reason: str, *, seed: int, nodes: int, seconds: float, now: float, trace: list[str]) -> None:
        self.reason, self.seed, self.now, self.trace = reason, seed, now, trace
        command = f"geraft simulate --trace {seed} --nodes {nodes} --seconds {seconds:g}"
        super().__init__("\n".join([f"seed {seed}, at {now:.6f} s: {reason}", *trace, f"replay it: {command}"]))


class Simulation:
    """nodes: how many servers. seconds: how long faults befall them; then they must recover.

    trace: gets each line of what happens. Equal arguments give equal lines, in every process.
    counters: how often each rare situation was met. now: how much time was simulated.
    """

    def __init__(
        self,
        seed: int,
        *,
        nodes: int = 3,
        seconds: float = 20.0,
        faults: Faults | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.seed = seed
        self.nodes = nodes
        self.seconds = seconds
        self.faults = faults = faults if faults is not None else Faults()
        self._trace = trace
        self.tracing = trace is not None
        self.rng = rng = random.Random(seed)
        self._agenda = Agenda()
        self.at = self._agenda.at
        hasty = rng.random() < 0.5
        self.settings = Settings(
            acceptable_pause_seconds=0.05 if hasty else 0.5,  # hasty elections, close to what a lease may count on
            phi_deviation_min_seconds=0.02 if hasty else 0.1,
            cache_bytes_max=rng.choice((1500, 8 << 20)),
            append_bytes_max=rng.choice((60, 400, 1 << 20)),
            inflight_messages_max=rng.choice((2, 64)),
            uncommitted_bytes_max=rng.choice((40, 128 << 20)),
            apply_bytes_max=rng.choice((100, 8 << 20)),
        )
        fastest, slowest = 1 + faults.clock_drift, 1 - faults.clock_drift
        self.referee = Referee(
            leases_hold=slowest / fastest >= 1 - self.settings.clock_drift_max,
            log_step=self.log_step if self.tracing else None,
        )
        self.counters: Counter[str] = self.referee.counters
        names = [str(number) for number in range(1, nodes + 1)]
        knows_stores = rng.random() < 0.5
        first = bootstrap_batch(configuration_of({id: f"store{id}" if knows_stores else "" for id in names}))
        drift = faults.clock_drift
        self.servers = {id: SimulatedServer(self, id, [first], 1 + rng.uniform(-drift, drift)) for id in names}
        self._cut: set[tuple[str, str]] = set()
        self._loss = 0.0
        self._slow_disks: dict[str, float] = {}
        self._stormy = faults.per_second > 0
        self._last_number = 0
        self._arrivals: dict[tuple[str, str], float] = {}
        self._latency = rng.choice((0.0003, 0.002, 0.01))
        self._disk_mean = rng.choice((0.0005, 0.005, 0.02))
        self.calls_per_second = rng.choice((1.0, 5.0, 20.0))
        self.clients = [Client(self) for _ in range(rng.choice((2, 6)))]

    @property
    def now(self) -> float:
        return self._agenda.now

    def run(self) -> Simulation:
        """Play it to its end. Raises SimulationFailed."""
        try:
            self._play()
        except Exception as error:
            reason = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            if self.tracing:
                trace: list[str] = []
            else:
                trace = self._replayed()
            raise SimulationFailed(
                reason, seed=self.seed, nodes=self.nodes, seconds=self.seconds, now=self.now, trace=trace
            ) from error
        return self

    def _replayed(self) -> list[str]:
        lines: deque[str] = deque(maxlen=TRACE_LINES)
        again = Simulation(self.seed, nodes=self.nodes, seconds=self.seconds, faults=self.faults, trace=lines.append)
        try:
            again._play()
        except Exception:
            pass
        return list(lines)

    def _play(self) -> None:
        for server in self.servers.values():
            server.start(self.settings)
        for client in self.clients:
            self.at(self.rng.uniform(0, 2), client.act)
        if self._stormy:
            self.at(self._until_next_fault(), self._befall)
            self._agenda.run_until(self.seconds)
            self._recover()
        else:
            self._agenda.run_until(self.seconds)
        done = [client.done for client in self.clients]
        self._agenda.run_until(self.now + HEAL_SECONDS)
        for client, before in zip(self.clients, done, strict=True):
            require(client.done > before, "a client is not served after the faults ended")
            client.stopped = True
        self._agenda.run_until(self.now + QUIET_SECONDS)
        self._check_recovered()

    def _recover(self) -> None:
        self.log("", "the faults end")
        self._stormy = False
        self._loss = 0.0
        self._slow_disks.clear()
        self._heal()
        for server in self.servers.values():
            server.paused_until = 0.0
            server.effects_to_crash = None
            server.disk.broken = False
            if server.raft is not None and server.stuck_for(1.0):
                server.crash()
            if server.raft is None:
                self._start(server)

    def _check_recovered(self) -> None:
        """Liveness: one leader, and everyone holds and has applied what it has committed; all callers are answered."""
        rafts: list[Raft] = [server.raft for server in self.servers.values() if server.raft is not None]
        require(len(rafts) == self.nodes, "a server stays down after the faults ended")
        leaders = [raft for raft in rafts if raft.role is Role.LEADER]
        require(len(leaders) == 1, f"leaders after the faults ended: {[raft.id for raft in leaders]}")
        check_logs_match(rafts)
        for raft in rafts:
            state = (raft.log.last_entry, raft.commit_index, raft.last_applied)
            wanted = (leaders[0].log.last_entry, leaders[0].commit_index, leaders[0].commit_index)
            require(state == wanted, f"{raft.id} does not catch up: last, committed, applied {state}, not {wanted}")
        for server in self.servers.values():
            require(not server.calls, f"{server.id} never answers calls {sorted(server.calls)}")

    # What the servers need --------------------------------------------------------------------------------------------

    def log(self, server: str, line: str) -> None:
        if self._trace is not None:
            self._trace(f"{self.now:11.6f} {server or '-'} {line}")

    def log_step(self, server: str, event: Event, effects: list[Effect]) -> None:
        """The messages among the effects are logged when they leave."""
        if isinstance(event, Message):
            self.log(server, f"<- {event.sender} {show_message(event)}")
        else:
            self.log(server, repr(event))
        for effect in effects:
            if isinstance(effect, Persist):
                self.log(server, f"  to disk: {show_persist(effect)}")
            elif not isinstance(effect, Send):
                self.log(server, f"  {show_effect(effect)}")

    def count(self, situation: str, times: int = 1) -> None:
        self.counters[situation] += times

    def next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def leaders(self) -> list[str]:
        """Those that believe to lead."""
        return [id for id, server in self.servers.items() if server.raft and server.raft.role is Role.LEADER]

    def turn_seconds(self) -> float:
        return self.rng.random() * 0.0005

    def app_seconds(self) -> float:
        return self.rng.random() * 0.002

    def disk_seconds(self, server: SimulatedServer) -> float:
        seconds = self.rng.expovariate(1 / self._disk_mean)
        return seconds + self.rng.random() * self._slow_disks[server.id] if server.id in self._slow_disks else seconds

    def _delay(self, sender: str, to: str) -> float:
        rng = self.rng
        delay = self._latency * (0.5 + rng.random())
        if self._stormy and rng.random() < 0.03:
            delay += rng.expovariate(2.0)
        if not self.faults.reordering:
            arrival = self._arrivals[sender, to] = max(self._arrivals.get((sender, to), 0.0), self.now + delay)
            delay = arrival - self.now
        return delay

    def _reaches(self, sender: str, to: str) -> bool:
        return (sender, to) not in self._cut and (not self._loss or self.rng.random() >= self._loss)

    def send(self, server: SimulatedServer, to: str, message: PeerMessage) -> None:
        """A message leaves."""
        self.referee.leaves(server, to, message)
        reaches = self._reaches(server.id, to)
        if self.tracing:
            self.log(server.id, f"-> {to} {show_message(message)}{'' if reaches else ' (lost)'}")
        if not reaches:
            return
        self.at(self._delay(server.id, to), self._arrive, to, message)
        if self._stormy and self.faults.duplicates and self.rng.random() < 0.01:
            self.at(self._delay(server.id, to), self._arrive, to, message)

    def _arrive(self, to: str, message: PeerMessage) -> None:
        server = self.servers[to]
        if server.raft is not None:
            server.later(0.0, server.arrived, message)

    def forward(self, origin: SimulatedServer, leader_id: str, call: Call) -> None:
        """A call goes on to the leader over a stream that may break: then nobody knows, or it comes back."""
        self.count("call forwarded to the leader")
        life, loop = origin.life, origin.loop
        sending = self.next_number()
        origin.on_their_way[sending] = call

        def come_back(error: BaseException | None, value: object = None) -> None:
            if origin.life != life or origin.raft is None:
                return
            del origin.on_their_way[sending]
            if error is None:
                finish([call], [value])
            elif isinstance(error, NotLeader | NoLeader | NodeStopped | Unreachable):
                self.count("call waited for a leader")
                loop.park([call])
            else:
                fail([call], error)

        def answer(error: BaseException | None, value: object = None) -> None:
            if self._reaches(leader_id, origin.id):
                self.at(self._delay(leader_id, origin.id), lambda: origin.later(0.0, come_back, error, value))
            else:
                broke()

        def broke() -> None:
            lost = Unreachable("the read was on its way") if call.kind is CallKind.READ else OutcomeUnknown("it broke")
            self.at(self.rng.uniform(0.0, 0.5), lambda: origin.later(0.0, come_back, lost))

        def arrive() -> None:
            leader = self.servers[leader_id]
            if leader.raft is None:
                answer(Unreachable("nobody listens"))
                return
            number = self.next_number()

            def answered(calls: list[RemoteCall]) -> None:
                leader.answered(number)
                answer(calls[0].error, calls[0].value)

            remote = RemoteCall(
                call.kind,
                call.message,
                deadline=leader.clock() + call.deadline - origin.clock(),
                number=number,
                sink=answered,
                wait_for_leader=call.wait_for_leader,
                consistency=call.consistency,
                forwarded=True,
            )
            leader.calls[number] = remote, broke
            leader.later(0.0, leader.put, remote)

        if self._reaches(origin.id, leader_id):
            self.at(self._delay(origin.id, leader_id), arrive)
        elif self.rng.random() < 0.5:
            broke()
        else:
            self.at(self.rng.uniform(0.0, 0.5), lambda: origin.later(0.0, come_back, Unreachable("no connection")))

    # What befalls them ------------------------------------------------------------------------------------------------

    def _until_next_fault(self) -> float:
        return self.rng.expovariate(self.faults.per_second)

    def _befall(self) -> None:
        if not self._stormy:
            return
        faults, rng = self.faults, self.rng
        victims = self.leaders() if rng.random() < 0.5 else list(self.servers)
        victim = self.servers[rng.choice(victims or list(self.servers))]
        kinds: list[tuple[bool, Callable[[SimulatedServer], None]]] = [
            (faults.crashes, self._crash),
            (faults.crashes, self._crash_all),
            (faults.pauses, self._pause),
            (faults.partitions and self.nodes > 1, self._partition),
            (faults.partitions and self.nodes > 1, self._partition),
            (faults.loss, self._lose),
            (faults.disks, self._hamper_disk),
            (faults.transfers, self._transfer),
            (faults.transfers, self._transfer),
        ]
        allowed = [kind for allowed, kind in kinds if allowed]
        if allowed:
            rng.choice(allowed)(victim)
        self.at(self._until_next_fault(), self._befall)

    def _start(self, server: SimulatedServer) -> None:
        if server.raft is None:
            self.log(server.id, "starts")
            server.start(self.settings)

    def restart_later(self, server: SimulatedServer) -> None:
        self.at(self.rng.uniform(0.05, 4.0), self._start, server)

    def _crash(self, victim: SimulatedServer) -> None:
        if victim.raft is None:
            return
        if self.rng.random() < 0.5:
            victim.effects_to_crash = self.rng.randrange(8)
        else:
            victim.crash()
            self.restart_later(victim)

    def _crash_all(self, victim: SimulatedServer) -> None:
        """A power cut for a majority, or for all."""
        servers = list(self.servers.values())
        for server in self.rng.sample(servers, self.rng.randint(len(servers) // 2 + 1, len(servers))):
            if server.raft is not None:
                server.crash()
                self.at(self.rng.uniform(0.05, 1.0), self._start, server)

    def _pause(self, victim: SimulatedServer) -> None:
        seconds = self.rng.uniform(0, 3)
        self.log(victim.id, f"stands still for {seconds:.3f} s")
        victim.paused_until = self.now + seconds

    def _partition(self, victim: SimulatedServer) -> None:
        rng, names = self.rng, list(self.servers)
        other = rng.choice([id for id in names if id != victim.id])
        side = {victim.id, other} if rng.random() < 0.3 else {victim.id}
        across = [(a, b) for a in names for b in names if (a in side) != (b in side)]
        cut = rng.choice(
            [
                {(victim.id, other)},
                {(victim.id, other), (other, victim.id)},
                set(across),
                set(across),
                {(a, b) for a, b in across if a in side},
                {(a, b) for a, b in across if b in side},
            ]
        )
        self.log("", "cut: " + " ".join(f"{a}->{b}" for a, b in sorted(cut)))
        self._cut |= cut
        if rng.random() < 0.5:
            for a, b in sorted(cut):
                self._tell_of_stream(a, PeerDisconnected(peer=b))
        self.at(rng.uniform(0.2, 5.0), self._heal)

    def _heal(self) -> None:
        cut, self._cut = self._cut, set()
        if cut:
            self.log("", "all links work")
        for a, b in sorted(cut):
            self._tell_of_stream(a, PeerConnected(peer=b))

    def _tell_of_stream(self, id: str, event: PeerConnected | PeerDisconnected) -> None:
        server = self.servers[id]
        if server.raft is not None:
            server.later(self.rng.random() * 0.1, server.put, event)

    def _lose(self, _: SimulatedServer) -> None:
        self._loss = self.rng.choice((0.0, 0.05, 0.1, 0.4))
        self.log("", f"messages are lost: {self._loss:.0%}")

    def _hamper_disk(self, victim: SimulatedServer) -> None:
        if self.rng.random() < 0.2:
            self.log(victim.id, "has a disk that fails")
            victim.disk.broken = True
            return
        slow = self.rng.choice((0.05, 0.3, 2.0, 15.0))
        self.log(victim.id, f"has a disk that takes up to {slow} s")
        self._slow_disks[victim.id] = slow
        self.at(self.rng.uniform(0.5, 4.0), self._slow_disks.pop, victim.id, None)

    def _transfer(self, victim: SimulatedServer) -> None:
        target = self.rng.choice(["", *self.servers])
        if victim.raft is not None:
            self.log(victim.id, f"is asked to hand leadership to {target or 'anyone'}")
            victim.later(0.0, victim.put, Transfer(target))
