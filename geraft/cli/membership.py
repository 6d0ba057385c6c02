"""geraft add-server, remove-server, promote, demote, change-membership, transfer, timeout-now."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from geraft.cli.command import Address, Failed, cluster_options, group_option
from geraft.errors import GeraftError

if TYPE_CHECKING:
    from geraft.client import Client

Verb = TypeVar("Verb", bound=Callable[..., Any])


def _timeout_option(verb: Verb) -> Verb:
    return click.option(
        "--timeout",
        "timeout_seconds",
        type=click.FloatRange(min=0, min_open=True),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="What it may take; catching up takes longer the more data there is.",
    )(verb)


def _client(seeds: tuple[str, ...], group: str, timeout_seconds: float) -> Client:
    from geraft.client import Client

    return Client(seeds, timeout_seconds=timeout_seconds, group=group)


def _print_members(client: Client) -> None:
    info = client.cluster_info()
    learners = {member.id for member in info.learners}
    for member in info.members:
        role = "learner" if member.id in learners else "leader" if member.id == info.leader_id else "voter"
        click.echo(f"{member.id}  {member.address}  {role}")


@click.command("add-server")
@click.argument("node_id", metavar="NAME")
@click.argument("address", type=Address(), metavar="HOST:PORT")
@click.option("--learner", is_flag=True, help="It stays a learner: it gets the log and does not vote.")
@cluster_options
@_timeout_option
def add_server(
    node_id: str, address: str, learner: bool, seeds: tuple[str, ...], group: str, timeout_seconds: float
) -> None:
    """Let a server into the cluster, and print the members.

    It must run at the address, started with --join; that alone lets it in too. It becomes a learner, and a voter once
    it has caught up. A member may be added again: a learner becomes a voter.

    \b
    Example
      geraft add-server n4 10.0.0.4:7001 --seeds 10.0.0.1:7001
    """
    with _client(seeds, group, timeout_seconds) as client:
        client.add_server(node_id, address, learner=learner, timeout_seconds=timeout_seconds)
        _print_members(client)


@click.command("remove-server")
@click.argument("node_id", metavar="NAME")
@cluster_options
@_timeout_option
def remove_server(node_id: str, seeds: tuple[str, ...], group: str, timeout_seconds: float) -> None:
    """Take a member out of the cluster, and print who is left. A leader hands over at once.

    \b
    Example
      geraft remove-server n4 --seeds 10.0.0.1:7001
    """
    with _client(seeds, group, timeout_seconds) as client:
        client.remove_server(node_id, timeout_seconds=timeout_seconds)
        _print_members(client)


@click.command()
@click.argument("node_id", metavar="NAME")
@cluster_options
@_timeout_option
def promote(node_id: str, seeds: tuple[str, ...], group: str, timeout_seconds: float) -> None:
    """Make a learner a voter once it has caught up, and print the members.

    \b
    Example
      geraft promote n4 --seeds 10.0.0.1:7001
    """
    with _client(seeds, group, timeout_seconds) as client:
        client.promote(node_id, timeout_seconds=timeout_seconds)
        _print_members(client)


@click.command()
@click.argument("node_id", metavar="NAME")
@cluster_options
@_timeout_option
def demote(node_id: str, seeds: tuple[str, ...], group: str, timeout_seconds: float) -> None:
    """Make a voter a learner, and print the members.

    \b
    Example
      geraft demote n4 --seeds 10.0.0.1:7001
    """
    with _client(seeds, group, timeout_seconds) as client:
        client.demote(node_id, timeout_seconds=timeout_seconds)
        _print_members(client)


@click.command("change-membership")
@click.option(
    "--voters", required=True, metavar="NAME[=HOST:PORT],...", help="All voters; an address for those who are new."
)
@click.option("--learners", default="", metavar="NAME[=HOST:PORT],...", help="All learners, likewise.")
@cluster_options
@_timeout_option
def change_membership(voters: str, learners: str, seeds: tuple[str, ...], group: str, timeout_seconds: float) -> None:
    """Make these the members of the cluster, and no others; print them. Several voters change in one step.

    \b
    Example: n4 and n5 take the places of n2 and n3
      geraft change-membership --voters n1,n4=10.0.0.4:7001,n5=10.0.0.5:7001 --seeds 10.0.0.1:7001
    """
    with _client(seeds, group, timeout_seconds) as client:
        client.change_membership(
            voters=_named(voters), learners=_named(learners) if learners else {}, timeout_seconds=timeout_seconds
        )
        _print_members(client)


def _named(text: str) -> dict[str, str]:
    """Addresses by id out of "n1,n2=host:port"; "" where none is given."""
    members: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        member, equals, address = part.partition("=")
        if not member or (equals and not address):
            raise click.UsageError(f"{part!r} is neither NAME nor NAME=HOST:PORT")
        if member in members:
            raise click.UsageError(f"{member!r} is named twice")
        members[member] = str(Address().convert(address, None, None)) if address else ""
    return members


@click.command()
@click.argument("target", metavar="[NAME]", default="")
@cluster_options
@_timeout_option
def transfer(target: str, seeds: tuple[str, ...], group: str, timeout_seconds: float) -> None:
    """Let the leader hand over to a voter, by default the one that holds most of the log; print who leads then.

    \b
    Example
      geraft transfer n2 --seeds 10.0.0.1:7001
    """
    with _client(seeds, group, timeout_seconds) as client:
        client.transfer_leadership(target, timeout_seconds=timeout_seconds)
        click.echo(f"{_wait_for_leader(client, timeout_seconds)} leads")


@click.command("timeout-now")
@click.argument("address", type=Address(), metavar="HOST:PORT")
@group_option
@_timeout_option
def timeout_now(address: str, group: str, timeout_seconds: float) -> None:
    """Let the node at this address stand for election at once, and print who leads then.

    The leader brings it up to date first and gives it the word; so nobody can unseat a leader by a forged message.

    \b
    Example
      geraft timeout-now 10.0.0.2:7001
    """
    with _client((address,), group, timeout_seconds) as client:
        status = client.status(address)
        if status.leader_id != status.id:
            client.transfer_leadership(status.id, timeout_seconds=timeout_seconds)
        click.echo(f"{_wait_for_leader(client, timeout_seconds)} leads")


def _wait_for_leader(client: Client, timeout_seconds: float) -> str:
    import time

    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            leader_id = client.cluster_info().leader_id
        except GeraftError:
            leader_id = ""
        if leader_id:
            return leader_id
        if time.monotonic() > deadline:
            raise Failed("leadership was handed over, but nobody is known to lead yet")
        time.sleep(0.05)
