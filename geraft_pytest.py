"""The pytest plugin of geraft: fixtures raft_cluster (real processes) and simulated_cluster (virtual time).

Beside the package and not in it, as pytest loads it in every run: geraft itself, and gRPC with it, is imported only by
a test that asks for a fixture, after a conftest.py has patched or set what must come first. docs/testing.md shows how
to use it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from geraft.testing.cluster import Cluster
    from geraft.testing.simulation import Faults

    class SimulatedCluster(Protocol):
        """What the fixture simulated_cluster gives."""

        def __call__(
            self,
            app_factory: Callable[[], Any] | None = None,
            commands: Any = None,
            *,
            seeds: Iterable[int] = range(1, 11),
            nodes: int = 3,
            seconds: float = 20.0,
            faults: Faults | None = None,
        ) -> Counter[str]: ...


SEEDS = range(1, 11)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("geraft").addoption(
        "--geraft-seeds",
        metavar="FIRST:LAST",
        help="what simulated_cluster plays, instead of the test's seeds",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "raft_cluster(size=3, options=(), linked=False, patched=0): what the fixture raft_cluster starts; linked: with"
        " links that can be cut and slowed",
    )


@pytest.fixture
def raft_cluster(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Cluster]:
    """A Cluster of `geraft serve` processes on loopback, running; @pytest.mark.raft_cluster(size=5) for another size.

    Its data and logs lie below tmp_path, which pytest keeps for a while. All of it ends with the test.
    """
    from geraft.testing.cluster import Cluster, LinkedCluster

    marker = request.node.get_closest_marker("raft_cluster")
    options = dict(marker.kwargs) if marker is not None else {}
    if marker is not None and marker.args:
        options["size"] = marker.args[0]
    kind = LinkedCluster if options.pop("linked", False) else Cluster
    directory = tmp_path / "raft_cluster"
    directory.mkdir()
    with kind(directory, **options) as cluster:
        yield cluster


@pytest.fixture
def simulated_cluster(request: pytest.FixtureRequest) -> SimulatedCluster:
    """Plays a cluster on virtual time under each of `seeds`, with your app in it; raises SimulationFailed.

    simulated_cluster(app_factory, commands): app_factory makes a SimpleRaftApp, commands are those that callers choose
    from, or a function from a random.Random to one. Gives how often each rare situation was met.
    """
    from geraft.testing.simulation import Simulation

    wanted = request.config.getoption("--geraft-seeds")

    def play(
        app_factory: Callable[[], Any] | None = None,
        commands: Any = None,
        *,
        seeds: Iterable[int] = SEEDS,
        nodes: int = 3,
        seconds: float = 20.0,
        faults: Faults | None = None,
    ) -> Counter[str]:
        met: Counter[str] = Counter()
        for seed in _range(wanted) if wanted else seeds:
            met.update(
                Simulation(
                    seed, nodes=nodes, seconds=seconds, faults=faults, app_factory=app_factory, commands=commands
                )
                .run()
                .counters
            )
        return met

    return play


def _range(text: str) -> range:
    first, _, last = text.partition(":")
    try:
        return range(int(first), int(last or first) + 1)
    except ValueError:
        raise pytest.UsageError(f"--geraft-seeds {text!r} is not of the form FIRST:LAST") from None
