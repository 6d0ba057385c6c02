"""Chaos: a cluster of real processes under load and faults, and what came of it."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from geraft.client import Client
from geraft.errors import GeraftError
from geraft.kv import decode_pairs, list_pairs
from geraft.testing.chaos.callers import END_FILE, Load, OutsideCallers
from geraft.testing.chaos.faults import Played, Player
from geraft.testing.chaos.history import Journal, Seen, read_journal, write_history
from geraft.testing.chaos.plan import BY_LINKS_ONLY, KINDS, Fault, make_plan
from geraft.testing.cluster import LinkedCluster, NamespacedCluster
from geraft.testing.linearizability import Operation, Report, Verdict, check
from geraft.testing.models import Get, KeyValue, call_key_value

CALLS_MAX = 400_000
"""Of one run, so that its history fits into memory: a long run calls less often."""
SNAPSHOT_OPTIONS = ["--snapshot-every", "300", "--trailing-entries", "100"]
"""Of each node, so that one that was away finds the log cut off."""
PROGRESS_SECONDS = 5.0
HEAL_SECONDS = 30.0
"""Within which a write must be acknowledged after the last fault."""
EVEN_SECONDS = 60.0
"""Within which all nodes must hold the same after the last call."""
SHADOW_SECONDS = 3.0
"""For so long after a fault a silence that begins counts as its work, unless another one has begun."""
CHECK_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is played.

    callers: outside; callers_inside: in each node. patched: how many of the nodes run in processes that gevent has
    patched. storages: of the nodes, by turns. kinds: of the faults, see plan.KINDS.
    namespaces: each node is in a network namespace instead of behind links, which leaves out plan.BY_LINKS_ONLY.
    """

    seed: int = 1
    seconds: float = 60.0
    nodes: int = 5
    patched: int = 1
    callers: int = 6
    callers_inside: int = 2
    calls_per_second: float = 150.0
    reads: str = "both"
    storages: tuple[str, ...] = ("sqlite", "sqlite", "file")
    kinds: tuple[str, ...] = tuple(KINDS)
    namespaces: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """A fault that was played. Seconds since the load began; silence: the longest time without an acknowledged write of
    those that touch it, or that began shortly afterwards and before another fault."""

    what: str
    at_seconds: float
    seconds: float
    silence_seconds: float
    error: str = ""
    refused: int = 0
    """How often the cluster did not do what the fault asked of it."""


@dataclass(kw_only=True)
class Outcome:
    """What came of a run. complaints: what is wrong beside the history; none, and a report that is ok, if all is well.

    silence: the longest time without an acknowledged write, in seconds, and when it began.
    """

    setting: Setting
    directory: Path
    report: Report | None = None
    rows: list[Row] = field(default_factory=list)
    acknowledged: int = 0
    acknowledged_writes: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    silence: tuple[float, float] = (0.0, 0.0)
    same_state: str = ""
    complaints: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.complaints and self.report is not None and self.report.verdict is Verdict.OK

    def table(self) -> str:
        """The faults played, a line each."""
        width = max([len(row.what) for row in self.rows] + [5])
        lines = [f"{'fault':<{width}}  {'at':>7}  {'for':>6}  longest silence"]
        for row in self.rows:
            lines.append(
                f"{row.what:<{width}}  {row.at_seconds:5.1f} s  {row.seconds:4.1f} s  {row.silence_seconds:6.2f} s"
                + (f"  {row.refused} x refused" if row.refused else "")
                + (f"  {row.error}" if row.error else "")
            )
        return "\n".join(lines)

    def summary(self) -> str:
        """One line."""
        verdict = "ok" if self.good else "FAILED"
        return (
            f"chaos seed {self.setting.seed}: {verdict}, {self.setting.seconds:.0f} s, {len(self.rows)} faults,"
            f" acknowledged {self.acknowledged}, unknown {self.unknown.total()}, refused {self.refused.total()},"
            f" longest time without an acknowledged write {self.silence[0]:.2f} s"
        )

    def __str__(self) -> str:
        lines = [self.table(), ""]
        lines.append(
            f"acknowledged {self.acknowledged} ({self.acknowledged_writes} writes,"
            f" {self.acknowledged - self.acknowledged_writes} reads); unknown {_counted(self.unknown)};"
            f" refused {_counted(self.refused)}"
        )
        lines.append(f"longest time without an acknowledged write: {self.silence[0]:.2f} s, at {self.silence[1]:.1f} s")
        if self.same_state:
            lines.append(self.same_state)
        if self.report is not None:
            lines.append(str(self.report))
        lines += self.complaints
        return "\n".join(lines)


def _counted(counter: Counter[str]) -> str:
    parts = ", ".join(f"{name} {count}" for name, count in counter.most_common())
    return f"{counter.total()}" + (f" ({parts})" if parts else "")


def _in_order(operations: Sequence[Operation], began: float) -> str:
    """The calls with their times, in milliseconds since the load began."""

    def line(operation: Operation) -> str:
        returned = "?" if operation.returned is None else f"{(operation.returned - began) / 1e6:.1f}"
        return f"{(operation.called - began) / 1e6:10.1f} {returned:>10}  {operation.client:14}  {operation}\n"

    return "".join(map(line, sorted(operations, key=lambda operation: operation.called)))


class Chaos:
    """One run. directory: empty; it gets the nodes' data and logs, the plan, the journals and the history.

    say: called with each line of progress.
    """

    def __init__(self, directory: Path, setting: Setting, say: Callable[[str], None] = lambda line: None) -> None:
        self.directory = directory
        self.setting = setting
        self.plan: list[Fault] = make_plan(setting.seed, setting.seconds, self._kinds())
        self.outcome = Outcome(setting=setting, directory=directory)
        self._say = say
        self._journals = directory / "callers"
        self._began = time.monotonic()

    def run(self) -> Outcome:
        """Play it, and say what came of it. Raises DidNotStart if the cluster can't be started to begin with."""
        outcome = self.outcome
        self._journals.mkdir(parents=True)
        (self.directory / "plan.json").write_text(
            json.dumps({"setting": asdict(self.setting), "plan": [asdict(fault) for fault in self.plan]}, indent=1)
        )
        load_path = self.directory / "load.json"
        kind = NamespacedCluster if self.setting.namespaces else LinkedCluster
        cluster = kind(
            self.directory / "nodes",
            self.setting.nodes,
            options=["--callers", str(load_path), *SNAPSHOT_OPTIONS],
            options_of=self._storage_of,
            patched=self.setting.patched,
        )
        cluster.directory.mkdir()
        try:
            self._began = time.monotonic()
            self._load(self.setting.callers_inside).save(load_path)
            cluster.start()
            cluster.leader()
            ended = self._play(cluster)
            (self._journals / END_FILE).touch()
            if not outcome.complaints:
                self._settle(cluster)
        finally:
            (self._journals / END_FILE).touch()
            cluster.stop()
        self._judge(ended)
        return outcome

    def _kinds(self) -> list[str]:
        left_out = BY_LINKS_ONLY if self.setting.namespaces else frozenset[str]()
        return [kind for kind in self.setting.kinds if kind not in left_out]

    def _storage_of(self, node: str) -> list[str]:
        storages = self.setting.storages
        return ["--storage", storages[int(node[1:]) % len(storages)]]

    def _load(self, callers: int) -> Load:
        setting = self.setting
        everyone = setting.callers + setting.nodes * setting.callers_inside
        per_second = min(setting.calls_per_second, CALLS_MAX / setting.seconds)
        return Load(
            directory=str(self._journals),
            seed=setting.seed,
            began=self._began,
            callers=callers,
            pause_seconds=everyone / per_second,
            reads=setting.reads,
        )

    def _play(self, cluster: LinkedCluster | NamespacedCluster) -> float:
        """Faults under load, until the load has ended and a write went through after the last fault; when that was."""
        self._began = time.monotonic()
        outside = OutsideCallers(list(cluster.members.values()), self._load(self.setting.callers))
        player = Player(cluster, self._began, self._tell)
        playing = threading.Thread(target=player.play, args=(self.plan,), name="the plan")
        playing.start()
        told = 0.0
        try:
            while playing.is_alive() or self._now() < self.setting.seconds:
                time.sleep(0.1)
                if self._complain(cluster, player, outside):
                    break
                if self._now() - told >= PROGRESS_SECONDS:
                    told = self._now()
                    journal = outside.journal
                    under_way = "; ".join(map(str, player.under_way)) or "no fault"
                    self._tell(
                        f"callers outside: acknowledged {journal.acknowledged}, unknown {journal.unknown},"
                        f" refused {journal.refused}; {under_way}"
                    )
        finally:
            player.ending.set()
            playing.join()
        healed = time.monotonic_ns()
        while outside.journal.written_at < healed and not self.outcome.complaints:
            time.sleep(0.05)
            self._complain(cluster, player, outside)
            if time.monotonic_ns() - healed > HEAL_SECONDS * 1e9:
                self.outcome.complaints.append(
                    f"no write was acknowledged within {HEAL_SECONDS:.0f} s of the last fault"
                )
        ended = time.monotonic()
        outside.end()
        outside.journal.close()
        self._played = player.played
        for played in player.played:
            if played.error:
                self.outcome.complaints.append(f"{played} at {played.began - self._began:.1f} s: {played.error}")
        return ended

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _tell(self, what: str) -> None:
        self._say(f"{self._now():6.1f} s  {what}")

    def _complain(self, cluster: LinkedCluster | NamespacedCluster, player: Player, outside: OutsideCallers) -> bool:
        """Whether something is wrong that nothing can mend."""
        complaints = self.outcome.complaints
        complaints += [f"a caller outside ended: {error!r}" for error in outside.errors]
        for node in cluster.nodes.values():
            if not node.running and not player.in_hand(node.id):
                last = (node.said().strip().splitlines() or ["it said nothing"])[-1]
                complaints.append(f"{node.id} ended by itself: {last}")
        return bool(complaints)

    def _settle(self, cluster: LinkedCluster | NamespacedCluster) -> None:
        """Without load: all nodes come to hold the same, and every key that was called has a value to be explained."""
        outcome = self.outcome
        time.sleep(self._load(0).timeout_seconds)  # until the callers within have ended
        try:
            cluster.wait_until_even(timeout_seconds=EVEN_SECONDS)
            with cluster.client() as client:
                states = {
                    node: dict(decode_pairs(client.read(list_pairs(), "stale", address=cluster.address(node))))
                    for node in cluster.members
                }
                self._read_all(client)
        except (AssertionError, GeraftError) as error:
            outcome.complaints.append(f"the nodes did not come to rest: {error}")
            return
        (first, pairs), *others = states.items()
        for node, other in others:
            keys = sorted(key for key in {*pairs, *other} if pairs.get(key) != other.get(key))
            if keys:
                outcome.complaints.append(
                    f"{first} and {node} differ, at key {keys[0]!r}: {pairs.get(keys[0])!r}, {other.get(keys[0])!r}"
                )
        if not outcome.complaints:
            outcome.same_state = f"{len(states)} nodes hold the same {len(pairs)} keys"

    def _read_all(self, client: Client) -> None:
        """What is there at the end must be explained too: a read of each key, in a journal of its own."""
        keys = sorted({operation.input.key for operation in self._seen().operations})
        journal = Journal(self._journals / "at the end.jsonl")
        for key in keys:
            with journal.operation("at the end", Get(key)) as call:
                call.output = call_key_value(client, call.input)
        journal.close()

    def _seen(self) -> Seen:
        seen = Seen()
        for path in sorted(self._journals.glob("*.jsonl")):
            seen.add(read_journal(path))
        return seen

    def _judge(self, ended: float) -> None:
        outcome = self.outcome
        seen = self._seen()
        write_history(self.directory / "history.jsonl", seen.operations)
        outcome.unknown, outcome.refused = seen.unknown, seen.refused
        answered = [operation for operation in seen.operations if operation.returned is not None]
        writes = [(operation.returned or 0) / 1e9 for operation in answered if not isinstance(operation.input, Get)]
        outcome.acknowledged, outcome.acknowledged_writes = len(answered), len(writes)
        moments = sorted(moment for moment in [self._began, ended, *writes] if self._began <= moment <= ended)
        gaps = [(later - earlier, earlier) for earlier, later in pairwise(moments)]
        length, at = max(gaps, default=(0.0, self._began))
        outcome.silence = (length, at - self._began)
        ordered = sorted(self._played, key=lambda played: played.began)
        nexts = [played.began for played in ordered[1:]]
        outcome.rows = [
            self._row(played, following, gaps)
            for played, following in zip(ordered, [*nexts, float("inf")], strict=True)
        ]
        for path in sorted((self.directory / "nodes").glob("*.log")):
            if "Traceback (most recent call last)" in path.read_text(errors="replace"):
                outcome.complaints.append(f"{path.name} holds a traceback")
        self._tell(f"checking {len(seen.operations)} calls")
        report = outcome.report = check(seen.operations, KeyValue(), time_limit_seconds=CHECK_SECONDS)
        if report.part:
            path = self.directory / "key.txt"
            calls = [operation for operation in seen.operations if operation.input.key == report.key]
            path.write_text(_in_order(calls, int(self._began * 1e9)))
            outcome.complaints.append(f"all calls of key {report.key!r} stand in {path}")

    def _row(self, played: Played, following: float, gaps: Sequence[tuple[float, float]]) -> Row:
        end = max(played.ended, min(played.ended + SHADOW_SECONDS, following - SHADOW_SECONDS / 10))
        return Row(
            what=str(played),
            at_seconds=played.began - self._began,
            seconds=played.ended - played.began,
            silence_seconds=max(
                (length for length, since in gaps if since < end and since + length > played.began), default=0.0
            ),
            error=played.error,
            refused=len(played.refused),
        )
