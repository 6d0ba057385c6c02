"""What callers saw, on disk: a journal per process while it runs, and one history of all of them at the end."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gevent import monkey

from geraft.errors import NothingHappened, Rejected
from geraft.testing.linearizability import Call, Operation
from geraft.testing.models import CompareAndSet, Delete, Get, KeyValueInput, Put

_native_lock = monkey.get_original("_thread", "allocate_lock")

_FORMAT = "geraft chaos history 1"


class Journal:
    """Writes down calls as they begin and end, before and after they are made: a SIGKILL leaves those unknown that were
    under way. For any thread; the clock is the machine's monotonic one, so journals of several processes go together.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = _native_lock()
        self._count = 0
        self.acknowledged = 0
        self.unknown = 0
        self.refused = 0
        self.written_at = time.monotonic_ns()
        """When a write was acknowledged last; at first, when the journal began."""

    @contextmanager
    def operation(self, client: str, input: KeyValueInput) -> Iterator[Call]:
        """Record what is done within as one call, as linearizability.Recorder does."""
        with self._lock:
            self._count += 1
            number = self._count
        call = Call(client, input, time.monotonic_ns())
        self._write(call=number, client=client, at=call.called, input=_encode_input(input))
        ended: dict[str, Any] = {}
        try:
            yield call
            ended = {"output": _encode_output(call.output)}
        except (NothingHappened, Rejected) as error:
            ended = {"refused": type(error).__name__, "said": str(error)}
            raise
        except BaseException as error:
            ended = {"unknown": type(error).__name__, "said": str(error)}
            raise
        finally:
            at = time.monotonic_ns()
            self._write(end=number, at=at, **ended)
            with self._lock:
                self.acknowledged += "output" in ended
                self.refused += "refused" in ended
                self.unknown += "unknown" in ended
                if "output" in ended and not isinstance(input, Get):
                    self.written_at = at

    def close(self) -> None:
        os.close(self._file)

    def _write(self, **record: Any) -> None:
        os.write(self._file, json.dumps(record).encode() + b"\n")


@dataclass(kw_only=True)
class Seen:
    """What callers saw. refused, unknown: how many calls ended so, by the error; `lost`: under way at a SIGKILL."""

    operations: list[Operation] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    def add(self, other: Seen) -> None:
        self.operations += other.operations
        self.refused += other.refused
        self.unknown += other.unknown


def read_journal(path: Path) -> Seen:
    """The calls of a journal, also of a process that was killed."""
    seen = Seen()
    calls: dict[int, dict[str, Any]] = {}

    def add(call: dict[str, Any], returned: int | None, output: Any) -> None:
        seen.operations.append(
            Operation(
                client=call["client"],
                called=call["at"],
                returned=returned,
                input=_decode_input(call["input"]),
                output=_decode_output(output),
            )
        )

    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break  # the process was killed in the middle of it
            record = json.loads(line)
            if "call" in record:
                calls[record["call"]] = record
            elif "output" in record:
                add(calls.pop(record["end"]), record["at"], record["output"])
            elif "refused" in record:
                del calls[record["end"]]
                seen.refused[record["refused"]] += 1
            else:
                add(calls.pop(record["end"]), None, None)
                seen.unknown[record.get("unknown", "lost")] += 1
    for call in calls.values():
        add(call, None, None)
        seen.unknown["lost"] += 1
    return seen


def write_history(path: Path, operations: Iterable[Operation]) -> None:
    """All calls in the order of their starts, one a line, for read_history."""
    with path.open("w") as file:
        print(json.dumps({"format": _FORMAT}), file=file)
        for operation in sorted(operations, key=lambda operation: operation.called):
            record = {
                "client": operation.client,
                "called": operation.called,
                "returned": operation.returned,
                "input": _encode_input(operation.input),
                "output": _encode_output(operation.output),
            }
            print(json.dumps(record), file=file)


def read_history(path: Path) -> list[Operation]:
    """What write_history wrote. Raises ValueError if it is something else."""
    with path.open() as file:
        try:
            if json.loads(next(file, "")).get("format") != _FORMAT:
                raise ValueError("it has another format")
            return [
                Operation(
                    client=record["client"],
                    called=record["called"],
                    returned=record["returned"],
                    input=_decode_input(record["input"]),
                    output=_decode_output(record["output"]),
                )
                for record in map(json.loads, file)
            ]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is no history of geraft chaos: {error}") from None


def _encode_input(input: KeyValueInput) -> list[str | None]:
    match input:
        case Get():
            return ["get", input.key]
        case Put():
            return ["put", input.key, input.value.decode()]
        case Delete():
            return ["delete", input.key]
        case CompareAndSet():
            return ["cas", input.key, None if input.expected is None else input.expected.decode(), input.value.decode()]


def _decode_input(record: list[Any]) -> KeyValueInput:
    match record:
        case ["get", key]:
            return Get(key)
        case ["put", key, value]:
            return Put(key, value.encode())
        case ["delete", key]:
            return Delete(key)
        case ["cas", key, expected, value]:
            return CompareAndSet(key, None if expected is None else expected.encode(), value.encode())
    raise ValueError(f"{record!r} is no call")


def _encode_output(output: Any) -> Any:
    return output.decode() if isinstance(output, bytes) else output


def _decode_output(output: Any) -> Any:
    return output.encode() if isinstance(output, str) else output
