"""The program of docs/services.md: a user's own service and a node on one port, in three processes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from cluster_stories import tune
from host_processes import end_program, line_of

from geraft.client import Client
from geraft.testing.cluster import free_addresses, wait_until

pytestmark = pytest.mark.slow  # real processes

ROOT = Path(__file__).resolve().parent.parent.parent


def add(address: str, number: int) -> int:
    """Again if it could not be done, and surely was not."""
    deadline = time.monotonic() + 60
    with grpc.insecure_channel(address) as channel:
        while True:
            try:
                return int(channel.unary_unary("/example.Counter/Add")(b"%d" % number, timeout=30, wait_for_ready=True))
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def test_three_processes_one_of_them_patched(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "services.md").read_text(), re.DOTALL)
    program = tmp_path / "counter_server.py"
    program.write_text(code)
    members = dict(zip(["n1", "n2", "n3"], free_addresses(3), strict=True))
    processes = {}
    try:
        for id in members:
            run = [sys.executable, *(["-m", "gevent.monkey"] if id == "n2" else []), str(program)]
            processes[id] = subprocess.Popen(
                [*run, id, *(f"{member}={address}" for member, address in members.items())],
                cwd=tmp_path,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={"PYTHONPATH": str(ROOT)},
            )
        for process in processes.values():
            assert line_of(process) == "ready\n"
        tune(members.values(), acceptable_pause_seconds=3.0)
        assert [add(address, 1) for address in members.values()] == [1, 2, 3]
        processes["n1"].kill()
        with Client([members["n2"], members["n3"]], timeout_seconds=5) as client:
            wait_until("another leads", lambda: client.cluster_info().leader_id in ("n2", "n3"))
        assert [add(members[id], 10) for id in ("n2", "n3", "n2")] == [13, 23, 33]
        for id in ("n2", "n3"):
            ending = processes[id]
            assert ending.stdin is not None
            ending.stdin.write("\n")
            ending.stdin.flush()
            assert ending.wait(30) == 0, f"{id} ends by itself"
    finally:
        for process in processes.values():
            end_program(process)
