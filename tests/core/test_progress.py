"""What the leader knows of one follower."""

from __future__ import annotations

from geraft.core.progress import Pace, Progress


def test_next_runs_ahead_of_match_while_messages_are_on_their_way() -> None:
    progress = Progress(next_index=5, now_seconds=0.0)
    progress.sent(9, 100, 1.0)
    progress.sent(12, 50, 2.0)
    assert (progress.next_index, progress.match_index, progress.inflight_bytes) == (13, 0, 150)
    progress.acknowledged(9, 3.0)
    assert (progress.next_index, progress.match_index, progress.inflight_bytes) == (13, 9, 50)
    assert progress.moved_at_seconds == 3.0


def test_one_answer_may_acknowledge_several_messages() -> None:
    progress = Progress(next_index=5, now_seconds=0.0)
    progress.sent(6, 10, 0.0)
    progress.sent(7, 10, 0.0)
    progress.acknowledged(7, 1.0)
    assert (list(progress.inflight), progress.inflight_bytes) == ([], 0)


def test_match_never_falls() -> None:
    progress = Progress(next_index=5, now_seconds=0.0)
    progress.acknowledged(7, 1.0)
    progress.acknowledged(3, 1.0)
    progress.probe_from(2)
    assert (progress.match_index, progress.next_index, progress.pace) == (7, 8, Pace.PROBE)


def test_a_probe_forgets_what_is_on_its_way() -> None:
    progress = Progress(next_index=5, now_seconds=0.0)
    progress.pace = Pace.PIPELINE
    progress.sent(9, 100, 0.0)
    progress.probe_from(3)
    assert (progress.next_index, list(progress.inflight), progress.inflight_bytes) == (3, [], 0)


def test_the_time_counts_from_the_oldest_message_on_its_way() -> None:
    progress = Progress(next_index=1, now_seconds=0.0)
    progress.sent(1, 1, 5.0)
    progress.sent(2, 1, 6.0)
    assert progress.moved_at_seconds == 5.0
