"""How fast SqliteStorage writes: one batch at a time, as the log writer of a node does.

    python benchmarks/storage_write.py [--seconds 2] [--directory DIR]

Prints, for each durability and each batch size: batches and entries per second, and the time that one write takes. Use
a directory on the disk that the log will live on: a tmpfs has no disk to wait for.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from geraft.core.entries import EntryBatch, EntryKind
from geraft.storage import SqliteStorage
from geraft.storage.sqlite import Synchronous

ENTRY_BYTES = 100
BATCH_ENTRIES = (1, 16, 128, 512)


def write_times(path: Path, synchronous: Synchronous, batch_entries: int, seconds: float) -> list[float]:
    """Seconds that each write took. Making the batch does not count, encoding it does: a node does that once, too."""
    storage = SqliteStorage(path, synchronous=synchronous)
    storage.open()
    command = bytes(range(ENTRY_BYTES))
    times: list[float] = []
    first_index = 1
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        batch = EntryBatch(term=1, first_index=first_index, kind=EntryKind.COMMAND, commands=(command,) * batch_entries)
        storage.write(None, (batch,))
        times.append(time.perf_counter() - start)
        first_index += batch_entries
    storage.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="per line of the table")
    parser.add_argument("--directory", default=None, help="where to write; a new directory in it is used and removed")
    arguments = parser.parse_args()

    print("                                                     ms per write")
    print("synchronous  entries/batch  batches/s  entries/s     p50    p99  p99.9     max")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        for synchronous in ("FULL", "NORMAL", "OFF"):
            for batch_entries in BATCH_ENTRIES:
                path = Path(directory) / f"{synchronous}-{batch_entries}.db"
                times = sorted(write_times(path, synchronous, batch_entries, arguments.seconds))
                path.unlink()
                batches_per_second = len(times) / sum(times)
                p50, p99, p999, longest = (
                    times[min(int(len(times) * part), len(times) - 1)] * 1000 for part in (0.5, 0.99, 0.999, 1)
                )
                print(
                    f"{synchronous:11}  {batch_entries:13,}  {batches_per_second:9,.0f}"
                    f"  {batches_per_second * batch_entries:9,.0f}"
                    f"  {p50:6.2f} {p99:6.2f} {p999:6.2f} {longest:7.2f}"
                )


if __name__ == "__main__":
    main()
