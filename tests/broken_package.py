"""geraft with one piece of its text replaced, in a fork: what finds the mistake can be asked without the start of an
interpreter, and nothing of it stays behind.

python broken_package.py FILE: a JSON list of [file below geraft/, old text, new text, test ids]. Prints a JSON line for
each, in order: the names of the tests that failed, or what went wrong else.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import blinker  # noqa: F401  (what geraft imports itself: loaded once, for every fork)
import gevent.event  # noqa: F401
import google.protobuf.message  # noqa: F401
import grpc  # noqa: F401
import tenacity  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
MEMORY_BYTES_MAX = 4 << 30


class Mutation(NamedTuple):
    """A way to break a file of geraft: `old`, which occurs once in it, gives way to `new`. tests: who must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


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


def break_in_one_place(file: str, old: str, new: str) -> None:
    """From now on whoever imports geraft here gets it so.

    What was imported of it before and can know the file is forgotten: all but the generated code, or for a file of
    runtime or transport those two, and what tests with them. The package itself, if forgotten, comes back bare: of all
    that it offers only what a test wants is imported again.
    """
    sys.path.insert(0, str(ROOT))
    sys.meta_path.insert(0, BrokenModule(file, old, new))
    around = ("geraft.runtime", "geraft.transport", "geraft.testing")
    forgotten = around if f"geraft.{file.split('/')[0]}" in around else ("geraft",)
    for name in [name for name in sys.modules if f"{name}.".startswith(tuple(f"{each}." for each in forgotten))]:
        if not name.startswith("geraft.pb"):
            del sys.modules[name]
    if "geraft" in forgotten:
        bare = sys.modules["geraft"] = ModuleType("geraft")
        bare.__path__ = [str(ROOT / "geraft")]


def in_a_fork(run: Callable[..., Any], *args: Any) -> Any:
    """What run(*args) gives there, as JSON has it; or the sentence of what it raises, as a string."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        # Something that is broken may want all the memory there is.
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
        try:
            result = run(*args)
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        with os.fdopen(writes, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        result = json.load(pipe)
    os.waitpid(child, 0)
    return result


class _Failed:
    """Of a run of pytest: the names of the tests that failed."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.failed:
            self.names.add(report.nodeid.rpartition("::")[2].partition("[")[0])


def failed_tests(file: str, old: str, new: str, tests: list[str]) -> list[str]:
    import pytest

    break_in_one_place(file, old, new)
    failed, said = _Failed(), io.StringIO()
    options = ["-q", "--noconftest", "--assert=plain", "--tb=native", "-p", "no:cacheprovider", "-c", os.devnull]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main([*options, *tests], plugins=[failed])
    assert code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), said.getvalue()
    return sorted(failed.names)


def noticed_by(mutations: Sequence[Mutation], room: str, tests: Path, directory: Path) -> dict[str, set[str] | str]:
    """For each by its name: which of its tests failed, or what went wrong else. room: where its file is, below geraft/.

    All in one process of its own, which has only imported what they need and forks. directory: for what it is told.
    """
    jobs = [
        [f"{room}{mutation.file}", mutation.old, mutation.new, [f"{tests}::{name}" for name in mutation.tests]]
        for mutation in mutations
    ]
    file = directory / "jobs.json"
    file.write_text(json.dumps(jobs))
    done = subprocess.run([sys.executable, __file__, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        mutation.name: result if isinstance(result, str) else set(result)
        for mutation, result in zip(mutations, results, strict=True)
    }


if __name__ == "__main__":
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.path.insert(0, str(ROOT))
    import pytest

    import geraft  # noqa: F401  (most of it is loaded once)

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pytest.main(["--version"])  # loads what every run of pytest needs
    for job in json.loads(Path(sys.argv[1]).read_text()):
        print(json.dumps(in_a_fork(failed_tests, *job)), flush=True)
