"""An app that counts, for `geraft serve --app tally:Tally`: applying a command twice is never without effect."""

from __future__ import annotations

import json
import threading
from collections import Counter

from geraft.simple import SimpleRaftApp


class Tally(SimpleRaftApp):
    """A command is a name; the answer how often any was given so far. A read gives all counts as JSON."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.total = 0
        self._lock = threading.Lock()  # reads run beside the writes

    def process_write(self, request: bytes, entry_index: int) -> bytes:
        with self._lock:
            self.counts[request.decode()] += 1
            self.total += 1
        return b"%d" % self.total

    def process_read(self, request: bytes) -> bytes:
        with self._lock:
            return json.dumps(self.counts, sort_keys=True).encode()

    def snapshot(self) -> bytes:
        return self.process_read(b"")

    def restore(self, snapshot: bytes | None) -> None:
        self.counts = Counter(json.loads(snapshot or b"{}"))
        self.total = self.counts.total()
