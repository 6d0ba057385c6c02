"""A numbered write is applied once and keeps its first answer; what is kept and what expires, the log alone decides."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geraft.core.entries import EntryBatch, EntryKind
from geraft.errors import AnswerForgotten, GeraftError, ProposalDropped, Rejected, SessionExpired
from geraft.records import BadRecord, encode_session_write
from geraft.sessions import Answer, Limits, SessionTable, closing, commands_applied, opening

DEFAULT = Limits()


class Log:
    """A table with its app, which answers each command with how many it was given before."""

    def __init__(self, limits: Limits = DEFAULT) -> None:
        self.table = SessionTable()
        self.limits = limits
        self.index = 10
        self.given: list[tuple[bytes, int]] = []

    def write_app(self, command: bytes, index: int) -> bytes:
        self.given.append((command, index))
        return b"%s %d" % (command, len(self.given))

    def put(self, command: bytes) -> Answer | GeraftError:
        self.index += 1
        return self.table.apply(self.index, command, self.write_app)

    def open(self) -> int:
        answer = self.put(opening(self.limits))
        assert isinstance(answer, Answer)
        return answer.index

    def write(self, session: int, number: int, answered_below: int = 1, command: bytes = b"c") -> Answer | GeraftError:
        return self.put(encode_session_write(session, number, answered_below, command))


def test_a_session_is_named_by_the_index_of_the_entry_that_opened_it() -> None:
    log = Log()
    assert [log.open(), log.open()] == [11, 12]
    assert len(log.table) == 2 and not log.given


def test_a_repeated_write_is_not_applied_again_and_gets_its_first_answer() -> None:
    log = Log()
    session, other = log.open(), log.open()
    first = log.write(session, 1, command=b"a")
    assert first == Answer(13, b"a 1")
    assert log.write(other, 1, command=b"b") == Answer(14, b"b 2")  # numbers are those of a session
    assert log.write(session, 2, command=b"c") == Answer(15, b"c 3")
    assert [log.write(session, 1, command=b"a") for _ in range(3)] == [first] * 3
    assert log.given == [(b"a", 13), (b"b", 14), (b"c", 15)]


def test_writes_of_one_session_may_arrive_in_any_order() -> None:
    log = Log()
    session = log.open()
    answers = {number: log.write(session, number) for number in (3, 1, 4, 2)}
    assert {number: log.write(session, number) for number in (1, 2, 3, 4)} == answers
    assert len(log.given) == 4


def test_acknowledged_answers_are_forgotten_and_their_writes_never_applied_again() -> None:
    log = Log()
    session = log.open()
    kept = [log.write(session, number) for number in range(1, 6)]
    assert log.write(session, 6, answered_below=4) == Answer(17, b"c 6")
    for number in (1, 2, 3):
        assert isinstance(log.write(session, number), Rejected)
    assert [log.write(session, number) for number in (4, 5)] == kept[3:]
    assert isinstance(log.write(session, 10**15, answered_below=10**15), Answer)  # far ahead, in no time
    assert isinstance(log.write(session, 5), Rejected)
    assert len(log.given) == 7
    assert len(log.table.encode()) < 100


def test_an_acknowledgement_never_goes_back() -> None:
    log = Log()
    session = log.open()
    log.write(session, 5, answered_below=5)
    assert isinstance(log.write(session, 4, answered_below=1), Rejected)


def test_writes_too_far_ahead_of_the_lowest_unanswered_one_are_refused_and_taken_later() -> None:
    log = Log(Limits(writes_max=3))
    session = log.open()
    for number in (1, 2, 3):
        assert isinstance(log.write(session, number), Answer)
    assert isinstance(log.write(session, 4), ProposalDropped)
    assert isinstance(log.write(session, 4, answered_below=2), Answer)
    assert len(log.given) == 4


def test_an_answer_without_room_is_not_kept_but_its_write_stays_known() -> None:
    log = Log(Limits(answer_bytes_max=7))
    session = log.open()
    assert log.write(session, 1) == Answer(12, b"c 1")  # three bytes
    assert log.write(session, 2, command=b"large") == Answer(13, b"large 2")  # seven more
    assert log.write(session, 3) == Answer(14, b"c 3")
    assert log.write(session, 2, command=b"large") == Answer(13, None)
    assert log.write(session, 3) == Answer(14, b"c 3")
    assert log.write(session, 4, answered_below=4, command=b"la 4 b") == Answer(17, b"la 4 b 4")  # more than all
    assert log.write(session, 5, answered_below=5, command=b"cde") == Answer(18, b"cde 5")  # what was kept made room
    assert log.write(session, 5, answered_below=5) == Answer(18, b"cde 5")
    assert len(log.given) == 5


def test_what_is_no_answer_is_given_once_and_not_kept() -> None:
    table = SessionTable()
    table.apply(1, opening(Limits()), lambda command, index: b"")
    wrong: Any = lambda command, index: "text"  # noqa: E731
    assert table.apply(2, encode_session_write(1, 1, 1, b""), wrong) == Answer(2, "text")  # type: ignore[arg-type]
    assert table.apply(3, encode_session_write(1, 1, 1, b""), wrong) == Answer(2, None)


def test_the_session_used_longest_ago_expires_when_there_are_too_many() -> None:
    log = Log(Limits(sessions_max=3))
    first, second, third = log.open(), log.open(), log.open()
    log.write(first, 1)
    fourth = log.open()
    expired = log.write(second, 1)
    assert isinstance(expired, SessionExpired) and f"session {second} has expired" in str(expired)
    assert all(isinstance(log.write(session, 2), Answer) for session in (first, third, fourth))
    assert isinstance(log.write(third, 2), Answer)  # a repeated write is a use like any other
    log.open()
    assert isinstance(log.write(first, 3), SessionExpired)
    assert len(log.table) == 3


def test_the_limits_are_those_of_the_entry_that_opens() -> None:
    log = Log(Limits(sessions_max=10))
    old = [log.open() for _ in range(10)]
    log.limits = Limits(sessions_max=2, writes_max=1)
    new = log.open()
    assert len(log.table) == 2
    assert isinstance(log.write(new, 2), ProposalDropped)
    assert isinstance(log.write(old[-1], 2), Answer)


def test_a_closed_session_is_gone_and_closing_again_is_no_error() -> None:
    log = Log()
    session = log.open()
    log.write(session, 1)
    assert isinstance(log.put(closing(session)), Answer) and isinstance(log.put(closing(session)), Answer)
    assert isinstance(log.write(session, 1), SessionExpired)
    assert len(log.table) == 0 and len(log.given) == 1


def test_an_exception_of_the_app_leaves_the_write_to_be_tried_again() -> None:
    log = Log()
    session = log.open()

    def fail(command: bytes, index: int) -> bytes:
        raise OSError("database is down")

    with pytest.raises(OSError, match="database is down"):
        log.table.apply(50, encode_session_write(session, 1, 1, b"c"), fail)
    assert log.table.apply(50, encode_session_write(session, 1, 1, b"c"), log.write_app) == Answer(50, b"c 1")


def test_bytes_that_are_no_table_are_told() -> None:
    with pytest.raises(BadRecord, match="not a table of sessions"):
        SessionTable.decode(b"\xff\xff\xff")
    assert len(SessionTable.decode(b"")) == 0
    assert issubclass(AnswerForgotten, GeraftError)


# For any log

steps = st.one_of(
    st.tuples(st.just("open"), st.integers(1, 4), st.integers(1, 5), st.sampled_from([0, 5, 1000])),
    st.tuples(st.just("write"), st.integers(0, 7), st.integers(1, 9), st.integers(0, 9)),
    st.tuples(st.just("write"), st.integers(0, 7), st.integers(1, 9), st.just(0)),
    st.tuples(st.just("close"), st.integers(0, 7)),
    st.tuples(st.just("plain")),
)


def batches_of(story: list[tuple[Any, ...]]) -> list[EntryBatch]:
    """The story as a log; a step names the sessions in the order in which they were opened."""
    opened: list[int] = []
    batches = []
    for index, step in enumerate(story, 1):
        kind = EntryKind.SESSION
        session = opened[step[1] % len(opened)] if len(step) > 1 and opened else 999
        match step:
            case "open", sessions_max, writes_max, answer_bytes_max:
                command = opening(Limits(sessions_max, writes_max, answer_bytes_max))
                opened.append(index)
            case "write", _, number, answered_below:
                command = encode_session_write(session, number, answered_below, b"%d %d" % (session, number))
            case "close", _:
                command = closing(session)
            case _:
                kind, command = EntryKind.COMMAND, b"plain %d" % index
        batches.append(EntryBatch(term=1, first_index=index, kind=kind, commands=(command,)))
    return batches


def play(
    table: SessionTable, batches: list[EntryBatch]
) -> tuple[list[Answer | tuple[type[GeraftError], str]], list[bytes], list[bytes]]:
    """Outcomes, what the app was given, and the table after each entry."""
    outcomes: list[Answer | tuple[type[GeraftError], str]] = []
    given: list[bytes] = []
    tables = []

    def write(command: bytes, index: int) -> bytes:
        given.append(command)
        return b"%d" % index

    for batch in batches:
        if batch.kind is EntryKind.SESSION:
            outcome = table.apply(batch.first_index, batch.commands[0], write)
            outcomes.append((type(outcome), str(outcome)) if isinstance(outcome, GeraftError) else outcome)
        else:
            given += batch.commands
        tables.append(table.encode())
    return outcomes, given, tables


@given(st.lists(steps, max_size=60))
def test_no_number_of_a_session_is_ever_applied_twice(story: list[tuple[Any, ...]]) -> None:
    _, given, _ = play(SessionTable(), batches_of(story))
    numbered = [command for command in given if not command.startswith(b"plain")]
    assert len(set(numbered)) == len(numbered)


@given(st.lists(steps, max_size=60), st.data())
def test_a_table_restored_at_any_index_goes_on_as_the_one_that_never_stopped(
    story: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    batches = batches_of(story)
    outcomes, given, tables = play(SessionTable(), batches)
    cut = data.draw(st.integers(0, len(batches)))
    head_outcomes, head_given, head_tables = play(SessionTable(), batches[:cut])
    restored = SessionTable.decode(head_tables[-1] if head_tables else b"")
    rest_outcomes, rest_given, rest_tables = play(restored, batches[cut:])
    assert head_outcomes + rest_outcomes == outcomes
    assert head_given + rest_given == given
    assert head_tables + rest_tables == tables


@given(st.lists(steps, max_size=60), st.data())
def test_folding_gives_the_app_what_applying_gave_it(story: list[tuple[Any, ...]], data: st.DataObject) -> None:
    batches = batches_of(story)
    _, given, tables = play(SessionTable(), batches)
    cut = data.draw(st.integers(0, len(batches)))
    _, head, _ = play(SessionTable(), batches[:cut])
    folded = commands_applied(SessionTable.decode(tables[cut - 1] if cut else b""), batches[cut:])
    assert head + folded == given


@given(st.lists(steps, max_size=60))
def test_what_is_kept_stays_within_the_limits(story: list[tuple[Any, ...]]) -> None:
    table = SessionTable()
    play(table, batches_of(story))
    for session in table._sessions.values():
        assert len(session.answers) <= session.writes_max
        assert session.answer_bytes == sum(len(a.reply) for a in session.answers.values() if a.reply is not None)
        assert session.answer_bytes <= session.answer_bytes_max
        assert all(number >= session.answered_below for number in session.answers)
