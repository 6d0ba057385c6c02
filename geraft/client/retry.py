"""What is tried again, with which pauses, and until when."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import tenacity

from geraft.errors import NotLeader
from geraft.runtime.hub import monotonic
from geraft.transport.grpc_mode import sleep

RETRY_SECONDS = 0.02
RETRY_SECONDS_MAX = 0.25
"""Pauses between attempts: from, doubling, to."""
ATTEMPT_SECONDS = 2.0
"""What may be sent twice is sent elsewhere, or again, when no answer came for so long; doubles with each attempt."""

T = TypeVar("T")


def retry_until(deadline: float, attempt: Callable[[], T], may_retry: Callable[[BaseException], bool]) -> T:
    """attempt(), again while it raises what may be retried. Raises its last error, near the deadline at the latest."""
    try:
        return attempt()
    except BaseException as error:
        if not may_retry(error) or monotonic() >= deadline - RETRY_SECONDS:
            raise
        first = error
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(may_retry),
        wait=_pause,
        # What would begin just before the deadline is not begun; the caller gets the last error, which says why.
        stop=lambda state: monotonic() + state.upcoming_sleep >= deadline - RETRY_SECONDS,
        sleep=sleep,
        reraise=True,
    )
    if not (isinstance(first, NotLeader) and first.leader_address):
        sleep(min(RETRY_SECONDS, deadline - monotonic()))
    return retrying(attempt)


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, NotLeader) and error.leader_address and state.attempt_number < 3:
        return 0.0
    return doubled(RETRY_SECONDS, state.attempt_number, RETRY_SECONDS_MAX)


def doubled(seconds: float, times: int, seconds_max: float) -> float:
    """The pause after so many doublings; any number of them, as a caller may have the patience of days."""
    return min(math.ldexp(seconds, min(times, 64)), seconds_max)


class AttemptTime:
    """How long each attempt of one call may take, within the call's own deadline."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._seconds = ATTEMPT_SECONDS

    def next(self) -> float:
        """The deadline of the next attempt. One that would leave the call little more than that gets all of it."""
        deadline: float = monotonic() + self._seconds
        self._seconds *= 2
        return deadline if self._deadline - deadline > RETRY_SECONDS_MAX else self._deadline
