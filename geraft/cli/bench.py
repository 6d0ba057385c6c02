"""geraft bench: writes and reads per second of a local cluster of three nodes, or as many as you say."""

from __future__ import annotations

import json
import random
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from geraft.cli.cluster import LocalCluster, directory_on_disk, filesystem_of
from geraft.cli.command import Failed, Verb, VerbGroup
from geraft.cli.serve import STORAGES, make_app_and_storage

if TYPE_CHECKING:
    from geraft.node import RaftNode

KEYS = 1000
"""Distinct keys that are written and read."""
TIMEOUT_SECONDS = 30.0

Operation = Callable[[int], object]
"""Does the operation of that number, and returns when it is answered."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured."""

    operation: str
    nodes: int
    callers: int
    operations: int
    value_bytes: int
    storage: str
    sync: str
    through: str
    consistency: str = ""
    exactly_once: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out; latencies in milliseconds, CPU in microseconds per operation by process."""

    seconds: float
    operations_per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_us_per_operation: dict[str, float]


def bench_options(verb: Verb) -> Verb:
    for option in (
        click.option("--nodes", type=click.IntRange(min=1), default=3, show_default=True, help="Size of the cluster."),
        click.option("--callers", type=click.IntRange(min=1), default=64, show_default=True, help="Callers at once."),
        click.option(
            "--operations", type=click.IntRange(min=1), default=None, help="How many; by default enough for seconds."
        ),
        click.option(
            "--value-bytes", type=click.IntRange(min=0), default=100, show_default=True, help="Of each value."
        ),
        click.option(
            "--storage", type=click.Choice(STORAGES), default="sqlite", show_default=True, help="The log store."
        ),
        click.option(
            "--sync",
            type=click.Choice(["full", "normal", "off"]),
            default="full",
            show_default=True,
            help="When SQLite syncs the disk.",
        ),
        click.option(
            "--through",
            type=click.Choice(["node", "client"]),
            default="node",
            show_default=True,
            help="node: greenlets in the leader's process call the node. client: threads outside use a Client.",
        ),
        click.option(
            "--directory",
            type=click.Path(file_okay=False, path_type=Path),
            default=None,
            help="Where to put the nodes' data; by default a temporary directory on disk.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ):
        verb = option(verb)
    return verb


@click.group(cls=VerbGroup)
def bench() -> None:
    """Measure a local cluster: its nodes run on this machine, in processes of their own, and share it with the load.

    \b
    Example
      geraft bench write --callers 64
      geraft bench read --callers 64 --consistency lease
    """


@bench.command()
@bench_options
@click.option("--exactly-once", is_flag=True, help="Number the writes, so that a repeated one is applied once.")
def write(
    nodes: int,
    callers: int,
    operations: int | None,
    value_bytes: int,
    storage: str,
    sync: str,
    through: str,
    directory: Path | None,
    as_json: bool,
    exactly_once: bool,
) -> None:
    """Writes per second, each answered once a quorum has it on disk and it is applied.

    \b
    Example
      geraft bench write --callers 1
      geraft bench write --callers 512 --value-bytes 1000 --through client --json
    """
    setting = Setting(
        operation="write",
        nodes=nodes,
        callers=callers,
        operations=operations or min(200_000, 2_000 + 1_000 * callers),
        value_bytes=value_bytes,
        storage=storage,
        sync=sync,
        through=through,
        exactly_once=exactly_once,
    )
    _measure_and_print(setting, directory, as_json)


@bench.command()
@bench_options
@click.option(
    "--consistency",
    type=click.Choice(["linearizable", "lease", "stale"]),
    default="linearizable",
    show_default=True,
    help="How sure a read must be that nothing newer was acknowledged.",
)
def read(
    nodes: int,
    callers: int,
    operations: int | None,
    value_bytes: int,
    storage: str,
    sync: str,
    through: str,
    directory: Path | None,
    as_json: bool,
    consistency: str,
) -> None:
    """Reads per second, each of one key.

    \b
    Example
      geraft bench read --callers 64
      geraft bench read --callers 64 --consistency stale
    """
    setting = Setting(
        operation="read",
        nodes=nodes,
        callers=callers,
        operations=operations or min(200_000, 2_000 + 1_000 * callers),
        value_bytes=value_bytes,
        storage=storage,
        sync=sync,
        through=through,
        consistency=consistency,
    )
    _measure_and_print(setting, directory, as_json)


def _measure_and_print(setting: Setting, directory: Path | None, as_json: bool) -> None:
    with _directory(directory) as place:
        if not as_json:
            disk = "" if setting.storage == "memory" else f" on {filesystem_of(place)}"
            if setting.storage == "sqlite":
                disk = f", synchronous={setting.sync}{disk}"
            click.echo(
                f"{setting.operations:,} {setting.consistency} {setting.operation}s".replace("  ", " ")
                + f" of {setting.value_bytes} bytes by {setting.callers} callers"
                f" ({'in the leader' if setting.through == 'node' else 'Client, outside'});"
                f" {setting.nodes} nodes, {setting.storage}{disk}"
            )
        result = measure(setting, place)
    if as_json:
        click.echo(json.dumps({**asdict(setting), **asdict(result)}))
        return
    click.echo(
        f"{result.operations_per_second:,.0f}/s in {result.seconds:.2f} s;"
        f" p50 {result.p50_ms:.2f} ms, p99 {result.p99_ms:.2f} ms, max {result.max_ms:.2f} ms"
    )
    shares = ", ".join(f"{name} {cpu:.0f}" for name, cpu in result.cpu_us_per_operation.items())
    click.echo(f"CPU, microseconds per {setting.operation}: {shares}")


@contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix="geraft-bench-", dir=given or directory_on_disk()))
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def measure(setting: Setting, directory: Path) -> Result:
    """Start a cluster in the directory, do the operations, and stop it."""
    inside = ("n1",) if setting.through == "node" else ()
    cluster = LocalCluster(
        setting.nodes, directory, storage=setting.storage, sync=setting.sync, log_level="warning", inside=inside
    )
    if setting.through == "client":
        with cluster:
            return _through_client(setting, cluster)
    from geraft.node import RaftNode

    app, storage = make_app_and_storage(setting.storage, directory / "n1", setting.sync)
    node = RaftNode(app, storage, id="n1", bootstrap=cluster.members)
    node.start()  # first, so that it is likely to be the one that campaigns first
    try:
        with cluster:
            try:
                _make_leader(node, cluster)
                return _through_node(setting, cluster, node)
            finally:
                node.stop()  # while there are others to hand over to
    finally:
        node.stop()


def _make_leader(node: RaftNode, cluster: LocalCluster) -> None:
    """Have the cluster led by the node in this process: whoever else leads is halted until another is elected."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while (leader_id := node.wait_for_leader(TIMEOUT_SECONDS)) != node.id:
        with cluster.nodes[leader_id].halted():
            while node.status().leader_id in ("", leader_id):
                if time.monotonic() > deadline:
                    raise Failed(f"{node.id} did not become the leader within {TIMEOUT_SECONDS:.0f} s")
                time.sleep(0.05)


def _through_node(setting: Setting, cluster: LocalCluster, node: RaftNode) -> Result:
    """Callers are greenlets of this thread, as in a web server that runs on gevent."""
    import gevent

    def run_all(operation: Operation, count: int, callers: int) -> list[float]:
        latencies: list[float] = []
        numbers = iter(range(count))

        def call_on() -> None:
            for number in numbers:
                began = time.perf_counter()
                operation(number)
                latencies.append(time.perf_counter() - began)

        gevent.joinall([gevent.spawn(call_on) for _ in range(callers)], raise_error=True)
        return latencies

    writer = node.session() if setting.exactly_once else node
    return _run(
        setting,
        cluster,
        apply=lambda command: writer.apply(command, timeout_seconds=TIMEOUT_SECONDS),
        read=lambda query: node.read(query, setting.consistency, timeout_seconds=TIMEOUT_SECONDS),
        run_all=run_all,
    )


def _through_client(setting: Setting, cluster: LocalCluster) -> Result:
    """Callers are threads of this process, which holds no node."""
    from geraft.client import Client

    def run_all(operation: Operation, count: int, callers: int) -> list[float]:
        latencies: list[float] = []
        errors: list[BaseException] = []
        numbers = iter(range(count))
        lock = threading.Lock()

        def call_on() -> None:
            try:
                while True:
                    with lock:
                        number = next(numbers, None)
                    if number is None or errors:
                        return
                    began = time.perf_counter()
                    operation(number)
                    latencies.append(time.perf_counter() - began)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=call_on, daemon=True) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return latencies

    with Client(cluster.addresses, timeout_seconds=TIMEOUT_SECONDS, exactly_once=setting.exactly_once) as client:
        return _run(
            setting,
            cluster,
            apply=client.apply,
            read=lambda query: client.read(query, consistency=setting.consistency),
            run_all=run_all,
        )


def _run(
    setting: Setting,
    cluster: LocalCluster,
    *,
    apply: Callable[[bytes], bytes],
    read: Callable[[bytes], bytes],
    run_all: Callable[[Operation, int, int], list[float]],
) -> Result:
    from geraft.kv import commands

    value = random.Random(1).randbytes(setting.value_bytes)
    keys = [f"key-{number:06}" for number in range(KEYS)]
    puts = [commands.put(key, value) for key in keys]
    gets = [commands.get(key) for key in keys]

    def write_one(number: int) -> object:
        return apply(puts[number % KEYS])

    def read_one(number: int) -> object:
        return read(gets[number % KEYS])

    run_all(write_one, KEYS, min(setting.callers, 64))  # the keys to read, and a warm-up for all
    operation = write_one if setting.operation == "write" else read_one
    run_all(operation, max(1, setting.operations // 20), setting.callers)

    cpu_before = _cpu_seconds(cluster)
    began = time.perf_counter()
    latencies = sorted(run_all(operation, setting.operations, setting.callers))
    seconds = time.perf_counter() - began
    cpu_after = _cpu_seconds(cluster)
    count = len(latencies)
    return Result(
        seconds=seconds,
        operations_per_second=count / seconds,
        p50_ms=latencies[count // 2] * 1000,
        p99_ms=latencies[count * 99 // 100] * 1000,
        max_ms=latencies[-1] * 1000,
        cpu_us_per_operation={name: (cpu_after[name] - cpu_before[name]) / count * 1e6 for name in cpu_after},
    )


def _cpu_seconds(cluster: LocalCluster) -> dict[str, float]:
    own = resource.getrusage(resource.RUSAGE_SELF)
    name = "this process" + ("" if "n1" in cluster.nodes else " (n1 and the callers)")
    seconds = {name: own.ru_utime + own.ru_stime}
    return seconds | {node_id: node.cpu_seconds() for node_id, node in cluster.nodes.items()}
