"""geraft chaos: real processes under load and faults, and whether what callers saw can be explained."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geraft.cli.cluster import directory_on_disk
from geraft.cli.command import Failed
from geraft.cli.serve import LOG_NAMES

if TYPE_CHECKING:
    from geraft.testing.chaos import Outcome, Setting


class Kinds(click.ParamType[tuple[str, ...]]):
    """Names of kinds of faults, with commas."""

    name = "kind,..."

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        from geraft.testing.chaos import KINDS

        kinds = tuple(value.split(",")) if isinstance(value, str) else tuple(value)
        for kind in kinds:
            if kind not in KINDS:
                self.fail(f"{kind!r} is none of {', '.join(KINDS)}", parameter, context)
        return kinds


class Storages(click.ParamType[tuple[str, ...]]):
    """What `geraft serve --storage` takes and keeps over a SIGKILL, with commas."""

    name = "storage,..."

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        storages = tuple(value.split(",")) if isinstance(value, str) else tuple(value)
        for storage in storages:
            if storage not in LOG_NAMES:
                self.fail(f"{storage!r} is none of {', '.join(LOG_NAMES)}", parameter, context)
        return storages


@click.command()
@click.option("--seconds", type=click.FloatRange(min=10), default=60.0, show_default=True, help="How long.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the plan of faults, and of what callers do.")
@click.option("--nodes", type=click.IntRange(min=1, max=16), default=5, show_default=True, help="Size of the cluster.")
@click.option(
    "--patched",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="How many of the nodes run in a process that gevent has monkey-patched.",
)
@click.option("--callers", type=click.IntRange(min=1), default=6, show_default=True, help="Threads with a Client each.")
@click.option(
    "--callers-inside", type=click.IntRange(min=0), default=2, show_default=True, help="Threads within each node."
)
@click.option(
    "--calls-per-second",
    type=click.FloatRange(min=1),
    default=150.0,
    show_default=True,
    help="Of all callers together, if nothing keeps them waiting.",
)
@click.option(
    "--reads",
    type=click.Choice(["both", "linearizable", "lease", "stale"]),
    default="both",
    show_default=True,
    help="How callers read. stale breaks what the history is checked for: to see that the check fails.",
)
@click.option(
    "--storages",
    type=Storages(),
    default="sqlite,sqlite,file",
    show_default=True,
    help="How the nodes store their logs, by turns.",
)
@click.option("--faults", "kinds", type=Kinds(), default=None, help="Only these kinds; --list-faults says which.")
@click.option(
    "--namespaces",
    is_flag=True,
    help="Each node in a network namespace, where packets are lost, instead of behind proxies. Only root can.",
)
@click.option("--list-faults", is_flag=True, help="Print the kinds of faults and end.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Where to keep data, logs, plan and history. By default a temporary one, gone at the end if all is well.",
)
@click.option(
    "--check",
    "history",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="Only check the history.jsonl that an earlier run has kept.",
)
@click.option("--quiet", is_flag=True, help="Print no progress.")
def chaos(
    seconds: float,
    seed: int,
    nodes: int,
    patched: int,
    callers: int,
    callers_inside: int,
    calls_per_second: float,
    reads: str,
    storages: tuple[str, ...],
    kinds: tuple[str, ...] | None,
    namespaces: bool,
    list_faults: bool,
    directory: Path | None,
    history: Path | None,
    quiet: bool,
) -> None:
    """Kill, halt, cut off and slow down real nodes under load, and check that what callers saw is linearizable.

    The nodes are `geraft serve` processes on loopback, with links between them that can be cut one way or both,
    slowed and broken. Callers outside use a Client, callers inside the node of their process; some reads are by
    quorum, some by lease. Ends with the faults that were played, the figures, and the verdict on the history. The
    seed decides the plan, not what comes of it. Exits with 1 if the history has no explanation, nodes differ at the
    end or do not recover, or a node failed by itself; then all that is needed to look into it is kept.

    \b
    Example
      geraft chaos --seconds 60 --seed 7
      geraft chaos --faults kill,mute,deafen --nodes 3
      geraft chaos --check /tmp/geraft-chaos-1/history.jsonl
    """
    from geraft.testing.chaos import KINDS, Setting

    if list_faults:
        width = max(map(len, KINDS))
        for kind, (what, _) in KINDS.items():
            click.echo(f"{kind:<{width}}  {what}")
        return
    if history is not None:
        _check(history)
        return
    if namespaces:
        _enter_namespace()
    setting = Setting(
        seed=seed,
        seconds=seconds,
        nodes=nodes,
        patched=min(patched, nodes),
        callers=callers,
        callers_inside=callers_inside,
        calls_per_second=calls_per_second,
        reads=reads,
        storages=storages,
        kinds=kinds or tuple(KINDS),
        namespaces=namespaces,
    )
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise click.UsageError(f"--directory must be empty, and {directory} is not")
        _finish(_run(directory, setting, quiet))
        return
    own = Path(tempfile.mkdtemp(prefix=f"geraft-chaos-{seed}-", dir=directory_on_disk()))
    try:
        _finish(_run(own, setting, quiet))
    except BaseException:
        click.echo(f"data, logs, plan and history are in {own}", err=True)
        raise
    shutil.rmtree(own)


def _enter_namespace() -> None:
    """Begin again in a network namespace of our own, unless this is one."""
    from geraft.testing.namespaces import inside_own_namespace, unavailable

    if inside_own_namespace():
        return
    reason = unavailable()
    if reason:
        raise Failed(f"there can be no network namespaces here: {reason}")
    sys.stdout.flush()
    os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", "geraft", *sys.argv[1:]])


def _run(directory: Path, setting: Setting, quiet: bool) -> Outcome:
    from geraft.testing.chaos import Chaos
    from geraft.testing.cluster import DidNotStart

    click.echo(
        f"{setting.nodes} nodes, {setting.callers} callers outside and {setting.callers_inside} in each node;"
        f" seed {setting.seed}, {setting.seconds:.0f} s"
    )
    try:
        return Chaos(directory, setting, (lambda line: None) if quiet else click.echo).run()
    except DidNotStart as error:
        raise Failed(str(error)) from error


def _finish(outcome: Outcome) -> None:
    click.echo(f"\n{outcome}\n")
    click.echo(outcome.summary())
    if not outcome.good:
        raise Failed(
            f"see nodes/*.log, plan.json and history.jsonl in {outcome.directory};"
            f" geraft chaos --check {outcome.directory / 'history.jsonl'} looks at the history again"
        )


def _check(history: Path) -> None:
    from geraft.testing.chaos import read_history
    from geraft.testing.linearizability import Verdict, check
    from geraft.testing.models import KeyValue

    try:
        operations = read_history(history)
    except ValueError as error:
        raise Failed(str(error)) from error
    report = check(operations, KeyValue())
    click.echo(str(report))
    if report.verdict is not Verdict.OK:
        raise Failed(f"the history in {history} has no explanation" if report.part else "undecided")
