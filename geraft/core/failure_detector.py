"""Phi accrual failure detection over heartbeat arrivals (Hayashibara and others, 2004); time is an argument.

Beside the paper: a floor on the deviation and an allowed pause, so that regular heartbeats do not make the detector
nervous; samples clipped, so that one long outage does not make it slow; a floor and a cap on the time to suspicion.
The window starts anew with each leader (FLAWS L15).
"""

from __future__ import annotations

import math
from collections import deque
from functools import cache

WINDOW_SAMPLES = 100
FIRST_SAMPLES = 10
"""Regular heartbeats that a new window starts with, so that one late one is not half of all that is known."""
CAP_FACTOR = 5.0
"""The longest silence before suspicion, as a multiple of the shortest."""


class FailureDetector:
    """Judges one leader by the times at which it was heard.

    expected_seconds: the sender's heartbeat interval. floor_seconds: no suspicion earlier than this after it was last
    heard (leases rest on it). All times are of one monotonic clock.
    """

    def __init__(
        self,
        *,
        expected_seconds: float,
        deviation_min_seconds: float,
        pause_seconds: float,
        threshold: float,
        floor_seconds: float,
        now_seconds: float,
    ) -> None:
        self.tune(
            expected_seconds=expected_seconds,
            deviation_min_seconds=deviation_min_seconds,
            pause_seconds=pause_seconds,
            threshold=threshold,
            floor_seconds=floor_seconds,
        )
        self.restart(now_seconds)

    def tune(
        self,
        *,
        expected_seconds: float,
        deviation_min_seconds: float,
        pause_seconds: float,
        threshold: float,
        floor_seconds: float,
    ) -> None:
        """Judge by these from now on; what was heard is kept."""
        self.expected_seconds = expected_seconds
        self.deviation_min_seconds = deviation_min_seconds
        self.pause_seconds = pause_seconds
        self.threshold = threshold
        self.floor_seconds = floor_seconds
        self._suspect_after_seconds: float | None = None

    def restart(self, now_seconds: float) -> None:
        """Forget what was heard: another leader is watched from now on."""
        self.heard_at_seconds = now_seconds
        self._samples: deque[float] = deque([self.expected_seconds] * FIRST_SAMPLES, WINDOW_SAMPLES)
        self._suspect_after_seconds = None

    def heard(self, now_seconds: float) -> None:
        """A sign of life came in. Those that come together count as one."""
        silence = now_seconds - self.heard_at_seconds
        if silence <= 0:
            return
        self.heard_at_seconds = now_seconds
        if silence >= self.expected_seconds / 2:
            self._samples.append(min(silence, self.floor_seconds))
            self._suspect_after_seconds = None

    def forgive(self, seconds: float) -> None:
        """This much of the silence was our own pause, not the leader's."""
        self.heard_at_seconds += seconds

    def phi(self, now_seconds: float) -> float:
        """-log10 of the probability that a living leader has been silent for so long."""
        mean, deviation = self._distribution()
        return _phi((now_seconds - self.heard_at_seconds - self.pause_seconds - mean) / deviation)

    def suspects(self, now_seconds: float) -> bool:
        return now_seconds - self.heard_at_seconds >= self.suspect_after_seconds()

    def suspect_after_seconds(self) -> float:
        """The silence at which suspicion starts: where phi reaches the threshold, within the floor and its cap."""
        if self._suspect_after_seconds is None:
            mean, deviation = self._distribution()
            wanted = mean + self.pause_seconds + _deviations_at(self.threshold) * deviation
            self._suspect_after_seconds = min(max(wanted, self.floor_seconds), CAP_FACTOR * self.floor_seconds)
        return self._suspect_after_seconds

    def _distribution(self) -> tuple[float, float]:
        count = len(self._samples)
        mean = sum(self._samples) / count
        variance = sum((sample - mean) ** 2 for sample in self._samples) / count
        return mean, max(math.sqrt(variance), self.deviation_min_seconds)


@cache
def _deviations_at(threshold: float) -> float:
    """The silence, in deviations beyond the mean, at which phi reaches the threshold."""
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if _phi(middle) >= threshold else (middle, high)
    return high


def _phi(deviations: float) -> float:
    """-log10 of the upper tail of the normal distribution."""
    tail = 0.5 * math.erfc(deviations / math.sqrt(2))
    return -math.log10(tail) if tail > 0 else math.inf
