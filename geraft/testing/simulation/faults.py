"""What befalls a simulated cluster: which kinds of faults, how often, and the storms that bring about rare orders."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from geraft.core.effects import Role
from geraft.core.events import PeerConnected, PeerDisconnected
from geraft.core.membership import (
    AddServer,
    DemoteServer,
    MembershipChange,
    PromoteServer,
    RemoveServer,
    ReplaceMembers,
)
from geraft.core.messages import AppendEntries, PeerMessage
from geraft.runtime.wishes import Transfer

if TYPE_CHECKING:
    from geraft.core.raft import Raft
    from geraft.testing.simulation.cluster import Simulation
    from geraft.testing.simulation.server import SimulatedServer

Link = tuple[str, str]

LONGEST_ELECTION_TIMEOUT_SECONDS = 1.6
"""To which a server may be tuned."""
NOBODY = "9"
"""A server that somebody wants as a member, and that was never started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What may befall a cluster. per_second: how often something does, on average; 0 for a peaceful one.

    app_errors: the app raises, and is asked again. snapshots: somebody asks for one, to be folded.
    tunings: election timeouts change, on one server or on another.
    members: servers come and go; two more than `nodes` stand by with empty stores, and in the end all are let in.
    storms: faults that come in a planned order, as single ones hit it too rarely: each new leader struck down, one that
    is cut off again and again, messages held back and let go out of order.
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
    app_errors: bool = True
    tunings: bool = True
    members: bool = False
    storms: bool = True
    snapshots: bool = True
    clock_drift: float = 0.045

    @staticmethod
    def drawn(rng: random.Random) -> Faults:
        """Some of all kinds, often or rarely: what hides a mistake under one mixture shows it under another."""

        def some() -> bool:
            return rng.random() < 0.7

        return Faults(
            per_second=rng.choice((0.5, 1.2, 1.2, 3.0)),
            crashes=some(),
            pauses=some(),
            partitions=some(),
            loss=some(),
            duplicates=some(),
            reordering=some(),
            disks=some(),
            transfers=some(),
            app_errors=some(),
            tunings=rng.random() < 0.4,
            storms=rng.random() < 0.8,
            snapshots=some(),
        )


class Havoc:
    """Brings the faults over a cluster, as long as it is told to.

    loss: the share of messages that get lost. raging: whether faults still come.
    """

    def __init__(self, world: Simulation, faults: Faults) -> None:
        self.world = world
        self.faults = faults
        self.raging = False
        self.loss = 0.0
        self.slow_disks: dict[str, float] = {}
        self._rng = world.rng
        self._cuts: dict[int, frozenset[Link]] = {}
        self._cut: frozenset[Link] = frozenset()
        self._cut_number = 0
        self._held: dict[Link, list[tuple[str, PeerMessage]]] = {}
        self._held_entries: dict[Link, list[tuple[str, PeerMessage]]] = {}
        self._young_leaders_die_until = 0.0
        self._voters_die_until = 0.0
        self._successor_dies = ""  # of this leader, as soon as there is one
        self._ends_with_candidate = False

    def begin(self) -> None:
        self.raging = True
        self.world.at(self._until_next() * self._rng.random(), self._befall)
        if self.faults.storms and self.faults.crashes and self._rng.random() < 0.3:
            self._young_leaders_die_until = self._rng.uniform(0, 4)  # from the first one on
        self._ends_with_candidate = self.faults.partitions and self._rng.random() < 0.3

    def end(self) -> None:
        """No fault is left: links work, disks write, nobody stands still."""
        self.raging = False
        self.loss = 0.0
        self.slow_disks.clear()
        self._young_leaders_die_until = self._voters_die_until = 0.0
        self._successor_dies = ""
        self.heal_all()
        for link in sorted(self._held):
            self._let_go(link)
        for link in sorted(self._held_entries):
            self._let_entries_go(link)

    def reaches(self, sender: str, to: str) -> bool:
        return (sender, to) not in self._cut and (not self.loss or self._rng.random() >= self.loss)

    def holds_back(self, sender: str, to: str, message: PeerMessage) -> bool:
        if type(message) is AppendEntries and message.batches:
            entries = self._held_entries.get((sender, to))
            if entries is not None:
                entries.append((to, message))
                return True
        held = self._held.get((sender, to))
        if held is None:
            return False
        held.append((to, message))
        return True

    def delay(self, latency: float) -> float:
        rng = self._rng
        delay = latency * (0.5 + rng.random())
        if self.raging and rng.random() < 0.03:
            delay += min(rng.expovariate(2.0), 2.5)
        return delay

    # One fault --------------------------------------------------------------------------------------------------------

    def _until_next(self) -> float:
        return self._rng.expovariate(self.faults.per_second)

    def _befall(self) -> None:
        if not self.raging:
            return
        world, faults, rng = self.world, self.faults, self._rng
        victims = world.leaders() if rng.random() < 0.5 else list(world.servers)
        victim = world.servers[rng.choice(victims or list(world.servers))]
        several = len(world.servers) > 1
        kinds: list[tuple[bool, Callable[[SimulatedServer], None]]] = [
            (faults.crashes, self._crash),
            (faults.crashes, self._crash_all),
            (faults.pauses, self._pause),
            (faults.partitions and several, self._partition),
            (faults.partitions and several, self._partition),
            (faults.loss, self._lose),
            (faults.disks, self._hamper_disk),
            (faults.transfers, self._transfer),
            (faults.transfers, self._transfer),
            (faults.app_errors, self._trouble_app),
            (faults.snapshots and world.folds, self._ask_for_snapshot),
            (faults.tunings, self._tune),
            (faults.members, self._change_members),
            (faults.members, self._change_members),
            (faults.members, self._change_members),
            (faults.storms and faults.crashes, self._young_leaders_die),
            (faults.storms and faults.crashes, self._voters_die),
            (faults.storms and faults.crashes, self._restart_each),
            (faults.storms and faults.crashes and several, self._restart_beside_one_cut_off),
            (faults.storms and faults.tunings and several, self._tune_and_strike),
            (faults.storms and faults.tunings and several, self._tune_and_strike),
            (faults.storms and faults.reordering and several, self._hold_entries),
            (faults.storms and faults.partitions and several, self._isolate_again_and_again),
            (faults.storms and faults.partitions and several, self._topple),
            (faults.storms and faults.partitions and several, self._topple),
            (faults.storms and faults.disks and several, self._outpace_disk),
            (faults.storms and faults.reordering and several, self._hold_messages),
        ]
        allowed = [kind for allowed, kind in kinds if allowed]
        if allowed:
            rng.choice(allowed)(victim)
        world.at(self._until_next(), self._befall)

    def _crash(self, victim: SimulatedServer) -> None:
        if victim.raft is None:
            return
        if self._rng.random() < 0.5:
            victim.effects_to_crash = self._rng.randrange(8)
        else:
            victim.crash()
            self.world.restart_later(victim)

    def _crash_soon(self, victim: SimulatedServer, back_after: float) -> None:
        if victim.raft is not None and self.raging:
            victim.crash()
            self.world.at(back_after, self.world.start, victim)

    def _crash_all(self, victim: SimulatedServer) -> None:
        """A power cut for a majority, or for all."""
        servers = list(self.world.servers.values())
        for server in self._rng.sample(servers, self._rng.randint(len(servers) // 2 + 1, len(servers))):
            if server.raft is not None:
                server.crash()
                self.world.at(self._rng.uniform(0.05, 1.0), self.world.start, server)

    def _pause(self, victim: SimulatedServer) -> None:
        victim.pause(self._rng.uniform(0, 3))

    def _partition(self, victim: SimulatedServer) -> None:
        rng, names = self._rng, list(self.world.servers)
        other = rng.choice([id for id in names if id != victim.id])
        side = {victim.id, other} if rng.random() < 0.3 else {victim.id}
        across = [(a, b) for a in names for b in names if (a in side) != (b in side)]
        links = rng.choice(
            [
                {(victim.id, other)},
                {(victim.id, other), (other, victim.id)},
                set(across),
                set(across),
                {(a, b) for a, b in across if a in side},
                {(a, b) for a, b in across if b in side},
            ]
        )
        self.cut(links, rng.uniform(0.2, 5.0))

    def cut(self, links: Iterable[Link], seconds: float) -> None:
        """Nothing comes over these links for so long."""
        self._cut_number += 1
        self._cuts[self._cut_number] = links = frozenset(links)
        self._cut = frozenset().union(*self._cuts.values())
        self.world.log("", "cut: " + " ".join(f"{a}->{b}" for a, b in sorted(links)))
        if self._rng.random() < 0.5:
            for a, b in sorted(links):
                self._tell_of_stream(a, PeerDisconnected(peer=b))
        self.world.at(seconds, self._heal, self._cut_number)

    def _heal(self, number: int) -> None:
        links = self._cuts.pop(number, frozenset())
        self._cut = frozenset().union(*self._cuts.values())
        links -= self._cut
        if links:
            self.world.log("", "work again: " + " ".join(f"{a}->{b}" for a, b in sorted(links)))
        for a, b in sorted(links):
            self._tell_of_stream(a, PeerConnected(peer=b))

    def heal_all(self) -> None:
        for number in list(self._cuts):
            self._heal(number)

    def around(self, id: str) -> list[Link]:
        """All links to and from a server."""
        return [link for other in self.world.servers if other != id for link in ((id, other), (other, id))]

    def _tell_of_stream(self, id: str, event: PeerConnected | PeerDisconnected) -> None:
        server = self.world.servers[id]
        if server.raft is not None:
            server.later(self._rng.random() * 0.1, server.put, event)

    def _lose(self, _: SimulatedServer) -> None:
        self.loss = self._rng.choice((0.0, 0.05, 0.1, 0.4))
        self.world.log("", f"messages are lost: {self.loss:.0%}")

    def _hamper_disk(self, victim: SimulatedServer) -> None:
        if self._rng.random() < 0.2:
            self.world.log(victim.id, "has a disk that fails")
            victim.disk.broken = True
            return
        self._slow_down(victim, self._rng.choice((0.05, 0.3, 2.0, 15.0)), self._rng.uniform(0.5, 4.0))

    def _slow_down(self, victim: SimulatedServer, slow: float, seconds: float) -> None:
        self.world.log(victim.id, f"has a disk that takes up to {slow} s")
        self.slow_disks[victim.id] = slow
        self.world.at(seconds, self.slow_disks.pop, victim.id, None)

    def _transfer(self, victim: SimulatedServer) -> None:
        target = self._rng.choice(["", *self.world.servers])
        if victim.raft is not None:
            self.world.log(victim.id, f"is asked to hand leadership to {target or 'anyone'}")
            transfer = Transfer(target, victim.clock() + self.world.patience_seconds / 2)
            transfer.wait_natively()  # done when it is answered, whatever hub this thread may have
            victim.at_once(self._ask_for_transfer, victim, transfer)

    def _ask_for_transfer(self, victim: SimulatedServer, transfer: Transfer) -> None:
        """Only what the node has got must be answered: it may stop before it goes on."""
        victim.transfers.append((self.world.now, transfer))
        victim.put(transfer)

    def _trouble_app(self, victim: SimulatedServer) -> None:
        victim.app_errors_due = self._rng.randint(1, 3)

    def _ask_for_snapshot(self, victim: SimulatedServer) -> None:
        if victim.raft is not None:
            self.world.log(victim.id, "is asked for a snapshot")
            victim.at_once(victim.take_snapshot)

    def _tune(self, victim: SimulatedServer) -> None:
        self._tune_to(victim, self._rng.choice((0.6, 1.0, LONGEST_ELECTION_TIMEOUT_SECONDS)))

    def _change_members(self, victim: SimulatedServer) -> None:
        """Somebody wants other members, of who believes to lead or of anybody else."""
        rng, world = self._rng, self.world
        leaders = world.leaders()
        if leaders and victim.id not in leaders and rng.random() < 0.8:
            victim = world.servers[rng.choice(leaders)]
        if victim.raft is None:
            return
        names = list(world.servers)
        id = rng.choice(names)
        chosen = rng.sample(names, rng.randint(1, len(names)))
        cut = rng.randint(1, len(chosen))
        everybody = ReplaceMembers(
            voters=world.named(chosen[:cut], victim.raft), learners=world.named(chosen[cut:], victim.raft)
        )
        store_id = world.servers[id].store_id
        foreign = f"{id}.test:{rng.randint(1, 9)}"
        if world.chance.random() < 0.3:
            self._ask_for_what_is_refused(victim, victim.raft, world.chance.choice(chosen), foreign)
            return
        change: MembershipChange = rng.choice(
            (
                AddServer(id=id, address=world.address(id), store_id=store_id, learner=rng.random() < 0.3),
                AddServer(id=id, address=foreign, store_id=store_id),
                RemoveServer(id=id),
                PromoteServer(id=id),
                DemoteServer(id=id),
                everybody,
                everybody,
            )
        )
        world.ask_for(victim, change, rng.uniform(1.0, 4.0))

    def _ask_for_what_is_refused(self, victim: SimulatedServer, raft: Raft, id: str, foreign: str) -> None:
        """Somebody asks for what can't be, or for a server that nobody has started."""
        world = self.world
        known = raft.configuration.members.get(id)
        wishes: list[tuple[MembershipChange, float]] = [
            (ReplaceMembers(voters=(), learners=world.named([id], raft)), 2.0),  # nobody would vote
            # It is not waited for until the caller gives up.
            (AddServer(id=NOBODY, address="nobody.test:1"), 600.0),
            (AddServer(id=NOBODY, address="nobody.test:1", learner=True), 600.0),
            (RemoveServer(id=NOBODY), 2.0),
        ]
        voters = sorted((raft.configuration.voter_ids - {raft.id}) & world.servers.keys())
        alive = [other for other in voters if world.servers[other].raft is not None]
        if len(alive) < len(voters):  # those that are down would be too many without them
            wishes += [(RemoveServer(id=other), 2.0) for other in alive]
        stays = id in raft.configuration.incoming_ids and raft.change is None and victim.has_no_news
        if raft.role is Role.LEADER and known is not None and known.store_id and stays:
            # Under its name, from a store that is another cluster's, or empty. Of this leader or nobody, and before it
            # can let the server go: then another one might come under its name.
            wishes += [(AddServer(id=id, address=foreign, store_id="foreign"), 0.0)] * 2
        change, timeout_seconds = world.chance.choice(wishes)
        world.ask_for(victim, change, timeout_seconds)

    # Storms -----------------------------------------------------------------------------------------------------------

    def _young_leaders_die(self, _: SimulatedServer) -> None:
        """For a while, each leader is struck down soon after it was elected (Raft dissertation, figure 3.7)."""
        self._young_leaders_die_until = self.world.now + self._rng.uniform(2, 8)

    def leads(self, server: SimulatedServer) -> None:
        """A server was elected."""
        if self.raging and self.faults.members and self.world.chance.random() < 0.3:
            self._change_members(server)  # before anything of its term is committed
        if self._successor_dies and self._successor_dies != server.id:
            # With a log that ends in its own term, and nobody else has that end: figure 3.7 (b).
            self._successor_dies = ""
            after = (self.world.latency + self.world.disk_mean) * self._rng.random() * 3
            self.world.at(after, self._crash_soon, server, self._rng.uniform(1.0, 6.0))
            self.world.at(after, self.heal_all)
            return
        if self.world.now >= self._young_leaders_die_until:
            return
        rng, world = self._rng, self.world
        after = rng.random() * rng.choice((2, 6, 40)) * (world.latency + world.disk_mean)
        fate = rng.randrange(5)
        if fate < 2:
            world.at(after, self._crash_soon, server, rng.uniform(0.02, 1.5))
        elif fate == 2:
            server.effects_to_crash = rng.randrange(12)
        elif fate == 3 and self.faults.partitions:
            links = self.around(server.id)
            if rng.random() < 0.3:
                links = [link for link in links if link[0] == server.id]
            world.at(after, self.cut, links, rng.uniform(0.5, 3.0))
        else:
            world.at(after, server.pause, rng.uniform(0.3, 2.5))

    def campaigns(self, server: SimulatedServer) -> None:
        """A server asks for votes: for some seeds an awkward moment to be cut off, and to end all faults."""
        if self._ends_with_candidate and self.world.now > self.world.seconds / 3 and self.raging:
            self.cut(self.around(server.id), 0.4)
            self.world.end_faults_in(0.4)

    def changes_configuration(self, server: SimulatedServer) -> None:
        """A leader has appended a configuration, which nobody else has got yet."""
        if self.raging and self.faults.storms and self.faults.partitions and self._rng.random() < 0.4:
            self.cut(self.around(server.id), self._rng.uniform(1.0, 4.0))

    def _voters_die(self, _: SimulatedServer) -> None:
        """For a while, those who gave a vote lose their power and are back at once."""
        self._voters_die_until = self.world.now + self._rng.uniform(2, 8)

    def voted(self, server: SimulatedServer) -> None:
        """A server's vote has left."""
        if self.world.now < self._voters_die_until and self._rng.random() < 0.3:
            self.world.at(
                self._rng.random() * self.world.disk_mean, self._crash_soon, server, self._rng.uniform(0.01, 0.3)
            )

    def _restart_each(self, victim: SimulatedServer) -> None:
        """One after the other restarts, each in a moment."""
        rng = self._rng
        seconds = 0.0
        for server in rng.sample(list(self.world.servers.values()), len(self.world.servers)):
            self.world.at(seconds, self._crash_soon, server, rng.uniform(0.02, 0.3))
            seconds += rng.uniform(0.05, 0.6)

    def _tune_and_strike(self, victim: SimulatedServer) -> None:
        """Election timeouts change shortly before the leader falls silent.

        What a follower has promised by then it must keep, and no more may it promise than it keeps in a restart.
        """
        rng, world = self._rng, self.world
        leaders = world.leaders()
        if len(leaders) != 1:
            return
        followers = [server for server in world.servers.values() if server.id not in leaders]
        longest = LONGEST_ELECTION_TIMEOUT_SECONDS
        for server in world.servers.values():
            self._tune_to(server, 1.0)
        strike_in = 0.5 + rng.random() * 0.25
        match rng.randrange(4):
            case 0:  # to less, all at once
                for server in followers:
                    world.at(0.5, self._tune_to, server, 0.6)
            case 1:  # to less, one after the other
                for server in followers:
                    world.at(rng.choice((0.1, 0.5)), self._tune_to, server, 0.6)
            case 2:  # to more, and those who promised more restart
                strike_in += 0.3
                for server in world.servers.values():
                    world.at(0.1, self._tune_to, server, longest)
                for server in followers:
                    world.at(strike_in + rng.random() * 0.1, self._crash_soon, server, rng.uniform(0.01, 0.2))
            case _:  # the leader alone, to more
                world.at(0.1, self._tune_to, world.servers[leaders[0]], longest)
        world.at(strike_in, self._cut_if_raging, self.around(leaders[0]), rng.uniform(1.5, 3.0))

    def _restart_beside_one_cut_off(self, victim: SimulatedServer) -> None:
        """One follower hears no leader, and asks for votes; the others restart again and again, beside that leader."""
        rng, world = self._rng, self.world
        leaders = world.leaders()
        if len(leaders) != 1 or len(world.servers) < 3:
            return
        cut_off, *others = rng.sample([id for id in world.servers if id != leaders[0]], len(world.servers) - 1)
        self.cut([(leaders[0], cut_off)], 4.0)
        for id in others:
            seconds = rng.uniform(1.0, 1.5)
            for _ in range(4):
                world.at(seconds, self._crash_soon, world.servers[id], rng.uniform(0.01, 0.05))
                seconds += rng.uniform(0.3, 0.6)

    def _hold_entries(self, victim: SimulatedServer) -> None:
        """The leader's entries for one follower are held back while its other messages arrive, and come much later.

        Over the new stream that it opens meanwhile it may offer a snapshot in their place.
        """
        rng, world = self._rng, self.world
        for id in world.leaders():
            link = id, rng.choice([other for other in world.servers if other != id])
            if link not in self._held_entries:
                seconds = rng.uniform(0.3, 2.0)
                self._held_entries[link] = []
                world.at(seconds, self._tell_of_stream, id, PeerDisconnected(peer=link[1]))
                world.at(seconds + 0.1, self._tell_of_stream, id, PeerConnected(peer=link[1]))
                world.at(seconds + rng.uniform(0.2, 0.6), self._let_entries_go, link)

    def _let_entries_go(self, link: Link) -> None:
        for to, message in self._held_entries.pop(link, []):
            self.world.arrive(to, message)

    def _tune_to(self, victim: SimulatedServer, timeout: float) -> None:
        if victim.raft is not None and self.raging:
            self.world.log(victim.id, f"is tuned to an election timeout of {timeout} s")
            victim.tune(replace(self.world.settings, election_timeout_seconds=timeout))

    def _isolate_again_and_again(self, victim: SimulatedServer) -> None:
        """Whoever leads is cut off for about an election timeout, once, then again."""
        rng = self._rng
        for id in self.world.leaders() or [victim.id]:
            links = self.around(id)
            if rng.random() < 0.4:
                end = rng.randrange(2)
                links = [link for link in links if link[end] == id]
            seconds = 0.0
            for _ in range(rng.randint(1, 3)):
                self.world.at(seconds, self._cut_if_raging, links, rng.uniform(0.9, 2.4))
                seconds += rng.uniform(2.0, 4.0)

    def _cut_if_raging(self, links: list[Link], seconds: float) -> None:
        if self.raging:
            self.cut(links, seconds)

    def _topple(self, victim: SimulatedServer) -> None:
        """The leader loses its followers while it takes writes, and comes back when another leads."""
        rng, world = self._rng, self.world
        for id in world.leaders():
            links = self.around(id)
            self.cut([link for link in links if link[0] == id] if rng.random() < 0.5 else links, rng.uniform(1.5, 3.0))
            if self.faults.disks and rng.random() < 0.5:
                # The next leader's entries come before its own are written.
                self._slow_down(world.servers[id], 9.0, 2.0)
                continue
            if self.faults.crashes and rng.random() < 0.5:
                self._successor_dies = id
            elif self.faults.crashes and rng.random() < 0.5:
                world.at(rng.uniform(0.1, 1.0), self._crash_soon, world.servers[id], rng.uniform(0.05, 2.0))

    def _outpace_disk(self, victim: SimulatedServer) -> None:
        """One server's disk lags far behind while its messages go out; one of the others is out of reach."""
        rng, world = self._rng, self.world
        self._slow_down(victim, rng.choice((0.3, 1.0, 3.0)), rng.uniform(1.0, 4.0))
        if rng.random() < 0.5:
            other = rng.choice([id for id in world.servers if id != victim.id])
            self.cut(self.around(other), rng.uniform(0.5, 3.0))
        if self.faults.crashes and rng.random() < 0.5:
            world.at(rng.uniform(0.1, 2.0), self._crash_soon, victim, rng.uniform(0.02, 1.0))

    def _hold_messages(self, victim: SimulatedServer) -> None:
        """All that one server sends to another is held back, then let go in any order, some of it twice."""
        other = self._rng.choice([id for id in self.world.servers if id != victim.id])
        links = [(victim.id, other), (other, victim.id)]
        for link in links[: self._rng.randint(1, 2)]:
            if link not in self._held:
                self._held[link] = []
                self.world.at(self._rng.choice((0.05, 0.3, 1.0, 2.5)) * self._rng.random(), self._let_go, link)

    def _let_go(self, link: Link) -> None:
        held = self._held.pop(link, [])
        if self.faults.duplicates and held:
            held += self._rng.sample(held, min(len(held), 3))
        self._rng.shuffle(held)
        self.world.count("messages let go out of order", len(held) > 1)
        for to, message in held:
            self.world.at(self._rng.random() * 0.01, self.world.arrive, to, message)
