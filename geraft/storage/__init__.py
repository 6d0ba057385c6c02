"""Where a node keeps its log, its vote and its identity.

base.py     RaftStorage: what a store must do
splice.py   what a write does to a log, wherever it is kept
holding.py  the lock, and what a fork does to it
memory.py   MemoryStorage
sqlite.py   SqliteStorage, the default: one file that any SQL tool can read
file.py     FileStorage: plain files that only grow; segment.py: one of them; steps.py: what stands in them
rocksdb.py  RocksdbStorage, which needs the extra `rocksdb` once it is used
"""

from geraft.storage.base import Identity, RaftStorage, StoredState, TermStart
from geraft.storage.file import FileStorage
from geraft.storage.memory import MemoryStorage
from geraft.storage.rocksdb import RocksdbStorage
from geraft.storage.sqlite import SqliteStorage

__all__ = [
    "FileStorage",
    "Identity",
    "MemoryStorage",
    "RaftStorage",
    "RocksdbStorage",
    "SqliteStorage",
    "StoredState",
    "TermStart",
]
