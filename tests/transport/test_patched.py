"""The same stories in a monkey-patched process, where gRPC runs in its gevent mode on a hub of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # real processes, started and ended for each story: minutes together

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.timeout(300)  # for a whole file of tests, each of which has its own limit
@pytest.mark.parametrize(
    "file", ["tests/transport/test_peers.py", "tests/client/test_client.py", "tests/client/test_group.py"]
)
def test_the_stories_hold_in_a_patched_process(file: str) -> None:
    patched = [sys.executable, "-m", "gevent.monkey", "--module", "pytest"]
    done = subprocess.run(
        [*patched, "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", file],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
