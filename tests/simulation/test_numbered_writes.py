"""The simulator notices whoever applies a numbered write twice, or answers it in two ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from geraft.errors import GeraftError, SessionExpired
from geraft.records import decode_session_write
from geraft.sessions import Answer, SessionTable, _Session
from geraft.testing.simulation import Simulation, SimulationFailed

Write = Callable[[bytes, int], bytes]
sound_apply = SessionTable.apply


def forget_everything(table: SessionTable, index: int, encoded: bytes, write: Write) -> Answer | GeraftError:
    for session in table._sessions.values():
        session.answers.clear()
    return sound_apply(table, index, encoded, write)


def forget_when_somebody_else_writes(
    table: SessionTable, index: int, encoded: bytes, write: Write
) -> Answer | GeraftError:
    """The mistake of keeping only the newest answer of all."""
    apart = decode_session_write(encoded)
    for id, session in table._sessions.items():
        if apart is not None and apart[0] != id:
            session.answers.clear()
    return sound_apply(table, index, encoded, write)


def answer_anew(table: SessionTable, index: int, encoded: bytes, write: Write) -> Answer | GeraftError:
    """The mistake of answering a repeated write with its own index."""
    outcome = sound_apply(table, index, encoded, write)
    return outcome._replace(index=index) if isinstance(outcome, Answer) else outcome


def apply_in_expired_sessions(table: SessionTable, index: int, encoded: bytes, write: Write) -> Answer | GeraftError:
    outcome = sound_apply(table, index, encoded, write)
    apart = decode_session_write(encoded)
    if isinstance(outcome, SessionExpired) and apart is not None:
        return Answer(index, write(apart[3], index))
    return outcome


def keep_nothing_over_the_limit(session: _Session, number: int, answer: Answer) -> None:
    """The mistake of forgetting a write together with its answer."""
    if session.answer_bytes_max > 0:
        session.answers[number] = answer


MUTATIONS: dict[str, tuple[type, str, Any, int]] = {
    "a repeated write is applied again": (SessionTable, "apply", forget_everything, 20),
    "one session makes the table forget the others": (SessionTable, "apply", forget_when_somebody_else_writes, 30),
    "a repeated write gets a new answer": (SessionTable, "apply", answer_anew, 30),
    "a write of an expired session is applied": (SessionTable, "apply", apply_in_expired_sessions, 30),
    "a write is forgotten with its answer": (_Session, "keep", keep_nothing_over_the_limit, 30),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS, ids=lambda name: name.replace(" ", "-"))
def test_a_broken_table_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, broken, seeds = MUTATIONS[name]
    monkeypatch.setattr(owner, method, broken)
    with pytest.raises(SimulationFailed, match=r"applied twice|is answered|never would"):
        for seed in range(1, seeds + 1):
            Simulation(seed).run()


def test_numbered_writes_are_repeated_forgotten_and_expire_in_a_campaign() -> None:
    met: Counter[str] = Counter()
    for seed in range(1, 17):
        met += Simulation(seed, seconds=10).run().counters
    for situation in ("numbered write was repeated and answered", "session expired"):
        assert met[situation] > 0, met
