"""The checker against histories whose verdict is known, against brute force, and against the clock."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geraft.errors import NoLeader, OutcomeUnknown
from geraft.testing.linearizability import (
    Model,
    Operation,
    Recorder,
    Verdict,
    assert_linearizable,
    check,
    picture,
)
from geraft.testing.models import (
    Acquire,
    Add,
    CompareAndSet,
    Counter,
    Delete,
    Get,
    KeyValue,
    Lock,
    Put,
    Read,
    Register,
    Release,
    Write,
)


def op(called: float, returned: float | None, input: Any, output: Any = None, client: str = "c") -> Operation:
    return Operation(client=client, called=called, returned=returned, input=input, output=output)


def put(called: float, returned: float | None, value: int, done: bool = True) -> Operation:
    return op(called, returned, Put("a", b"%d" % value), None if returned is None else done)


def get(called: float, returned: float, value: int | None) -> Operation:
    return op(called, returned, Get("a"), None if value is None else b"%d" % value)


# Known histories -----------------------------------------------------------------------------------------------------

LEGAL: dict[str, tuple[Model, list[Operation]]] = {
    "nothing happened": (KeyValue(), []),
    "a read beside a write may be old or new": (
        Register(0),
        [op(0, 9, Write(1)), op(1, 2, Read(), 0), op(3, 4, Read(), 1), op(5, 6, Read(), 1)],
    ),
    "a write of unknown outcome that was never seen": (
        KeyValue(),
        [put(0, 1, 1, False), put(2, None, 2), get(5, 6, 1)],
    ),
    "a write of unknown outcome that took effect long after": (
        KeyValue(),
        [put(0, 1, 1, False), put(2, None, 2), get(5, 6, 1), put(7, 8, 3), get(9, 10, 2)],
    ),
    "two that set the same lock, one of them before the other": (
        Lock(),
        [op(0, 5, Acquire("l", "x"), True), op(1, 6, Acquire("l", "y"), False), op(7, 8, Release("l", "x"), True)],
    ),
    "sums that fit in one order only": (
        Counter(),
        [op(0, 9, Add(1), 6), op(0, 9, Add(2), 2), op(0, 9, Add(3), 5), op(10, 11, Read(), 6)],
    ),
    "a delete and a compare-and-set that fails after it": (
        KeyValue(),
        [
            put(0, 1, 1, False),
            op(2, 5, Delete("a"), True),
            op(2, 6, CompareAndSet("a", b"1", b"2"), False),
            op(7, 8, CompareAndSet("a", None, b"3"), True),
            get(9, 10, 3),
        ],
    ),
    "a call at the moment of a return overlaps it": (Register(0), [op(0, 1, Write(1)), op(1, 2, Read(), 0)]),
    "twins of unknown outcome that both took effect": (
        Counter(),
        [op(0, None, Add(1)), op(0, None, Add(1)), op(1, 2, Read(), 1), op(3, 4, Read(), 2)],
    ),
}

# The verdict, and which of the operations (by position) show it best.
ILLEGAL: dict[str, tuple[Model, list[Operation], set[int]]] = {
    "a stale read": (
        KeyValue(),
        [put(0, 1, 1, False), put(2, 3, 2), get(4, 5, 2), get(6, 7, 1)],
        {0, 1, 3},  # the write of 1 stays: without it one would ask where the 1 comes from
    ),
    "a read of a value that was never written": (
        KeyValue(),
        [put(0, 1, 1, False), get(2, 3, 1), get(4, 5, 7), put(6, 7, 3)],
        {2},
    ),
    "a lost update": (
        Counter(),
        [op(0, 1, Add(1), 1), op(2, 5, Add(1), 2), op(3, 6, Add(1), 2), op(7, 8, Read(), 2)],
        {1, 2},
    ),
    "a write of unknown outcome that was applied twice": (
        KeyValue(),
        [put(0, 1, 1, False), put(2, None, 2), get(3, 4, 2), put(5, 6, 3), get(7, 8, 3), get(9, 10, 2)],
        {1, 2, 3, 5},
    ),
    "a read that goes back beside a write": (
        Register(0),
        [op(0, 9, Write(1)), op(1, 2, Read(), 1), op(3, 4, Read(), 0)],
        {0, 1, 2},
    ),
    "a split brain: two leaders give the lock away": (
        Lock(),
        [op(0, 3, Acquire("l", "x"), True), op(1, 4, Acquire("l", "y"), True), op(5, 6, Acquire("m", "z"), True)],
        {0, 1},
    ),
    "a split brain: both sides set the first value": (
        KeyValue(),
        [
            op(0, 3, CompareAndSet("a", None, b"1"), True),
            op(1, 4, CompareAndSet("a", None, b"2"), True),
            get(5, 6, 1),
            get(7, 8, 1),
        ],
        {0, 1},
    ),
    "a write that was answered and lost": (Register(0), [op(0, 1, Write(1)), op(2, 3, Read(), 0)], {0, 1}),
}


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_history(name: str) -> None:
    model, history = LEGAL[name]
    assert check(history, model).verdict is Verdict.OK
    assert check(history[::-1], model).verdict is Verdict.OK  # the order of the list says nothing


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_history_and_the_part_that_shows_it(name: str) -> None:
    model, history, shows = ILLEGAL[name]
    report = check(history, model)
    assert report.verdict is Verdict.ILLEGAL
    assert set(map(history.index, report.part)) <= shows
    assert report.failing in report.part
    assert check(report.part, model).verdict is Verdict.ILLEGAL


def test_the_message_has_a_picture() -> None:
    model, history, _ = ILLEGAL["a write that was answered and lost"]
    with pytest.raises(AssertionError) as raised:
        assert_linearizable(history, model)
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("not linearizable (2 operations")
    assert lines[2:] == [
        "  c  [--]             Write(value=1) -> None",
        "  c        [--]       Read() -> 0  <- no order explains this",
    ]


def test_a_picture_leaves_open_what_is_unknown() -> None:
    assert picture([put(0, None, 1), get(1, 2, 1)]).splitlines()[0].split("  ")[2].strip() == "[--------..."


def test_another_key_is_another_matter() -> None:
    history = [op(0, 1, Put("a", b"1"), False), op(2, 3, Get("b"), None), op(4, 5, Get("a"), None)]
    report = check(history, KeyValue())
    assert (report.verdict, report.key) == (Verdict.ILLEGAL, "a")
    assert "of key 'a'" in str(report)


def test_a_return_before_its_call_is_refused() -> None:
    with pytest.raises(ValueError, match="returned before"):
        check([op(2, 1, Read(), 0)], Register(0))


# Against brute force -------------------------------------------------------------------------------------------------


def is_linearizable(history: Sequence[Operation], model: Model) -> bool:
    """Tries every order of every choice of the operations whose outcome is unknown."""

    def end(operation: Operation) -> float:
        return math.inf if operation.returned is None else operation.returned

    def explains(order: Sequence[Operation]) -> bool:
        if any(end(later) < earlier.called for earlier, later in itertools.combinations(order, 2)):
            return False
        state = model.initial(None)
        for operation in order:
            state, output = model.step(state, operation.input)
            if operation.returned is not None and output != operation.output:
                return False
        return True

    known = [operation for operation in history if operation.returned is not None]
    unknown = [operation for operation in history if operation.returned is None]
    return any(
        explains(order)
        for count in range(len(unknown) + 1)
        for chosen in itertools.combinations(unknown, count)
        for order in itertools.permutations([*known, *chosen])
    )


VALUES = [b"0", b"1"]
KEY_VALUE_INPUTS = st.one_of(
    st.just(Get("a")),
    st.just(Delete("a")),
    st.builds(Put, st.just("a"), st.sampled_from(VALUES)),
    st.builds(CompareAndSet, st.just("a"), st.sampled_from([None, *VALUES]), st.sampled_from(VALUES)),
)
COUNTER_INPUTS = st.one_of(st.just(Read()), st.builds(Add, st.integers(1, 2)))


@st.composite
def any_history(
    draw: st.DrawFn, inputs: st.SearchStrategy[Any], outputs: Callable[[Any], list[Any]]
) -> list[Operation]:
    """Up to six operations at any time, with any answers: mostly illegal."""
    history = []
    for number in range(draw(st.integers(1, 6))):
        called = draw(st.integers(0, 12))
        returned = draw(st.one_of(st.none(), st.integers(called, called + 8)))
        input = draw(inputs)
        output = None if returned is None else draw(st.sampled_from(outputs(input)))
        history.append(op(called, returned, input, output, f"c{number}"))
    return history


@given(any_history(KEY_VALUE_INPUTS, lambda input: [None, *VALUES] if isinstance(input, Get) else [False, True]))
@settings(max_examples=400, deadline=None)
def test_it_says_what_brute_force_says_of_a_key(history: list[Operation]) -> None:
    agrees_with_brute_force(history, KeyValue())


@given(any_history(COUNTER_INPUTS, lambda _: [0, 1, 2, 3]))
@settings(max_examples=400, deadline=None)
def test_it_says_what_brute_force_says_of_a_counter(history: list[Operation]) -> None:
    agrees_with_brute_force(history, Counter())


def agrees_with_brute_force(history: list[Operation], model: Model) -> None:
    report = check(history, model)
    assert report.verdict is (Verdict.OK if is_linearizable(history, model) else Verdict.ILLEGAL)
    if report.verdict is Verdict.ILLEGAL:
        assert not is_linearizable(report.part, model)
        assert report.failing is not None
        end = report.failing.returned
        assert end is not None
        # None that was left out could have helped, whenever it took effect, except if it came too late.
        for missing in history:
            if missing not in report.part and missing.called <= end:
                anytime = replace(missing, called=-1, returned=None, output=None)
                assert not is_linearizable([*report.part, anytime], model)


# Histories of a real execution ---------------------------------------------------------------------------------------


def execution(
    rng: random.Random, model: Model, clients: int, count: int, make_input: Callable[[int], Any], unknown: float = 0.0
) -> list[Operation]:
    """What clients see of a system that does one operation at a time: each overlaps with those of the others.

    unknown: the share of calls without an answer; half of them took effect, some of those later than others' answers.
    """
    states: dict[Any, Any] = {}
    history: list[Operation] = []
    now = 0.0
    under_way: dict[int, tuple[float, Any]] = {}
    busy_until = [0.0] * clients
    late: list[Any] = []

    def take_effect(input: Any) -> Any:
        key = model.key_of(input)
        states[key], output = model.step(states.get(key, model.initial(key)), input)
        return output

    for number in itertools.count():
        now += 1
        if late and rng.random() < 0.05:
            take_effect(late.pop())
        client = rng.randrange(clients)
        if busy_until[client] > now:
            continue
        if client not in under_way:
            under_way[client] = (now, make_input(number))
            continue
        called, input = under_way.pop(client)
        if rng.random() < unknown:
            if rng.random() < 0.5:
                late.append(input)
            history.append(op(called, None, input, None, f"c{client}"))
        else:
            # The answer is under way for a while: others may be called and answered meanwhile.
            busy_until[client] = now + rng.random() * 2 * clients
            history.append(op(called, busy_until[client], input, take_effect(input), f"c{client}"))
        if len(history) == count:
            break
    return history


def key_value_input(rng: random.Random, keys: int) -> Callable[[int], Any]:
    """Values are written once each, so that a wrong one is always wrong."""

    def make(number: int) -> Any:
        key = f"k{rng.randrange(keys)}"
        kind = rng.random()
        if kind < 0.5:
            return Get(key)
        if kind < 0.8:
            return Put(key, b"%d" % number)
        if kind < 0.9:
            return CompareAndSet(key, None if kind < 0.85 else b"%d" % rng.randrange(number + 1), b"%d" % number)
        return Delete(key)

    return make


@given(seed=st.integers(0, 2**32), clients=st.integers(1, 6), unknown=st.sampled_from([0.0, 0.1, 0.3]))
@settings(max_examples=150, deadline=None)
def test_an_execution_is_legal_and_a_changed_answer_is_not(seed: int, clients: int, unknown: float) -> None:
    rng = random.Random(seed)
    history = execution(rng, KeyValue(), clients, 60, key_value_input(rng, 2), unknown)
    assert check(history, KeyValue()).verdict is Verdict.OK
    answered = [number for number, operation in enumerate(history) if operation.returned is not None]
    changed = rng.choice(answered)
    if isinstance(history[changed].input, Get):
        history[changed] = replace(history[changed], output=b"never written")
        report = check(history, KeyValue())
        assert report.verdict is Verdict.ILLEGAL
        assert report.part == (history[changed],)


@given(seed=st.integers(0, 2**32), clients=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_a_counter_that_skips_or_repeats_is_illegal(seed: int, clients: int) -> None:
    rng = random.Random(seed)
    history = execution(rng, Counter(), clients, 40, lambda _: Add(1))
    assert check(history, Counter()).verdict is Verdict.OK
    changed = rng.randrange(len(history))
    wrong = history[changed].output + rng.choice([-1, 1, 5])  # every sum is answered once: this one twice, or too far
    history[changed] = replace(history[changed], output=wrong)
    assert check(history, Counter()).verdict is Verdict.ILLEGAL


def test_a_stale_read_in_a_long_history_is_shown_by_a_few_operations() -> None:
    rng = random.Random(4)
    history = execution(rng, KeyValue(), 5, 300, key_value_input(rng, 3), unknown=0.02)
    end = max(operation.returned or operation.called for operation in history)
    first = [
        op(end + 1, end + 2, Put("k1", b"x")),
        op(end + 3, end + 4, Put("k1", b"y")),
        op(end + 5, end + 6, Get("k1")),
    ]
    first = [replace(first[0], output=True), replace(first[1], output=True), replace(first[2], output=b"x")]
    history.append(op(end - 1, end, Put("k1", b"w"), True))
    report = check([*history, *first], KeyValue())
    assert report.verdict is Verdict.ILLEGAL
    assert report.failing == first[2]
    assert len(report.part) <= 4


def test_a_chain_that_led_to_the_value_that_is_read_stays_in_the_picture() -> None:
    history = [
        op(1, 2, Put("k", b"a"), False),
        op(3, 4, CompareAndSet("k", b"a", b"b"), True),
        op(5, 6, CompareAndSet("k", b"b", b"c"), True),
        op(7, 8, Put("k", b"d"), True),
        op(9, 10, Get("k"), b"c"),
    ]
    report = check(history, KeyValue())
    assert report.failing == history[-1]
    # Alone the read would be a riddle: who wrote that? No set of those left out may explain it, whenever they happened.
    anytime = [replace(one, called=-1.0, returned=None, output=None) for one in history if one not in report.part]
    for count in range(len(anytime) + 1):
        for some in itertools.combinations(anytime, count):
            assert not is_linearizable([*report.part, *some], KeyValue())


# How long it takes ---------------------------------------------------------------------------------------------------


def test_ten_thousand_operations_over_a_hundred_keys() -> None:
    rng = random.Random(1)
    history = execution(rng, KeyValue(), 10, 10_000, key_value_input(rng, 100), unknown=0.01)
    started = time.process_time()
    assert check(history, KeyValue()).verdict is Verdict.OK
    assert time.process_time() - started < 10.0  # measured: 0.2 s


@pytest.mark.parametrize("seed", range(5))
def test_two_hundred_operations_on_one_register(seed: int) -> None:
    rng = random.Random(seed)
    history = execution(
        rng, Register(), 10, 200, lambda number: Write(number) if rng.random() < 0.5 else Read(), unknown=0.02
    )
    started = time.process_time()
    assert check(history, Register()).verdict is Verdict.OK
    assert time.process_time() - started < 10.0


@pytest.mark.parametrize("seed", range(5))
def test_a_stale_read_among_two_hundred_operations_on_one_register(seed: int) -> None:
    rng = random.Random(seed)
    history = execution(rng, Register(), 10, 200, lambda number: Read() if number % 2 else Write(number), unknown=0.02)
    reads = [number for number, one in enumerate(history) if isinstance(one.input, Read) and one.returned is not None]
    history[reads[-1]] = replace(history[reads[-1]], output=history[reads[len(reads) // 2]].output)
    report = check(history, Register())
    assert report.verdict is Verdict.ILLEGAL
    assert len(report.part) == 3  # the write of the value, one after it, and the read
    assert report.failing == history[reads[-1]]
    assert report.seconds < 30.0  # measured: 0.1 s


def test_what_can_not_be_decided_in_time_is_unknown() -> None:
    # Any subset of 40 additions may have happened, so sums without end have to be tried.
    history: list[Operation] = [op(0, None, Add(3**number)) for number in range(40)]
    history.append(op(1, 2, Read(), -1))
    started = time.monotonic()
    report = check(history, Counter(), time_limit_seconds=0.5)
    assert report.verdict is Verdict.UNKNOWN
    assert time.monotonic() - started < 20.0
    with pytest.raises(AssertionError, match="undecided"):
        assert_linearizable(history, Counter(), time_limit_seconds=0.1)


# A model of one's own, and the recorder ------------------------------------------------------------------------------


class Queue:
    """First in, first out; inputs are plain tuples, the state is a tuple."""

    def initial(self, key: object) -> tuple[Any, ...]:
        return ()

    def key_of(self, input: Any) -> None:
        return None

    def is_read(self, input: Any) -> bool:
        return False

    def step(self, state: Any, input: Any) -> tuple[Any, Any]:
        if input[0] == "put":
            return (*state, input[1]), None
        return (state[1:], state[0]) if state else (state, None)


def test_a_model_of_ones_own() -> None:
    history = [op(0, 5, ("put", [1])), op(0, 5, ("put", [2])), op(6, 7, ("take",), [2])]
    with pytest.raises(TypeError):
        check(history, Queue())  # a state with a list in it can't be hashed
    history = [op(0, 5, ("put", 1)), op(0, 5, ("put", 2)), op(6, 7, ("take",), 2)]
    assert check(history, Queue()).verdict is Verdict.OK
    assert check([*history, op(8, 9, ("take",), 2)], Queue()).verdict is Verdict.ILLEGAL


def test_the_recorder_takes_down_what_many_threads_do() -> None:
    recorder = Recorder()
    total = 0
    lock = threading.Lock()

    def add(client: str) -> None:
        nonlocal total
        for _ in range(100):
            with recorder.operation(client, Add(1)) as call, lock:
                total += 1
                call.output = total

    threads = [threading.Thread(target=add, args=(f"t{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = recorder.history()
    assert len(history) == 800
    assert [operation.called for operation in history] == sorted(operation.called for operation in history)
    assert_linearizable(history, Counter())


def test_the_recorder_knows_what_an_error_says_about_the_outcome() -> None:
    recorder = Recorder()
    with pytest.raises(NoLeader), recorder.operation("a", Add(1)):
        raise NoLeader("nobody leads")
    with pytest.raises(OutcomeUnknown), recorder.operation("b", Add(2)):
        raise OutcomeUnknown("leadership was lost")
    with pytest.raises(ZeroDivisionError), recorder.operation("c", Add(3)):
        raise ZeroDivisionError
    with recorder.operation("d", Add(4)) as call:
        (*_, open_one) = recorder.history()
        assert (open_one.input, open_one.returned) == (Add(4), None)
        call.output = 4
    assert [(operation.client, operation.returned is None) for operation in recorder.history()] == [
        ("b", True),
        ("c", True),
        ("d", False),
    ]
