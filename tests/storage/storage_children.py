"""Processes of their own for the tests of a store: to be locked out by, to be killed, to run out of disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

PRELUDE = """
import os, resource, signal, sys, time
import sqlite_utils
from geraft.core.entries import Ballot
from geraft.errors import *
from geraft.storage import FileStorage, Identity, RocksdbStorage, SqliteStorage
from storage_batches import UNLIMITED, commands, entry_ids
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A child that runs the code after PRELUDE, its input and output being pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(code: str, *arguments: object) -> str:
    """What the child printed; it must end with exit code 0."""
    with start(code, *arguments) as child:
        printed, _ = child.communicate(timeout=60)
    assert child.returncode == 0, printed
    return printed
