"""geraft snapshot: a node makes a snapshot now."""

from __future__ import annotations

import click

from geraft.cli.command import Address, group_option


@click.command()
@click.argument("address", type=Address())
@group_option
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="What the snapshot may take.",
)
def snapshot(address: str, group: str, timeout_seconds: float) -> None:
    """Have the node at ADDRESS make a snapshot now, from its last one and the log, beside its normal work.

    Prints the index whose state the snapshot holds. The log behind it is cut off soon after.

    \b
    Example
      geraft snapshot 127.0.0.1:7001
    """
    from geraft.client import Client

    with Client([address], timeout_seconds=timeout_seconds, group=group) as client:
        index = client.take_snapshot(address, timeout_seconds=timeout_seconds)
    click.echo(f"{address} holds a snapshot of entry {index}")
