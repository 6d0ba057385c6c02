"""Processes that host a node beside work of their own (programs/host.py), and programs that end by themselves."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from geraft import errors
from geraft.client import Client
from geraft.errors import GeraftError
from geraft.testing.cluster import free_addresses, wait_until

HERE = Path(__file__).resolve().parent
ANSWER_SECONDS = 60.0


def start_program(name: str, *arguments: object, stderr: Any = None) -> subprocess.Popen[str]:
    """programs/NAME, with pipes to its stdin and from its stdout."""
    return subprocess.Popen(
        [sys.executable, str(HERE / "programs" / name), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )


def line_of(process: subprocess.Popen[str], timeout_seconds: float = ANSWER_SECONDS) -> str:
    """The next line that it prints. It must not print more than one before it is asked for more."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], timeout_seconds)
    assert ready, f"no answer within {timeout_seconds} s"
    return process.stdout.readline()


def end_program(process: subprocess.Popen[str]) -> None:
    """End it if it still runs; again is no error."""
    process.kill()
    process.wait(30)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


class Hosts:
    """A cluster of host processes. patched: the ids of those that are monkey-patched."""

    def __init__(self, directory: Path, size: int, patched: set[str]) -> None:
        self.directory = directory
        self.members = dict(zip([f"n{n}" for n in range(1, size + 1)], free_addresses(size), strict=True))
        self._patched = patched
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._observer = Client(list(self.members.values()))

    def __enter__(self) -> Self:
        try:
            self.start(*self.members)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *nodes: str) -> None:
        for node in nodes:
            arguments = ["patched"] if node in self._patched else []
            arguments += [node, str(self.directory / node), *(f"{id}={at}" for id, at in self.members.items())]
            with self.log(node).open("a") as log:
                self._processes[node] = start_program("host.py", *arguments, stderr=log)
        for node in nodes:
            assert self.answer(node) == "ready", self.log(node).read_text()

    def stop(self) -> None:
        for process in self._processes.values():
            end_program(process)
        self._observer.close()

    def log(self, node: str) -> Path:
        return self.directory / f"{node}.log"

    def tell(self, node: str, *words: object) -> None:
        """Give it a line; answer() gives what it says to it, or raises the GeraftError that came of it."""
        stdin = self._processes[node].stdin
        assert stdin is not None
        stdin.write(" ".join(map(str, words)) + "\n")
        stdin.flush()

    def answer(self, node: str, timeout_seconds: float = ANSWER_SECONDS) -> Any:
        line = line_of(self._processes[node], timeout_seconds)
        assert line, f"{node} ended: {self.log(node).read_text()[-2000:]}"
        said = json.loads(line)
        if isinstance(said, dict) and "error" in said:
            raise getattr(errors, said["error"])(f"{node}: {said['message']}")
        return said

    def answers(self, node: str) -> bool:
        """Whether an answer waits."""
        return bool(select.select([self._processes[node].stdout], [], [], 0)[0])

    def ask(self, node: str, *words: object) -> Any:
        self.tell(node, *words)
        return self.answer(node)

    def seconds_to_end(self, node: str) -> float:
        """Tell the main program to end without stopping its node, and give how long the process took to."""
        assert self.ask(node, "end") == "ending"
        began = time.monotonic()
        assert self._processes[node].wait(60) == 0, self.log(node).read_text()[-2000:]
        took = time.monotonic() - began
        end_program(self._processes[node])
        return took

    def views(self) -> dict[str, tuple[int, str]]:
        """Term and leader as each node that answers sees them."""
        seen = {}
        for node, address in self.members.items():
            try:
                status = self._observer.status(address, 5.0)
            except GeraftError:
                continue
            seen[node] = (status.term, status.leader_id)
        return seen

    def settle(self) -> tuple[int, str]:
        """Block until all agree on a leader; gives its term and id."""

        def agreed() -> tuple[int, str] | None:
            views = self.views()
            first = views.get("n1", (0, ""))
            return first if len(views) == len(self.members) and set(views.values()) == {first} and first[1] else None

        found = wait_until("all agree on a leader", agreed)
        assert found is not None
        return found

    def let_lead(self, node: str) -> int:
        """Hand leadership to the node, again if that fails; gives its term."""

        def leads() -> bool:
            _, leader = self.settle()
            if leader != node:
                self.ask(leader, "transfer", node)
            return self.settle()[1] == node

        wait_until(f"{node} leads", leads, 60.0)
        return self.settle()[0]
