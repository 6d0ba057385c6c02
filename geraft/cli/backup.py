"""geraft backup, geraft restore: the state of a running cluster in one file, and a new cluster made of it.

The file: MAGIC, the length of a BackupHead and its CRC-32, the head, the app's bytes. Their length and CRC-32 stand in
the head, so the file is checked as a whole before anything is made of it.
"""

from __future__ import annotations

import os
import shutil
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import click

from geraft.cli.command import Address, AppFactory, Failed, Members, cluster_options, one_line
from geraft.cli.serve import STORAGES, make_app_and_storage
from geraft.pb import geraft_pb2 as pb

MAGIC = b"geraft backup 1\n"
HEAD = struct.Struct("<II")  # length of the head, and its CRC-32
CHUNK_BYTES = 1024 * 1024
LEADER_SECONDS = 10.0
"""For which a backup waits for a leader at most."""


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@cluster_options
@click.option("--node", "address", type=Address(), default=None, help="Back this node up.  [default: the leader]")
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="What all of it may take.",
)
def backup(file: Path, seeds: tuple[str, ...], group: str, address: str | None, timeout_seconds: float) -> None:
    """Write the state of a running cluster to FILE.

    The leader makes a snapshot beside its normal work and sends it: every write that was answered before is in it. FILE
    appears once it is whole and on disk; one of that name is replaced then.

    \b
    Example
      geraft backup monday.geraft --seeds 127.0.0.1:7001,127.0.0.1:7002
    """
    address = address or _leader(seeds, group, timeout_seconds)
    head, stream = _asked_for(address, group, timeout_seconds)
    snapshot = head.snapshot
    temporary = file.with_name(file.name + ".temporary")
    try:
        with temporary.open("wb") as out:
            encoded = head.SerializeToString()
            out.write(MAGIC + HEAD.pack(len(encoded), crc32(encoded)) + encoded)
            size_bytes, checksum = 0, 0
            for chunk in stream:
                out.write(chunk)
                size_bytes += len(chunk)
                checksum = crc32(chunk, checksum)
            if (size_bytes, checksum) != (snapshot.size_bytes, snapshot.checksum):
                raise Failed(f"{address} sent {size_bytes} bytes that are not those of its snapshot: try again")
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
        _sync(file.resolve().parent)
    finally:
        temporary.unlink(missing_ok=True)
    click.echo(
        f"{file}: the state of cluster {head.cluster_id} after entry {snapshot.last_entry.index},"
        f" {snapshot.size_bytes} bytes, from {head.node_id} at {address}"
    )


def _leader(seeds: tuple[str, ...], group: str, timeout_seconds: float) -> str:
    """The leader's address, as soon as a server knows it: an election that is under way is waited for."""
    from geraft.client import Client

    patience_seconds = min(timeout_seconds, LEADER_SECONDS)
    deadline = time.monotonic() + patience_seconds
    with Client(seeds, patience_seconds, group=group) as client:
        while not (leader := client.cluster_info().leader_address):
            if time.monotonic() > deadline:
                raise Failed("no leader is known: wait for one, or name a node with --node HOST:PORT")
            time.sleep(0.1)
    return leader


def _asked_for(address: str, group: str, timeout_seconds: float) -> tuple[pb.BackupHead, Iterator[bytes]]:
    """The head of a backup, and the app's bytes as they come."""
    import grpc

    from geraft.config import Config
    from geraft.transport.failures import error_from_rpc
    from geraft.transport.groups import metadata_of
    from geraft.transport.peer import channel_options

    channel = grpc.insecure_channel(address, options=channel_options(Config().message_bytes_max))
    request = pb.BackupReq(timeout_ms=int(timeout_seconds * 1000)).SerializeToString()
    method: Any = channel.unary_stream("/geraft.Raft/Backup")
    answers = method(request, timeout=timeout_seconds, metadata=metadata_of(group))

    def ask(take: Callable[[], Any]) -> Any:
        try:
            return take()
        except grpc.RpcError as error:
            raise Failed(one_line(error_from_rpc(error, address))) from None

    first = pb.GetSnapshotRep.FromString(ask(lambda: next(answers)))
    head = pb.BackupHead(snapshot=first.snapshot, cluster_id=first.header.cluster_id, node_id=first.header.sender)

    def chunks() -> Iterator[bytes]:
        try:
            while (encoded := ask(lambda: next(answers, None))) is not None:
                yield pb.GetSnapshotRep.FromString(encoded).chunk
        finally:
            channel.close()

    return head, chunks()


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--id", "node_id", required=True, metavar="NAME", help="The node's name in the new cluster.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Directory to make for the node; must not be there, or be empty.",
)
@click.option(
    "--bootstrap", "voters", type=Members(), required=True, help="The first members of the new cluster, this one too."
)
@click.option("--cluster-name", default="", help="Of the new cluster; the same for each node.")
@click.option(
    "--storage",
    type=click.Choice([name for name in STORAGES if name != "memory"]),
    default="sqlite",
    show_default=True,
    help="What geraft serve will be told.",
)
@click.option(
    "--app", "factory", type=AppFactory(), default=None, help="As for geraft serve.  [default: the key-value store]"
)
def restore(
    file: Path,
    node_id: str,
    data_dir: Path,
    voters: dict[str, str],
    cluster_name: str,
    storage: str,
    factory: Callable[[], Any] | None,
) -> None:
    """Make the data directory of one node of a new cluster from a backup. Run it for each of its nodes.

    All get the same FILE, --bootstrap and --cluster-name. Then start them with geraft serve, without --bootstrap: the
    new cluster goes on from the state in FILE. It is another cluster than the one that was backed up: what still runs
    of that can't mix with it. The directory appears once it is whole.

    \b
    Example: the first of three
      geraft restore monday.geraft --id n1 --data-dir n1 \\
          --bootstrap n1=127.0.0.1:7001,n2=127.0.0.1:7002,n3=127.0.0.1:7003
      geraft serve --id n1 --data-dir n1
    """
    if node_id not in voters:
        raise click.UsageError(f"--bootstrap must name this node too: {node_id}=HOST:PORT")
    if data_dir.exists() and any(data_dir.iterdir()):
        raise Failed(f"{data_dir} is not empty: a node's state is never written over another's")
    head = _checked(file)
    temporary = data_dir.with_name(data_dir.name + ".restoring")
    shutil.rmtree(temporary, ignore_errors=True)  # of a restore that was cut short
    temporary.mkdir(parents=True)
    try:
        _fill(temporary, file, head, node_id, voters, cluster_name, storage, factory)
        if data_dir.exists():
            data_dir.rmdir()
        temporary.rename(data_dir)
        _sync(data_dir.resolve().parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    click.echo(
        f"{data_dir} holds node {node_id} with the state after entry {head.snapshot.last_entry.index};"
        f" start it with geraft serve --id {node_id} --data-dir {data_dir}"
    )


def _fill(
    directory: Path,
    file: Path,
    head: pb.BackupHead,
    node_id: str,
    voters: dict[str, str],
    cluster_name: str,
    storage: str,
    factory: Callable[[], Any] | None,
) -> None:
    """The app's snapshot first, then a store that begins with it."""
    from geraft.core.entries import EntryId
    from geraft.core.membership import initial_cluster_id, initial_configuration
    from geraft.core.snapshots import Snapshot
    from geraft.storage.base import Identity

    kept = head.snapshot
    last_entry = EntryId(kept.last_entry.term, kept.last_entry.index)
    # Another id than the old cluster had, also if the members are the same: who is left of that must not join.
    name = cluster_name or f"restored from {head.cluster_id} at {last_entry.index}"
    cluster_id = initial_cluster_id(voters, name)
    if cluster_id == head.cluster_id:
        raise Failed(
            f"this would be cluster {cluster_id} again, whose nodes may still run: choose another --cluster-name"
        )
    app, store = make_app_and_storage(storage, directory, "full", factory)
    app.save_snapshot(_app_bytes(file), last_entry.index)
    store.open()
    try:
        store.initialise(Identity(cluster_id, node_id, uuid.uuid4().hex), [])
        store.reset(
            Snapshot(
                last_entry=last_entry,
                configuration=initial_configuration(voters),
                configuration_index=last_entry.index,
                size_bytes=kept.size_bytes,
                checksum=kept.checksum,
                sessions=kept.sessions,
            )
        )
    finally:
        store.close()


def _checked(file: Path) -> pb.BackupHead:
    """The head of a file that is whole. Raises Failed."""
    head = _head(file)
    size_bytes, checksum = 0, 0
    for chunk in _app_bytes(file):
        size_bytes += len(chunk)
        checksum = crc32(chunk, checksum)
    if (size_bytes, checksum) != (head.snapshot.size_bytes, head.snapshot.checksum):
        raise Failed(f"{file} is damaged: {size_bytes} bytes that are not the {head.snapshot.size_bytes} of the backup")
    return head


def _head(file: Path) -> pb.BackupHead:
    from google.protobuf.message import DecodeError

    with file.open("rb") as opened:
        start = opened.read(len(MAGIC) + HEAD.size)
        if len(start) < len(MAGIC) + HEAD.size or not start.startswith(MAGIC):
            raise Failed(f"{file} is no backup of geraft")
        length, checksum = HEAD.unpack(start[len(MAGIC) :])
        encoded = opened.read(min(length, 1 << 30))
    if len(encoded) < length or crc32(encoded) != checksum:
        raise Failed(f"{file} is damaged: its head is not what was written")
    try:
        return pb.BackupHead.FromString(encoded)
    except DecodeError:
        raise Failed(f"{file} is damaged: its head can't be read") from None


def _app_bytes(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        opened.seek(len(MAGIC))
        length, _ = HEAD.unpack(opened.read(HEAD.size))
        opened.seek(length, os.SEEK_CUR)
        while chunk := opened.read(CHUNK_BYTES):
            yield chunk


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
