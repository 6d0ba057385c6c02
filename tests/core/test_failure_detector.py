"""When a silence becomes suspicious. Each test is a run in which a plainer detector does badly (FLAWS L15)."""

from __future__ import annotations

import pytest

from geraft.core.failure_detector import CAP_FACTOR, FailureDetector


def watch(*, floor_seconds: float = 1.0, pause_seconds: float = 0.5) -> FailureDetector:
    return FailureDetector(
        expected_seconds=0.1,
        deviation_min_seconds=0.1,
        pause_seconds=pause_seconds,
        threshold=8.0,
        floor_seconds=floor_seconds,
        now_seconds=0.0,
    )


def hear(detector: FailureDetector, *intervals: float) -> float:
    now = detector.heard_at_seconds
    for interval in intervals:
        now += interval
        detector.heard(now)
    return now


def test_ten_thousand_regular_heartbeats_do_not_make_it_nervous() -> None:
    detector = watch()
    now = hear(detector, *[0.1] * 10_000)
    assert not detector.suspects(now + 0.6), "a pause of half a second is allowed"
    assert detector.suspects(now + 1.5)


def test_no_suspicion_before_the_floor() -> None:
    """Leases rest on it: however sure the detector is, it says nothing earlier."""
    detector = watch(floor_seconds=3.0, pause_seconds=0.01)
    now = hear(detector, *[0.1] * 100)
    assert detector.phi(now + 2.9) > 100
    assert not detector.suspects(now + 2.99)
    assert detector.suspects(now + 3.01)


def test_the_allowed_pause_is_added() -> None:
    assert watch(pause_seconds=2.5).suspect_after_seconds() == pytest.approx(watch().suspect_after_seconds() + 2.0)


def test_one_long_outage_does_not_make_it_slow() -> None:
    detector = watch()
    now = hear(detector, *[0.1] * 100, 60.0, *[0.1] * 10)
    assert detector.suspects(now + 2.0), "the outage counts as one sample of a second, not of a minute"


def test_one_late_heartbeat_of_a_new_leader_does_not_make_it_slow() -> None:
    detector = watch()
    now = hear(detector, 1.0)
    assert detector.suspects(now + 2.5)


def test_irregular_heartbeats_make_it_patient_within_the_cap() -> None:
    regular, irregular = watch(), watch()
    hear(regular, *[0.1] * 100)
    hear(irregular, *[0.1, 0.9] * 50)
    assert regular.suspect_after_seconds() < irregular.suspect_after_seconds() <= CAP_FACTOR * 1.0


def test_each_leader_is_judged_by_its_own_heartbeats() -> None:
    detector = watch()
    now = hear(detector, *[0.1, 0.9] * 50)
    detector.restart(now)
    assert detector.suspect_after_seconds() == watch().suspect_after_seconds()


def test_signs_of_life_that_come_together_are_one() -> None:
    """A burst of appends says nothing of how regular the heartbeats are."""
    detector = watch()
    now = hear(detector, *[0.1] * 5)
    before = detector.suspect_after_seconds()
    for _ in range(1000):
        detector.heard(now)
        now += 0.0001
        detector.heard(now)
    assert detector.suspect_after_seconds() == before
    assert detector.heard_at_seconds == now


def test_our_own_pause_is_not_the_leaders() -> None:
    detector = watch()
    now = hear(detector, *[0.1] * 20) + 10.0
    assert detector.suspects(now)
    detector.forgive(10.0)
    assert not detector.suspects(now + 0.9)


def test_a_clock_that_stands_still_or_goes_back_is_no_sample() -> None:
    detector = watch()
    now = hear(detector, 0.1)
    detector.heard(now)
    detector.heard(now - 5.0)
    assert detector.heard_at_seconds == now


def test_phi_grows_with_silence() -> None:
    detector = watch()
    values = [detector.phi(seconds / 10) for seconds in range(1, 30)]
    assert values == sorted(values)
    assert values[0] < 1 < values[-1]
