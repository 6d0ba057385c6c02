"""geraft serve: one node, of the key-value store or of an app of the user's."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click
from gevent import monkey

from geraft.cli.command import Address, Addresses, AppFactory, Change, Dial, Failed, Members

if TYPE_CHECKING:
    from geraft.app import RaftApp
    from geraft.node import RaftNode
    from geraft.storage.base import RaftStorage

LOG_NAMES = {"sqlite": "log.db", "file": "log", "rocksdb": "log.rocksdb"}
"""What the log of each storage is called in the data directory."""
STORAGES = [*LOG_NAMES, "memory"]


@click.command()
@click.option("--id", "node_id", required=True, metavar="NAME", help="The node's name in the cluster; never changes.")
@click.option("--listen", type=Address(), default=None, help="Where to listen, if not where the others reach it.")
@click.option(
    "--advertise",
    type=Address(),
    default=None,
    help="Where the others reach it, if not where it listens. If that has changed, the node tells them.",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Directory of the node's log, vote and identity; made if need be. Needed unless --storage memory.",
)
@click.option(
    "--bootstrap",
    type=Members(),
    default=None,
    help="All first members: the same list for each. On later starts it may stay or go.",
)
@click.option(
    "--dial",
    type=Dial(),
    default=None,
    help="Reach the members at these addresses of theirs by others: through a tunnel, a proxy.",
)
@click.option(
    "--join",
    type=Addresses(),
    default=None,
    help="Members of a cluster that this node shall join. On later starts it may stay or go.",
)
@click.option("--learner", is_flag=True, help="With --join: stay a learner, a read replica that does not vote.")
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="NAME",
    help="Hold a node of this group; again for each further group of this process. Each is a cluster of its own.",
)
@click.option("--cluster-name", default="", help="Of a new cluster, to tell it from others at a glance.")
@click.option(
    "--storage",
    type=click.Choice(STORAGES),
    default="sqlite",
    show_default=True,
    help="What keeps the log. memory: for trials; one without its state can't come back under its id.",
)
@click.option(
    "--sync",
    type=click.Choice(["full", "normal", "off"]),
    default="full",
    show_default=True,
    help="When SQLite syncs the disk. Anything but full may lose acknowledged writes when the power fails.",
)
@click.option(
    "--app",
    "factory",
    type=AppFactory(),
    default=None,
    help="Class or function that makes the state machine, a SimpleRaftApp or RaftApp.  [default: the key-value store]",
)
@click.option(
    "--snapshot-every",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="WRITES",
    help="The key-value store copies its state after so many writes; 0 for never.",
)
@click.option(
    "--compaction-interval",
    "compaction_interval_seconds",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="Fold a snapshot from the last one and the log so often; 0 for never.",
)
@click.option(
    "--trailing-entries",
    type=click.IntRange(min=0),
    default=10_000,
    show_default=True,
    help="Entries to keep in the log behind the newest snapshot.",
)
@click.option(
    "--set",
    "settings",
    type=Change(),
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of Config, such as election_timeout_seconds=2; again for each further one. All that geraft config"
    " get lists can be set, and goes before what another option says.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    help="What to log on stderr.",
)
@click.option(
    "--callers",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    hidden=True,
    help="Call the node from within, as the file says, and write down what came of it: for geraft chaos.",
)
@click.option("--until-stdin-closes", is_flag=True, hidden=True, help="Stop when the process that started us is gone.")
def serve(
    node_id: str,
    listen: str | None,
    advertise: str | None,
    data_dir: Path | None,
    bootstrap: dict[str, str] | None,
    join: tuple[str, ...] | None,
    learner: bool,
    dial: dict[str, str] | None,
    groups: tuple[str, ...],
    cluster_name: str,
    storage: str,
    sync: str,
    factory: Callable[[], Any] | None,
    snapshot_every: int,
    compaction_interval_seconds: float,
    trailing_entries: int,
    settings: tuple[tuple[str, float], ...],
    log_level: str,
    callers: Path | None,
    until_stdin_closes: bool,
) -> None:
    """Run one node until it gets SIGTERM or SIGINT (Ctrl-C): of the key-value store, or of your own app with --app.

    Prints one line when it is ready. Each node needs a name, an address and a directory of its own; all get the same
    --bootstrap list when they start for the first time.

    \b
    Example: a cluster of one
      geraft serve --id n1 --listen 127.0.0.1:7001 --data-dir n1 --bootstrap n1=127.0.0.1:7001
    \b
    Example: the second of three
      geraft serve --id n2 --listen 127.0.0.1:7002 --data-dir n2 \\
          --bootstrap n1=127.0.0.1:7001,n2=127.0.0.1:7002,n3=127.0.0.1:7003
    \b
    Example: class Bank of bank.py in this directory
      geraft serve --id n1 --listen 127.0.0.1:7001 --data-dir n1 --bootstrap n1=127.0.0.1:7001 --app bank:Bank
    \b
    Example: a fourth one joins them
      geraft serve --id n4 --listen 127.0.0.1:7004 --data-dir n4 --join 127.0.0.1:7001,127.0.0.1:7002
    \b
    Example: two stores in one process, to be told apart with kv --group
      geraft serve --id n1 --listen 127.0.0.1:7001 --data-dir n1 --bootstrap n1=127.0.0.1:7001 --group a --group b
    """
    if storage != "memory" and data_dir is None:
        raise click.UsageError(f"--storage {storage} needs --data-dir")
    if snapshot_every and factory is not None:
        raise click.UsageError("--snapshot-every is for the key-value store: an app of yours asks by MakeSnapshot.COPY")
    own_address = advertise or listen
    if bootstrap is not None and own_address:
        bootstrap.setdefault(node_id, own_address)
    if bootstrap is not None and node_id not in bootstrap:
        raise click.UsageError(f"--bootstrap must name this node too: {node_id}=HOST:PORT")
    if learner and join is None:
        raise click.UsageError("--learner is for a node that joins: give --join too")
    if groups and callers is not None:
        raise click.UsageError("--callers is for a node without a group")
    if len(set(groups)) < len(groups):
        raise click.UsageError(f"a group is named twice: {', '.join(groups)}")
    logging.basicConfig(
        level=log_level.upper(), format=f"%(asctime)s {node_id} %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    if until_stdin_closes:
        # A native thread also where gevent has patched threading: there it would hold up everything else.
        monkey.get_original("_thread", "start_new_thread")(_wait_until_stdin_closes, ())

    from geraft.config import Config
    from geraft.host import RaftHost
    from geraft.kv import KeyValueApp
    from geraft.node import RaftNode
    from geraft.plugins import load_plugins
    from geraft.transport.groups import check_group

    for group in groups:
        check_group(group)
    load_plugins()
    if factory is None:
        factory = partial(KeyValueApp, snapshot_every=snapshot_every)
    config = Config.of(
        {
            "compaction_interval_seconds": compaction_interval_seconds,
            "trailing_entries": trailing_entries,
            **dict(settings),
        }
    )
    place = f"its data in {data_dir}" if storage != "memory" else "its data in memory"
    if groups:
        at = listen or advertise or (bootstrap or {}).get(node_id, "")
        with RaftHost(at, advertise=advertise or "", config=config, dial=dial) as host:
            for group in groups:
                app, store = make_app_and_storage(storage, data_dir / group if data_dir else None, sync, factory)
                host.node(
                    group,
                    app,
                    store,
                    id=node_id,
                    bootstrap=bootstrap,
                    cluster_name=cluster_name,
                    join=join,
                    learner=learner,
                ).start()
            held = f"groups {', '.join(groups)}" if len(groups) <= 10 else f"{len(groups)} groups"
            click.echo(f"{node_id} is ready on {host.address} with {held}, {place}; Ctrl-C stops it")
            run_until(list(host.nodes.values()), stopping)
        return
    app, store = make_app_and_storage(storage, data_dir, sync, factory)
    node = RaftNode(
        app,
        store,
        id=node_id,
        listen=listen or "",
        bootstrap=bootstrap,
        join=join,
        learner=learner,
        advertise=advertise or "",
        cluster_name=cluster_name,
        dial=dial,
        config=config,
    )
    node.start()
    try:
        if callers is not None:
            from geraft.testing.chaos.callers import call_from_within

            call_from_within(node, callers)
        click.echo(f"{node_id} is ready on {node.address}, {place}; Ctrl-C stops it")
        run_until([node], stopping)
    finally:
        node.stop()


def make_app_and_storage(
    storage: str, data_dir: Path | None, sync: str, factory: Callable[[], Any] | None = None
) -> tuple[RaftApp, RaftStorage]:
    """The factory's app, by default a key-value store, and a log store, both in data_dir or both in memory.

    An app that is no SimpleRaftApp keeps its snapshots where it wants.
    """
    from geraft.app import RaftApp
    from geraft.kv import KeyValueApp
    from geraft.simple import FileRepository, MemoryRepository, SimpleRaftApp, to_raft_app
    from geraft.storage import MemoryStorage

    made = KeyValueApp() if factory is None else factory()
    if not isinstance(made, RaftApp | SimpleRaftApp):
        raise Failed(f"--app made a {type(made).__name__}, which is neither a RaftApp nor a SimpleRaftApp")
    directory = None if storage == "memory" else data_dir
    if isinstance(made, SimpleRaftApp):
        made = to_raft_app(made, MemoryRepository() if directory is None else FileRepository(directory / "snapshots"))
    return made, MemoryStorage() if directory is None else _durable_storage(storage, directory, sync)


def _durable_storage(storage: str, data_dir: Path, sync: str) -> RaftStorage:
    from geraft.storage import FileStorage, RocksdbStorage, SqliteStorage

    for other, name in LOG_NAMES.items():
        if other != storage and (data_dir / name).exists():
            raise click.UsageError(
                f"{data_dir} holds a log of --storage {other}: a new one beside it would forget what this node promised"
            )
    path = data_dir / LOG_NAMES[storage]
    if storage == "sqlite":
        return SqliteStorage(path, synchronous=cast('Literal["FULL", "NORMAL", "OFF"]', sync.upper()))
    if sync != "full":
        raise click.UsageError(f"--sync {sync} is for --storage sqlite: {storage} syncs every write")
    return RocksdbStorage(path) if storage == "rocksdb" else FileStorage(path)


def run_until(nodes: Sequence[RaftNode], stopping: threading.Event) -> None:
    """Wait for the event; raises NodeStopped if a node fails before."""
    while not stopping.wait(0.5):
        for node in nodes:
            if not node.running:
                node.status()


def _wait_until_stdin_closes() -> None:
    # Not through sys.stdin: its lock, held by this thread for good, would crash the interpreter at its end.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
