"""The sessions of clients, and what came of their writes: the part of the replicated state that is geraft's own.

A client opens a session through the log, numbers its writes, and sends a write again when no answer came. The table
knows which numbers were applied and with what answer, so a repeated write is not applied again and gets its first
answer (Raft dissertation 6.3). Every node makes the same table of the same log: nothing here depends on a clock, on
chance, or on a node's own settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from google.protobuf.message import DecodeError

from geraft.core.entries import EntryBatch, EntryKind
from geraft.errors import GeraftError, ProposalDropped, Rejected, SessionExpired
from geraft.pb import geraft_pb2 as pb
from geraft.records import BadRecord, decode_session_write


class Limits(NamedTuple):
    """As in Config; a leader writes its own into the entry that opens a session."""

    sessions_max: int = 1000
    writes_max: int = 1000
    answer_bytes_max: int = 1024 * 1024


class Answer(NamedTuple):
    """What came of a write, an opening or a closing. index: of the entry that was applied.

    reply: the app's, None if it is no longer kept.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    reply: bytes | None = b""


def opening(limits: Limits) -> bytes:
    """The command that opens a session."""
    return pb.SessionCommand(limits=pb.SessionLimits(**limits._asdict())).SerializeToString()


def closing(session: int) -> bytes:
    """The command that closes it. The one that has the app apply another is records.encode_session_write."""
    return pb.SessionCommand(session=session).SerializeToString()


class _Session:
    """answers: by number, of the writes from answered_below on that were applied, in the order of the log."""

    __slots__ = ("answer_bytes", "answer_bytes_max", "answered_below", "answers", "used_index", "writes_max")

    def __init__(self, used_index: int, writes_max: int, answer_bytes_max: int) -> None:
        self.used_index = used_index
        self.writes_max = writes_max
        self.answer_bytes_max = answer_bytes_max
        self.answered_below = 1
        self.answer_bytes = 0
        self.answers: dict[int, Answer] = {}

    def forget_below(self, number: int) -> None:
        answers = self.answers
        steps = number - self.answered_below
        self.answered_below = number
        # Most often the next number only; a client may also name one far away.
        gone = range(number - steps, number) if steps <= len(answers) else [old for old in answers if old < number]
        for old in gone:
            answer = answers.pop(old, None)
            if answer is not None and answer.reply is not None:
                self.answer_bytes -= len(answer.reply)

    def keep(self, number: int, answer: Answer) -> None:
        """Remember it; its reply only if that is bytes, and as far as there is room."""
        reply = answer.reply
        if not isinstance(reply, bytes) or self.answer_bytes + len(reply) > self.answer_bytes_max:
            answer = Answer(answer.index, None)
        else:
            self.answer_bytes += len(reply)
        self.answers[number] = answer


class SessionTable:
    """All open sessions after some entry of the log. For one thread at a time.

    A session expires when another one is opened while as many are open as that one's entry allows: the one whose last
    entry is the oldest goes.
    """

    def __init__(self) -> None:
        self._sessions: dict[int, _Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def apply(self, index: int, encoded: bytes, write: Callable[[bytes, int], bytes]) -> Answer | GeraftError:
        """Take the command at index, calling write(command, index) if it is one for the app and was not applied before.

        Gives the answer, or the error if it is refused, which is then the same on every node. Whatever `write` raises
        comes out, and then the command is not taken.
        """
        apart = decode_session_write(encoded)
        if apart is None:
            return self._open_or_close(index, pb.SessionCommand.FromString(encoded))
        id, number, answered_below, command = apart
        session = self._sessions.get(id)
        if session is None:
            return SessionExpired(f"session {id} has expired: this attempt of its write {number} is not applied")
        session.used_index = index
        if answered_below > session.answered_below:
            session.forget_below(answered_below)
        known = session.answers.get(number)
        if known is not None:
            return known
        ahead = number - session.answered_below
        if ahead < 0:
            return Rejected(f"write {number} of session {id} was sent again after its answer was acknowledged")
        if ahead >= session.writes_max:
            return ProposalDropped(
                f"more than {session.writes_max} writes of session {id} wait for their answers: slow down, or raise"
                " session_writes_max"
            )
        answer = Answer(index, write(command, index))
        session.keep(number, answer)
        return answer

    def _open_or_close(self, index: int, record: pb.SessionCommand) -> Answer:
        sessions, limits = self._sessions, record.limits
        if record.session:
            sessions.pop(record.session, None)
            return Answer(index)
        while sessions and len(sessions) >= limits.sessions_max:
            del sessions[min(sessions, key=lambda id: sessions[id].used_index)]
        sessions[index] = _Session(index, max(limits.writes_max, 1), limits.answer_bytes_max)
        return Answer(index)

    def encode(self) -> bytes:
        """The table for a snapshot: equal tables give equal bytes."""
        table = pb.SessionTable()
        for id, session in sorted(self._sessions.items()):
            record = table.sessions.add(
                id=id,
                used_index=session.used_index,
                answered_below=session.answered_below,
                writes_max=session.writes_max,
                answer_bytes_max=session.answer_bytes_max,
            )
            for number, answer in session.answers.items():
                record.answers.add(number=number, index=answer.index, reply=answer.reply)
        return table.SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, encoded: bytes) -> SessionTable:
        """The table again; no bytes are the empty one. Raises BadRecord."""
        table = cls()
        try:
            record = pb.SessionTable.FromString(encoded)
        except DecodeError as error:
            raise BadRecord(f"not a table of sessions: {error}") from None
        for one in record.sessions:
            session = _Session(one.used_index, one.writes_max, one.answer_bytes_max)
            session.answered_below = one.answered_below
            for answer in one.answers:
                reply = answer.reply if answer.HasField("reply") else None
                session.answers[answer.number] = Answer(answer.index, reply)
                session.answer_bytes += len(reply) if reply is not None else 0
            table._sessions[one.id] = session
        return table


def commands_applied(table: SessionTable, batches: Iterable[EntryBatch]) -> list[bytes]:
    """What the app is given of the batches, which follow the table's index: no repeated write, and none of ours.

    The table goes on with them, but knows no replies: it serves to go on filtering, not to answer.
    """
    applied: list[bytes] = []

    def write(command: bytes, index: int) -> bytes:
        applied.append(command)
        return b""

    for batch in batches:
        if batch.kind is EntryKind.COMMAND:
            applied += batch.commands
        elif batch.kind is EntryKind.SESSION:
            for index, command in enumerate(batch.commands, batch.first_index):
                table.apply(index, command, write)
    return applied
