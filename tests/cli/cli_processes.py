"""Running `geraft`: in processes of its own, as users do, and in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from geraft.cli import main

ROOT = Path(__file__).resolve().parent.parent.parent

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def geraft_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "geraft", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run_here(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command in this process, which spares a second of starting: for stories with many of them."""
    done = CliRunner().invoke(main, arguments, input=stdin, prog_name="geraft")
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def assert_one_line(stderr: str) -> None:
    assert stderr.startswith("geraft"), stderr
    assert stderr.count("\n") == 1, stderr
