"""A replicated key-value store: the app that demo, serve, tests and benchmarks share.

app         KeyValueApp, a SimpleRaftApp over a dict
commands    what it understands, as bytes, and what it answers
"""

from geraft.kv.app import KeyValueApp
from geraft.kv.commands import (
    CommandReply,
    compare_and_set,
    decode_command_reply,
    decode_pairs,
    decode_value,
    delete,
    get,
    list_pairs,
    put,
)

__all__ = [
    "CommandReply",
    "KeyValueApp",
    "compare_and_set",
    "decode_command_reply",
    "decode_pairs",
    "decode_value",
    "delete",
    "get",
    "list_pairs",
    "put",
]
