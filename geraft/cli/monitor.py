"""geraft monitor: members, roles, indexes, lag and rates, live in the terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from geraft.cli.command import Failed, cluster_options
from geraft.cli.status import collect, silence

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_WIDTH = 1000
"""Columns of a frame that is printed to no terminal: whoever reads it line by line wants nothing folded."""


@dataclass(frozen=True)
class Sample:
    """What all nodes said, and when (of time.monotonic())."""

    taken_at: float
    nodes: list[dict[str, Any]]

    @property
    def answering(self) -> dict[str, dict[str, Any]]:
        return {node["id"]: node for node in self.nodes if "error" not in node}


@click.command()
@cluster_options
@click.option(
    "--interval",
    "interval_seconds",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two frames.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="What each node may take to answer.",
)
@click.option("--once", is_flag=True, help="Print one frame and end; exits with 1 if no node answers.")
def monitor(seeds: tuple[str, ...], group: str, interval_seconds: float, timeout_seconds: float, once: bool) -> None:
    """Watch a cluster: who leads, how far each member is, how fast it moves, who lags, what waits. Ctrl-C ends it.

    Shows every seed and every member that one of them knows, also those that do not answer.

    \b
    Example
      geraft monitor --seeds 127.0.0.1:7001,127.0.0.1:7002
      geraft monitor --once
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    before = _sample(seeds, timeout_seconds, group)
    if once:
        time.sleep(interval_seconds)
        now = _sample(seeds, timeout_seconds, group)
        with console.capture() as printed:
            console.print(frame(now, before))
        for line in printed.get().splitlines():
            click.echo(line.rstrip())
        if not now.answering:
            raise Failed(silence(now.nodes))
        return
    try:
        with Live(frame(before, None), console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                time.sleep(max(0.0, before.taken_at + interval_seconds - time.monotonic()))
                # Whoever was a member is asked, or the death of the one seed would blind us.
                known = {node["address"] for node in before.nodes}
                now = _sample((*seeds, *sorted(known - set(seeds))), timeout_seconds, group)
                live.update(frame(now, before), refresh=True)
                before = now
    except KeyboardInterrupt:
        pass  # the way to leave


def _sample(seeds: tuple[str, ...], timeout_seconds: float, group: str) -> Sample:
    nodes = collect(seeds, timeout_seconds, group)
    return Sample(time.monotonic(), nodes)


def frame(now: Sample, before: Sample | None) -> RenderableType:
    """One picture. Rates are those between the two samples; without an earlier one there are none."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, expand=False)
    table.add_column("member")
    table.add_column("address")
    table.add_column("role")
    for heading in ("term", "log", "committed", "applied", "commits/s", "applied/s", "lag", "waiting"):
        table.add_column(heading, justify="right")
    table.add_column("heard", justify="right")
    leader = _leader(now)
    for node in now.nodes:
        if "error" in node:
            lag = _lag(node, leader)  # the leader may know
            shown = "" if lag is None else str(lag)
            role = "not there" if "unknown_group" in node else "unreachable"
            row = [node["id"], node["address"], role, *[""] * 6, shown, "", _heard(node, leader)]
            table.add_row(*row, style="red")
            continue
        lag = _lag(node, leader)
        waiting = node["writes_waiting"] + node["reads_waiting"] + node["calls_parked"]
        table.add_row(
            node["id"],
            node["address"],
            node["role"] + _learner_mark(node, leader),
            str(node["term"]),
            str(node["last_log_index"]),
            str(node["commit_index"]),
            str(node["last_applied"]),
            _rate(node, now, before, "commit_index"),
            _rate(node, now, before, "last_applied"),
            "" if lag is None else Text(str(lag), style="yellow" if lag > 0 else ""),
            str(waiting or ""),
            _heard(node, leader),
            style="bold green" if node is leader else None,
        )
    notes = [
        Text.assemble((f"{node['id']}: ", "bold"), node["explanation"])
        for node in now.answering.values()
        if node is leader or not node["leader_id"] or node["apply_error"] or "in vain" in node["explanation"]
    ]
    return Group(_headline(now, leader), Padding(table, (1, 0)), *notes)


def _headline(now: Sample, leader: dict[str, Any] | None) -> RenderableType:
    from rich.text import Text

    answering = now.answering
    cluster = next((node["cluster_id"] for node in answering.values()), "")
    counted = f"{len(answering)} of {len(now.nodes)} answer"
    if leader is None:
        return Text(f"cluster {cluster}: no leader, {counted}", style="bold red")
    style = "bold" if len(answering) == len(now.nodes) else "bold yellow"
    return Text(f"cluster {cluster}: {leader['id']} leads term {leader['term']}, {counted}", style=style)


def _leader(now: Sample) -> dict[str, Any] | None:
    """The one of the latest term; a deposed one that does not know it yet may say that it leads too."""
    leaders = [node for node in now.answering.values() if node["role"] == "leader"]
    return max(leaders, key=lambda node: int(node["term"]), default=None)


def _peer(node: dict[str, Any], leader: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the leader says of the node."""
    return next((peer for peer in leader["peers"] if peer["id"] == node["id"]), None) if leader else None


def _lag(node: dict[str, Any], leader: dict[str, Any] | None) -> int | None:
    """Entries of the leader's log that the node is not known to hold; None if nobody knows."""
    if leader is None:
        return None
    if node is leader:
        return 0
    peer = _peer(node, leader)
    return max(leader["last_log_index"] - peer["match_index"], 0) if peer else None


def _learner_mark(node: dict[str, Any], leader: dict[str, Any] | None) -> str:
    peer = _peer(node, leader)
    return " (learner)" if peer and not peer["voter"] else ""


def _heard(node: dict[str, Any], leader: dict[str, Any] | None) -> str:
    """How long ago the leader heard the node."""
    peer = _peer(node, leader)
    if peer is None or peer["heard_seconds_ago"] is None:
        return ""
    return f"{peer['heard_seconds_ago']:.1f} s"


def _rate(node: dict[str, Any], now: Sample, before: Sample | None, name: str) -> str:
    """Per second, since the sample before."""
    earlier = before.answering.get(node["id"]) if before is not None else None
    if earlier is None or before is None or now.taken_at <= before.taken_at:
        return ""
    return f"{max(node[name] - earlier[name], 0) / (now.taken_at - before.taken_at):,.0f}"
