"""Clusters under random faults: safety after every step, and life once the faults are over.

Every choice is drawn from one seed, which is the test's parameter; GERAFT_SEED=1234 tries others than the usual ones.
Messages are delayed, reordered, doubled and lost, links are cut in one direction or both, servers crash and lose what
their disk has not written, or stand still while the world goes on; disks are slow, clocks differ in speed. Snapshots
are made as it falls, logs are cut behind them, and who needs what is gone fetches one, from a leader that may go too.
"""

from __future__ import annotations

import dataclasses
import heapq
import os
import random
from collections.abc import Callable
from itertools import count

import pytest

from geraft.core.effects import (
    Alarm,
    Apply,
    CancelFetch,
    ChangeEnded,
    ChangeOutcome,
    Committed,
    CompactLog,
    Effect,
    FetchSnapshot,
    InstallSnapshot,
    LoadEntries,
    Persist,
    ReadConfirmed,
    ReadRefused,
    RecordSnapshot,
    Role,
    Send,
)
from geraft.core.entries import Ballot
from geraft.core.events import (
    Applied,
    ChangeMembership,
    Event,
    Propose,
    ReadRequested,
    SettingsChanged,
    SnapshotFetched,
    SnapshotFetchFailed,
    SnapshotMade,
    Tick,
    TransferRequested,
)
from geraft.core.invariants import ClusterHistory, check_logs_match
from geraft.core.membership import (
    AddServer,
    DemoteServer,
    Member,
    MembershipChange,
    PromoteServer,
    RemoveServer,
    ReplaceMembers,
)
from geraft.core.messages import AppendEntriesReply, RequestVote, RequestVoteReply
from geraft.core.raft import Settings
from geraft.testing.virtual import VirtualServer, bootstrap_batch, configuration_of

TICK_SECONDS = 0.02
STORMY_SECONDS = 20.0
CALM_SECONDS = 8.0
CLOCK_DRIFT = 0.04
"""Clocks run up to so much faster or slower; two of them then differ by less than Settings.clock_drift_max."""

FIRST_SEED = int(os.environ.get("GERAFT_SEED", "1"))


class Cluster:
    """Real Raft servers and stores; time, network and disks are a heap of what happens next."""

    def __init__(self, seed: int, size: int, *, changing: bool = False) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = count()
        self.history = ClusterHistory()
        names = [str(number) for number in range(1, size + 1)]
        first = bootstrap_batch(configuration_of({id: f"store{id}" for id in names}))
        self.servers = {id: VirtualServer(id, f"store{id}", [first]) for id in names}
        spares = [str(number) for number in range(size + 1, size + 3)] if changing else []
        self.servers |= {id: VirtualServer(id, f"store{id}", []) for id in spares}
        names += spares
        self.changing = changing
        self.changes_done = 0
        self.speed = {id: 1 + self.rng.uniform(-CLOCK_DRIFT, CLOCK_DRIFT) for id in names}
        self.settings = Settings(
            acceptable_pause_seconds=0.05,  # hasty elections, close to what a lease may count on
            phi_deviation_min_seconds=0.02,
            cache_bytes_max=3000,
            append_bytes_max=400,
            inflight_messages_max=8,
            trailing_entries=self.rng.choice([0, 10, 40]),
            compact_bytes_max=self.rng.choice([1, 1000]),
        )
        self.snapshots = self.rng.choice([0.0, 0.02, 0.2])  # how likely the app makes one after it applied something
        self.fetches: dict[str, int] = {}
        self.installed = 0
        self.cut: set[tuple[str, str]] = set()
        self.paused_until: dict[str, float] = {}
        self.loss = 0.0
        self.stormy = True
        self.committed = 0  # the highest index that any server ever committed
        self.needed: dict[int, int] = {}  # what was committed when the read of this token was asked for
        self.reads_confirmed = 0
        for server in self.servers.values():
            self.start(server)

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (self.now + seconds, next(self.numbers), action))

    def run_until(self, end: float) -> None:
        while self.agenda and self.agenda[0][0] <= end:
            self.now, _, action = heapq.heappop(self.agenda)
            action()
        self.now = end

    # Servers ----------------------------------------------------------------------------------------------------------

    def start(self, server: VirtualServer) -> None:
        server.clock_seconds = self.now * self.speed[server.id]
        server.start(self.settings, random.Random(self.rng.random()))
        self.history.restarted(server.id, server.ballot)

    def tell(self, server: VirtualServer, life: int, event: Event) -> None:
        """Step, if the server is still in that life; later, if it stands still."""
        if server.raft is None or server.starts != life:
            return
        pause = self.paused_until.get(server.id, 0.0) - self.now
        if pause > 0:
            self.at(pause, lambda: self.tell(server, life, event))
            return
        clock = self.now * self.speed[server.id]
        if clock > server.raft.now and not isinstance(event, Tick):
            self.step(server, Tick(now_seconds=clock))
        if server.raft is not None:
            self.step(server, event)

    def step(self, server: VirtualServer, event: Event) -> None:
        assert server.raft is not None
        effects = server.raft.step(event)
        self.history.check(server.raft)
        for effect in effects:
            self.carry_out(server, effect)

    def carry_out(self, server: VirtualServer, effect: Effect) -> None:
        life = server.starts
        match effect:
            case Send():
                self.send(server.id, effect)
            case Persist():
                self.to_disk(server, effect)
            case RecordSnapshot() | CompactLog():
                self.to_disk(server, effect)
            case FetchSnapshot():
                number = self.fetches[server.id] = next(self.numbers)
                self.at(self.rng.expovariate(1 / 0.2), lambda: self.fetch(server, life, effect, number))
            case CancelFetch():
                self.fetches.pop(server.id, None)
            case InstallSnapshot():
                self.installed += 1
                self.at(0.001, lambda: self.tell(server, life, Applied(index=effect.snapshot.index)))
            case Apply():
                self.at(0.001, lambda: self.apply(server, life, effect))
            case LoadEntries():
                self.at(0.001, lambda: self.load(server, life, effect))
            case Committed():
                self.committed = max(self.committed, effect.last_index)
            case ReadConfirmed():
                for token in effect.tokens:
                    needed = self.needed.pop(token)
                    assert effect.read_index >= needed, f"stale read: {effect.read_index}, but {needed} was committed"
                    self.reads_confirmed += 1
            case ReadRefused():
                for token in effect.tokens:
                    del self.needed[token]
            case ChangeEnded():
                self.changes_done += effect.outcome is ChangeOutcome.DONE
            case Alarm():
                raise AssertionError(effect.sentence)
            case _:
                pass

    def disk_seconds(self) -> float:
        stall = self.rng.uniform(0, 1.5) if self.stormy and self.rng.random() < 0.01 else 0.0
        return self.rng.expovariate(1 / 0.004) + stall

    def write(self, server: VirtualServer, life: int) -> None:
        """The disk works on while the process stands still, but not when the power is off."""
        if server.raft is None or server.starts != life:
            return
        sends, events = server.write_next()
        for send in sends:
            self.send(server.id, send)
        if server.for_disk:
            self.at(self.disk_seconds(), lambda: self.write(server, life))
        for event in events:
            self.tell(server, life, event)

    def to_disk(self, server: VirtualServer, effect: Persist | RecordSnapshot | CompactLog) -> None:
        life = server.starts
        server.for_disk.append(effect)
        if len(server.for_disk) == 1:
            self.at(self.disk_seconds(), lambda: self.write(server, life))

    def apply(self, server: VirtualServer, life: int, effect: Apply) -> None:
        """The app is as slow as it likes: what it was handed is never cut off before it comes to it."""
        if server.raft is None or server.starts != life:
            return
        if not effect.batches or effect.batches[0].first_index > effect.first_index:
            assert server.storage.read(effect.first_index, effect.first_index, 1), effect
        self.tell(server, life, Applied(index=effect.last_index))
        if server.raft is not None and self.rng.random() < self.snapshots:
            index = server.raft.last_applied - self.rng.choice([0, 0, 3])
            made = SnapshotMade(index=max(index, 1), size_bytes=index, checksum=index)
            self.at(self.rng.expovariate(1 / 0.05), lambda: self.tell(server, life, made))

    def fetch(self, server: VirtualServer, life: int, effect: FetchSnapshot, number: int) -> None:
        """The bytes are there, or the leader is gone or has dropped them."""
        if self.fetches.get(server.id) != number or server.raft is None or server.starts != life:
            return
        leader = self.servers[effect.leader]
        snapshot = leader.catalogue.get(effect.last_entry)
        cut = (leader.id, server.id) in self.cut or (server.id, leader.id) in self.cut
        if leader.raft is None or cut or snapshot is None or self.rng.random() < 0.1:
            self.tell(server, life, SnapshotFetchFailed(leader=effect.leader, last_entry=effect.last_entry))
        else:
            self.tell(server, life, SnapshotFetched(leader=effect.leader, snapshot=snapshot))

    def load(self, server: VirtualServer, life: int, effect: LoadEntries) -> None:
        if server.raft is not None and server.starts == life:
            self.tell(server, life, server.load(effect))

    def send(self, sender: str, send: Send) -> None:
        self.check_promise(self.servers[sender], send)
        if (sender, send.to) in self.cut or self.rng.random() < self.loss:
            return
        copies = 1 + (self.rng.random() < 0.02)
        for _ in range(copies):
            late = self.stormy and self.rng.random() < 0.05
            delay = self.rng.expovariate(1 / (0.5 if late else 0.003))
            self.at(delay, lambda: self.arrive(send))

    def check_promise(self, server: VirtualServer, send: Send) -> None:
        """What a message says of its sender's term, vote and log is on the disk when it leaves (3.8)."""
        message = send.message
        match message:
            case RequestVote(pre_vote=True) | RequestVoteReply(pre_vote=True, granted=True):
                return
            case RequestVoteReply(granted=True):
                assert server.ballot >= Ballot(message.term), message
                assert server.ballot.term > message.term or server.ballot.voted_for == send.to, message
            case AppendEntriesReply(rejected=None) if message.match_index > 0 and server.ballot.term == message.term:
                held = message.match_index <= server.base_index
                assert held or server.storage.read(message.match_index, message.match_index, 1), message
            case _:
                pass
        if server.ballot.term > 0:
            assert server.ballot.term >= message.term, f"{message} leaves while the disk knows {server.ballot}"

    def arrive(self, send: Send) -> None:
        server = self.servers[send.to]
        self.tell(server, server.starts, send.message)

    # What befalls them ------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        for server in self.servers.values():
            self.tell(server, server.starts, Tick(now_seconds=self.now * self.speed[server.id]))

    def load_it(self, tokens: count[int]) -> None:
        """Callers, at every server that believes it leads; one that stands still is asked as soon as it goes on."""
        for server in self.servers.values():
            if server.raft is None or server.raft.role is not Role.LEADER or self.rng.random() < 0.5:
                continue
            commands = tuple(b"x" * self.rng.randrange(100) for _ in range(self.rng.randrange(1, 5)))
            self.tell(server, server.starts, Propose(token=next(tokens), commands=commands))
            token = next(tokens)
            self.needed[token] = self.committed
            self.tell(server, server.starts, ReadRequested(token=token, lease=self.rng.random() < 0.5))
            if self.stormy and self.rng.random() < 0.02:
                self.tell(server, server.starts, TransferRequested(token=next(tokens)))
            if self.changing and self.stormy and self.rng.random() < 0.1:
                change = ChangeMembership(token=next(tokens), change=self.some_change(), timeout_seconds=2.0)
                self.tell(server, server.starts, change)

    def some_change(self) -> MembershipChange:
        names = list(self.servers)
        id = self.rng.choice(names)
        chosen = self.rng.sample(names, self.rng.randint(1, len(names)))
        cut = self.rng.randint(1, len(chosen))
        stores = {name: self.servers[name].store_id for name in names}
        return self.rng.choice(
            [
                AddServer(id=id, address=f"{id}.test:1", learner=self.rng.random() < 0.3),
                AddServer(id=id, address=f"{id}.test:1", store_id=stores[id]),
                RemoveServer(id=id),
                PromoteServer(id=id),
                DemoteServer(id=id),
                ReplaceMembers(
                    voters=tuple(Member(name, f"{name}.test:1") for name in sorted(chosen[:cut])),
                    learners=tuple(Member(name, f"{name}.test:1") for name in sorted(chosen[cut:])),
                ),
            ]
        )

    def storm(self) -> None:
        rng, names = self.rng, list(self.servers)
        if rng.random() < 0.01:
            self.loss = rng.choice([0.0, 0.0, 0.1, 0.4])
        if rng.random() < 0.02:
            one, other = rng.sample(names, 2)
            self.cut = rng.choice(
                [set(), {(one, other)}, {(a, b) for a in names for b in names if (a == one) != (b == one)}]
            )
        if rng.random() < 0.01:
            leaders = [id for id, server in self.servers.items() if server.raft and server.raft.role is Role.LEADER]
            self.paused_until[rng.choice(leaders or names)] = self.now + rng.uniform(0, 3)
        for server in self.servers.values():
            if server.raft is None:
                if rng.random() < 0.03:
                    self.start(server)
            elif rng.random() < 0.01:
                self.tune(server, rng.choice([0.4, 0.5, 1.0, 1.0, 3.0]))
            elif rng.random() < 0.003:
                server.crash()

    def calm(self) -> None:
        self.stormy = False
        self.loss = 0.0
        self.cut = set()
        self.paused_until.clear()
        for server in self.servers.values():
            if server.raft is None:
                self.start(server)
            elif server.raft.settings is not self.settings:
                self.tell(server, server.starts, SettingsChanged(settings=self.settings))

    def tune(self, server: VirtualServer, election_timeout_seconds: float) -> None:
        """One server alone, so that the others go by another election timeout than it."""
        settings = dataclasses.replace(self.settings, election_timeout_seconds=election_timeout_seconds)
        self.tell(server, server.starts, SettingsChanged(settings=settings))


def play(seed: int, *, changing: bool = False) -> Cluster:
    cluster = Cluster(seed, size=5 if seed % 4 == 0 else 3, changing=changing)
    tokens = count(1)
    while cluster.now < STORMY_SECONDS + CALM_SECONDS:
        if cluster.now < STORMY_SECONDS:
            cluster.storm()
        else:
            cluster.calm()
        cluster.tick()
        cluster.load_it(tokens)
        cluster.run_until(cluster.now + TICK_SECONDS)
    return cluster


def check_it_lives(cluster: Cluster) -> None:
    rafts = [server.raft for server in cluster.servers.values() if server.raft is not None]
    check_logs_match(rafts)
    leaders = [raft for raft in rafts if raft.role is Role.LEADER]
    assert len(leaders) == 1, [(raft.id, raft.role, raft.term) for raft in rafts]
    assert len(rafts) == len(cluster.servers)
    members = leaders[0].configuration.members
    behind = {raft.id: leaders[0].commit_index - raft.commit_index for raft in rafts if raft.id in members}
    assert max(behind.values()) < 100, f"a follower is stuck: {behind}"
    assert leaders[0].commit_index == cluster.committed > 200
    assert cluster.reads_confirmed > 100


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 8))
def test_safety_under_faults_and_life_after_them(seed: int) -> None:
    check_it_lives(play(seed))


def test_members_come_and_go_under_faults() -> None:
    changes_done = 0
    for seed in range(FIRST_SEED, FIRST_SEED + 6):
        print(f"GERAFT_SEED={seed}", flush=True)
        cluster = play(seed, changing=True)
        check_it_lives(cluster)
        changes_done += cluster.changes_done
    assert changes_done > 6


@pytest.mark.long
def test_many_more_seeds() -> None:
    first = random.SystemRandom().randrange(10**6)
    for seed in range(first, first + 60):
        print(f"GERAFT_SEED={seed}", flush=True)
        check_it_lives(play(seed, changing=seed % 2 == 0))


def test_equal_seeds_give_equal_histories() -> None:
    one, other = play(FIRST_SEED), play(FIRST_SEED)
    assert one.history.committed == other.history.committed
    assert one.history.leaders == other.history.leaders
