"""Signs of life between two processes, which stand for the heartbeats of all groups that rest (see runtime/rest.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from geraft.core.entries import EntryId
from geraft.errors import GeraftError
from geraft.runtime.hub import monotonic


class Pulse:
    """Of another process, as heard on one stream. Nodes rest as long as it beats; each is woken when it stops.

    seen and end are for any thread, the rest for the hub. post: has something run on the hub soon.
    """

    def __init__(self, post: Callable[[Callable[[], None]], None], clock: Callable[[], float] = monotonic) -> None:
        self._post = post
        self._clock = clock
        self.seen_at = clock()
        self.ended = False
        self._resting: dict[Callable[[], None], float] = {}
        self._patience_seconds = 0.0

    def seen(self) -> None:
        """The process lives."""
        self.seen_at = self._clock()

    def end(self) -> None:
        """The stream is gone: nobody can rest any more."""
        self.ended = True
        try:
            self._post(self._wake_all)
        except GeraftError:
            pass  # the hub has ended, and all that could rest

    def rest(self, wake: Callable[[], None], patience_seconds: float) -> bool:
        """Have somebody woken once nothing was seen for so long, or the stream is gone; False if it is gone already."""
        if self.ended:
            return False
        if not self._resting or patience_seconds < self._patience_seconds:
            self._patience_seconds = patience_seconds
        self._resting[wake] = patience_seconds
        return True

    def leave(self, wake: Callable[[], None]) -> None:
        """Again is no error."""
        self._resting.pop(wake, None)

    @property
    def resting_count(self) -> int:
        return len(self._resting)

    def check(self, now: float) -> None:
        """Wake everybody if nothing was seen for longer than the least patient bears."""
        if self._resting and now - self.seen_at > self._patience_seconds:
            self._wake_all()

    def _wake_all(self) -> None:
        resting, self._resting = self._resting, {}
        for wake in resting:
            wake()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestOffer:
    """A leader wants us, its follower, to rest while `pulse` beats. number 0: it rests no more itself."""

    sender: str
    term: int
    last_entry: EntryId
    number: int
    pulse: Pulse


@dataclass(frozen=True, slots=True, kw_only=True)
class RestAnswer:
    """Whether a follower of ours rests, as it said to the offer of that number."""

    sender: str
    number: int
    resting: bool


RestNote = RestOffer | RestAnswer
