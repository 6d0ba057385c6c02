"""The caller's side of exactly-once writes: numbers them, and sends each again until its outcome is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geraft.client.retry import ATTEMPT_SECONDS, RETRY_SECONDS_MAX, AttemptTime, retry_until
from geraft.errors import GeraftError, NodeStopped, NothingHappened, OutcomeUnknown, ProposalDropped, SessionExpired
from geraft.runtime.hub import CallKind, SessionWrite, Waiter, fail, finish, monotonic, native_lock

Attempt = Callable[[CallKind, bytes, SessionWrite, float], Any]
"""attempt(kind, command, session, deadline): send it once; its answer. Raises what geraft.errors has for a call."""

CLOSE_SECONDS = 1.0


class WriteSession:
    """A session of the replicated state, opened at the first write and anew when it has expired.

    attempt: sends a call once. may_retry: whether a call of which nothing happened may fare better the next time.
    For any number of threads and greenlets, each of which waits only for its own write.
    """

    def __init__(self, attempt: Attempt, may_retry: Callable[[BaseException], bool]) -> None:
        self._attempt = attempt
        self._may_retry_nothing = may_retry
        self._lock = native_lock()
        self._id = 0
        self._next_number = 1
        self._answered_below = 1  # every write of a lower number is over
        self._outstanding: set[int] = set()  # numbers of writes under way
        self._opening: list[Waiter] | None = None  # who waits for it, while somebody opens the session
        self._closed = False

    @property
    def id(self) -> int:
        """Of the session in the replicated state; 0 if none is open."""
        return self._id

    def write(self, kind: CallKind, command: bytes, deadline: float) -> Any:
        """Have the command applied once, whatever happens on the way; blocks until its outcome is known.

        What certainly did not happen and what may have happened is sent again, under the same number, until the
        deadline. Raises NothingHappened if no attempt can have been applied, else OutcomeUnknown; SessionExpired at
        once if the session expired after an attempt that may have been applied.
        """
        now = monotonic()
        until = now + ATTEMPT_SECONDS if deadline - now > ATTEMPT_SECONDS + RETRY_SECONDS_MAX else deadline
        with self._lock:
            id, number = self._id, self._next_number
            if id:
                self._next_number = number + 1
                self._outstanding.add(number)
                answered_below = self._answered_below
        failed: GeraftError | None = None
        if id:  # most often all goes well, and nothing more has to be made
            try:
                return self._attempt(kind, command, SessionWrite(id, number, answered_below), until)
            except GeraftError as error:
                failed = error
            finally:
                if failed is None:
                    self.end(id, number)
        write = _Write(self, kind, command, deadline, (id, number) if id else None, failed)
        try:
            return retry_until(deadline, write.attempt, write.may_retry)
        except NothingHappened as error:
            if write.unknown is not None:
                raise OutcomeUnknown(f"{write.unknown}; at last: {error}") from error
            raise
        finally:
            write.end()

    def close(self) -> None:
        """Drop what the cluster keeps for the session. Blocks for a second at most; writes after it are refused."""
        with self._lock:
            self._closed = True
            id, self._id = self._id, 0
        if id:
            try:
                self._attempt(CallKind.CLOSE_SESSION, b"", SessionWrite(id, 0, 0), monotonic() + CLOSE_SECONDS)
            except GeraftError:
                pass  # it expires one day

    # Of the writes

    def begin(self, deadline: float) -> tuple[int, int]:
        """The session and the number of a new write. Opens the session if none is open, once for all who wait."""
        while True:
            waiter: Waiter | None = None
            with self._lock:
                if self._closed:
                    raise NodeStopped("the session was closed")
                if self._id:
                    number = self._next_number
                    self._next_number += 1
                    self._outstanding.add(number)
                    return self._id, number
                if self._opening is None:
                    self._opening = []
                else:
                    waiter = Waiter()
                    self._opening.append(waiter)
            if waiter is None:
                self._open(deadline)
            else:
                waiter.result(
                    max(deadline - monotonic(), 0.0), lambda: ProposalDropped("no session was opened in time")
                )

    def _open(self, deadline: float) -> None:
        failure: BaseException | None = None
        id = 0
        try:
            id = self._attempt(CallKind.OPEN_SESSION, b"", SessionWrite(0, 0, 0), deadline)
        except OutcomeUnknown as error:  # of the opening: of the write nothing happened
            failure = ProposalDropped(f"the session for the write could not be opened: {error}")
            raise failure from error
        except BaseException as error:
            interrupted = ProposalDropped("the caller who opened the session was interrupted")
            failure = error if isinstance(error, GeraftError) else interrupted
            raise
        finally:
            with self._lock:
                if id:
                    self._id, self._next_number, self._answered_below = id, 1, 1
                    self._outstanding.clear()
                waiting, self._opening = self._opening or [], None
            if failure is None:
                finish(waiting, [None] * len(waiting))
            else:
                fail(waiting, failure)

    def named(self, session: int, number: int) -> SessionWrite:
        """The write as it is sent now: it tells of all answers that have come since."""
        with self._lock:
            answered_below = self._answered_below if session == self._id else 0
        return SessionWrite(session, number, answered_below)

    def end(self, session: int, number: int) -> None:
        """The write is not sent again."""
        with self._lock:
            if session == self._id:
                outstanding, lowest = self._outstanding, self._answered_below
                outstanding.discard(number)
                if number == lowest:
                    last = self._next_number
                    while lowest < last and lowest not in outstanding:
                        lowest += 1
                    self._answered_below = lowest

    def expired(self, session: int) -> None:
        with self._lock:
            if session == self._id:
                self._id = 0

    def send(self, kind: CallKind, command: bytes, name: SessionWrite, deadline: float) -> Any:
        return self._attempt(kind, command, name, deadline)

    def may_retry_nothing(self, error: BaseException) -> bool:
        return not self._closed and self._may_retry_nothing(error)


class _Write:
    """One write and its attempts. unknown: what became of an attempt that may have been applied.

    name, failed: of a first attempt that was made already.
    """

    def __init__(
        self,
        session: WriteSession,
        kind: CallKind,
        command: bytes,
        deadline: float,
        name: tuple[int, int] | None,
        failed: GeraftError | None,
    ) -> None:
        self._session = session
        self._kind = kind
        self._command = command
        self._deadline = deadline
        self._time = AttemptTime(deadline)
        self._name = name
        self._failed = failed
        if failed is not None:
            self._time.next()
        self.unknown: OutcomeUnknown | None = None

    def attempt(self) -> Any:
        session = self._session
        if self._name is None:
            self._name = session.begin(self._time.next())
        try:
            if self._failed is not None:
                failed, self._failed = self._failed, None
                raise failed
            return session.send(self._kind, self._command, session.named(*self._name), self._time.next())
        except SessionExpired as error:
            session.expired(self._name[0])
            self.end()
            if self.unknown is not None:
                raise SessionExpired(
                    f"{error}; an earlier attempt may have been, before it expired ({self.unknown})"
                ) from error
            # This was the first time that it was sent, and it was refused: a new session is as good.
            raise ProposalDropped(f"{error}; none was before") from error
        except OutcomeUnknown as error:
            self.unknown = error
            raise

    def may_retry(self, error: BaseException) -> bool:
        if isinstance(error, OutcomeUnknown):
            return not isinstance(error, SessionExpired)
        return self._session.may_retry_nothing(error)

    def end(self) -> None:
        if self._name is not None:
            self._session.end(*self._name)
            self._name = None
