"""Simulation: a cluster, its network, its clients and what befalls them, all drawn from one seed."""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from geraft.core.effects import Effect, Persist, Role, Send
from geraft.core.entries import EntryBatch, EntryId, EntryKind
from geraft.core.events import Event
from geraft.core.invariants import check_logs_match
from geraft.core.membership import Member, MembershipChange, ReplaceMembers
from geraft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    Message,
    OfferSnapshot,
    PeerMessage,
    RequestVoteReply,
)
from geraft.core.raft import Raft, Settings
from geraft.errors import ConfigError, NodeStopped, NoLeader, NotLeader, OutcomeUnknown, StorageFailed, Unreachable
from geraft.runtime.hub import Call, CallKind, RemoteCall, fail, finish
from geraft.runtime.wishes import Change
from geraft.sessions import Limits
from geraft.testing.scenarios import show_effect, show_message, show_persist
from geraft.testing.simulation.agenda import Agenda
from geraft.testing.simulation.clients import Client
from geraft.testing.simulation.faults import LONGEST_ELECTION_TIMEOUT_SECONDS, Faults, Havoc
from geraft.testing.simulation.guest import AppFactory, Commands, Comparison, can_fold
from geraft.testing.simulation.numbered_clients import NumberedClient
from geraft.testing.simulation.pulses import Pulses
from geraft.testing.simulation.referee import Referee, require
from geraft.testing.simulation.server import SimulatedServer
from geraft.testing.virtual import bootstrap_batch, configuration_of

LATE_SECONDS = 3.0
"""How long after the faults messages still arrive that were delayed, or waited for a server that stood still."""
HEAL_SECONDS = 6.0
"""After that: how long until one leads, and all others follow it."""
SERVED_SECONDS = 12.0
"""After that: how long until every caller was served."""
CALM_SECONDS = 2.5
"""After that: how long nobody may campaign."""
CUT_OFF_SECONDS = 3.0
"""For how long a minority is cut off then, which must disturb nobody."""
GAP_SECONDS_MAX = 4.0
"""Between two calls of a client: long enough for a group to rest, and so short that two of them, around a session that
expired, fit into SERVED_SECONDS."""
QUIET_SECONDS = 4.5
"""At the end: how long until the last caller has its answer."""
LONG_PAUSE_SECONDS = 1.3
"""In some clusters: acceptable_pause_seconds, more than an election timeout."""
SPARE_SERVERS = 2
"""Beyond the first members, if members come and go."""
REUNITE_SECONDS = 60.0
"""After the faults: how long until all of them are voters."""
REST_SECONDS = 3.0
"""After all else, where nodes rest: how long until all do, or the last trial is left out."""
TRACE_LINES = 60
"""How much of the end of a failed run its error tells."""


class SimulationFailed(AssertionError):
    """Something that must hold did not. trace: the last lines of what happened before; the message has it all."""

    def __init__(
        self,
        reason: str,
        *,
        seed: int,
        nodes: int,
        seconds: float,
        now: float,
        trace: list[str],
        with_app: bool,
        resting: bool,
    ) -> None:
        self.reason, self.seed, self.now, self.trace = reason, seed, now, trace
        command = f"geraft simulate --trace {seed} --nodes {nodes} --seconds {seconds:g}" + (
            " --resting" if resting else ""
        )
        if with_app:
            command += ", with the same app and commands (--app, --commands)"
        super().__init__("\n".join([f"seed {seed}, at {now:.6f} s: {reason}", *trace, f"replay it: {command}"]))


class Simulation:
    """nodes: how many servers. seconds: how long faults befall them; then they must recover.

    resting: whether its nodes are of one group among many, and rest when idle.
    faults: which kinds come, and how often; by default the seed draws that.

    app_factory: makes a state machine of yours, on each server at each start; with every write it gets one of commands,
    or what commands(rng) gives. It must come to the same replies and states everywhere, over restarts and snapshots.
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
        app_factory: AppFactory | None = None,
        commands: Commands | None = None,
        trace: Callable[[str], None] | None = None,
        resting: bool = False,
    ) -> None:
        if (app_factory is None) != (commands is None or (not callable(commands) and not commands)):
            raise ConfigError("app_factory and commands go together: an app, and what it is given")
        self.app_factory = app_factory
        self.commands = commands
        self.comparison = Comparison()
        self.seed = seed
        self.nodes = nodes
        self.seconds = seconds
        self._faults_given = faults
        self._resting_given = resting
        self._trace = trace
        self.tracing = trace is not None
        self.rng = rng = random.Random(seed)
        if faults is None:
            faults = replace(Faults.drawn(rng), members=seed % 5 == 4)
        self.faults = faults
        self.agenda = Agenda()
        self.at = self.agenda.at
        hasty = rng.random() < 0.5
        # Of its own: what is drawn from it leaves the rest of the history as it is.
        self.chance = random.Random(f"chance {seed}")
        patient = not hasty and self.chance.random() < 0.3  # bears with more than an election timeout
        self.settings = Settings(
            heartbeat_interval_seconds=0.1 if hasty else rng.choice((0.1, 0.2)),
            # Hasty elections are close to what a lease may count on.
            acceptable_pause_seconds=0.2 if hasty else LONG_PAUSE_SECONDS if patient else 0.5,
            phi_deviation_min_seconds=0.02 if hasty else 0.1,
            cache_bytes_max=rng.choice((1500, 8 << 20)),
            append_bytes_max=rng.choice((30, 400, 1 << 20)),
            inflight_messages_max=rng.choice((2, 64)),
            uncommitted_bytes_max=rng.choice((40, 128 << 20)),
            apply_bytes_max=rng.choice((100, 8 << 20)),
            trailing_entries=rng.choice((0, 0, 3, 30)),
            compact_bytes_max=rng.choice((1, 200, 1 << 20)),
        )
        self.snapshot_chance = rng.choice((0.0, 0.02, 0.2, 1.0))  # that an app makes one after a command
        self.folds = app_factory is None or can_fold(app_factory)
        self.fold_share = self.chance.choice((0.0, 0.5, 1.0)) if self.folds else 0.0
        self.compaction_interval_seconds = self.chance.choice((0.0, 0.0, 0.5, 2.0, 7.0)) if self.folds else 0.0
        self._snapshot_mean = rng.choice((0.001, 0.1, 1.0))
        longest = self.settings.election_timeout_seconds
        if faults.tunings:
            longest = max(longest, LONGEST_ELECTION_TIMEOUT_SECONDS)
        # Without a quorum, a leader must have stepped down by then.
        self.patience_seconds = 2.5 * longest + (LONG_PAUSE_SECONDS - 0.5 if patient else 0.0)
        fastest, slowest = 1 + faults.clock_drift, 1 - faults.clock_drift
        self.referee = Referee(
            leases_hold=slowest / fastest >= 1 - self.settings.clock_drift_max,
            log_step=self.log_step if self.tracing else None,
        )
        self.counters: Counter[str] = self.referee.counters
        names = [str(number) for number in range(1, nodes + 1)]
        knows_stores = rng.random() < 0.5
        first = bootstrap_batch(configuration_of({id: f"store{id}" if knows_stores else "" for id in names}))
        self.latency = rng.choice((0.0003, 0.002, 0.01))
        self.disk_mean = rng.choice((0.0005, 0.005, 0.02))
        self.turn_mean = rng.choice((0.0, 0.0, 0.0005, 0.003))
        self.calls_per_second = rng.choice((1.0, 5.0, 20.0))
        drift = faults.clock_drift
        at_the_edge = rng.random() < 0.5

        def clock_rate() -> float:
            return 1 + (rng.choice((-drift, drift)) if at_the_edge else rng.uniform(-drift, drift))

        self.servers = {id: SimulatedServer(self, id, [first], clock_rate()) for id in names}
        if faults.members:
            for number in range(nodes + 1, nodes + 1 + SPARE_SERVERS):
                self.servers[str(number)] = SimulatedServer(self, str(number), [], clock_rate())
        self._wishes: list[tuple[SimulatedServer, int, Change]] = []
        self.referee.servers = self.servers
        self.havoc = Havoc(self, faults)
        self._faults_end = seconds
        self._last_number = 0
        self._arrivals: dict[tuple[str, str], float] = {}
        self.clients: list[Client | NumberedClient] = [Client(self) for _ in range(rng.choice((2, 6)))]
        chance = random.Random(f"numbered {seed}")  # of its own: worlds without such callers stay as they are
        self.session_limits = Limits(
            sessions_max=chance.choice((1, 1000)), writes_max=100, answer_bytes_max=chance.choice((0, 1 << 20))
        )
        if chance.random() < 0.5:
            self.clients += [NumberedClient(self) for _ in range(2)]
        self.pulses: Pulses | None = None
        if resting:
            self.pulses = Pulses(self)
            self.calls_per_second = min(self.calls_per_second, 0.5)  # or nobody would ever rest

    @property
    def now(self) -> float:
        return self.agenda.now

    def run(self) -> Simulation:
        """Play it to its end. Raises SimulationFailed."""
        logger = logging.getLogger("geraft.runtime")
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)  # of faults that were wanted
        try:
            self._play()
        except Exception as error:
            reason = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            if self.tracing:
                trace: list[str] = []
            else:
                trace = self._replayed()
            raise SimulationFailed(
                reason,
                seed=self.seed,
                nodes=self.nodes,
                seconds=self.seconds,
                now=self.now,
                trace=trace,
                with_app=self.app_factory is not None,
                resting=self._resting_given,
            ) from error
        finally:
            logger.setLevel(level)
        return self

    def _replayed(self) -> list[str]:
        lines: deque[str] = deque(maxlen=TRACE_LINES)
        again = Simulation(
            self.seed,
            nodes=self.nodes,
            seconds=self.seconds,
            faults=self._faults_given,
            app_factory=self.app_factory,
            commands=self.commands,
            trace=lines.append,
            resting=self._resting_given,
        )
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
        if self.pulses is not None:
            self.pulses.begin()
        if self.faults.per_second > 0:
            self.havoc.begin()
        while self.now < self._faults_end:
            self.agenda.run_until(min(self.now + 0.5, self._faults_end))
        self._recover()
        self.agenda.run_until(self.now + LATE_SECONDS)
        if self.faults.members:
            self.calls_per_second = 1.0  # some of these clusters are so slow that nobody could catch up with more
            self._wait_until(self._reunite, REUNITE_SECONDS)
        self._wait_until(self._what_lags, HEAL_SECONDS)
        done = [client.done for client in self.clients]
        self._wait_until(
            lambda: (
                "a client is not served after the faults ended"
                if any(client.done == before for client, before in zip(self.clients, done, strict=True))
                else ""
            ),
            SERVED_SECONDS,
        )
        self._stay_calm(CALM_SECONDS)
        one_is_cut_off = self.nodes > 2 and self.rng.random() < 0.5
        idle = self.rng.random() < 0.5
        if one_is_cut_off and not idle:
            self._cut_minority_off()
        for client in self.clients:
            client.stopped = True
        self.agenda.run_until(self.now + QUIET_SECONDS)
        self._check_recovered()
        if one_is_cut_off and idle:
            self._cut_minority_off()
        elif self.faults.members:
            self._let_everyone_stand_for_election()
            return
        if self.pulses is not None and self.nodes > 2 and not self.faults.members:
            self._lose_the_leader_at_rest(self.pulses)

    def end_faults_in(self, seconds: float) -> None:
        self._faults_end = min(self._faults_end, self.now + seconds)

    def _wait_until(self, what_lacks: Callable[[], str], seconds: float) -> None:
        end = self.now + seconds
        while (lack := what_lacks()) and self.now < end:
            self.agenda.run_until(self.now + 0.25)
        require(not lack, lack)

    def _recover(self) -> None:
        self.log("", "the faults end")
        self.havoc.end()
        for server in self.servers.values():
            server.paused_until = min(server.paused_until, self.now)
            server.effects_to_crash = None
            server.disk.broken = False
            if server.raft is not None and server.stuck_for(1.0):
                server.crash()
            if server.raft is None:
                self.start(server)
            elif server.raft.settings is not self.settings:
                server.tune(self.settings)

    def _reunite(self) -> str:
        """After all that happened everyone can be let in: ask for it, and say what lacks."""
        rafts = [server.raft for server in self.servers.values() if server.raft is not None]
        leading = [raft for raft in rafts if raft.role is Role.LEADER]
        if len(leading) != 1:
            return f"leaders after the faults ended: {[raft.id for raft in leading]}"
        (leader,) = leading
        everyone = sorted(self.servers)
        settled = leader.log.configuration_index <= leader.commit_index and leader.change is None
        configuration = leader.configuration
        if settled and sorted(configuration.incoming_ids) == everyone and not configuration.outgoing:
            return ""
        if not settled:
            return "the configuration in force is not committed after the faults ended"
        if configuration.outgoing:  # nobody need ask for that
            return f"a joint configuration is not left after the faults ended: {configuration}"
        if leader.id not in configuration.voter_ids:
            return f"{leader.id} is no voter, and leads on after the faults ended: {configuration}"
        if leader.change is None:
            self.ask_for(self.servers[leader.id], ReplaceMembers(voters=self.named(everyone, leader)), 30.0)
        return f"not everyone is let in after the faults ended: {configuration}"

    def _stay_calm(self, seconds: float) -> None:
        """Nothing befalls the cluster but what it must bear: nobody may have a reason to campaign.

        Servers stumble for no longer than acceptable_pause_seconds, and messages come in that no server of this cluster
        can have sent, as far as a cluster knows its members' stores.
        """
        self.referee.calm_for = frozenset(self.servers)
        end = self.now + seconds
        pause_max = 0.9 * self.settings.acceptable_pause_seconds
        while self.now < end:
            for server in self.servers.values():
                if self.rng.random() < 0.3:
                    server.pause(self.rng.random() * pause_max)
            self._send_nonsense()
            self.agenda.run_until(min(self.now + max(0.6, pause_max + 0.15), end))
        self.referee.calm_for = frozenset()

    def _send_nonsense(self) -> None:
        (leader,) = self.leaders()
        raft = self.servers[leader].raft
        others = [id for id in self.servers if id != leader]
        if raft is None or not others:
            return
        member = raft.configuration.members[self.rng.choice(others)]
        last = raft.log.last_entry
        nonsense: list[PeerMessage] = [
            # Under a member's name, from a store that is not its own: it lost its state, or is another cluster's.
            Heartbeat(sender=member.id, sender_store="foreign", term=raft.term + 3, commit_index=0, round=1),
            # In a term that has a leader already: such a message can't be.
            AppendEntries(
                sender=member.id,
                sender_store=member.store_id,
                term=raft.term,
                prev=EntryId(last.term, last.index),
                batches=(),
                commit_index=0,
            ),
            AppendEntriesReply(
                sender=member.id, sender_store=member.store_id, term=raft.term, match_index=last.index + 1000
            ),
        ]
        to, message = leader, self.rng.choice(nonsense if member.store_id else nonsense[1:])
        contradiction = self._contradiction(raft, member.id)
        if contradiction is not None and self.rng.random() < 0.3:
            to, message = member.id, contradiction
        self.referee.nonsense = message
        self.log(to, f"<- nonsense {show_message(message)}")
        self.at(self.rng.random() * 0.3, self.arrive, to, message)

    def _contradiction(self, leader: Raft, follower_id: str) -> AppendEntries | None:
        """What its leader can't have sent to the follower: another entry in the place of a committed one."""
        follower = self.servers[follower_id].raft
        if follower is None or follower.leader_id != leader.id:
            return None
        log, index = follower.log, follower.commit_index
        while index > log.base.index and log.term_at(index) == leader.term:
            index -= 1
        before = log.term_at(index - 1) if index > log.base.index else None
        if before is None:
            return None
        forged = EntryBatch(term=leader.term, first_index=index, kind=EntryKind.NOOP, commands=(b"",))
        return AppendEntries(
            sender=leader.id,
            sender_store=leader.store_id,
            term=leader.term,
            prev=EntryId(before, index - 1),
            batches=(forged,),
            commit_index=0,
        )

    def _cut_minority_off(self) -> None:
        """Less than half of the servers lose touch with the leader or with all others, who must not notice."""
        rng = self.rng
        (leader,) = self.leaders()
        followers = [id for id in self.servers if id != leader]
        away = set(rng.sample(followers, rng.randint(1, (self.nodes - 1) // 2)))
        across = [(a, b) for a in self.servers for b in self.servers if (a in away) != (b in away)]
        way = rng.choice(("both", "in", "out", "leader", "leader"))
        if way == "leader":
            across = [(a, b) for a, b in across if a == leader]
        elif way != "both":
            across = [(a, b) for a, b in across if (b in away) == (way == "in")]
        term = self.servers[leader].term
        self.referee.calm_for = frozenset(self.servers) - away
        self.havoc.cut(across, CUT_OFF_SECONDS)
        self.agenda.run_until(self.now + CUT_OFF_SECONDS + 2.0)
        self.referee.calm_for = frozenset()
        terms = [server.term for server in self.servers.values()]
        require(set(terms) == {term}, f"a minority that was cut off moved the term from {term} to {terms}")

    def _lose_the_leader_at_rest(self, pulses: Pulses) -> None:
        """If all come to rest: the leader ends and its process beats on, or that stands still. Another must lead."""
        end = self.now + REST_SECONDS
        servers = self.servers.values()
        while self.now < end and not all(server.resting for server in servers):
            self.agenda.run_until(self.now + 0.25)
        if not all(server.resting for server in servers):
            return
        (leader,) = [server for server in servers if server.raft is not None and server.raft.role is Role.LEADER]
        others = [server for server in servers if server is not leader]
        if pulses.chance.random() < 0.5:
            self.count("leader whose node ended while all rested")
            leader.fail(StorageFailed("its disk fails while all rest"))
        else:
            self.count("leader that stood still while all rested")
            leader.pause(2 * HEAL_SECONDS)

        def who_lacks() -> str:
            leads = any(server.raft is not None and server.raft.role is Role.LEADER for server in others)
            return "" if leads else f"nobody leads after {leader.id} was lost while all rested"

        self._wait_until(who_lacks, HEAL_SECONDS)

    def _let_everyone_stand_for_election(self) -> None:
        """All are voters again, whatever they were before: who hears nobody campaigns, and together they elect one."""

        def who_is_content() -> str:
            roles = {id: server.raft.role for id, server in self.servers.items() if server.raft is not None}
            content = sorted(id for id, role in roles.items() if role in (Role.FOLLOWER, Role.LEADER))
            return f"{content} hear nobody, and do not campaign" if content else ""

        self.havoc.cut([(a, b) for a in self.servers for b in self.servers if a != b], 2 * HEAL_SECONDS)
        self._wait_until(who_is_content, HEAL_SECONDS)
        self.havoc.heal_all()
        self._wait_until(self._what_lags, HEAL_SECONDS)

    def _what_lags(self) -> str:
        """What is not as it should be: one leader, and everyone holds and has applied what it has committed."""
        rafts: list[Raft] = [server.raft for server in self.servers.values() if server.raft is not None]
        if len(rafts) != len(self.servers):
            return "a server stays down after the faults ended"
        leaders = [raft for raft in rafts if raft.role is Role.LEADER]
        if len(leaders) != 1:
            return f"leaders after the faults ended: {[raft.id for raft in leaders]}"
        for raft in rafts:
            if raft.leader_id != leaders[0].id:
                return f"{raft.id} does not follow {leaders[0].id} after the faults ended"
        return ""

    def _check_recovered(self) -> None:
        """Liveness: one leader, and everyone holds and has applied what it has committed; all callers are answered."""
        lag = self._what_lags()
        require(not lag, lag)
        rafts: list[Raft] = [server.raft for server in self.servers.values() if server.raft is not None]
        (leader,) = [raft for raft in rafts if raft.role is Role.LEADER]
        check_logs_match(rafts)
        for raft in rafts:
            state = (raft.log.last_entry, raft.commit_index, raft.last_applied)
            wanted = (leader.log.last_entry, leader.commit_index, leader.commit_index)
            require(state == wanted, f"{raft.id} does not catch up: last, committed, applied {state}, not {wanted}")
            server = self.servers[raft.id]
            if server.guest is not None:
                server.guest.compare(raft.last_applied)
        for server, life, wish in self._wishes:
            require(wish.done or server.life != life, f"{server.id} never answers who asked for {wish.change}")
        for server in self.servers.values():
            require(not server.calls, f"{server.id} never answers calls {sorted(server.calls)}")
            require(all(transfer.done for _, transfer in server.transfers), f"{server.id} never ends a transfer")
            waiting = [waiter for _, waiter in server.snapshots_asked if not waiter.done]
            require(not waiting, f"{server.id} never answers who asked for a snapshot")

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

    def with_command(self, write: bytes) -> bytes:
        """The write, and with it a command for the user's app if there is one."""
        commands = self.commands
        if commands is None:
            return write
        return write + b"\n" + (commands(self.rng) if callable(commands) else self.rng.choice(commands))

    def address(self, id: str) -> str:
        """Of a server, as a newcomer."""
        return f"{id}.test:1"

    def named(self, ids: Iterable[str], asked: Raft) -> tuple[Member, ...]:
        """As members, for a server that may know their addresses already."""
        known = asked.configuration.members
        return tuple(Member(id, "" if id in known else self.address(id)) for id in sorted(ids))

    def ask_for(self, server: SimulatedServer, change: MembershipChange, timeout_seconds: float) -> None:
        """Somebody asks a server for other members, and waits for its answer."""
        if server.raft is not None:
            self.log(server.id, f"is asked for {change}")
            wish = Change(change, server.clock() + timeout_seconds)
            wish.wait_natively()  # done when it is answered, whatever hub this thread may have
            self._wishes.append((server, server.life, wish))
            server.at_once(server.put, wish)

    def members(self) -> list[str]:
        """As who leads the latest term knows them; everyone if nobody does."""
        leading = [server.raft for server in self.servers.values() if server.raft and server.raft.role is Role.LEADER]
        if not self.faults.members or not leading:
            return list(self.servers)
        members = max(leading, key=lambda raft: raft.term).configuration.members
        return sorted(id for id in members if id in self.servers)

    def leaders(self) -> list[str]:
        """Those that believe to lead."""
        return [id for id, server in self.servers.items() if server.raft and server.raft.role is Role.LEADER]

    def gap_seconds(self) -> float:
        """Until a client asks for the next thing."""
        return min(self.rng.expovariate(self.calls_per_second), GAP_SECONDS_MAX)

    def turn_seconds(self) -> float:
        return self.rng.random() * self.turn_mean

    def app_seconds(self) -> float:
        return self.rng.random() * 0.002

    def snapshot_seconds(self) -> float:
        """Until the next piece of a snapshot has come."""
        return self.rng.expovariate(1 / self._snapshot_mean) if self.havoc.raging else 0.001

    def disk_seconds(self, server: SimulatedServer) -> float:
        seconds = self.rng.expovariate(1 / self.disk_mean)
        slow = self.havoc.slow_disks.get(server.id)
        return seconds if slow is None else seconds + self.rng.random() * slow

    def start(self, server: SimulatedServer) -> None:
        if server.raft is None:
            self.log(server.id, "starts")
            server.start(self.settings)

    def restart_later(self, server: SimulatedServer) -> None:
        self.at(self.rng.uniform(0.05, 4.0), self.start, server)

    def _delay(self, sender: str, to: str) -> float:
        delay = self.havoc.delay(self.latency)
        if not self.faults.reordering:
            arrival = self._arrivals[sender, to] = max(self._arrivals.get((sender, to), 0.0), self.now + delay)
            delay = arrival - self.now
        return delay

    def send(self, server: SimulatedServer, to: str, message: PeerMessage) -> None:
        """A message leaves."""
        sender, havoc = server.id, self.havoc
        self.referee.leaves(server, to, message)
        reaches = havoc.reaches(sender, to)
        if self.tracing:
            self.log(sender, f"-> {to} {show_message(message)}{'' if reaches else ' (lost)'}")
        if havoc.raging and type(message) is RequestVoteReply and message.granted and not message.pre_vote:
            havoc.voted(server)
        if not reaches or havoc.holds_back(sender, to, message):
            return
        self.at(self._delay(sender, to), self.arrive, to, message)
        if havoc.raging and self.faults.duplicates and self.rng.random() < 0.01:
            self.at(self._delay(sender, to), self.arrive, to, message)
        if havoc.raging and self.faults.duplicates and type(message) is OfferSnapshot:
            self.at(self.chance.uniform(0.1, 4.0), self.arrive, to, message)  # again, when all may be over

    def arrive(self, to: str, message: PeerMessage) -> None:
        server = self.servers.get(to)
        if server is not None:  # else it was never started
            server.at_once(server.arrived, message)

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
            if self.havoc.reaches(leader_id, origin.id):
                self.at(self._delay(leader_id, origin.id), origin.at_once, come_back, error, value)
            else:
                broke()

        def broke() -> None:
            lost = Unreachable("the read was on its way") if call.kind is CallKind.READ else OutcomeUnknown("it broke")
            self.at(self.rng.uniform(0.0, 0.5), origin.at_once, come_back, lost)

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
                session=call.session,
            )
            leader.calls[number] = remote, broke
            leader.at_once(leader.put, remote)

        if self.havoc.reaches(origin.id, leader_id):
            self.at(self._delay(origin.id, leader_id), arrive)
        elif self.rng.random() < 0.5:
            broke()
        else:
            self.at(self.rng.uniform(0.0, 0.5), origin.at_once, come_back, Unreachable("no connection"))
