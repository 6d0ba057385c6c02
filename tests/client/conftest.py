"""What the tests of the client share."""

from __future__ import annotations

import pytest

from geraft.client import gateway, retry, session
from geraft.transport.peer import channel_options

LATE_MS = 20_000


def patient_channel_options(bytes_max: int, keepalive_ms: int) -> list[tuple[str, int]]:
    late = dict.fromkeys(["min_reconnect_backoff_ms", "keepalive_timeout_ms", "http2.ping_timeout_ms"], LATE_MS)
    ours = dict(channel_options(bytes_max, keepalive_ms))
    return list({**ours, **{f"grpc.{name}": value for name, value in late.items()}}.items())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is late is waited for, 20 s: it is not passed over, and what it was sent is not sent once more.

    So what comes to which server does not depend on how busy the machine is, and to wait for one that never answers
    takes longer than a busy machine may need. For clients with 30 s.
    """
    monkeypatch.setattr(gateway, "channel_options", patient_channel_options)
    monkeypatch.setattr(gateway, "POLL_SECONDS", 60.0)
    monkeypatch.setattr(gateway, "PROBE_SECONDS", LATE_MS / 1000)
    monkeypatch.setattr(retry, "ATTEMPT_SECONDS", LATE_MS / 1000)
    monkeypatch.setattr(session, "ATTEMPT_SECONDS", LATE_MS / 1000)
    monkeypatch.setattr(session, "CLOSE_SECONDS", LATE_MS / 1000)
