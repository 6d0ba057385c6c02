"""KeyValueApp: a dict that every node of a cluster agrees on."""

from __future__ import annotations

from bisect import bisect_left

from gevent import monkey
from google.protobuf.message import DecodeError

from geraft.app import MakeSnapshot
from geraft.pb import kv_pb2 as pb
from geraft.simple import SimpleRaftApp

# The app's methods run on native threads, so the lock must be one of the operating system's in a patched process too.
_native_lock = monkey.get_original("_thread", "allocate_lock")

_parse = pb.Command.FromString
_DONE = pb.CommandReply(done=True).SerializeToString()
_NOT_DONE = pb.CommandReply().SerializeToString()


class KeyValueApp(SimpleRaftApp):
    """Keys are text, values bytes; geraft.kv.commands makes the commands and queries.

    What is no command is answered with `refused`, never raised about: it would be no command on a second try either.
    A query that is none raises ValueError. snapshot_every: after so many writes it asks for a copy, 0 for never.
    """

    def __init__(self, *, snapshot_every: int = 0) -> None:
        self._snapshot_every = snapshot_every
        self._writes = 0  # since the last copy
        self._values: dict[str, bytes] = {}
        self._lock = _native_lock()
        """Held by each write, and by a list while it copies, so that a list shows one moment."""
        self._keys_version = 0
        """Changes with the set of keys."""
        self._sorted: tuple[int, list[str]] = (0, [])
        """The keys in order, and the version they are of; made by the first list that needs them, not by writes."""

    def process_write(self, request: bytes, entry_index: int) -> bytes | tuple[bytes, MakeSnapshot]:
        if not self._snapshot_every:
            return self._write(request)
        reply = self._write(request)
        self._writes += 1
        if self._writes < self._snapshot_every:
            return reply
        self._writes = 0
        return reply, MakeSnapshot.COPY

    def _write(self, request: bytes) -> bytes:
        try:
            command = _parse(request)
        except DecodeError as error:
            return _refused(f"not a command: {error}")
        operation = command.WhichOneof("operation")
        values = self._values
        with self._lock:
            if operation == "put":
                put = command.put
                key = put.key
                if key in values:
                    values[key] = put.value
                    return _DONE
                values[key] = put.value
                self._keys_version += 1
                return _NOT_DONE
            if operation == "delete":
                if values.pop(command.delete.key, None) is None:
                    return _NOT_DONE
                self._keys_version += 1
                return _DONE
            if operation == "compare_and_set":
                swap = command.compare_and_set
                if values.get(swap.key) != (swap.expected if swap.HasField("expected") else None):
                    return _NOT_DONE
                if swap.key not in values:
                    self._keys_version += 1
                values[swap.key] = swap.value
                return _DONE
        return _refused("a command without an operation, or with one of a newer version")

    def process_read(self, request: bytes) -> bytes:
        try:
            query = pb.Query.FromString(request)
        except DecodeError as error:
            raise ValueError(f"not a query: {error}") from None
        match query.WhichOneof("operation"):
            case "get":
                key = query.get.key
                value = self._values.get(key)
                pairs = [] if value is None else [(key, value)]
            case "list":
                pairs = self._list(query.list.prefix, query.list.limit or None)
            case _:
                raise ValueError("a query without an operation, or with one of a newer version")
        return pb.QueryReply(pairs=[pb.Pair(key=key, value=value) for key, value in pairs]).SerializeToString()

    def snapshot(self) -> bytes:
        pairs = [pb.Pair(key=key, value=value) for key, value in sorted(self._values.items())]
        return pb.Snapshot(pairs=pairs).SerializeToString(deterministic=True)

    def restore(self, snapshot: bytes | None) -> None:
        pairs = pb.Snapshot.FromString(snapshot).pairs if snapshot is not None else ()
        values = {pair.key: pair.value for pair in pairs}
        with self._lock:
            self._values = values
            self._keys_version += 1

    def _list(self, prefix: str, limit: int | None) -> list[tuple[str, bytes]]:
        for _ in range(3):  # sort beside the writes, in the hope that none adds a key meanwhile
            self._sort_keys()
            with self._lock:
                if self._sorted[0] == self._keys_version:
                    return self._copy(prefix, limit)
        with self._lock:
            self._sort_keys()
            return self._copy(prefix, limit)

    def _sort_keys(self) -> None:
        version = self._keys_version  # before the keys are copied: if one is added meanwhile, the version tells
        if self._sorted[0] != version:
            self._sorted = (version, sorted(self._values))  # copies the keys in one step: writers can't come between

    def _copy(self, prefix: str, limit: int | None) -> list[tuple[str, bytes]]:
        keys, values = self._sorted[1], self._values
        pairs = []
        first = bisect_left(keys, prefix)
        for position in range(first, len(keys) if limit is None else min(len(keys), first + limit)):
            key = keys[position]
            if not key.startswith(prefix):
                break
            pairs.append((key, values[key]))
        return pairs


def _refused(reason: str) -> bytes:
    return pb.CommandReply(refused=reason).SerializeToString()
