"""Does the same log lead to the same state on every node? assert_deterministic tries what differs between nodes.

The commands are replayed in processes of their own, each with something changed: the seed of Python's hashes (the order
of sets), clock and time zone, random numbers; again in a process that has applied them before; and over snapshots saved
and installed between any two entries, both those the app makes itself (copy) and those made from the log (fold). Every
reply, and the state wherever the app can show it, must be those of the first replay.

Run as a program (python -m geraft.testing.determinism JOB RESULT), it is one of those processes.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geraft.app import MakeSnapshot, RaftApp
from geraft.errors import ConfigError
from geraft.simple import MemoryRepository, SimpleRaftApp, to_raft_app

AppFactory = Callable[[], RaftApp | SimpleRaftApp]
ItemsOf = Callable[[bytes], Mapping[Any, Any]]

CHECKPOINTS_MAX = 200
"""After so many entries at most, spread evenly, state and answers are compared and snapshots restored."""
SHOWN_MAX = 5
"""So many differences are printed."""
RESTORES_ONCE_MAX = 16
"""So many replays at most restore one snapshot and then go on to the end."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Where a replay parted from the first one.

    entry: counted from 1; command: that of the entry. changed: what was changed in this replay. what: "reply", "state",
    "snapshot" (the app raised), or "answer to query 1". key: the first one that differs, if states can be compared by
    key. expected: what the first replay had, actual: what this one had, both ready to print.
    """

    entry: int
    command: bytes
    changed: str
    what: str
    key: Any = None
    expected: str
    actual: str

    def __str__(self) -> str:
        where = "" if self.key is None else f" at key {self.key!r}"
        return (
            f"entry {self.entry} ({_shown(self.command)}), {self.changed}: the {self.what} differs{where}: "
            f"{self.expected} at first, {self.actual} now"
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What check_determinism found, and what it could compare.

    states: how many entries were followed by a comparison of states. copies, folds: how many snapshots of each way were
    installed. note: what could not be tried, and why.
    """

    differences: tuple[Difference, ...]
    commands: int
    states: int
    copies: int
    folds: int
    note: str = ""

    def __str__(self) -> str:
        tried = (
            f"{self.commands} commands, {self.states} states compared, {self.copies} copied and {self.folds} folded "
            "snapshots installed"
        )
        note = f" ({self.note})" if self.note else ""
        if not self.differences:
            return f"deterministic: {tried}{note}"
        lines = [f"  {one}" for one in self.differences[:SHOWN_MAX]]
        if len(self.differences) > SHOWN_MAX:
            lines.append(f"  and {len(self.differences) - SHOWN_MAX} replays more")
        return "\n".join([f"not deterministic: {tried}{note}", *lines])


def assert_deterministic(
    app_factory: AppFactory | str,
    commands: Iterable[bytes],
    *,
    queries: Iterable[bytes] = (),
    items_of: ItemsOf | None = None,
    timeout_seconds: float = 60.0,
) -> Outcome:
    """check_determinism(), but raises AssertionError if any replay differs."""
    outcome = check_determinism(
        app_factory, commands, queries=queries, items_of=items_of, timeout_seconds=timeout_seconds
    )
    if outcome.differences:
        raise AssertionError(str(outcome))
    return outcome


def check_determinism(
    app_factory: AppFactory | str,
    commands: Iterable[bytes],
    *,
    queries: Iterable[bytes] = (),
    items_of: ItemsOf | None = None,
    timeout_seconds: float = 60.0,
) -> Outcome:
    """Replay the commands with all that may differ between nodes, and tell for each replay where it first differs.

    app_factory: makes an app that shares nothing with others (no file, no global); called often, in other processes
    too. So it must be a class or function of a module, or a string "module:name". queries: for process_read, whose
    answers are compared as well. items_of: gives the state by key out of a snapshot, for comparison without regard to
    order; by default that of a KeyValueApp or of a JSON object is known, other snapshots must be equal to the byte.

    Blocks until all is done, a few seconds; each process may take timeout_seconds. Raises ConfigError if the app can't
    be made in another process, TimeoutError if one takes too long.
    """
    log = [bytes(command) for command in commands]
    if not log:
        raise ConfigError("no commands: there is nothing to replay")
    job = {
        "factory": _locate(app_factory),
        "path": [os.path.abspath(entry) for entry in sys.path],
        "commands": _to_text(log),
        "queries": _to_text(map(bytes, queries)),
        "checkpoints": _spread(len(log), CHECKPOINTS_MAX),
        "restores": _spread(len(log) - 1, RESTORES_ONCE_MAX),
    }
    with ThreadPoolExecutor(max_workers=2) as threads:
        answers = list(threads.map(lambda surroundings: _ask(job, surroundings, timeout_seconds), SURROUNDINGS))
    first = answers[0]
    items_of = items_of or (_key_value_items if first["key_value"] else None)
    reference = first["replays"][0]
    # What tells the most comes first: an app that reads the clock differs over a snapshot too.
    replays = [*first["replays"][:2], *(answer["replays"][0] for answer in answers[1:]), *first["replays"][2:]]
    found = (_compare(reference, replay, log, items_of) for replay in replays)
    return Outcome(
        differences=tuple(difference for difference in found if difference),
        commands=len(log),
        states=len(reference["states"]),
        copies=first["copies"],
        folds=first["folds"],
        note=first["note"],
    )


# What differs between processes --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a process is given. The clock is one of ours, so that nothing but what is meant to differ does."""

    changed: str
    hash_seed: int = 0
    clock_start: float = 1_700_000_000.0
    time_zone: str = "UTC"
    random_seed: int = 0
    draws: int = 0
    """How many random numbers somebody else takes between two entries."""


SURROUNDINGS = (
    Surroundings(changed=""),
    Surroundings(changed="with another hash seed", hash_seed=1),
    Surroundings(changed="with yet another hash seed", hash_seed=4242),
    Surroundings(changed="at another time, in another time zone", clock_start=1_801_234_567.89, time_zone="Asia/Tokyo"),
    Surroundings(changed="with other random numbers", random_seed=1, draws=1),
)


def _ask(job: dict[str, Any], surroundings: Surroundings, timeout_seconds: float) -> dict[str, Any]:
    """Run the job in a process with these surroundings."""
    with tempfile.TemporaryDirectory(prefix="geraft-check-") as directory:
        job_path, result_path = Path(directory, "job"), Path(directory, "result")
        job_path.write_text(json.dumps({**job, "surroundings": vars(surroundings)}))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "geraft.testing.determinism", str(job_path), str(result_path)],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(job["path"]),
                    "PYTHONHASHSEED": str(surroundings.hash_seed),
                    "TZ": surroundings.time_zone,
                },
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"replaying the commands took longer than {timeout_seconds} s: give fewer of them, or more time"
            ) from None
        if done.returncode != 0 or not result_path.exists():
            lines = done.stderr.strip().splitlines() or [f"its process ended with exit code {done.returncode}"]
            raise ConfigError(f"the app can't be made, or can't be replayed, in another process: {lines[-1]}")
        answer: dict[str, Any] = json.loads(result_path.read_text())
        return answer


def _locate(app_factory: AppFactory | str) -> dict[str, str]:
    """Where another process finds the factory."""
    if isinstance(app_factory, str):
        module, colon, name = app_factory.partition(":")
        if not colon or not module or not name:
            raise ConfigError(f"{app_factory!r} is not of the form module:name")
        return {"module": module, "name": name, "file": ""}
    module = getattr(app_factory, "__module__", "")
    name = getattr(app_factory, "__qualname__", "")
    if not module or not name or "<" in name:
        raise ConfigError(
            f"{app_factory!r} can't be called in another process: give a class or function of a module, or module:name"
        )
    file = getattr(sys.modules.get(module), "__file__", None)
    return {"module": module, "name": name, "file": os.path.abspath(file) if file else ""}


def _find(factory: Mapping[str, str]) -> AppFactory:
    """The inverse of _locate, in the other process."""
    module = None
    if factory["module"] != "__main__":  # which is another module here
        try:
            module = importlib.import_module(factory["module"])
        except ModuleNotFoundError:
            if not factory["file"]:
                raise
    if module is None:
        spec = importlib.util.spec_from_file_location("geraft_checked_app", factory["file"])
        if spec is None or spec.loader is None:
            raise ConfigError(f"{factory['file'] or '__main__'} can't be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    found: Any = module
    for part in factory["name"].split("."):
        found = getattr(found, part)
    made: AppFactory = found
    return made


class _Clock:
    """A wall clock that starts when told, and moves on by a millisecond whenever it is read."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._readings = 0

    def reset(self) -> None:
        self._readings = 0

    def __call__(self) -> float:
        self._readings += 1
        return self._start + self._readings / 1000

    def install(self) -> None:
        """Be what time and datetime show to modules that are imported from now on."""
        import datetime

        clock = self
        localtime, gmtime, ctime, strftime = time.localtime, time.gmtime, time.ctime, time.strftime

        class SameKind(type):
            """Objects that C code made are instances as well."""

            def __instancecheck__(cls, instance: object) -> bool:
                return isinstance(instance, cls.__mro__[1])

        class OurDatetime(datetime.datetime, metaclass=SameKind):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> Any:
                return cls.fromtimestamp(clock(), tz)

            @classmethod
            def today(cls) -> Any:
                return cls.fromtimestamp(clock())

            @classmethod
            def utcnow(cls) -> Any:
                return cls.fromtimestamp(clock(), datetime.UTC).replace(tzinfo=None)

        class OurDate(datetime.date, metaclass=SameKind):
            @classmethod
            def today(cls) -> Any:
                return cls.fromtimestamp(clock())

        replaced: dict[str, Any] = {
            "time": clock,
            "time_ns": lambda: int(clock() * 1e9),
            "localtime": lambda seconds=None: localtime(clock() if seconds is None else seconds),
            "gmtime": lambda seconds=None: gmtime(clock() if seconds is None else seconds),
            "ctime": lambda seconds=None: ctime(clock() if seconds is None else seconds),
            "strftime": lambda form, moment=None: strftime(form, localtime(clock()) if moment is None else moment),
        }
        for name, function in replaced.items():
            setattr(time, name, function)
        for name, kind in (("datetime", OurDatetime), ("date", OurDate)):
            setattr(datetime, name, kind)


# Replaying, in a process of its own ----------------------------------------------------------------------------------


class _Replica:
    """One app that applies the log, and what it had to say."""

    def __init__(self, factory: AppFactory) -> None:
        made = factory()
        self.simple = made if isinstance(made, SimpleRaftApp) else None
        if isinstance(made, SimpleRaftApp):
            self._repository = MemoryRepository()
            self.app: RaftApp = to_raft_app(made, self._repository)
        elif isinstance(made, RaftApp):
            self.app = made
        else:
            raise ConfigError(f"the factory gave a {type(made).__name__}, neither RaftApp nor SimpleRaftApp")
        self.app.install_snapshot(None)  # as a node does when it starts
        self._copied = 0

    def write(self, command: bytes, entry: int) -> str:
        """The reply as text, or what it raised."""
        try:
            reply, wish = self.app.process_write(command, entry)
            if not isinstance(reply, bytes):
                raise TypeError(f"process_write must give bytes, not {type(reply).__name__}")
        except Exception as error:
            return f"raised {error!r}"
        if wish is MakeSnapshot.COPY:
            self._copied = entry
        return _encode(reply)

    def read(self, query: bytes) -> str:
        try:
            return _encode(self.app.process_read(query))
        except Exception as error:
            return f"raised {error!r}"

    def copy(self, entry: int) -> list[bytes] | None:
        """The snapshot that the app makes itself, which is its state now; None if it made none at this entry."""
        if self.simple is not None:
            self._repository.save(entry, [self.simple.snapshot()])
        elif self._copied != entry:
            return None
        return list(self.app.open_snapshot(entry))

    def install(self, chunks: Iterable[bytes], entry: int) -> None:
        """As if the snapshot had come from another node: cut in other places."""
        snapshot = b"".join(chunks)
        size = len(snapshot) // 3 + 1
        self.app.save_snapshot((snapshot[start : start + size] for start in range(0, len(snapshot), size)), entry)
        self.app.install_snapshot(entry)

    def cannot_fold(self) -> str:
        """Why the app, as it is, can't fold; "" if it can."""
        if self.simple is not None and type(self.simple).fold is SimpleRaftApp.fold:
            try:
                type(self.simple)()
            except TypeError:
                return f"{type(self.simple).__name__} has no fold() of its own and can't be made without arguments"
        return ""


class _Replayer:
    """Replays the log in one process, in several ways."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.commands = _from_text(job["commands"])
        self.queries = _from_text(job["queries"])
        self.checkpoints = set(job["checkpoints"])
        self.restores: list[int] = job["restores"]
        self.surroundings = Surroundings(**job["surroundings"])
        self.copies = self.folds = 0
        self.note = ""
        self._clock = _Clock(self.surroundings.clock_start)
        self._clock.install()
        random.seed(self.surroundings.random_seed)
        self._factory = _find(job["factory"])

    def run(self) -> dict[str, Any]:
        first = self._new()
        replays = [self.plain(self.surroundings.changed)]
        if not self.surroundings.changed:
            replays += [self.plain("once more in the same process"), self.copied_after_each()]
            replays += [self.copied_once(entry) for entry in self.restores]
            replays += self.folded(first)
            if not self.copies:
                self.note = "; ".join(filter(None, (self.note, "the app made no snapshot itself")))
        return {
            "replays": replays,
            "copies": self.copies,
            "folds": self.folds,
            "note": self.note,
            "key_value": any(
                (kind.__module__, kind.__qualname__) == ("geraft.kv.app", "KeyValueApp")
                for kind in type(first.simple).__mro__
            ),
        }

    def _new(self) -> _Replica:
        return _Replica(self._factory)

    @contextmanager
    def _replay(self, changed: str) -> Iterator[dict[str, Any]]:
        """What is taken down within; an exception of the app ends it and is taken down too."""
        self._clock.reset()
        random.seed(self.surroundings.random_seed)
        replay: dict[str, Any] = {"changed": changed, "entry": 1, "replies": {}, "states": {}, "answers": {}}
        try:
            yield replay
        except Exception as error:
            replay["failure"] = f"raised {error!r}"

    def _entries(
        self, replica: _Replica, replay: dict[str, Any], first: int = 1, last: int | None = None
    ) -> Iterator[int]:
        """Apply the log, or [first, last] of it, to the replica; stop after each entry."""
        for entry in range(first, (last or len(self.commands)) + 1):
            for _ in range(self.surroundings.draws):
                random.random()
            replay["entry"] = entry
            replay["replies"][entry] = replica.write(self.commands[entry - 1], entry)
            if replay["replies"][entry].startswith("raised"):
                return
            yield entry

    def _look(self, replica: _Replica, entry: int, replay: dict[str, Any]) -> None:
        """Take down the state, if the app can show it now, and the answers to the queries."""
        copy = replica.copy(entry)
        if copy is not None:
            replay["states"][entry] = _encode(b"".join(copy))
        self._ask(replica, entry, replay)

    def _ask(self, replica: _Replica, entry: int, replay: dict[str, Any]) -> None:
        replay["answers"][entry] = [replica.read(query) for query in self.queries]

    def _installed(self, chunks: Iterable[bytes], entry: int) -> _Replica:
        replica = self._new()
        replica.install(chunks, entry)
        return replica

    def plain(self, changed: str) -> dict[str, Any]:
        with self._replay(changed) as replay:
            replica = self._new()
            for entry in self._entries(replica, replay):
                if entry in self.checkpoints:
                    self._look(replica, entry, replay)
        return replay

    def copied_after_each(self) -> dict[str, Any]:
        with self._replay("with each snapshot installed in a new app") as replay:
            replica, before = self._new(), 0
            for checkpoint in sorted(self.checkpoints):
                if max(self._entries(replica, replay, before + 1, checkpoint), default=0) < checkpoint:
                    break
                before = checkpoint
                copy = replica.copy(checkpoint)
                if copy is not None:
                    replica = self._installed(copy, checkpoint)
                    self.copies += 1
                    self._look(replica, checkpoint, replay)
        return replay

    def copied_once(self, restored: int) -> dict[str, Any]:
        with self._replay(f"with the snapshot of entry {restored} installed in a new app") as replay:
            replica = self._new()
            copy = None
            for entry in self._entries(replica, replay):
                if entry == restored:
                    copy = replica.copy(entry)
                    break
            if copy is not None:
                replica = self._installed(copy, restored)
                self.copies += 1
                self._look(replica, restored, replay)
                for entry in self._entries(replica, replay, restored + 1):
                    if entry in self.checkpoints:
                        self._look(replica, entry, replay)
        return replay

    def folded(self, first: _Replica) -> list[dict[str, Any]]:
        """Each snapshot folded from the one before and the log since; and the last one from nothing but the log."""
        self.note = first.cannot_fold()
        if self.note:
            return []
        try:
            self._new().app.fold_snapshot(None, self.commands[:1], 1)
        except NotImplementedError as error:
            self.note = f"the app does not fold: {error!r}"
            return []
        except Exception:
            pass  # shows again below
        with self._replay("with each folded snapshot installed in a new app") as each:
            replica, folder, before = self._new(), self._new(), 0
            for entry in sorted(self.checkpoints):
                if max(self._entries(replica, each, before + 1, entry), default=0) < entry:
                    break
                folder.app.fold_snapshot(before or None, self.commands[before:entry], entry)
                replica = self._installed(self._folded(folder, entry, each), entry)
                folder.app.delete_snapshot(before)
                self._ask(replica, entry, each)
                before = entry
        last = len(self.commands)
        with self._replay("with the whole log folded into one snapshot") as whole:
            whole["entry"] = last
            folder = self._new()
            folder.app.fold_snapshot(None, self.commands, last)
            self._ask(self._installed(self._folded(folder, last, whole), last), last, whole)
        return [each, whole]

    def _folded(self, folder: _Replica, entry: int, replay: dict[str, Any]) -> list[bytes]:
        chunks = list(folder.app.open_snapshot(entry))
        replay["states"][entry] = _encode(b"".join(chunks))
        self.folds += 1
        return chunks


# Comparing -----------------------------------------------------------------------------------------------------------


def _compare(
    reference: dict[str, Any], replay: dict[str, Any], log: Sequence[bytes], items_of: ItemsOf | None
) -> Difference | None:
    for entry, command in enumerate(log, start=1):
        found = _compare_entry(reference, replay, str(entry), items_of)
        if found is not None:
            what, key, expected, actual = found
            return Difference(
                entry=entry,
                command=command,
                changed=replay["changed"] or "in the first replay",
                what=what,
                key=key,
                expected=expected,
                actual=actual,
            )
    return None


def _compare_entry(
    reference: dict[str, Any], replay: dict[str, Any], entry: str, items_of: ItemsOf | None
) -> tuple[str, Any, str, str] | None:
    """(what, key, expected, actual) of the first thing at the entry that is not as it was."""
    expected, actual = reference["replies"].get(entry), replay["replies"].get(entry)
    if actual is not None and expected is not None:
        if actual.startswith("raised") and replay is reference:
            return "reply", None, "process_write must answer", f"it {actual}"
        if actual != expected:
            return "reply", None, _shown_text(expected), _shown_text(actual)
    expected, actual = reference["states"].get(entry), replay["states"].get(entry)
    if actual is not None and expected is not None and actual != expected:
        found = compare_states(_decode(expected), _decode(actual), items_of)
        if found is not None:
            return ("state", *found)
    if "failure" in replay and replay["entry"] == int(entry):
        return "snapshot", None, "it must be made and installed", f"the app {replay['failure']}"
    pairs = zip(reference["answers"].get(entry, ()), replay["answers"].get(entry, ()), strict=False)
    for number, (expected, actual) in enumerate(pairs, start=1):
        if actual != expected:
            return f"answer to query {number}", None, _shown_text(expected), _shown_text(actual)
    return None


def compare_states(expected: bytes, actual: bytes, items_of: ItemsOf | None) -> tuple[Any, str, str] | None:
    """(key, expected, actual) of the first difference of two snapshots, None if they are alike by key."""
    by_key = [_items(snapshot, items_of) for snapshot in (expected, actual)]
    if by_key[0] is None or by_key[1] is None:
        offset = next(
            (place for place, (one, other) in enumerate(zip(expected, actual, strict=False)) if one != other),
            min(len(expected), len(actual)),
        )
        start = max(0, offset - 10)
        ends = [_shown(snapshot[start : offset + 30]) for snapshot in (expected, actual)]
        return None, f"{ends[0]} (from byte {start}, different from byte {offset})", ends[1]
    for key in sorted({*by_key[0], *by_key[1]}, key=repr):
        one, other = (_shown(items[key]) if key in items else "missing" for items in by_key if items is not None)
        if one != other:
            return key, one, other
    return None


def _items(snapshot: bytes, items_of: ItemsOf | None) -> Mapping[Any, Any] | None:
    if items_of is not None:
        return items_of(snapshot)
    try:
        value = json.loads(snapshot)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _key_value_items(snapshot: bytes) -> Mapping[Any, Any]:
    from geraft.pb import kv_pb2 as pb

    return {pair.key: pair.value for pair in pb.Snapshot.FromString(snapshot).pairs}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:150]}... ({len(text)} characters)"


def _shown_text(text: str) -> str:
    return text if text.startswith("raised") else _shown(_decode(text))


def _encode(value: bytes) -> str:
    return "=" + base64.b64encode(value).decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text[1:])


def _to_text(values: Iterable[bytes]) -> list[str]:
    return [_encode(value) for value in values]


def _from_text(texts: Iterable[str]) -> list[bytes]:
    return [_decode(text) for text in texts]


def _spread(count: int, at_most: int) -> list[int]:
    """Numbers from 1 to count, all of them or as many as allowed, the last one included."""
    if count <= at_most:
        return list(range(1, count + 1))
    return sorted({count - count * step // at_most for step in range(at_most)})


def _main(job_path: str, result_path: str) -> None:
    result = _Replayer(json.loads(Path(job_path).read_text())).run()
    Path(result_path).write_text(json.dumps(result))


if __name__ == "__main__":
    _main(*sys.argv[1:])
