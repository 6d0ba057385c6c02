"""A node sends the signals that docs/signals.md promises, with those arguments, and no receiver can harm it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from geraft import MakeSnapshot, MemoryRepository, MemoryStorage, RaftNode, signals, to_raft_app
from geraft.cli.cluster import free_addresses
from geraft.kv import KeyValueApp, commands

DOCS = Path(__file__).resolve().parent.parent / "docs"


class FailsOnce(KeyValueApp):
    """Raises at the first write of any of them."""

    failed = False

    def process_write(self, request: bytes, entry_index: int) -> bytes | tuple[bytes, MakeSnapshot]:
        if not FailsOnce.failed:
            FailsOnce.failed = True
            raise OSError("the disk is full")
        return super().process_write(request, entry_index)


def promised_arguments() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\|", (DOCS / "signals.md").read_text(), re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", arguments)) for name, arguments in rows}


@pytest.fixture
def heard() -> Iterator[list[tuple[str, object, dict[str, Any]]]]:
    """What was heard: signal, sender, arguments, in order. Beside it, each signal has a receiver that raises."""
    heard: list[tuple[str, object, dict[str, Any]]] = []
    receivers = []
    for name in signals.__all__:

        def listen(sender: object, _name: str = name, **arguments: Any) -> None:
            heard.append((_name, sender, arguments))

        def fail(sender: object, **_: Any) -> None:
            raise RuntimeError("a receiver of a test")

        signal = getattr(signals, name)
        for receiver in (fail, listen):
            signal.connect(receiver)
            receivers.append((signal, receiver))
    yield heard
    for signal, receiver in receivers:
        signal.disconnect(receiver)


def test_a_node_tells_what_the_documentation_promises(heard: list[tuple[str, object, dict[str, Any]]]) -> None:
    (address,) = free_addresses(1)
    node = RaftNode(to_raft_app(FailsOnce(), MemoryRepository()), MemoryStorage(), id="n1", bootstrap={"n1": address})
    with node:
        node.apply(commands.put("a", b"1"), timeout_seconds=30.0)
        last_index = node.status().commit_index
        assert node.take_snapshot(timeout_seconds=30.0) == last_index
    deadline = time.monotonic() + 30.0
    while heard[-1][0] != "node_stopping" and time.monotonic() < deadline:
        time.sleep(0.01)  # signals come after the fact

    promised = promised_arguments()
    # It takes another node: tests/runtime/test_node_snapshots.py.
    assert promised.pop("snapshot_installed") == promised["snapshot_created"]
    assert {name: set(arguments) for name, _, arguments in heard} == promised
    assert {sender for _, sender, _ in heard} == {node}
    names = [name for name, _, _ in heard]
    assert names[0] == "node_started"
    (failure,) = [arguments for name, _, arguments in heard if name == "apply_failed"]
    assert (failure["attempt"], str(failure["error"])) == (1, "the disk is full")
    leaders = [arguments["leader_id"] for name, _, arguments in heard if name == "leader_changed"]
    assert "n1" in leaders
    ranges = [
        (arguments["first_index"], arguments["last_index"]) for name, _, arguments in heard if name == "committed"
    ]
    assert ranges[-1][1] == last_index
    assert all(first <= last for first, last in ranges)
    assert all(last + 1 == first for (_, last), (first, _) in pairwise(ranges)), "none left out"
