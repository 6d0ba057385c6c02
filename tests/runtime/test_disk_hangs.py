"""The disk of a leader hangs for 5 s in the middle of writes: it stops leading, the others go on, nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runtime_parts import PATIENT, Journal, TamedStorage, in_thread, wait_until

from geraft import FileStorage, RaftNode, RaftStorage, SqliteStorage
from geraft.errors import GeraftError, NodeStopped, StorageFailed
from geraft.testing.cluster import free_addresses

STALL_SECONDS = 1.5
HANG_SECONDS = 5.0


def make_sqlite(directory: Path) -> RaftStorage:
    return SqliteStorage(directory / "n.db")


def make_file(directory: Path) -> RaftStorage:
    return FileStorage(directory / "log")


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_sqlite, make_file])
def test_a_leader_whose_disk_hangs_stops_and_another_leads(tmp_path: Path, make: Callable[[Path], RaftStorage]) -> None:
    ids = ["n1", "n2", "n3"]
    voters = dict(zip(ids, free_addresses(3), strict=True))
    stores = {id: TamedStorage(make(tmp_path / id)) for id in ids}
    nodes = {id: RaftNode(Journal(), stores[id], id=id, bootstrap=voters, config=PATIENT) for id in ids}
    try:
        for node in nodes.values():
            node.start()
        leader = nodes["n1"].wait_for_leader(30)
        others = [id for id in ids if id != leader]
        acknowledged = [b"before"]
        nodes[leader].apply(b"before", 30)
        nodes[leader].tune(storage_stall_seconds=STALL_SECONDS)  # not of the others: their disks may be slow

        hung_since = time.monotonic()
        stores[leader].write_gate.close()
        _, outcome = in_thread(lambda: nodes[leader].apply(b"meanwhile", 30))
        assert stores[leader].write_gate.held.wait(10)

        def another_leads() -> bool:
            try:
                return nodes[others[0]].status().leader_id in others
            except GeraftError:
                return False

        wait_until(another_leads)
        wait_until(lambda: outcome)
        if not isinstance(outcome[0], BaseException):
            acknowledged.append(b"meanwhile")  # the other two had it on disk
        for number in range(20):
            nodes[others[number % 2]].apply(b"after %d" % number, 30)
            acknowledged.append(b"after %d" % number)
        with pytest.raises(NodeStopped, match=r"hung for \d\.\d s") as stopped:
            wait_until(lambda: nodes[leader].apply(b"late", 30))
        assert isinstance(stopped.value.cause, StorageFailed)

        time.sleep(max(0.0, HANG_SECONDS - (time.monotonic() - hung_since)))
        stores[leader].write_gate.open()  # what was under way goes through
        nodes[leader].stop(10)
        wait_until(lambda: not stores[leader].is_open)
        nodes[leader] = RaftNode(Journal(), stores[leader], id=leader, bootstrap=voters, config=PATIENT).start()
        nodes[leader].apply(b"back", 30)
        acknowledged.append(b"back")
    finally:
        for store in stores.values():
            store.write_gate.open()
        for node in nodes.values():
            node.stop(10)
    logs = [stores[id].commands() for id in ids]
    longest = max(logs, key=len)
    assert all(log == longest[: len(log)] for log in logs)
    for command in acknowledged:
        assert sum(command in log for log in logs) >= 2, command
