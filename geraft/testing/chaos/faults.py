"""Doing to a cluster what a plan says."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from geraft.client import Client
from geraft.errors import GeraftError
from geraft.testing.chaos.plan import Fault, victims
from geraft.testing.cluster import OUTSIDE, LinkedCluster, NamespacedCluster
from geraft.testing.links import Links, Pair

FLAP_SECONDS = 0.7
RESET_SECONDS = 0.5
SLOW_SECONDS = (0.02, 0.3)
TRANSFER_SECONDS = 1.0
SNAPSHOT_SECONDS = 0.5
LEADER_TIMEOUT_SECONDS = 1.0
ADMIN_SECONDS = 5.0
MEND_SECONDS = 60.0
"""Within which all nodes must be voters again, whatever else befalls them meanwhile."""


@dataclass(kw_only=True)
class Played:
    """A fault that was played, or could not be. Moments of time.monotonic()."""

    fault: Fault
    met: tuple[str, ...]
    leader: str
    """Who led when it began, "" if nobody was known to."""
    began: float
    ended: float = 0.0
    error: str = ""
    """What went wrong that must not."""
    refused: list[str] = field(default_factory=list)
    """What was asked of the cluster by the fault, and did not happen."""

    def __str__(self) -> str:
        names = ", ".join(f"{node} (leads)" if node == self.leader else node for node in self.met)
        return f"{self.fault.kind} {names or 'nobody: all are taken'}"


@dataclass
class Player:
    """Plays a plan, each fault in a thread of its own.

    say: called with a sentence as each begins and ends. stopped: ends all faults early.
    """

    cluster: LinkedCluster | NamespacedCluster
    began: float
    say: Callable[[str], None]
    played: list[Played] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _in_hand: set[str] = field(default_factory=set)
    _membership: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def play(self, plan: list[Fault]) -> None:
        """Block until all of them have ended."""
        for fault in plan:
            if self.ending.wait(max(0.0, self.began + fault.at_seconds - time.monotonic())):
                break
            thread = threading.Thread(target=self._play, args=(fault,), name=f"fault {fault.kind}")
            self._threads.append(thread)
            thread.start()
        for thread in self._threads:
            thread.join()

    def in_hand(self, node: str) -> bool:
        """Whether a fault has the node's process in its hand, so that it may well not run."""
        with self._lock:
            return node in self._in_hand

    @property
    def under_way(self) -> list[Played]:
        return [played for played in self.played if not played.ended]

    def _play(self, fault: Fault) -> None:
        played = Played(fault=fault, met=(), leader=self._leader(), began=time.monotonic())
        try:
            with self._chosen(fault, played.leader) as met:
                played.met = tuple(met)
                self.played.append(played)
                self.say(f"{played} for {fault.seconds:.1f} s")
                if met:
                    self._do(fault, met, played)
        except Exception as error:
            played.error = f"{type(error).__name__}: {error}"
        finally:
            played.ended = time.monotonic()
        self.say(f"{played} is over" + (f", in vain: {played.error}" if played.error else ""))

    def _leader(self) -> str:
        try:
            return self.cluster.leader(LEADER_TIMEOUT_SECONDS)
        except (AssertionError, GeraftError):
            return ""

    @contextmanager
    def _chosen(self, fault: Fault, leader: str) -> Iterator[list[str]]:
        """Whom the fault meets. A process is in the hand of one fault at a time."""
        takes_process = fault.kind in ("kill", "stop", "pause", "replace")
        takes_membership = fault.kind in ("remove", "demote", "shrink", "replace")
        if takes_membership and not self._membership.acquire(blocking=False):
            yield []
            return
        with self._lock:
            free = [node for node in self.cluster.members if not takes_process or node not in self._in_hand]
            met = victims(fault, free, leader)
            if takes_process:
                self._in_hand.update(met)
        try:
            yield met
        finally:
            if takes_membership:
                self._membership.release()
            if takes_process:
                with self._lock:
                    self._in_hand.difference_update(met)

    def _do(self, fault: Fault, met: list[str], played: Played) -> None:
        cluster, links, rng = self.cluster, self.cluster.links, random.Random(fault.draw)
        others = sorted(set(cluster.members) - set(met))
        says = [(node, other) for node in met for other in others]
        hears = [(other, node) for node, other in says]
        a_link = [rng.choice(says)] if says else []
        addresses = [cluster.address(node) for node in met]
        proxies = links if isinstance(links, Links) else None
        match fault.kind:
            case "kill":
                for node in met:
                    cluster.kill(node)
                self._last(fault)
                cluster.start(*met)
            case "stop":
                for node in met:
                    cluster.nodes[node].terminate()
                for node in met:
                    cluster.nodes[node].wait_until_ended()
                self._last(fault)
                cluster.start(*met)
            case "pause":
                for node in met:
                    cluster.pause(node)
                try:
                    self._last(fault)
                finally:
                    for node in met:
                        cluster.resume(node)
            case "isolate" | "split":
                self._last(fault, links.cut([*says, *hears]))
            case "mute":
                self._last(fault, links.cut(says))
            case "deafen":
                self._last(fault, links.cut(hears))
            case "part":
                self._last(fault, links.cut([*a_link, *((hearer, sayer) for sayer, hearer in a_link)]))
            case "one-way":
                self._last(fault, links.cut(a_link))
            case "flap":
                self._again_and_again(fault, FLAP_SECONDS, lambda: self._cut_for(FLAP_SECONDS / 2, [*says, *hears]))
            case "slow" if proxies is not None:
                self._last(fault, proxies.slow([*says, *hears], *SLOW_SECONDS))
            case "half-open" if proxies is not None:
                for node, other in says:
                    ends = (node, other)
                    proxies.half_open(*(ends if rng.random() < 0.5 else ends[::-1]))
                self._last(fault)
            case "reset" if proxies is not None:
                self._again_and_again(fault, RESET_SECONDS, lambda: [proxies.reset(*pair) for pair in says])
            case "no-callers":
                self._last(fault, links.cut([pair for node in met for pair in ((node, OUTSIDE), (OUTSIDE, node))]))
            case "mute-to-callers":
                self._last(fault, links.cut([(node, OUTSIDE) for node in met]))
            case "transfer":
                self._again_and_again(
                    fault, TRANSFER_SECONDS, lambda: self._ask(played, lambda client: client.transfer_leadership())
                )
            case "snapshot":
                self._again_and_again(
                    fault,
                    SNAPSHOT_SECONDS,
                    lambda: self._take_snapshots(played, addresses),
                )
            case "remove":
                self._ask(played, lambda client: client.remove_server(met[0], timeout_seconds=ADMIN_SECONDS))
                self._last(fault)
                self._make_all_voters()
            case "demote":
                self._ask(played, lambda client: client.demote(met[0], timeout_seconds=ADMIN_SECONDS))
                self._last(fault)
                self._make_all_voters()
            case "shrink":
                self._ask(played, lambda client: client.change_membership(voters=others, timeout_seconds=ADMIN_SECONDS))
                self._last(fault)
                self._make_all_voters()
            case "replace":
                cluster.kill(met[0])
                # Before it returns with nothing, nobody may count on it any more.
                self._until_done(lambda client: client.remove_server(met[0], timeout_seconds=ADMIN_SECONDS))
                self._last(fault)
                cluster.replace(met[0])
                self._make_all_voters()
            case kind:
                raise ValueError(f"nobody knows how to do {kind}")

    def _ask(self, played: Played, what: Callable[[Client], object]) -> None:
        """Ask the cluster to do it. It may well be in no state to."""
        try:
            with self.cluster.client(ADMIN_SECONDS) as client:
                what(client)
        except GeraftError as error:
            played.refused.append(f"{type(error).__name__}: {error}")

    def _take_snapshots(self, played: Played, addresses: list[str]) -> None:
        def take_all(client: Client) -> None:
            for address in addresses:
                client.take_snapshot(address, timeout_seconds=ADMIN_SECONDS)

        self._ask(played, take_all)

    def _until_done(self, what: Callable[[Client], object]) -> None:
        """Ask until it is done. Raises what was said last."""
        deadline = time.monotonic() + MEND_SECONDS
        with self.cluster.client(ADMIN_SECONDS) as client:
            while True:
                try:
                    what(client)
                    return
                except GeraftError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)

    def _make_all_voters(self) -> None:
        voters = dict(self.cluster.members)
        self._until_done(lambda client: client.change_membership(voters=voters, timeout_seconds=2 * ADMIN_SECONDS))

    def _last(self, fault: Fault, *during: AbstractContextManager[None]) -> None:
        with ExitStack() as stack:
            for one in during:
                stack.enter_context(one)
            self.ending.wait(fault.seconds)

    def _again_and_again(self, fault: Fault, every_seconds: float, what: Callable[[], object]) -> None:
        until = time.monotonic() + fault.seconds
        while time.monotonic() < until and not self.ending.is_set():
            what()
            self.ending.wait(every_seconds)

    def _cut_for(self, seconds: float, pairs: list[Pair]) -> None:
        with self.cluster.links.cut(pairs):
            self.ending.wait(seconds)
