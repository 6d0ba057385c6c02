"""geraft replay: a fresh app, taken to any point of a stopped node's log."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geraft.cli.command import AppFactory, Failed
from geraft.cli.log import opened

if TYPE_CHECKING:
    from geraft.app import RaftApp
    from geraft.core.snapshots import Snapshot
    from geraft.storage.base import RaftStorage


@click.command()
@click.argument("place", type=click.Path(exists=True, path_type=Path), metavar="PATH")
@click.argument("factory", type=AppFactory(), metavar="MODULE:FACTORY")
@click.option(
    "--to", "last", type=click.IntRange(min=0), default=None, help="Last index to apply.  [default: the newest]"
)
@click.option("--read", "request", default=None, metavar="TEXT", help="Ask the app this afterwards; print its answer.")
@click.option("--read-base64", "request_base64", default=None, metavar="BASE64", help="The same, for bytes.")
@click.option(
    "--snapshot-to",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Write the state there, as the app's snapshot() gives it. For a SimpleRaftApp.",
)
@click.option(
    "--snapshots",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=None,
    help="Where the node kept its snapshots, if its log no longer begins at 1.  [default: PATH/snapshots]",
)
def replay(
    place: Path,
    factory: Callable[[], Any],
    last: int | None,
    request: str | None,
    request_base64: str | None,
    snapshot_to: Path | None,
    snapshots: Path | None,
) -> None:
    """Apply the log of a stopped node to a fresh app, up to an entry, and show what the app is then.

    PATH is the data directory of the node, or its store; neither is changed. FACTORY is a class or function without
    arguments that makes the app. A log that no longer begins at its beginning is replayed from the newest snapshot that
    is not after --to. A log may end in entries that were never committed: the last ones of a leader that died.

    \b
    Example: what was the value of a before entry 1000?
      geraft replay n1 geraft.kv:KeyValueApp --to 999 --read-base64 $(python -c \\
          'from geraft.kv import get; from base64 import b64encode; print(b64encode(get("a")).decode())')
    \b
    Example: two nodes at the same entry hold the same
      geraft replay n1 bank:Bank --to 5000 --snapshot-to n1.state
      geraft replay n2 bank:Bank --to 5000 --snapshot-to n2.state && cmp n1.state n2.state
    """
    from geraft.app import RaftApp
    from geraft.simple import FileRepository, MemoryRepository, SimpleRaftApp, to_raft_app

    made = factory()
    if not isinstance(made, RaftApp | SimpleRaftApp):
        raise Failed(f"{factory} made a {type(made).__name__}, which is neither a RaftApp nor a SimpleRaftApp")
    if snapshot_to is not None and not isinstance(made, SimpleRaftApp):
        raise click.UsageError("--snapshot-to needs a SimpleRaftApp: a RaftApp writes snapshots where it wants")
    asked = _request(request, request_base64)
    kept = snapshots or (place / "snapshots" if place.is_dir() else place.parent / "snapshots")
    with opened(place) as (storage, state):
        to = state.last_entry.index if last is None else last
        usable = [snapshot for snapshot in state.snapshots if snapshot.index <= to]
        snapshot = usable[-1] if usable else None
        start = snapshot.index if snapshot is not None else 0
        if to > state.last_entry.index:
            raise Failed(f"the log ends at entry {state.last_entry.index}")
        if start < state.base.index:
            raise Failed(f"entries up to {state.base.index} are gone, and no snapshot of entry {to} or before is left")
        app: RaftApp
        if isinstance(made, SimpleRaftApp):
            repository = MemoryRepository()  # copies that the app asks for on the way do not touch the node's own
            if start:
                repository.save(start, FileRepository(kept).open(start))
            app = to_raft_app(made, repository)
        else:
            app = made
        app.install_snapshot(start or None)
        count = _apply(app, storage, snapshot, to)
    origin = f" on the snapshot of entry {start}" if start else ""
    click.echo(f"applied {count} entries{origin}, up to {to}", err=True)
    if snapshot_to is not None and isinstance(made, SimpleRaftApp):
        snapshot_to.write_bytes(made.snapshot())
    if asked is not None:
        click.echo(app.process_read(asked))


def _request(text: str | None, encoded: str | None) -> bytes | None:
    if text is not None and encoded is not None:
        raise click.UsageError("--read and --read-base64 are two ways to say the same: use one")
    if encoded is None:
        return None if text is None else text.encode()
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise click.UsageError(f"--read-base64: {error}") from None


def _apply(app: RaftApp, storage: RaftStorage, snapshot: Snapshot | None, last_index: int) -> int:
    """As a node does it, but an exception of process_write is the end."""
    from geraft.runtime.applier import Applier, ApplyWork, NoSnapshots

    first_index = snapshot.index + 1 if snapshot is not None else 1
    if first_index > last_index:
        return 0

    def failed(index: int, attempt: int, error: BaseException) -> None:
        raise Failed(f"process_write of entry {index} raised {error!r}")

    applier = Applier(
        app,
        storage,
        retry_seconds=1.0,
        retry_max_seconds=1.0,
        applied=lambda index: None,
        apply_failed=failed,
        snapshots=NoSnapshots(),
        on_crash=lambda error: None,
    )
    applier.begin_after(snapshot)
    applier.work(ApplyWork(first_index, last_index, (), []))
    return last_index - first_index + 1
