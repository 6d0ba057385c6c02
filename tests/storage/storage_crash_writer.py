"""A process that forks writers for test_crash.py, so that each of 50 victims starts in a millisecond.

Each line of standard input is "KIND PATH SEED STEPS": a child opens the store at PATH, repeats the steps of the plan
SEED from the one after STEPS on, and prints a byte after each that was acknowledged, until it is killed. Its process id
is printed first, on a line of its own; when it has died, a line with its exit status follows.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice

from storage_batches import UNLIMITED, commands

from geraft.core.entries import Ballot, EntryBatch, EntryId, EntryKind
from geraft.core.membership import initial_configuration
from geraft.core.snapshots import Snapshot
from geraft.storage import FileStorage, RaftStorage, RocksdbStorage, SqliteStorage
from geraft.storage import sqlite as sqlite_store
from geraft.storage.base import Identity

Step = Callable[[RaftStorage], object]


def write(ballot: Ballot | None, batches: Sequence[EntryBatch]) -> Step:
    return lambda storage: storage.write(ballot, batches)


def reset(snapshot: Snapshot) -> Step:
    return lambda storage: storage.reset(snapshot)


def record(snapshot: Snapshot) -> Step:
    return lambda storage: storage.record_snapshot(snapshot)


def compact(index: int) -> Step:
    return lambda storage: storage.compact(index, UNLIMITED)


def forget(index: int) -> Step:
    return lambda storage: storage.forget_snapshot(index)


def recover(cluster_id: str, term: int, index: int) -> Step:
    configuration = initial_configuration({"n1": f"127.0.0.1:{index}"})
    entry = EntryBatch(
        term=term, first_index=index, kind=EntryKind.CONFIGURATION, commands=(b"",), configuration=configuration
    )
    return lambda storage: storage.recover(Identity(cluster_id, "n1", "s1"), Ballot(term), entry)


RECOVER_EVERY = 7
"""Writes."""


def plan(seed: int) -> Iterator[Step]:
    """An endless list of steps: writes that are small, large, or cut off a tail, snapshots, compaction, recovery."""
    rng = random.Random(seed)
    last_index, term, base = 0, 1, 0
    for number in count(1):
        if number % RECOVER_EVERY == 0:
            term, last_index = term + 1, last_index + 1
            yield recover(f"cluster-{number}", term, last_index)
        ballot = None
        if last_index > base + 20 and rng.random() < 0.1:
            snapshot = Snapshot(
                last_entry=EntryId(term, last_index + rng.choice((0, -3, 50))),
                configuration=initial_configuration({"n1": "127.0.0.1:1"}),
                configuration_index=1,
                size_bytes=last_index,
                checksum=7,
                sessions=rng.randbytes(rng.choice((0, 5000))),
            )
            if rng.random() < 0.3:
                yield reset(snapshot)
                base = last_index = snapshot.index
            else:
                base = min(snapshot.index, last_index)
                yield record(snapshot)
                yield compact(base)
                yield forget(rng.randint(1, base))
        first_index = last_index + 1
        if rng.random() < 0.1:
            term += 1
            ballot = Ballot(term, rng.choice(("", "n1", "n2")))
            first_index = rng.randint(max(base + 1, last_index - 8), last_index + 1)
        batches = []
        for _ in range(rng.choice((0, 1, 1, 1, 2)) if ballot else rng.choice((1, 1, 2))):
            last_index = first_index + rng.choice((0, 0, 0, 3, 15))
            batches.append(commands(term, first_index, last_index, rng.choice((0, 100, 2000))))
            first_index = last_index + 1
        yield write(ballot, batches)


def make_sqlite(path: str) -> RaftStorage:
    sqlite_store.WAL_BYTES_MAX = 300_000  # so that some die while the WAL is moved into the file
    return SqliteStorage(path)


def make_file(path: str) -> RaftStorage:
    return FileStorage(path, segment_bytes=20_000)  # so that some die while a segment begins


def make_rocksdb(path: str) -> RaftStorage:
    return RocksdbStorage(path)


KINDS: dict[str, Callable[[str], RaftStorage]] = {"sqlite": make_sqlite, "file": make_file, "rocksdb": make_rocksdb}


def run(kind: str, path: str, seed: int, steps: int) -> None:
    storage = KINDS[kind](path)
    storage.open()
    for step in islice(plan(seed), steps, None):
        step(storage)
        os.write(1, b".")


def main() -> None:
    for line in sys.stdin:
        kind, path, seed, steps = line.split()
        child = os.fork()
        if child == 0:
            try:
                os.write(1, b"%d\n" % os.getpid())
                run(kind, path, int(seed), int(steps))
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        os.write(1, b"\n%d\n" % status)


if __name__ == "__main__":
    main()
