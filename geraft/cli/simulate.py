"""geraft simulate: clusters under random faults, on virtual time."""

from __future__ import annotations

import os
import pkgutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, BinaryIO

import click

from geraft.cli.command import Failed
from geraft.simple import SimpleRaftApp


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
@click.option("--app", metavar="MODULE:FACTORY", help="A SimpleRaftApp of yours to put through it.")
@click.option("--commands", "file", type=click.File("rb"), help="For the app, one a line; - for stdin.")
@click.option("--resting", is_flag=True, help="Clusters of a process with many, which rest when idle.")
@click.option("--verbose", is_flag=True, help="Print how often each rare situation was met.")
def simulate(
    seeds: range,
    nodes: int,
    seconds: float,
    trace_seed: int | None,
    app: str | None,
    file: BinaryIO | None,
    resting: bool,
    verbose: bool,
) -> None:
    """Play whole clusters on virtual time: crashes, partitions, lost and late messages, slow and failing disks.

    Each seed is a history of its own, and the same one every time. After every step it is checked that nothing
    acknowledged is lost, no read is stale, and all that Raft promises holds; after the faults, that the cluster
    recovers. Exits with 1 on a violation, which is printed with the end of its history.

    \b
    Example
      geraft simulate --seeds 1:100
      geraft simulate --trace 42 > history.txt
      printf 'deposit 10\\nwithdraw 5\\n' | geraft simulate --app bank:Bank --commands -
    """
    from geraft.testing.simulation import Simulation, SimulationFailed

    if (app is None) != (file is None):
        raise click.UsageError("--app and --commands go together: an app, and what it is given")
    app_factory = _find(app) if app is not None else None
    commands = file.read().splitlines() if file is not None else None
    if commands == []:
        raise click.UsageError("the file holds no commands")
    if trace_seed is not None:
        seeds = range(trace_seed, trace_seed + 1)
    counters: Counter[str] = Counter()
    violations, simulated, started = 0, 0.0, time.process_time()
    progress = sys.stderr.isatty()
    for count, seed in enumerate(seeds):
        simulation = Simulation(
            seed,
            nodes=nodes,
            seconds=seconds,
            app_factory=app_factory,
            commands=commands,
            trace=click.echo if trace_seed is not None else None,
            resting=resting,
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


def _find(app: str) -> Callable[[], SimpleRaftApp]:
    sys.path.insert(0, os.getcwd())  # where a user's module is, as for python -m
    try:
        factory = pkgutil.resolve_name(app)
    except (ImportError, AttributeError, ValueError) as error:
        raise click.UsageError(f"--app {app}: {error}") from None
    made = factory()
    if not isinstance(made, SimpleRaftApp):
        raise click.UsageError(f"--app {app}: it makes a {type(made).__name__}, not a SimpleRaftApp")
    return factory  # type: ignore[no-any-return]
