"""geraft demo: three nodes, a dead leader, nothing lost."""

from __future__ import annotations

import hashlib
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click

from geraft.cli.cluster import LocalCluster, directory_on_disk, filesystem_of
from geraft.cli.command import Failed
from geraft.errors import GeraftError, OutcomeUnknown

if TYPE_CHECKING:
    import rich.progress

    from geraft.client import Client
    from geraft.runtime.status import NodeStatus

VALUE_BYTES = 100
KEYS_PER_PAGE = 1000
STALL_SECONDS = 60.0
"""So long without an acknowledged write, or without a node catching up, is a failure."""


@click.command()
@click.option("--writes", type=click.IntRange(min=1), default=10_000, show_default=True, help="How many.")
@click.option("--callers", type=click.IntRange(min=1), default=64, show_default=True, help="Threads that write.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the values, and of the moment of the kill.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Where to keep the data and logs of the nodes. By default a temporary one, gone at the end if all is well.",
)
def demo(writes: int, callers: int, seed: int, directory: Path | None) -> None:
    """Kill the leader of three nodes while they are written to, and lose nothing.

    Starts three nodes in processes of their own on loopback, each with its log on disk and synced. Callers write; at
    about one third the leader gets SIGKILL. Shows who takes over and how long nobody's write was acknowledged, restarts
    the dead node, and lets it catch up. In the end every acknowledged value is read back from each node, and the three
    are compared. Exits with 1 if anything is lost or differs.

    \b
    Example
      geraft demo
      geraft demo --writes 100000 --callers 256 --seed 7
    """
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise click.UsageError(f"--directory must be empty, and {directory} is not")
        Demo(directory, writes, callers, seed).run()
        return
    own = Path(tempfile.mkdtemp(prefix="geraft-demo-", dir=directory_on_disk()))
    try:
        Demo(own, writes, callers, seed).run()
    except BaseException:
        click.echo(f"the nodes' data and logs are in {own}", err=True)
        raise
    shutil.rmtree(own)


class Demo:
    """The three nodes, the callers' work, and what they saw."""

    def __init__(self, directory: Path, writes: int, callers: int, seed: int) -> None:
        self.directory = directory
        self.writes = writes
        self.callers = callers
        self.seed = seed
        self.cluster = LocalCluster(3, directory)
        self.kill_at = max(1, int(writes * random.Random(seed).uniform(0.30, 0.36)))
        self.numbers = iter(range(writes))
        self.acknowledged: list[tuple[float, int]] = []
        """When (time.monotonic()) which write was acknowledged."""
        self.retried = 0
        self.failed: list[BaseException] = []
        self.stopping = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        from geraft.client import Client

        kind = filesystem_of(self.directory)
        say(f"Three nodes, their data in {self.directory}" + (f" ({kind})" if kind else ""))
        with self.cluster, Client(self.cluster.addresses) as client:
            leader = leader_among(client, self.cluster.addresses)
            say(f"{leader.id} leads term {leader.term}. {self.callers} callers write {self.writes:,} values.")
            threads = [
                threading.Thread(target=self._write_on, args=(client,), daemon=True) for _ in range(self.callers)
            ]
            started = time.monotonic()
            with Progress(self.writes) as progress:
                for thread in threads:
                    thread.start()
                try:
                    self._watch(client, progress)
                finally:
                    self.stopping.set()
                    for thread in threads:
                        thread.join(timeout=30.0)
                progress.show(len(self.acknowledged))
            took = time.monotonic() - started
            retried = f"; {self.retried} calls ended with unknown outcome and were repeated" if self.retried else ""
            say(f"{len(self.acknowledged):,} writes acknowledged in {took:.1f} s{retried}.")
            self._wait_until_all_applied(client)
            lost = self._compare(client)
        say(f"acknowledged {len(self.acknowledged)}, lost {lost}")
        if lost:
            raise Failed(f"{lost} acknowledged writes are not on every node")

    # The callers ---------------------------------------------------------------------------------------------------

    def key(self, number: int) -> str:
        return f"demo-{number // KEYS_PER_PAGE:05}-{number % KEYS_PER_PAGE:03}"

    def value(self, number: int) -> bytes:
        return hashlib.shake_128(b"%d %d" % (self.seed, number)).digest(VALUE_BYTES)

    def _write_on(self, client: Client) -> None:
        """Write one value after the other until none is left. Each key has one value only, so a put may be repeated."""
        from geraft.kv import commands

        try:
            while not self.stopping.is_set():
                with self._lock:
                    number = next(self.numbers, None)
                if number is None:
                    return
                command = commands.put(self.key(number), self.value(number))
                while not self.stopping.is_set():
                    try:
                        reply = commands.decode_command_reply(client.apply(command))
                    except OutcomeUnknown:
                        with self._lock:
                            self.retried += 1
                    except GeraftError:
                        time.sleep(0.05)  # nothing happened, most often for want of a leader
                    else:
                        if reply.refused:
                            raise Failed(f"the store refused a write: {reply.refused}")
                        self.acknowledged.append((time.monotonic(), number))
                        break
        except BaseException as error:
            self.failed.append(error)

    # What happens meanwhile ----------------------------------------------------------------------------------------

    def _watch(self, client: Client, progress: Progress) -> None:
        self._wait_until_acknowledged(self.kill_at, progress)
        old = leader_among(client, self.cluster.addresses)
        dead = self.cluster.nodes[old.id]
        killed_at = time.monotonic()
        dead.kill()
        progress.say(f"Killed {old.id}, the leader, with SIGKILL after {len(self.acknowledged):,} writes.")

        new = leader_among(client, [address for address in self.cluster.addresses if address != old.address])
        elected_at = time.monotonic()
        seen = len(self.acknowledged)
        self._wait_until_acknowledged(min(self.writes, seen + 1), progress)
        silence = longest_silence([moment for moment, _ in list(self.acknowledged)], killed_at)
        progress.say(
            f"{new.id} took over in term {new.term}: known after {(elected_at - killed_at) * 1000:,.0f} ms,"
            f" {silence * 1000:,.0f} ms without an acknowledged write."
        )

        self._wait_until_acknowledged(min(self.writes, max(2 * self.writes // 3, self.kill_at)), progress)
        target = new.commit_index
        if (now := status_of(client, new.address)) is not None:
            target = now.commit_index
        restarted_at = time.monotonic()
        dead.start()
        dead.wait_until_ready(lambda: progress.show(len(self.acknowledged)))
        while (now := status_of(client, old.address)) is None or now.last_applied < target:
            self._check_callers()
            if time.monotonic() > restarted_at + STALL_SECONDS:
                raise Failed(f"{old.id} did not catch up within {STALL_SECONDS:.0f} s")
            progress.show(len(self.acknowledged))
            time.sleep(0.01)
        progress.say(
            f"Started {old.id} again. It had missed {max(0, target - old.last_log_index):,} entries"
            f" and caught up with them in {(time.monotonic() - restarted_at) * 1000:,.0f} ms, its start included."
        )
        self._wait_until_acknowledged(self.writes, progress)

    def _wait_until_acknowledged(self, count: int, progress: Progress) -> None:
        best, since = -1, time.monotonic()
        while (now := len(self.acknowledged)) < count:
            self._check_callers()
            if now > best:
                best, since = now, time.monotonic()
            elif time.monotonic() > since + STALL_SECONDS:
                raise Failed(f"no write was acknowledged for {STALL_SECONDS:.0f} s")
            progress.show(now)
            time.sleep(0.01)

    def _check_callers(self) -> None:
        if self.failed:
            raise Failed(f"a caller failed: {self.failed[0]}") from self.failed[0]

    # The end -------------------------------------------------------------------------------------------------------

    def _wait_until_all_applied(self, client: Client) -> None:
        """Until all three have applied the same, and all there is."""
        deadline = time.monotonic() + STALL_SECONDS
        while True:
            found = [status_of(client, address) for address in self.cluster.addresses]
            indexes = {status.last_applied if status else -1 for status in found}
            last = {status.last_log_index if status else -2 for status in found}
            if len(indexes) == 1 and indexes == last:
                return
            if time.monotonic() > deadline:
                raise Failed(f"the nodes did not come to the same end: applied {sorted(indexes)} of {sorted(last)}")
            time.sleep(0.02)

    def _compare(self, client: Client) -> int:
        """Read everything from each node; how many acknowledged values are missing or wrong on at least one."""
        lost: set[int] = set()
        contents: dict[str, list[tuple[str, bytes]]] = {}
        numbers = sorted({number for _, number in self.acknowledged})
        for member, address in self.cluster.members.items():
            contents[member] = list(self._read_all(client, address))
            held = dict(contents[member])
            missing = {number for number in numbers if held.get(self.key(number)) != self.value(number)}
            say(f"{member}: {len(numbers) - len(missing):,} of {len(numbers):,} acknowledged values read back.")
            lost |= missing
        first, *others = contents.values()
        if any(other != first for other in others):
            raise Failed(f"the nodes differ; acknowledged {len(numbers)}, lost {len(lost)}")
        say("The three nodes hold the same.")
        return len(lost)

    def _read_all(self, client: Client, address: str) -> Iterator[tuple[str, bytes]]:
        """Key and value of all that one node has, in its own words: a stale read is answered by the node asked."""
        from geraft.kv import commands

        for page in range(-(-self.writes // KEYS_PER_PAGE)):
            query = commands.list_pairs(f"demo-{page:05}-")
            yield from commands.decode_pairs(client.read(query, consistency="stale", address=address))


def status_of(client: Client, address: str) -> NodeStatus | None:
    try:
        return client.status(address, timeout_seconds=2.0)
    except GeraftError:
        return None


def leader_among(client: Client, addresses: Iterable[str]) -> NodeStatus:
    """The status of the node that leads, once one of them does."""
    deadline = time.monotonic() + STALL_SECONDS
    while time.monotonic() < deadline:
        for address in addresses:
            status = status_of(client, address)
            if status is not None and status.role == "leader":
                return status
        time.sleep(0.01)
    raise Failed(f"nobody became the leader within {STALL_SECONDS:.0f} s")


def longest_silence(moments: list[float], since: float) -> float:
    """The longest time between two acknowledged writes that ended after `since`, in seconds."""
    ordered = sorted(moments)
    return max((later - earlier for earlier, later in pairwise(ordered) if later >= since), default=0.0)


class Progress:
    """How many writes are acknowledged: a bar on a terminal, else a line for each tenth. Other lines stand above it."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar: rich.progress.Progress | None = None
        self._told = 0

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            import rich.progress as rich_progress

            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("acknowledged"),
                rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TimeElapsedColumn(),
            )
            self._task = self._bar.add_task("", total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, count: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=count)
        elif count * 10 // self._total > self._told:
            self._told = count * 10 // self._total
            say(f"  {count:,} of {self._total:,} acknowledged")

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            say(text)


def say(text: str) -> None:
    click.echo(text)
