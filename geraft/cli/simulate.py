"""geraft simulate: clusters under random faults, on virtual time."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

import click

from geraft.cli.command import Failed


class Seeds(click.ParamType[range]):
    """FIRST:LAST, both included; or one seed."""

    name = "first:last"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> range:
        if isinstance(value, range):
            return value
        first, _, last = str(value).partition(":")
        try:
            seeds = range(int(first), int(last or first) + 1)
        except ValueError:
            self.fail(f"{value!r} is not of the form FIRST:LAST", parameter, context)
        if not seeds:
            self.fail(f"{value!r} holds no seed", parameter, context)
        return seeds


@click.command()
@click.option("--seeds", type=Seeds(), default="1:20", show_default=True, help="Simulate each of FIRST:LAST.")
@click.option("--nodes", type=click.IntRange(min=1), default=3, show_default=True, help="Servers of each cluster.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="How long faults befall a cluster, in its own time; then it must recover.",
)
@click.option("--trace", "trace_seed", type=int, metavar="SEED", help="Print all that happens under this one seed.")
@click.option("--verbose", is_flag=True, help="Print how often each rare situation was met.")
def simulate(seeds: range, nodes: int, seconds: float, trace_seed: int | None, verbose: bool) -> None:
    """Play whole clusters on virtual time: crashes, partitions, lost and late messages, slow and failing disks.

    Each seed is a history of its own, and the same one every time. After every step it is checked that nothing
    acknowledged is lost, no read is stale, and all that Raft promises holds; after the faults, that the cluster
    recovers. Exits with 1 on a violation, which is printed with the end of its history.

    \b
    Example
      geraft simulate --seeds 1:100
      geraft simulate --trace 42 > history.txt
    """
    from geraft.testing.simulation import Simulation, SimulationFailed

    if trace_seed is not None:
        seeds = range(trace_seed, trace_seed + 1)
    counters: Counter[str] = Counter()
    violations, simulated, started = 0, 0.0, time.process_time()
    progress = sys.stderr.isatty()
    for count, seed in enumerate(seeds):
        simulation = Simulation(
            seed, nodes=nodes, seconds=seconds, trace=click.echo if trace_seed is not None else None
        )
        try:
            simulation.run()
        except SimulationFailed as failure:
            violations += 1
            click.echo(str(failure))
        simulated += simulation.now
        counters.update(simulation.counters)
        if progress or count % 100 == 99:
            click.echo(f"seed {seed}: {violations} violations so far", err=True, nl=not progress)
            click.echo("\r" if progress else "", err=True, nl=False)
    if verbose:
        for situation, times in sorted(counters.items()):
            click.echo(f"{times:8d}  {situation}")
    cpu_seconds = time.process_time() - started
    click.echo(f"seeds {len(seeds)}, violations {violations}, simulated {simulated:.0f} s, cpu {cpu_seconds:.1f} s")
    if violations:
        raise Failed(f"{violations} of {len(seeds)} seeds broke a promise")
