"""geraft config: settings of running nodes, read and changed on all of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from geraft.cli.command import Change, Failed, cluster_options, one_line, timeout_option
from geraft.cli.status import collect
from geraft.errors import GeraftError

if TYPE_CHECKING:
    from geraft.client import Client
    from geraft.config import Setting


@click.group()
def config() -> None:
    """Read and change the settings of running nodes; docs/configuration.md tells what each does.

    \b
    Example
      geraft config get phi_threshold
      geraft config set heartbeat_interval_seconds=0.2 election_timeout_seconds=2
    """


def _node_option(verb: Any) -> Any:
    return click.option(
        "--node", "node_address", default=None, metavar="HOST:PORT", help="This node alone, not all members."
    )(verb)


@config.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@cluster_options
@_node_option
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, by node.")
def get(
    names: tuple[str, ...],
    seeds: tuple[str, ...],
    group: str,
    node_address: str | None,
    timeout_seconds: float,
    as_json: bool,
) -> None:
    """Show settings, by default all, as each node has them now.

    Marks those that nodes must agree on and do not, and exits with 1 then.

    \b
    Example
      geraft config get --seeds 127.0.0.1:7001
      geraft config get election_timeout_seconds --json
    """
    from geraft.client import Client

    with Client(seeds, timeout_seconds, group=group) as client:
        nodes = _nodes(seeds, group, node_address, timeout_seconds)
        found = {name: client.get_config(address) for name, address in nodes.items()}
    known = {setting.name: setting for settings in found.values() for setting in settings}
    for name in names:
        if name not in known:
            raise click.UsageError(f"there is no setting {name!r}; there are {', '.join(known)}")
    chosen = [setting for name, setting in known.items() if not names or name in names]
    values = {node: {setting.name: setting.value for setting in settings} for node, settings in found.items()}
    if as_json:
        click.echo(json.dumps({node: {s.name: values[node].get(s.name) for s in chosen} for node in values}, indent=2))
    else:
        for setting in chosen:
            click.echo(_line(setting, {node: values[node].get(setting.name) for node in values}))
    apart = [s.name for s in chosen if s.cluster and len({values[node].get(s.name) for node in values}) > 1]
    if apart:
        raise Failed(f"nodes differ in what must be equal: {', '.join(apart)}; set it on all with geraft config set")


def _line(setting: Setting, values: dict[str, float | None]) -> str:
    if len(set(values.values())) == 1:
        shown = _number(next(iter(values.values())))
    else:
        shown = ", ".join(f"{_number(value)} on {node}" for node, value in values.items())
    notes = [] if setting.tunable else ["read at the start"]
    notes += ["must be equal on all nodes"] if setting.cluster else []
    return f"{setting.name} = {shown}" + (f"  ({'; '.join(notes)})" if notes else "")


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@config.command(name="set")
@click.argument("changes", nargs=-1, required=True, type=Change(), metavar="NAME=VALUE...")
@cluster_options
@_node_option
@timeout_option
def set_(
    changes: tuple[tuple[str, float], ...],
    seeds: tuple[str, ...],
    group: str,
    node_address: str | None,
    timeout_seconds: float,
) -> None:
    """Change settings on every member while it runs, until it restarts: geraft serve --set is for its start.

    A member takes all changes or none, and goes by them when its line is printed. Nothing is changed unless all members
    answer; if one then refuses, the verb stops there, exits with 1 and says which have changed.

    \b
    Example
      geraft config set apply_retry_max_seconds=30
      geraft config set heartbeat_interval_seconds=0.2 election_timeout_seconds=2 --seeds 127.0.0.1:7001
    """
    from geraft.client import Client

    wanted = dict(changes)
    with Client(seeds, timeout_seconds, group=group) as client:
        nodes = _nodes(seeds, group, node_address, timeout_seconds)
        order = _order(client, nodes, wanted) if len(nodes) > 1 else list(nodes)
        done: list[str] = []
        for node in order:
            try:
                client.tune_config(wanted, nodes[node])
            except GeraftError as error:
                so_far = f"; changed so far: {', '.join(done)}" if done else "; nothing was changed"
                raise Failed(f"{node} at {nodes[node]}: {one_line(error)}{so_far}") from None
            done.append(node)
            click.echo(f"{node} at {nodes[node]}: " + ", ".join(f"{k}={_number(v)}" for k, v in wanted.items()))


def _nodes(seeds: tuple[str, ...], group: str, node_address: str | None, timeout_seconds: float) -> dict[str, str]:
    """Whom to ask: address by id, the leader first. Raises Failed if a member does not answer."""
    asked = collect((node_address,) if node_address else seeds, timeout_seconds, group)
    if node_address:
        asked = [node for node in asked if node["address"] == node_address]
    silent = [f"{node['id'] or node['address']}: {node['error']}" for node in asked if "error" in node]
    if silent:
        raise Failed(f"not all members answer ({'; '.join(silent)}); --node HOST:PORT asks one alone")
    asked.sort(key=lambda node: (node["role"] != "leader", node["id"]))
    return {node["id"]: node["address"] for node in asked}


def _order(client: Client, nodes: dict[str, str], wanted: dict[str, float]) -> list[str]:
    """Leader first, or last if heartbeats come to be rarer: followers must be ready for that when it begins."""
    leader, *followers = nodes
    now = {setting.name: setting.value for setting in client.get_config(nodes[leader])}
    name = "heartbeat_interval_seconds"
    rarer = wanted.get(name, now.get(name, 0.0)) > now.get(name, 0.0)
    return [*followers, leader] if rarer else [leader, *followers]
