"""An audit trail: who led, who was a member, which snapshots were made. A line of JSON each, appended to one file.

The file is named by GERAFT_AUDIT_FILE; without it nothing is written.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any

from geraft import signals

EVENTS = ("node_started", "node_stopping", "leader_changed", "configuration_changed")
"""What is noted, beside every signal of snapshots; one that this geraft does not send yet is left out."""


class Audit:
    """Appends to the file at path. Several processes may share it: a line is one write."""

    def __init__(self, path: str) -> None:
        self.path = path
        names = [name for name in signals.__all__ if name in EVENTS or name.startswith("snapshot_")]
        # blinker holds receivers weakly: these are kept here.
        self._receivers = {name: self._receiver(name) for name in names}

    def connect(self) -> None:
        for name, receiver in self._receivers.items():
            getattr(signals, name).connect(receiver)

    def disconnect(self) -> None:
        for name, receiver in self._receivers.items():
            getattr(signals, name).disconnect(receiver)

    def _receiver(self, event: str) -> Any:
        def note(node: Any, **details: Any) -> None:
            moment = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = json.dumps({"at": moment, "node": node.id, "event": event, **details}, default=str)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")

        return note


_audit: Audit | None = None


def connect() -> None:
    """The plugin."""
    global _audit
    path = os.environ.get("GERAFT_AUDIT_FILE", "")
    if path:
        _audit = Audit(path)
        _audit.connect()
