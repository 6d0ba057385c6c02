"""How fast the log stores write: one batch at a time, as the log writer of a node does.

    python benchmarks/storage_write.py [--seconds 2] [--rounds 3] [--directory DIR] [--storage sqlite-full file rocksdb]

Prints, for each store and each batch size: batches and entries per second, the time that one write takes, and the CPU
time of this process for it. The stores take turns in each round, so that they share what else the machine does. Use a
directory on the disk that the log will live on: a tmpfs has no disk to wait for.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from geraft.core.entries import EntryBatch, EntryKind
from geraft.storage import FileStorage, RaftStorage, RocksdbStorage, SqliteStorage

ENTRY_BYTES = 100
BATCH_ENTRIES = (1, 16, 128, 512)

STORAGES: dict[str, Callable[[Path], RaftStorage]] = {
    "sqlite-full": lambda path: SqliteStorage(path / "n1.db"),
    "sqlite-normal": lambda path: SqliteStorage(path / "n1.db", synchronous="NORMAL"),
    "sqlite-off": lambda path: SqliteStorage(path / "n1.db", synchronous="OFF"),
    "file": lambda path: FileStorage(path / "log"),
    "rocksdb": lambda path: RocksdbStorage(path / "log"),
}


def write_times(storage: RaftStorage, batch_entries: int, seconds: float) -> tuple[list[float], float]:
    """Seconds that each write took, and CPU seconds of all. Making the batch counts in the latter, encoding in both."""
    storage.open()
    command = bytes(range(ENTRY_BYTES))
    times: list[float] = []
    first_index = 1
    cpu_before = time.process_time()
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        batch = EntryBatch(term=1, first_index=first_index, kind=EntryKind.COMMAND, commands=(command,) * batch_entries)
        storage.write(None, (batch,))
        times.append(time.perf_counter() - start)
        first_index += batch_entries
    cpu_seconds = time.process_time() - cpu_before
    storage.close()
    return times, cpu_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each store in each round")
    parser.add_argument("--rounds", type=int, default=1, help="in each of which the stores take turns")
    parser.add_argument("--directory", default=None, help="where to write; a new directory in it is used and removed")
    parser.add_argument(
        "--storage", nargs="+", choices=STORAGES, default=[name for name in STORAGES if name != "rocksdb"]
    )
    arguments = parser.parse_args()

    print("                                                       ms per write                 CPU us")
    print("storage        entries/batch  batches/s  entries/s     p50    p99  p99.9     max  per write")
    for batch_entries in BATCH_ENTRIES:
        times: dict[str, list[float]] = {name: [] for name in arguments.storage}
        cpu_seconds = dict.fromkeys(arguments.storage, 0.0)
        for _ in range(arguments.rounds):
            for name in arguments.storage:
                with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
                    found, cpu = write_times(STORAGES[name](Path(directory)), batch_entries, arguments.seconds)
                times[name] += found
                cpu_seconds[name] += cpu
        for name, unsorted in times.items():
            found = sorted(unsorted)
            batches_per_second = len(found) / sum(found)
            p50, p99, p999, longest = (
                found[min(int(len(found) * part), len(found) - 1)] * 1000 for part in (0.5, 0.99, 0.999, 1)
            )
            print(
                f"{name:13}  {batch_entries:13,}  {batches_per_second:9,.0f}"
                f"  {batches_per_second * batch_entries:9,.0f}"
                f"  {p50:6.2f} {p99:6.2f} {p999:6.2f} {longest:7.2f} {cpu_seconds[name] / len(found) * 1e6:10.0f}"
            )


if __name__ == "__main__":
    main()
