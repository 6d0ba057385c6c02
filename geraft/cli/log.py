"""geraft log: what the log of a stopped node holds."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geraft.cli.command import Failed
from geraft.cli.serve import LOG_NAMES

if TYPE_CHECKING:
    from geraft.core.entries import EntryBatch
    from geraft.core.membership import Configuration
    from geraft.storage.base import RaftStorage, StoredState

READ_BYTES = 4 * 1024 * 1024
"""Read from the store at a time."""
SHOWN_CHARACTERS_MAX = 80
"""Of a command, in the readable listing."""


@click.group()
def log() -> None:
    """Look into the log store of a stopped node.

    \b
    Example
      geraft log dump n1
    """


@log.command()
@click.argument("place", type=click.Path(exists=True, path_type=Path), metavar="PATH")
@click.option("--from", "first", type=click.IntRange(min=1), default=1, help="First index.  [default: the oldest]")
@click.option("--to", "last", type=click.IntRange(min=1), default=None, help="Last index.  [default: the newest]")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for the store and for each entry.")
def dump(place: Path, first: int, last: int | None, as_json: bool) -> None:
    """Print what the store holds: whose it is, its vote, its snapshots, and every entry.

    PATH is the data directory of a node, or the store itself. The node must not run: its store is locked then. A store
    of SQLite can also be read while the node runs, with any SQL tool; docs/admin.md shows how.

    \b
    Example
      geraft log dump n1
      geraft log dump n1/log.db --from 1000 --to 1010 --json | jq -r .text
    """
    with opened(place) as (storage, state):
        _print_state(state, as_json)
        end = state.last_entry.index if last is None else min(last, state.last_entry.index)
        for batch in batches_of(storage, max(first, state.first_index), end):
            for offset, command in enumerate(batch.commands):
                entry = _entry(batch, batch.first_index + offset, command)
                click.echo(json.dumps(entry) if as_json else _line(entry))


@contextmanager
def opened(place: Path) -> Iterator[tuple[RaftStorage, StoredState]]:
    """The store that lies there, open. Raises Failed if nothing there looks like one, and StorageError."""
    _, storage = store_at(place)
    state = storage.open()
    try:
        yield storage, state
    finally:
        storage.close()


def store_at(place: Path) -> tuple[str, RaftStorage]:
    """The kind of store that lies there, as `geraft serve --storage` calls it, and the store, not open.

    Told by what the files look like; nothing is made where there is none. Raises Failed.
    """
    from geraft.storage import FileStorage, RocksdbStorage, SqliteStorage
    from geraft.storage.segment import FILE_NAME

    for path in (*(place / name for name in LOG_NAMES.values()), place):
        if path.is_file():
            return "sqlite", SqliteStorage(path)
        names = {file.name for file in path.iterdir()} if path.is_dir() else set()
        if "CURRENT" in names:
            return "rocksdb", RocksdbStorage(path)
        if any(map(FILE_NAME.fullmatch, names)):
            return "file", FileStorage(path)
    raise Failed(f"{place} holds no log store: give the data directory of a node, or the store itself")


def batches_of(storage: RaftStorage, first_index: int, last_index: int) -> Iterator[EntryBatch]:
    """The entries [first_index, last_index], cut to just these."""
    index = first_index
    while index <= last_index:
        batches = storage.read(index, last_index, READ_BYTES)
        if not batches:
            raise Failed(f"the store does not hold entry {index}")
        for batch in batches:
            yield batch.slice(max(batch.first_index, first_index), min(batch.last_index, last_index))
        index = batches[-1].last_index + 1


def _print_state(state: StoredState, as_json: bool) -> None:
    identity = state.identity
    if as_json:
        configuration = state.configurations[-1][1] if state.configurations else None
        record = {
            "cluster_id": identity.cluster_id if identity else "",
            "node_id": identity.node_id if identity else "",
            "store_id": identity.store_id if identity else "",
            "term": state.ballot.term,
            "voted_for": state.ballot.voted_for,
            "first_index": state.first_index,
            "last_index": state.last_entry.index,
            "last_term": state.last_entry.term,
            "configuration": _configuration(configuration) if configuration else None,
            "snapshots": [
                {"index": s.last_entry.index, "term": s.last_entry.term, "size_bytes": s.size_bytes}
                for s in state.snapshots
            ],
        }
        click.echo(json.dumps(record))
        return
    whose = f"node {identity.node_id} of cluster {identity.cluster_id}" if identity else "nobody's store yet"
    voted = f"voted for {state.ballot.voted_for}" if state.ballot.voted_for else "voted for nobody"
    held = state.last_entry.index - state.first_index + 1
    entries = f"entries {state.first_index} to {state.last_entry.index}" if held else "no entries"
    click.echo(f"{whose}: {entries}; term {state.ballot.term}, {voted}")
    for snapshot in state.snapshots:
        click.echo(f"snapshot of entry {snapshot.last_entry.index}, {snapshot.size_bytes} bytes")
    if held:
        click.echo(f"{'index':>12} {'term':>6}  {'kind':<13}  content")


def _entry(batch: EntryBatch, index: int, command: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"index": index, "term": batch.term, "kind": batch.kind.name.lower()}
    if batch.configuration is not None:
        entry["configuration"] = _configuration(batch.configuration)
        return entry
    if batch.kind.name == "SESSION":
        session, number, command = _of_session(command)
        entry |= {"session": session or index, "does": "writes" if number else "closes" if session else "opens"}
        if not number:
            return entry
        entry["number"] = number
    if command or batch.kind.name in ("COMMAND", "SESSION"):
        entry["base64"] = base64.b64encode(command).decode()
        text = _text(command)
        if text is not None:
            entry["text"] = text
    return entry


def _of_session(encoded: bytes) -> tuple[int, int, bytes]:
    """Session, number and the app's command; session 0 of one that opens, number 0 of one that does not write."""
    from geraft.pb import geraft_pb2 as pb

    record = pb.SessionCommand.FromString(encoded)
    return record.session, record.number, record.command


def _text(command: bytes) -> str | None:
    """The command as text, if that is what it is."""
    try:
        text = command.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def _configuration(configuration: Configuration) -> dict[str, dict[str, str]]:
    groups = {"voters": configuration.voters, "learners": configuration.learners, "outgoing": configuration.outgoing}
    return {name: {member.id: member.address for member in group} for name, group in groups.items() if group}


def _line(entry: dict[str, Any]) -> str:
    content = ""
    if "configuration" in entry:
        content = "; ".join(
            f"{group} " + ", ".join(f"{id}={address}" for id, address in members.items())
            for group, members in entry["configuration"].items()
        )
    elif "base64" in entry:
        command = base64.b64decode(entry["base64"])
        content = entry.get("text", repr(command)[2:-1])
        if len(content) > SHOWN_CHARACTERS_MAX:
            content = f"{content[:SHOWN_CHARACTERS_MAX]}... ({len(command)} bytes)"
    if "session" in entry:
        name = f"{entry['session']}#{entry['number']}" if "number" in entry else f"{entry['session']} {entry['does']}"
        content = f"{name} {content}"
    return f"{entry['index']:>12} {entry['term']:>6}  {entry['kind']:<13}  {content}".rstrip()
