"""Where a node keeps its log, its vote and its identity.

base.py     RaftStorage: what a store must do
splice.py   what a write does to a log, wherever it is kept
memory.py   MemoryStorage
sqlite.py   SqliteStorage, the default: one file that any SQL tool can read
"""

from geraft.storage.base import Identity, RaftStorage, StoredState, TermStart
from geraft.storage.memory import MemoryStorage
from geraft.storage.sqlite import SqliteStorage

__all__ = ["Identity", "MemoryStorage", "RaftStorage", "SqliteStorage", "StoredState", "TermStart"]
