"""1 GiB of state moves to a new node with little memory on either side, while writes go on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from geraft.client import Client
from geraft.testing.cluster import free_addresses, wait_until

pytestmark = pytest.mark.long

PROGRAM = Path(__file__).parent / "programs" / "file_node.py"
STATE_MIB = 1024
EXTRA_MIB_MAX = 100


@contextmanager
def running(id: str, directory: Path, members: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), id, str(directory / id), members],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def peak_mib(process: subprocess.Popen[str]) -> float:
    """The most memory that the process held since forget_peak."""
    (line,) = [
        line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) / 1024


def forget_peak(process: subprocess.Popen[str]) -> float:
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return peak_mib(process)


def test_a_gibibyte_of_state_moves_with_under_100_mib_of_memory_on_either_side(tmp_path: Path) -> None:
    addresses = dict(zip(("n1", "n2", "n3"), free_addresses(3), strict=True))
    members = ",".join(f"{id}={address}" for id, address in addresses.items())
    with (
        running("n1", tmp_path, members) as one,
        running("n2", tmp_path, members) as two,
        Client(list(addresses.values())[:2], timeout_seconds=120) as client,
    ):
        assert client.apply(b"fill %d" % STATE_MIB, timeout_seconds=120) == b"filled"

        def snapshots_recorded() -> bool:
            return all(client.status(addresses[id]).log_base_index > 1 for id in ("n1", "n2"))

        wait_until("both to have a snapshot", snapshots_recorded, 120)
        leader = client.status().leader_id
        sender = {"n1": one, "n2": two}[leader]
        written = 0
        slowest = 0.0
        done = threading.Event()

        def write() -> None:
            nonlocal written, slowest
            while not done.is_set():
                began = time.monotonic()
                client.apply(b"count", timeout_seconds=60)
                slowest = max(slowest, time.monotonic() - began)
                written += 1

        writer = threading.Thread(target=write)
        with running("n3", tmp_path, members) as receiver:
            before = forget_peak(sender), forget_peak(receiver)
            began = time.monotonic()
            writer.start()
            try:
                wait_until(
                    "the state to be there",
                    lambda: (
                        client.status(addresses["n3"]).snapshot_index >= client.status(addresses[leader]).log_base_index
                    ),
                    300,
                )
                seconds = time.monotonic() - began
                wait_until("it to be installed", lambda: client.status(addresses["n3"]).last_applied > 3, 120)
            finally:
                done.set()
                writer.join(60)
            extra = peak_mib(sender) - before[0], peak_mib(receiver) - before[1]
            print(
                f"\n{STATE_MIB} MiB in {seconds:.1f} s; extra memory: sender {extra[0]:.0f} MiB, receiver"
                f" {extra[1]:.0f} MiB; {written} writes meanwhile, the slowest took {slowest:.2f} s"
            )
            assert max(extra) < EXTRA_MIB_MAX
            assert written > 20, "writes go on"

            def states() -> set[bytes]:
                return {
                    client.read(b"", "stale", address=addresses[id], timeout_seconds=60).rpartition(b" ")[0]
                    for id in ("n1", "n2", "n3")
                }

            (state,) = states()
            assert state.startswith(b"%d " % (STATE_MIB << 20))
            assert client.status().leader_id == leader, "nobody was taken for dead"
