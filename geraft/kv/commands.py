"""Commands, queries and their answers as bytes; proto/kv.proto documents each."""

from __future__ import annotations

from typing import NamedTuple

from geraft.pb import kv_pb2 as pb


class CommandReply(NamedTuple):
    """What became of a command.

    done: put: a value was there before; delete: the key existed; compare_and_set: it was set.
    refused: why the command was refused; "" if it was not.
    """

    done: bool
    refused: str = ""


def put(key: str, value: bytes) -> bytes:
    """The command to set key to value."""
    return pb.Command(put=pb.Put(key=key, value=value)).SerializeToString()


def delete(key: str) -> bytes:
    """The command to remove key."""
    return pb.Command(delete=pb.Delete(key=key)).SerializeToString()


def compare_and_set(key: str, expected: bytes | None, value: bytes) -> bytes:
    """The command to set key to value only if its value is `expected`; None: only if it does not exist."""
    operation = pb.CompareAndSet(key=key, expected=expected, value=value)
    return pb.Command(compare_and_set=operation).SerializeToString()


def decode_command_reply(reply: bytes) -> CommandReply:
    record = pb.CommandReply.FromString(reply)
    return CommandReply(record.done, record.refused)


def get(key: str) -> bytes:
    """The query for the value of key; decode_value reads the answer."""
    return pb.Query(get=pb.Get(key=key)).SerializeToString()


def list_pairs(prefix: str = "", limit: int = 0) -> bytes:
    """The query for the keys that start with prefix, in order, at most limit of them (0: all); for decode_pairs."""
    return pb.Query(list=pb.List(prefix=prefix, limit=limit)).SerializeToString()


def decode_value(reply: bytes) -> bytes | None:
    """The value in the answer to get; None if the key does not exist."""
    pairs = pb.QueryReply.FromString(reply).pairs
    return pairs[0].value if pairs else None


def decode_pairs(reply: bytes) -> list[tuple[str, bytes]]:
    """Key and value of each pair in the answer to list_pairs."""
    return [(pair.key, pair.value) for pair in pb.QueryReply.FromString(reply).pairs]
