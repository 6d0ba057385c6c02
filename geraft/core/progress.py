"""What a leader knows of one follower, and how much it may send it (Raft dissertation 10.2.2)."""

from __future__ import annotations

import math
from collections import deque
from enum import Enum

from geraft.core.snapshots import Snapshot


class Pace(Enum):
    PROBE = "probe"
    """Where the logs part is not known: one empty message at a time."""
    PIPELINE = "pipeline"
    """Each batch leaves at once, as far as the window lets it."""
    LOAD = "load"
    """Waiting for entries from the store."""
    SNAPSHOT = "snapshot"
    """Its next entry is gone here: waiting until it has installed the snapshot that it was offered."""


class Progress:
    """next_index: of the next entry to send. match_index: the follower is known to hold everything up to it.

    offered: the snapshot it was offered, until it has come as far as our newest one by means of it.
    """

    __slots__ = (
        "acked_round",
        "applied_index",
        "heard_at_seconds",
        "inflight",
        "inflight_bytes",
        "match_index",
        "moved_at_seconds",
        "next_index",
        "offered",
        "pace",
        "silent_until_seconds",
        "priority",
    )

    def __init__(self, *, next_index: int, now_seconds: float) -> None:
        self.next_index = next_index
        self.match_index = 0
        self.pace = Pace.PROBE
        self.inflight: deque[tuple[int, int]] = deque()  # (last index, bytes) of each message on its way
        self.inflight_bytes = 0
        self.heard_at_seconds = now_seconds
        self.moved_at_seconds = now_seconds  # when a probe was sent, or the oldest message in flight was answered
        self.acked_round = 0
        self.applied_index = 0  # how far its app is, as it last said
        self.silent_until_seconds = -math.inf  # until then, by our clock, it helps nobody else to lead
        self.priority = 0  # as the follower told last
        self.offered: Snapshot | None = None

    def sent(self, last_index: int, size_bytes: int, now_seconds: float) -> None:
        if not self.inflight:
            self.moved_at_seconds = now_seconds
        self.inflight.append((last_index, size_bytes))
        self.inflight_bytes += size_bytes
        self.next_index = last_index + 1

    def acknowledged(self, match_index: int, now_seconds: float) -> None:
        self.match_index = max(self.match_index, match_index)
        inflight = self.inflight
        while inflight and inflight[0][0] <= match_index:
            self.inflight_bytes -= inflight.popleft()[1]
            self.moved_at_seconds = now_seconds
        self.next_index = max(self.next_index, self.match_index + 1)

    def probe_from(self, next_index: int) -> None:
        """Forget what is in flight and ask again whether the logs agree before next_index."""
        self.pace = Pace.PROBE
        self.next_index = max(next_index, self.match_index + 1)
        self.inflight.clear()
        self.inflight_bytes = 0

    def await_install(self, snapshot: Snapshot, now_seconds: float) -> None:
        """Send nothing more until the follower has the snapshot."""
        self.probe_from(self.next_index)
        self.pace = Pace.SNAPSHOT
        self.offered = snapshot
        self.moved_at_seconds = now_seconds
