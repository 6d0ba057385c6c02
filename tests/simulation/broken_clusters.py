"""Simulate clusters whose code is broken in one place: python broken_clusters.py FILE, which holds a JSON list of
[file below geraft/, old text, new text, first seed, last seed, nodes, step]. A step of 5 from 4 on plays those seeds in
which members come and go.

Prints a JSON line for each, in order: [the first seed that found it or null, what it found, CPU seconds]. Each runs in
a fork that imports geraft with the text replaced, so that none costs the start of an interpreter.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import blinker  # noqa: F401  (what geraft imports itself: loaded once, for every fork)
import gevent.event  # noqa: F401
import google.protobuf.message  # noqa: F401
import grpc  # noqa: F401
import tenacity  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent.parent


class BrokenModule(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Gives one module of geraft with a piece of its text replaced, which must occur once."""

    def __init__(self, file: str, old: str, new: str) -> None:
        self.path = ROOT / "geraft" / file
        self.name = "geraft." + file.removesuffix(".py").replace("/", ".")
        source = self.path.read_text()
        assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {file}"
        self.source = source.replace(old, new)

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)  # type: ignore[arg-type]

    def get_source(self, name: str) -> str:
        return self.source

    def get_code(self, name: str) -> CodeType:
        return compile(self.source, str(self.path), "exec", dont_inherit=True)


def first_seed(file: str, old: str, new: str, first: int, last: int, nodes: int, step: int) -> tuple[int | None, str]:
    """The first seed that finds the mistake."""
    sys.path.insert(0, str(ROOT))
    sys.meta_path.insert(0, BrokenModule(file, old, new))
    from geraft.testing.simulation import Simulation, SimulationFailed

    for seed in range(first, last + 1, step):
        try:
            Simulation(seed, nodes=nodes).run()
        except SimulationFailed as failure:
            return seed, failure.reason
    return None, ""


def in_a_fork(job: list[Any]) -> list[Any]:
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result = first_seed(*job)
        except BaseException as error:
            result = (None, f"{type(error).__name__}: {error}")
        with os.fdopen(writes, "w") as pipe:
            json.dump([*result, round(time.process_time(), 2)], pipe)
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        result = json.load(pipe)
    os.waitpid(child, 0)
    return result  # type: ignore[no-any-return]


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        print(json.dumps(in_a_fork(job)), flush=True)
