"""Running `geraft` in processes of its own, as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def geraft_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "geraft", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def assert_one_line(stderr: str) -> None:
    assert stderr.startswith("geraft"), stderr
    assert stderr.count("\n") == 1, stderr
