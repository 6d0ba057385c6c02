"""What must be settled before gRPC is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SPY = """
import os, sys
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            print(os.environ.get("GRPC_ENABLE_FORK_SUPPORT"))
sys.meta_path.insert(0, Spy())
"""


@pytest.mark.parametrize("module", ["geraft", "geraft.client", "geraft.cli", "geraft.transport.server", "geraft.node"])
def test_grpc_is_told_to_leave_forks_alone_before_it_reads_that(module: str) -> None:
    """Read too late, its fork handlers abort some children of a process that uses it."""
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run(
        [sys.executable, "-c", SPY + f"import {module}, grpc"],
        env={**environment, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "0\n"
