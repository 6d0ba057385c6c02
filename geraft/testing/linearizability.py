"""Is what callers saw linearizable: does each call look as if it took effect at one moment between its start and end?

    recorder = Recorder()
    ...                                              # in many threads:
    with recorder.operation("caller 1", Put("a", b"1")) as call:
        call.output = call_key_value(client, call.input)
    assert_linearizable(recorder.history(), KeyValue())

Method: the search of Wing and Gong ("Testing and verifying concurrent objects", 1993) with the cache of Lowe ("Testing
for linearizability", 2017): an order of the calls is built one by one, and no pair of (calls ordered so far, state) is
tried twice. Keys that don't depend on each other are checked one by one (locality: Herlihy and Wing, 1990).
geraft.testing.models has models, the programs that say what a call would answer if it were alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol

from gevent import monkey

from geraft.errors import NothingHappened, Rejected

# Callers may be threads and greenlets of many hubs, in a patched process too; nothing waits while holding it.
_native_lock = monkey.get_original("_thread", "allocate_lock")


class Model(Protocol):
    """What a system of one caller would do. States must be hashable, and may never be changed in place."""

    def initial(self, key: Hashable) -> Hashable:
        """The state before the first operation on key."""

    def step(self, state: Any, input: Any) -> tuple[Hashable, Any]:
        """The state after the operation, and what it answers; depends on nothing but its arguments."""

    def key_of(self, input: Any) -> Hashable:
        """What the operation is about. Operations of two keys must not depend on each other; None if all do."""

    def is_read(self, input: Any) -> bool:
        """Whether the operation changes no state whatsoever; False is always right, and slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call as its caller saw it.

    called, returned: moments of one clock, in any unit. returned None: the outcome is unknown, so the call may have
    taken effect at any time after its start, or may yet, or never will; output says nothing then. Calls that are known
    not to have happened don't belong into a history.
    """

    client: str
    called: float
    returned: float | None
    input: Any
    output: Any = None

    def __str__(self) -> str:
        return f"{self.input} -> {'?' if self.returned is None else repr(self.output)}"


class Verdict(Enum):
    """What a check came to."""

    OK = "ok"
    ILLEGAL = "illegal"
    UNKNOWN = "unknown"
    """The limit was reached first."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What check() found.

    part: if illegal, the few operations that show it, in the order of their calls; all are about `key`. No order of
    them explains their answers, and none of those left out that were called before the failing one was answered could
    change that, whenever it took effect. failing: the one of them after which no order was left. configurations: how
    many pairs of (operations ordered, state) were tried.
    """

    verdict: Verdict
    operations: int
    key: Hashable = None
    part: tuple[Operation, ...] = ()
    failing: Operation | None = None
    configurations: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        about = f"{self.operations} operations, {self.configurations} configurations tried, {self.seconds:.1f} s"
        match self.verdict:
            case Verdict.OK:
                return f"linearizable ({about})"
            case Verdict.UNKNOWN:
                return f"undecided: the limit was reached first, at key {self.key!r} ({about})"
            case Verdict.ILLEGAL:
                where = "" if self.key is None else f" of key {self.key!r}"
                return (
                    f"not linearizable ({about})\nno order of these operations{where} explains what they answered:\n"
                    + picture(self.part, self.failing)
                )


CONFIGURATIONS_MAX = 2_000_000
"""How many configurations of one key are remembered, about 200 bytes each, before the verdict is "unknown"."""
SHRINK_SECONDS = 10.0
"""What making an illegal history small may take, beside the time limit."""
SHRINK_CONFIGURATIONS_MAX = 20_000
"""An operation stays in if it takes more to find out whether it may be left out."""

CHAIN_STATES_MAX = 2_000
"""Of one key: how many are looked at for a chain of operations that leads to an answer."""


def check(history: Iterable[Operation], model: Model, *, time_limit_seconds: float = 60.0) -> Report:
    """Say whether some order of the operations, each at a moment between its call and its return, explains all answers.

    A return and a call at the same moment are taken as overlapping. Blocks for at most about time_limit_seconds, and in
    addition SHRINK_SECONDS if the history is illegal.
    """
    started = time.monotonic()
    deadline = started + time_limit_seconds
    parts: dict[Hashable, list[Operation]] = {}
    for operation in history:
        if operation.returned is not None and operation.returned < operation.called:
            raise ValueError(f"{operation} returned before it was called")
        parts.setdefault(model.key_of(operation.input), []).append(operation)
    operations = sum(map(len, parts.values()))
    tried = 0
    undecided: list[Hashable] = []
    for key, part in sorted(parts.items(), key=lambda item: len(item[1])):  # the easy ones are decided in any case
        part.sort(key=lambda operation: operation.called)
        search = _Search(part, model, model.initial(key), deadline, CONFIGURATIONS_MAX)
        verdict = search.run()
        tried += len(search.seen)
        if verdict is Verdict.UNKNOWN:
            undecided.append(key)
        elif verdict is Verdict.ILLEGAL:
            small, failing = _Shrinker(part, search.furthest, model, model.initial(key)).run()
            return Report(
                verdict=verdict,
                operations=operations,
                key=key,
                part=tuple(small),
                failing=failing,
                configurations=tried,
                seconds=time.monotonic() - started,
            )
    return Report(
        verdict=Verdict.UNKNOWN if undecided else Verdict.OK,
        operations=operations,
        key=undecided[0] if undecided else None,
        configurations=tried,
        seconds=time.monotonic() - started,
    )


def assert_linearizable(history: Iterable[Operation], model: Model, *, time_limit_seconds: float = 60.0) -> Report:
    """check(), but raises AssertionError with a picture unless the history is linearizable."""
    report = check(history, model, time_limit_seconds=time_limit_seconds)
    if report.verdict is not Verdict.OK:
        raise AssertionError(str(report))
    return report


# The search ----------------------------------------------------------------------------------------------------------


class _Search:
    """Looks for an order of the operations, which are sorted by their calls.

    The events (call or return) of operations that are not yet in the order form a linked list, sorted by time; those
    before its first return are the operations that may come next. Two rules keep the search small. A read that may come
    next and answers as it did is put next at once: whatever order there is, it can be moved to the front of it. And an
    operation of unknown outcome is tried only after all others, only if it changes something, and of several equal ones
    the earliest only.
    """

    def __init__(
        self, operations: Sequence[Operation], model: Model, state: Hashable, deadline: float, configurations_max: int
    ) -> None:
        self.operations = operations
        self.seen: set[tuple[int, Hashable]] = set()
        self.final_state: Hashable = None
        """If there is an order: the state after it."""
        self.furthest = -1
        """The operation whose return no order got past, after the latest moment that any order got to."""
        self._step = model.step
        self._state = state
        self._deadline = deadline
        self._configurations_max = configurations_max
        self._known = [operation.returned is not None for operation in operations]
        events: list[tuple[float, int, int]] = []
        for number, operation in enumerate(operations):
            if operation.returned is not None:
                events += [(operation.called, 0, number), (operation.returned, 1, number)]
        events.sort()  # calls before returns of the same moment
        # Events 1 to count; 0 is the head of the list and count + 1 its end.
        count = len(events)
        self._end = count + 1
        self._next = list(range(1, count + 3))
        self._previous = list(range(-1, count + 1))
        self._operation_of = [-1, *(number for _, _, number in events), -1]
        self._is_return = [False, *(bool(kind) for _, kind, _ in events), False]
        self._call_event = [0] * len(operations)
        self._return_event = [0] * len(operations)
        for position, (_, kind, number) in enumerate(events, start=1):
            (self._return_event if kind else self._call_event)[number] = position
        self._is_read = [model.is_read(operation.input) for operation in operations]
        self._unknown = [number for number, known in enumerate(self._known) if not known and not self._is_read[number]]
        self._twin = self._find_twins()

    def _find_twins(self) -> dict[int, int]:
        """For each operation of unknown outcome, the one before it with equal input."""
        latest: dict[Any, int] = {}
        twins: dict[int, int] = {}
        for number in self._unknown:
            input = self.operations[number].input
            try:
                if input in latest:
                    twins[number] = latest[input]
                latest[input] = number
            except TypeError:  # not hashable: it is compared with none
                continue
        return twins

    def run(self) -> Verdict:
        ordered = 0  # a bit for each operation in the order
        state = self._state
        seen = self.seen
        stack: list[tuple[int, int, Hashable, Iterator[tuple[int, Hashable]]]] = []
        choices = self._choices(ordered, state)
        countdown = 0
        while self._next[0] != self._end:
            for number, after in choices:
                configuration = (ordered | 1 << number, after)
                if configuration not in seen:
                    seen.add(configuration)
                    stack.append((number, ordered, state, choices))
                    ordered, state = configuration
                    self._take(number)
                    choices = self._choices(ordered, state)
                    break
            else:
                if not stack:
                    return Verdict.ILLEGAL
                number, ordered, state, choices = stack.pop()
                self._put_back(number)
            countdown -= 1
            if countdown < 0:
                countdown = 200
                if time.monotonic() > self._deadline or len(seen) > self._configurations_max:
                    return Verdict.UNKNOWN
        self.final_state = state
        return Verdict.OK

    def _choices(self, ordered: int, state: Hashable) -> Iterator[tuple[int, Hashable]]:
        """What may come next, with the state after it."""
        operations, step, following = self.operations, self._step, self._next
        choices = []
        event = following[0]
        while event != self._end and not self._is_return[event]:
            number = self._operation_of[event]
            after, output = step(state, operations[number].input)
            if output == operations[number].output:
                if self._is_read[number]:
                    return iter(((number, after),))
                choices.append((number, after))
            event = following[event]
        if event != self._end:
            if self.furthest < 0 or event > self._return_event[self.furthest]:
                self.furthest = self._operation_of[event]
            if self._unknown:
                returned: float = operations[self._operation_of[event]].returned  # type: ignore[assignment]
                choices += self._unknown_choices(ordered, state, returned)
        return iter(choices)

    def _unknown_choices(self, ordered: int, state: Hashable, before: float) -> list[tuple[int, Hashable]]:
        choices = []
        for number in self._unknown:
            operation = self.operations[number]
            if operation.called > before:
                break
            if ordered >> number & 1 or (number in self._twin and not ordered >> self._twin[number] & 1):
                continue
            after, _ = self._step(state, operation.input)
            if after != state:
                choices.append((number, after))
        return choices

    def _take(self, number: int) -> None:
        if self._known[number]:
            following, previous = self._next, self._previous
            for event in (self._call_event[number], self._return_event[number]):
                following[previous[event]] = following[event]
                previous[following[event]] = previous[event]

    def _put_back(self, number: int) -> None:
        if self._known[number]:
            for event in (self._return_event[number], self._call_event[number]):  # the other way round
                self._next[self._previous[event]] = event
                self._previous[self._next[event]] = event


# The small part that shows it ----------------------------------------------------------------------------------------


class _Shrinker:
    """Finds the few operations that show that no order explains them all.

    What makes the history small must not make it wrong: without its write, any read is a riddle. So a set of operations
    shows it only if it is illegal, and stays so with any one of those left out taking effect at any time or never; and
    if it would be legal, had the failing operation not been answered. Several of those left out may explain it only
    together: of those, one shortest chain is kept too, such as the compare-and-sets that led to the value that is read.
    """

    def __init__(self, operations: Sequence[Operation], furthest: int, model: Model, state: Hashable) -> None:
        self._operations = operations
        self._failing = furthest
        self._model = model
        self._state = state
        self._deadline = time.monotonic() + SHRINK_SECONDS
        end = operations[furthest].returned
        assert end is not None
        # No order got past the failing operation's return, so what was called later, or answered later, plays no part.
        self._part: dict[int, Operation] = {}
        for number, operation in enumerate(operations):
            if operation.called <= end:
                later = operation.returned is None or (operation.returned, number) > (end, furthest)
                self._part[number] = _not_answered(operation) if later else operation
        self._changing = [number for number in self._part if not model.is_read(operations[number].input)]

    def run(self) -> tuple[list[Operation], Operation]:
        chosen = self._drop(self._grow())
        # Shown as they were: with the answers that came later they are no less illegal.
        return [self._operations[number] for number in sorted(chosen)], self._operations[self._failing]

    def _verdict(self, chosen: Iterable[int], *, failing_answered: bool = True, anytime: Iterable[int] = ()) -> Verdict:
        part = {number: self._part[number] for number in chosen}
        if not failing_answered:
            part[self._failing] = _not_answered(part[self._failing])
        for number in anytime:
            part[number] = replace(_not_answered(self._part[number]), called=-math.inf)
        ordered = sorted(part.values(), key=lambda operation: operation.called)
        return _Search(ordered, self._model, self._state, self._deadline, SHRINK_CONFIGURATIONS_MAX).run()

    def _is_riddle(self, chosen: Iterable[int]) -> bool:
        """Whether it lacks something even if the failing operation is not asked about."""
        return self._verdict(chosen, failing_answered=False) is not Verdict.OK

    def _saviours(self, chosen: set[int], *, failing_answered: bool = True) -> Iterator[int]:
        """Those not chosen with which, at any time, there might be an order; the latest first."""
        for number in reversed(self._changing):
            if number not in chosen:
                verdict = self._verdict(chosen, failing_answered=failing_answered, anytime=(number,))
                if verdict is not Verdict.ILLEGAL:
                    yield number

    def _saviours_together(self, chosen: set[int]) -> set[int]:
        """A shortest chain of others that could follow on those chosen and explain what the failing one answered.

        None if there would be no order with them either, whenever they took effect.
        """
        part = [self._part[number] for number in sorted(chosen - {self._failing})]
        search = _Search(part, self._model, self._state, self._deadline, SHRINK_CONFIGURATIONS_MAX)
        if search.run() is not Verdict.OK:
            return set()
        chain = self._chain(search.final_state, chosen)
        return chain if chain and self._verdict(chosen, anytime=chain) is not Verdict.ILLEGAL else set()

    def _chain(self, first: Hashable, chosen: set[int]) -> set[int]:
        model, failing = self._model, self._operations[self._failing]
        paths: dict[Hashable, tuple[int, ...]] = {first: ()}
        states = [first]
        for state in states:  # grows meanwhile: the states that are reached by ever more operations
            if model.step(state, failing.input)[1] == failing.output:
                return set(paths[state])
            for number in self._changing:
                after, _ = model.step(state, self._part[number].input)
                unused = number not in chosen and number not in paths[state]
                if unused and after not in paths and len(paths) < CHAIN_STATES_MAX:
                    paths[after] = (*paths[state], number)
                    states.append(after)
        return set()

    def _grow(self) -> set[int]:
        """From the failing operation alone: add what was missing until the set shows it. All, if time runs out."""
        chosen = {self._failing}
        while time.monotonic() < self._deadline - SHRINK_SECONDS / 2 and len(chosen) < len(self._part):
            others = [number for number in reversed(self._part) if number not in chosen]
            if self._verdict(chosen) is not Verdict.ILLEGAL:
                conflicts = (number for number in others if self._verdict({*chosen, number}) is Verdict.ILLEGAL)
                found = list(conflicts)
                wanted = next((number for number in found if not self._is_riddle({*chosen, number})), None)
                chosen.add(wanted if wanted is not None else (found or others)[0])
            elif self._is_riddle(chosen):
                chosen.add(next(self._saviours(chosen, failing_answered=False), others[0]))
            else:
                saviour = next(self._saviours(chosen), None)
                saviours = {saviour} if saviour is not None else self._saviours_together(chosen)
                if not saviours:
                    return chosen
                chosen |= saviours
        return set(self._part)

    def _drop(self, chosen: set[int]) -> set[int]:
        """Leave out, one by one, what is not needed, the oldest first."""
        changed = True
        while changed:
            changed = False
            for number in sorted(chosen - {self._failing}):
                if time.monotonic() > self._deadline:
                    return chosen
                rest = chosen - {number}
                shows_it = self._verdict(rest) is Verdict.ILLEGAL and not self._is_riddle(rest)
                if shows_it and next(self._saviours(rest), None) is None and not self._saviours_together(rest):
                    chosen, changed = rest, True
        return chosen


def _not_answered(operation: Operation) -> Operation:
    return replace(operation, returned=None, output=None)


def picture(operations: Sequence[Operation], failing: Operation | None = None) -> str:
    """The operations as bars over the order of their calls and returns; an open bar has an unknown outcome."""
    moments = sorted(
        {(operation.called, 0) for operation in operations}
        | {(operation.returned, 1) for operation in operations if operation.returned is not None}
    )
    column = {moment: 3 * position for position, moment in enumerate(moments)}
    width = 3 * len(moments)
    names = max((len(operation.client) for operation in operations), default=0)
    lines = []
    for operation in operations:
        first = column[operation.called, 0]
        last = width if operation.returned is None else column[operation.returned, 1]
        bar = " " * first + "[" + "-" * (last - first - 1) + ("..." if operation.returned is None else "]")
        mark = "  <- no order explains this" if operation is failing else ""
        lines.append(f"  {operation.client:<{names}}  {bar:<{width + 3}}  {operation}{mark}")
    return "\n".join(lines)


# Recording -----------------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Call:
    """An operation that is under way. Whoever makes the call sets output before leaving the `with`."""

    client: str
    input: Any
    called: int
    output: Any = field(default=None)


class Recorder:
    """Takes down the calls of many threads or greenlets; the clock is the machine's monotonic one, in nanoseconds.

    Histories of several processes of one machine can be put together: they share that clock.
    """

    def __init__(self) -> None:
        self._lock = _native_lock()
        self._finished: list[Operation] = []
        self._open: set[Call] = set()

    @contextmanager
    def operation(self, client: str, input: Any) -> Iterator[Call]:
        """Record what is done within as one call.

        An exception that says that nothing happened (NothingHappened, Rejected) drops the call, any other leaves its
        outcome unknown; both are passed on.
        """
        call = Call(client, input, time.monotonic_ns())
        with self._lock:
            self._open.add(call)
        returned: int | None = None
        happened = True
        try:
            yield call
            returned = time.monotonic_ns()
        except (NothingHappened, Rejected):
            happened = False
            raise
        finally:
            with self._lock:
                self._open.discard(call)
                if happened:
                    self._finished.append(_operation(call, returned))

    def history(self) -> list[Operation]:
        """All calls so far, in the order of their starts; those still under way have an unknown outcome."""
        with self._lock:
            history = [*self._finished, *(_operation(call, None) for call in self._open)]
        return sorted(history, key=lambda operation: operation.called)


def _operation(call: Call, returned: int | None) -> Operation:
    output = None if returned is None else call.output
    return Operation(client=call.client, called=call.called, returned=returned, input=call.input, output=output)
