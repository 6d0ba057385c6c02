"""Who writes and reads while the faults are played: threads outside, with a Client each, and threads in every node."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from geraft.client import Client
from geraft.errors import GeraftError
from geraft.testing.chaos.history import Journal
from geraft.testing.models import CompareAndSet, Delete, Get, KeyValueInput, Put, call_key_value

if TYPE_CHECKING:
    from geraft.node import RaftNode

END_FILE = "callers-end"
"""As soon as it is there, the callers within the nodes make no further call."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What each caller does.

    directory: of the journals. began: of time.monotonic(), which the machine's processes share. pause_seconds: between
    two calls of a caller, on average. keys: how many there are at a time; every epoch_seconds others take their place,
    so that the calls whose outcome is unknown don't add up on one key, which is what makes a history hard to check.
    reads: "linearizable", "lease", or "both" by turns. "stale": a lie, for the history holds them for linearizable.
    """

    directory: str
    seed: int
    began: float
    callers: int
    pause_seconds: float
    timeout_seconds: float = 3.0
    keys: int = 6
    epoch_seconds: float = 10.0
    reads: str = "both"

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    def consistency(self, rng: random.Random) -> str:
        return rng.choice(("linearizable", "lease")) if self.reads == "both" else self.reads


class _ThroughNode:
    """A caller within the node's process."""

    def __init__(self, node: RaftNode, load: Load, rng: random.Random) -> None:
        self._node, self._load, self._rng = node, load, rng

    def apply(self, message: bytes) -> bytes:
        return self._node.apply(message, self._load.timeout_seconds)

    def read(self, message: bytes) -> bytes:
        return self._node.read(message, self._load.consistency(self._rng), self._load.timeout_seconds)


class _ThroughClient:
    """A caller outside."""

    def __init__(self, client: Client, addresses: list[str], load: Load, rng: random.Random) -> None:
        self._client, self._addresses, self._load, self._rng = client, addresses, load, rng

    def apply(self, message: bytes) -> bytes:
        return self._client.apply(message)

    def read(self, message: bytes) -> bytes:
        consistency = self._load.consistency(self._rng)
        address = self._rng.choice(self._addresses) if consistency == "stale" else ""
        return self._client.read(message, consistency, address=address)


def _call_on(
    caller: _ThroughNode | _ThroughClient,
    name: str,
    load: Load,
    rng: random.Random,
    journal: Journal,
    ended: Callable[[], bool],
) -> None:
    """Call until the end. Each value is written once; a compare-and-set expects what this caller saw last."""
    count = 0
    seen: dict[str, bytes | None] = {}
    while not ended():
        time.sleep(rng.uniform(0.0, 2.0 * load.pause_seconds))
        count += 1
        epoch = int((time.monotonic() - load.began) / load.epoch_seconds)
        key, value = f"{epoch}/{rng.randrange(load.keys)}", f"{name}/{count}".encode()
        if len(seen) > 4 * load.keys:
            seen.clear()
        input: KeyValueInput
        match rng.choices(("get", "put", "cas", "delete"), (50, 22, 22, 6))[0]:
            case "get":
                input = Get(key)
            case "put":
                input = Put(key, value)
            case "cas":
                input = CompareAndSet(key, seen.get(key), value)
            case _:
                input = Delete(key)
        try:
            with journal.operation(name, input) as call:
                call.output = call_key_value(caller, input)
        except GeraftError:
            continue
        match input:
            case Get():
                seen[key] = call.output
            case Put():
                seen[key] = value
            case CompareAndSet() if call.output:
                seen[key] = value
            case _:
                seen[key] = None


def call_from_within(node: RaftNode, path: Path) -> None:
    """Start the callers within a node's process, as the Load saved at the path says; they end with the process."""
    load = Load(**json.loads(path.read_text()))
    directory = Path(load.directory)
    life = f"{node.id}.{os.getpid()}"
    journal = Journal(directory / f"{life}.jsonl")
    end = directory / END_FILE
    for number in range(load.callers):
        name = f"{life}.{number}"
        rng = random.Random(f"{load.seed} {name}")
        threading.Thread(
            target=_call_on,
            args=(_ThroughNode(node, load, rng), name, load, rng, journal, end.exists),
            name=f"caller {name}",
            daemon=True,
        ).start()


class OutsideCallers:
    """Threads with a Client each. errors: what ended one of them, which nothing should."""

    def __init__(self, addresses: list[str], load: Load) -> None:
        self.journal = Journal(Path(load.directory) / "outside.jsonl")
        self.errors: list[BaseException] = []
        self._ending = threading.Event()
        self._addresses = addresses
        self._load = load
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(load.callers)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        name = f"outside.{number}"
        rng = random.Random(f"{self._load.seed} {name}")
        try:
            exactly_once = number % 2 == 1  # a write of theirs that was applied twice would be seen in the history
            with Client(self._addresses, self._load.timeout_seconds, exactly_once=exactly_once) as client:
                caller = _ThroughClient(client, self._addresses, self._load, rng)
                _call_on(caller, name, self._load, rng, self.journal, self._ending.is_set)
        except BaseException as error:
            self.errors.append(error)

    def end(self) -> None:
        """Make no further call; blocks until those under way have ended."""
        self._ending.set()
        for thread in self._threads:
            thread.join(self._load.timeout_seconds + 10)
