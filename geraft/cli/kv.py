"""geraft kv: write to and read from the key-value store of a cluster."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from geraft.cli.command import Failed, VerbGroup, cluster_options, timeout_option

if TYPE_CHECKING:
    from geraft.client import Client
    from geraft.kv.commands import CommandReply

CONSISTENCIES = ("linearizable", "lease", "stale")

consistency_option = click.option(
    "--consistency",
    type=click.Choice(CONSISTENCIES),
    default="linearizable",
    show_default=True,
    help="linearizable: as of now. lease: the same if clocks keep their drift. stale: what one node has applied.",
)


def connect(seeds: tuple[str, ...], group: str, timeout_seconds: float) -> Client:
    from geraft.client import Client

    return Client(seeds, timeout_seconds=timeout_seconds, group=group)


@click.group(cls=VerbGroup)
def kv() -> None:
    """Write to and read from the key-value store that `geraft serve` runs.

    \b
    Example
      geraft kv put --seeds 127.0.0.1:7001,127.0.0.1:7002 color green
      geraft kv get --seeds 127.0.0.1:7001,127.0.0.1:7002 color
    """


@kv.command()
@click.argument("key")
@click.argument("value")
@cluster_options
@timeout_option
def put(key: str, value: str, seeds: tuple[str, ...], group: str, timeout_seconds: float) -> None:
    """Set KEY to VALUE; - takes the value from stdin, as it is.

    \b
    Example
      geraft kv put color green
      geraft kv put picture - < picture.png
    """
    from geraft.kv import commands

    reply = _write(commands.put(key, _bytes(value)), seeds, group, timeout_seconds)
    click.echo("replaced" if reply.done else "added")


@kv.command()
@click.argument("key")
@cluster_options
@timeout_option
@consistency_option
def get(key: str, seeds: tuple[str, ...], group: str, timeout_seconds: float, consistency: str) -> None:
    """Print the value of KEY. Exits with 1 if there is none.

    \b
    Example
      geraft kv get color
    """
    from geraft.kv import commands

    with connect(seeds, group, timeout_seconds) as client:
        value = commands.decode_value(client.read(commands.get(key), consistency=consistency))
    if value is None:
        raise Failed(f"there is no key {key!r}")
    sys.stdout.buffer.write(value)
    if sys.stdout.isatty():
        click.echo()


@kv.command()
@click.argument("key")
@cluster_options
@timeout_option
def delete(key: str, seeds: tuple[str, ...], group: str, timeout_seconds: float) -> None:
    """Remove KEY. Exits with 1 if it did not exist.

    \b
    Example
      geraft kv delete color
    """
    from geraft.kv import commands

    if not _write(commands.delete(key), seeds, group, timeout_seconds).done:
        raise Failed(f"there is no key {key!r}")
    click.echo("deleted")


@kv.command()
@click.argument("key")
@click.argument("value")
@click.option("--expect", default=None, help="The value that the key must have. Without it: the key must not exist.")
@cluster_options
@timeout_option
def cas(key: str, value: str, expect: str | None, seeds: tuple[str, ...], group: str, timeout_seconds: float) -> None:
    """Compare and set: set KEY to VALUE only if it is as expected. Exits with 1 if it is not.

    \b
    Example: only if there is none, then only if nobody changed it
      geraft kv cas color green
      geraft kv cas color red --expect green
    """
    from geraft.kv import commands

    command = commands.compare_and_set(key, None if expect is None else _bytes(expect), _bytes(value))
    if not _write(command, seeds, group, timeout_seconds).done:
        raise Failed(f"{key!r} exists already" if expect is None else f"{key!r} is not {expect!r}")
    click.echo("set")


@kv.command("list")
@click.argument("prefix", default="")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="At most so many; 0 for all.")
@cluster_options
@timeout_option
@consistency_option
def list_(
    prefix: str, limit: int, seeds: tuple[str, ...], group: str, timeout_seconds: float, consistency: str
) -> None:
    """Print the keys that start with PREFIX, in order, each with its value after a tab.

    \b
    Example
      geraft kv list user/ --limit 10
    """
    from geraft.kv import commands

    with connect(seeds, group, timeout_seconds) as client:
        pairs = commands.decode_pairs(client.read(commands.list_pairs(prefix, limit), consistency=consistency))
    for key, value in pairs:
        click.echo(f"{key}\t{value.decode(errors='backslashreplace')}")


def _bytes(value: str) -> bytes:
    return sys.stdin.buffer.read() if value == "-" else value.encode(errors="surrogateescape")


def _write(command: bytes, seeds: tuple[str, ...], group: str, timeout_seconds: float) -> CommandReply:
    from geraft.kv import commands

    with connect(seeds, group, timeout_seconds) as client:
        reply = commands.decode_command_reply(client.apply(command))
    if reply.refused:
        raise Failed(f"the store refused it: {reply.refused}")
    return reply
