"""geraft bench: a small run each way; its figures hang together."""

from __future__ import annotations

import json
import subprocess

import pytest
from cli_processes import Command


def run_without_an_election(geraft: Command, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Again, if the leader stood still on a busy machine, and lost leadership and the writes under way."""
    for _ in range(3):
        done = geraft("bench", *arguments)
        if not (done.returncode == 1 and "lost leadership of term" in done.stderr):
            break
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["write", "--through", "node"],
        ["write", "--through", "client", "--storage", "file"],
        ["write", "--nodes", "1", "--sync", "off"],
        ["read", "--consistency", "lease", "--storage", "memory"],
    ],
    ids=" ".join,
)
def test_a_small_run(geraft: Command, arguments: list[str]) -> None:
    done = run_without_an_election(geraft, *arguments, "--operations", "300", "--callers", "8", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["operation"], result["operations"], result["callers"]) == (arguments[0], 300, 8)
    assert result["operations_per_second"] == pytest.approx(300 / result["seconds"])
    assert 0 < result["p50_ms"] <= result["p99_ms"] <= result["max_ms"]
    assert len(result["cpu_us_per_operation"]) == result["nodes"] + (result["through"] == "client")
