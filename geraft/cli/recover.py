"""geraft recover: a cluster that lost its quorum for good goes on with one store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from geraft.cli.command import Failed, Members
from geraft.cli.log import store_at

if TYPE_CHECKING:
    from geraft.recovery import Holding

ACCEPT = "--yes-i-accept-that-acknowledged-writes-may-be-lost"


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Of the node that shall go on. It must be stopped.",
)
@click.option(
    "--voters",
    type=Members(),
    default=None,
    help="Voters of the new cluster, this node among them; by default it alone. The others start over empty stores.",
)
@click.option(ACCEPT, "accepted", is_flag=True, help="Without it nothing is changed.")
def recover(data_dir: Path, voters: dict[str, str] | None, accepted: bool) -> None:
    """Let a cluster that lost most of its voters for good go on with what one of them holds. Last resort.

    Writes that this node had not got yet are lost, also those that were acknowledged. So run it, without the long flag,
    on every node that is left, and go on with the one whose last entry is the latest, by term, then by index.

    The store becomes the beginning of a new cluster, with an id of its own: the members of the old one can't come back
    into it with what they hold. They have to start over empty stores and join.

    \b
    Example: look first, then do it
      geraft recover --data-dir n1
      geraft recover --data-dir n1 --yes-i-accept-that-acknowledged-writes-may-be-lost
    """
    from geraft.recovery import inspect
    from geraft.recovery import recover as recover_store

    kind, storage = store_at(data_dir)
    before = inspect(storage)
    click.echo(f"{data_dir} holds, of cluster {before.identity.cluster_id}:")
    _print(before)
    click.echo(
        "It does not say up to where that was committed. All of it will count as committed, and whatever the other\n"
        "members had beyond it is LOST, ALSO IF IT WAS ACKNOWLEDGED."
    )
    if not accepted:
        raise Failed(f"nothing was changed: stop every other node of this cluster for good, then add {ACCEPT}")
    after = recover_store(storage, voters=voters)
    click.echo(f"Now it is the beginning of cluster {after.identity.cluster_id}:")
    _print(after)
    node_id = after.identity.node_id
    address = after.configuration.members[node_id].address
    options = "" if kind == "sqlite" else f" --storage {kind}"
    click.echo(
        "What to do next:\n"
        f"  1. Start it, without --bootstrap: geraft serve --id {node_id} --listen {address} --data-dir {data_dir}"
        f"{options}\n"
        "  2. Move the data directories of the other nodes away. They belong to the old cluster and are refused.\n"
        "  3. Start the others over empty ones:"
        f" geraft serve --id NAME --listen HOST:PORT --data-dir DIR --join {address}"
    )


def _print(holding: Holding) -> None:
    members = ", ".join(f"{id} at {member.address}" for id, member in sorted(holding.configuration.members.items()))
    click.echo(
        f"  node         {holding.identity.node_id}\n"
        f"  last entry   term {holding.last_entry.term}, index {holding.last_entry.index}\n"
        f"  latest term  {holding.term}\n"
        f"  members      {members} (entry {holding.configuration_index})"
    )
