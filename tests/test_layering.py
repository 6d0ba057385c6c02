"""Imports point one way: node -> runtime -> core. Reads every import in geraft/ and fails when an arrow turns round."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

CORE_TYPES = {"core.entries", "core.membership", "core.messages", "core.snapshots"}
PLAIN = {"errors", "config", "records", "pb"}

# Which parts of geraft each part may import; the longest name that fits a module counts. "*" is everything, "" are the
# public names that geraft itself offers.
MAY_IMPORT: dict[str, set[str]] = {
    "": {"*"},  # geraft/__init__.py re-exports
    "errors": set(),
    "app": set(),
    "pb": {"pb"},
    "signals": set(),
    "plugins": {"signals"},
    "per_process": set(),
    "config": {"errors"},
    "records": {"errors", "pb", *CORE_TYPES},
    "sessions": {"errors", "pb", "records", *CORE_TYPES},
    "core": {"core"},
    "storage": {"storage", *CORE_TYPES, *PLAIN},
    "runtime.hub": {"errors", "config"},  # below transport, so it knows nothing of it
    "runtime.wishes": {"runtime.hub", *CORE_TYPES},  # so does this
    "runtime.pool": {"runtime.hub"},
    "transport": {"transport", "runtime.hub", "runtime.pool", "runtime.wishes", *CORE_TYPES, *PLAIN},
    "runtime": {"runtime", "core", "storage.base", "transport", "app", "sessions", "signals", *PLAIN},
    "simple": {"app", "errors"},
    "client": {"client", "transport", "runtime.hub", "runtime.status", "runtime.wishes", *CORE_TYPES, *PLAIN},
    "recovery": {"storage.base", "core.entries", "core.membership", "errors"},
    "node": {"node", "runtime", "core", "storage", "transport", "app", "signals", "client", *PLAIN},
    "host": {"node", "runtime.hub", "runtime.pool", "runtime.shared", "storage.base", "transport", "app", *PLAIN},
    "service": {"node", "runtime.hub", "storage.base", "transport", "app", *PLAIN},
    "kv": {"kv", "app", "simple", "errors", "pb"},
    "cli": {"*"},
    "__main__": {"cli"},
    "testing": {
        "",
        "testing",
        "kv",
        "core",
        "storage",
        "app",
        "simple",
        "runtime",
        "sessions",
        "signals",
        "node",
        "client",
        "transport",
        *PLAIN,
    },
}

# The core gets time, chance and everything else from outside.
CORE_MUST_NOT_KNOW = {
    "gevent", "grpc", "google", "sqlite3", "sqlite_utils", "time", "datetime", "threading", "socket", "os", "asyncio",
    "subprocess", "select", "secrets", "uuid",
}  # fmt: skip


def imports_of(source: str, module: str, known: set[str]) -> Iterator[tuple[str, bool]]:
    """(imported module, only for type checking) of every import; `from package import module` names the module."""
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: -node.level]
                base = ".".join([*package, base] if base else package)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in known else base, id(node) in typing_only


def longest_rule(part: str) -> str:
    fitting = [rule for rule in MAY_IMPORT if rule == "" or part == rule or part.startswith(rule + ".")]
    return max(fitting, key=len) if part else ""


def complaints(source: str, module: str, known: set[str]) -> list[str]:
    """What is wrong with the imports of geraft module `module`; known: all module names there are."""
    part = module.removeprefix("geraft").removeprefix(".")
    rule = longest_rule(part)
    if part and not rule:
        return [f"{module}: tests/test_layering.py has no rule for it: add one"]
    wrong = []
    for imported, typing_only in imports_of(source, module, known):
        if imported.split(".")[0] == "geraft":
            target = imported.removeprefix("geraft").removeprefix(".")
            allowed = MAY_IMPORT[rule]
            if "*" not in allowed and not any(target == one or target.startswith(one + ".") for one in allowed):
                wrong.append(f"{module} must not import {imported}")
        elif rule == "core":
            top = imported.split(".")[0]
            if top in CORE_MUST_NOT_KNOW or (top == "random" and not typing_only):
                wrong.append(f"{module} must not import {imported}: the core is pure")
    return wrong


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "geraft").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_imports_point_one_way() -> None:
    known = modules()
    assert {"geraft.core.raft", "geraft.runtime.hub", "geraft.storage.base"} <= set(known)
    wrong = [line for module, path in known.items() for line in complaints(path.read_text(), module, set(known))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("geraft.core.raft", "from geraft.runtime.hub import Inbox"),
        ("geraft.core.raft", "from geraft import records"),
        ("geraft.core.raft", "import random"),
        ("geraft.core.raft", "def now():\n    import time\n    return time.time()"),
        ("geraft.core.raft", "from ..storage import base"),
        ("geraft.storage.sqlite", "from geraft.core import raft"),
        ("geraft.storage.sqlite", "from geraft.runtime.hub import start_native_thread"),
        ("geraft.transport.server", "from geraft.runtime import node_loop"),
        ("geraft.runtime.hub", "from geraft.transport import codec"),
        ("geraft.runtime.node_loop", "import geraft.node"),
        ("geraft.kv.app", "from geraft import RaftNode"),
        ("geraft.client", "from geraft.cli import main"),
        ("geraft.unheard_of", "import os"),
    ],
)
def test_an_import_that_points_back_is_found(module: str, source: str) -> None:
    known = {"geraft.records", "geraft.core.raft", "geraft.storage.base", "geraft.runtime.node_loop", "geraft.node"}
    assert complaints(source, module, known)


def test_what_is_allowed_is_not_complained_about() -> None:
    source = (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nfrom geraft.core import quorum\n"
        "if TYPE_CHECKING:\n    from random import Random\n"
    )
    assert complaints(source, "geraft.core.raft", {"geraft.core.quorum"}) == []


def test_no_two_modules_of_tests_share_a_name() -> None:
    """Their folders are no packages, so pytest imports each by its bare name, and stops if two are alike."""
    tests = [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("plugins/*/tests/**/test_*.py")]
    names = Counter(path.name for path in tests)
    assert len(tests) > 50
    assert [name for name, count in names.items() if count > 1] == []
