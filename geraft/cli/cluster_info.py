"""geraft cluster-info: who leads, and who is a member."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from geraft.cli.command import cluster_options, timeout_option


@click.command(name="cluster-info")
@cluster_options
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cluster_info(seeds: tuple[str, ...], group: str, timeout_seconds: float, as_json: bool) -> None:
    """Show who leads and who is a member, as the leader tells it, or without one the node with the latest term.

    Asks the seeds until one answers. How each member is, reachable or not, is for geraft status.

    \b
    Example
      geraft cluster-info --seeds 127.0.0.1:7001,127.0.0.1:7002
      geraft cluster-info --json | jq -r .leader_address
    """
    from geraft.client import Client

    with Client(seeds, timeout_seconds, group=group) as client:
        info = client.cluster_info()
    if not info.leader_id and info.members:
        # Who answered may have missed an election that others know of.
        known = [*seeds, *(member.address for member in info.members)]
        with Client(known, timeout_seconds, group=group) as client:
            info = client.cluster_info()
    if as_json:
        members = {name: [member._asdict() for member in getattr(info, name)] for name in ("members", "learners")}
        click.echo(json.dumps({**asdict(info), **members}, indent=2))
        return
    click.echo(f"cluster {info.cluster_id}, term {info.term}")
    learners = {member.id for member in info.learners}
    for member in info.members:
        notes = ["leader"] if member.id == info.leader_id else []
        notes += ["learner"] if member.id in learners else []
        click.echo(f"  {member.id} at {member.address}" + (f"  ({', '.join(notes)})" if notes else ""))
    if not info.leader_id:
        click.echo("no leader is known: geraft status tells why")
