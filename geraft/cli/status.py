"""geraft status: how each node of a cluster is, unreachable ones included."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from geraft.cli.command import Failed, cluster_options, one_line
from geraft.errors import GeraftError, UnknownGroup

if TYPE_CHECKING:
    from geraft.client import Client

COLUMNS = {
    "id": "id",
    "address": "address",
    "role": "role",
    "term": "term",
    "leader_id": "leader",
    "commit_index": "committed",
    "last_applied": "applied",
    "last_log_index": "last",
    "explanation": "how it is",
}
"""What the table shows of a node, and under which heading."""


@click.command()
@cluster_options
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="What each node may take to answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON with all fields.")
def status(seeds: tuple[str, ...], group: str, timeout_seconds: float, as_json: bool) -> None:
    """Show how each node is: every seed, and every member that one of them knows, also those that do not answer.

    Exits with 1 if none answers.

    \b
    Example
      geraft status --seeds 127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003
      geraft status --json | jq .nodes[].role
    """
    nodes = collect(seeds, timeout_seconds, group)
    if as_json:
        click.echo(json.dumps({"nodes": nodes}, indent=2))
    else:
        _print_table(nodes)
    if all("error" in node for node in nodes):
        raise Failed(silence(nodes))


def silence(nodes: list[dict[str, Any]]) -> str:
    """Why none of the nodes tells how it is."""
    if all("unknown_group" in node for node in nodes):
        return one_line("; ".join(node["error"] for node in nodes[:3]))
    return "no node answers"


def collect(seeds: tuple[str, ...], timeout_seconds: float, group: str = "") -> list[dict[str, Any]]:
    """One dict per node, with the fields of NodeStatus, or with address and error; in the order of their addresses.

    unknown_group: beside the error, if the server answers and has no such group.
    """
    from geraft.client import Client

    nodes: dict[str, dict[str, Any]] = {}
    ids: dict[str, str] = {}
    with (
        Client(seeds, timeout_seconds=timeout_seconds, group=group) as client,
        ThreadPoolExecutor(max_workers=16) as threads,
    ):
        unasked = set(seeds)
        while unasked:
            asked = sorted(unasked)
            found = list(threads.map(lambda address: _ask(client, address, timeout_seconds), asked))
            nodes.update(zip(asked, found, strict=True))
            for node in found:
                ids.update({peer["address"]: peer["id"] for peer in node.get("peers", ())})
            unasked = set(ids) - set(nodes)
    for address, node in nodes.items():
        node["address"] = address  # under which it can be asked; what it listens on may be 0.0.0.0
        node.setdefault("id", ids.get(address, ""))
    # A node may have been asked under several names: one is enough, best the one that the members know it by.
    distinct: dict[tuple[str, str], dict[str, Any]] = {}
    for address in sorted(nodes, key=lambda address: (address not in ids, address)):
        node = nodes[address]
        distinct.setdefault((node.get("cluster_id", ""), node["id"] or address), node)
    return sorted(distinct.values(), key=lambda node: (node["id"], node["address"]))


def _ask(client: Client, address: str, timeout_seconds: float) -> dict[str, Any]:
    from dataclasses import asdict

    try:
        return asdict(client.status(address, timeout_seconds=timeout_seconds))
    except UnknownGroup as error:
        return {"address": address, "error": one_line(error), "unknown_group": True}
    except GeraftError as error:
        return {"address": address, "error": one_line(error)}


def _print_table(nodes: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for name, heading in COLUMNS.items():
        number = name in ("term", "commit_index", "last_applied", "last_log_index")
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for node in nodes:
        if "unknown_group" in node:
            told = node["error"].removeprefix(f"{node['address']}: ")
            table.add_row(node["id"], node["address"], "not there", *[""] * 5, told, style="red")
        elif "error" in node:
            row = [node["id"], node["address"], "unreachable", *[""] * 5, node["error"].rpartition(": ")[2]]
            table.add_row(*row, style="red")
        else:
            row = [str(node[name]) for name in COLUMNS]
            if node["apply_error"]:
                row[-1] += f"; the app fails: {node['apply_error']}"
            table.add_row(*row, style="bold" if node["role"] == "leader" else None)
    if not console.is_terminal:
        console.width = 1000  # whoever reads it line by line wants one line for each node
    with console.capture() as printed:
        console.print(table)
    for line in printed.get().splitlines():
        click.echo(line.rstrip())
