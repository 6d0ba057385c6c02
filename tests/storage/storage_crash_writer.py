"""A process that forks writers for test_crash.py, so that each of 50 victims starts in a millisecond.

Each line of standard input is "PATH SEED STEPS": a child opens the store at PATH, repeats the steps of the plan SEED
from the one after STEPS on, and prints a byte after each that was acknowledged, until it is killed. Its process id is
printed first, on a line of its own; when it has died, a line with its exit status follows.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator, Sequence
from itertools import islice

from storage_batches import commands

from geraft.core.entries import Ballot, EntryBatch
from geraft.storage import SqliteStorage
from geraft.storage import sqlite as sqlite_store

Step = tuple[Ballot | None, Sequence[EntryBatch]]


def plan(seed: int) -> Iterator[Step]:
    """An endless list of writes: small and large, with new terms that cut off a tail."""
    rng = random.Random(seed)
    last_index, term = 0, 1
    while True:
        ballot = None
        first_index = last_index + 1
        if rng.random() < 0.1:
            term += 1
            ballot = Ballot(term, rng.choice(("", "n1", "n2")))
            first_index = rng.randint(max(1, last_index - 8), last_index + 1)
        batches = []
        for _ in range(rng.choice((0, 1, 1, 1, 2)) if ballot else rng.choice((1, 1, 2))):
            last_index = first_index + rng.choice((0, 0, 0, 3, 15))
            batches.append(commands(term, first_index, last_index, rng.choice((0, 100, 2000))))
            first_index = last_index + 1
        yield ballot, batches


def write(path: str, seed: int, steps: int) -> None:
    sqlite_store.WAL_BYTES_MAX = 300_000  # so that some die while the WAL is moved into the file
    storage = SqliteStorage(path)
    storage.open()
    for ballot, batches in islice(plan(seed), steps, None):
        storage.write(ballot, batches)
        os.write(1, b".")


def main() -> None:
    for line in sys.stdin:
        path, seed, steps = line.split()
        child = os.fork()
        if child == 0:
            try:
                os.write(1, b"%d\n" % os.getpid())
                write(path, int(seed), int(steps))
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        os.write(1, b"\n%d\n" % status)


if __name__ == "__main__":
    main()
