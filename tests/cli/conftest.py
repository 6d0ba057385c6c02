"""The command line is tested as users meet it: in processes of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from cli_processes import Command, environment, geraft_command

from geraft.cli.cluster import LocalCluster
from geraft.testing.cluster import PATIENT


@pytest.fixture(scope="session")
def geraft() -> Command:
    """Runs `geraft` with the arguments to its end."""

    def run(*arguments: str, stdin: str = "", timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            geraft_command(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            env=environment(),
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three patient nodes in processes of their own; no test of the module may harm them."""
    with LocalCluster(3, tmp_path_factory.mktemp("cluster"), options=PATIENT) as cluster:
        yield cluster
